"""Matching in the plane: the histogram, its peak, and the rules of the nearest-neighbour search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tweakreg.matching import AlignmentError, estimate_shift, match_positions, mean_positions

RULES = {"searchrad": 6.0, "separation": 1.0, "tolerance": 0.7, "use2dhist": True, "pixel_scale": 0.11}


def library_shift(image, reference, searchrad, pixel_scale):
    """The field's library on the same lists."""
    from tweakwcs.matchutils import _estimate_2dhist_shift

    return _estimate_2dhist_shift(image, reference, searchrad=searchrad, pscale=pixel_scale)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.5, 6.0), st.floats(0.05, 0.9))
def test_shift_equals_the_library_bit_for_bit(seed, count, searchrad, pixel_scale):
    rng = np.random.default_rng(seed)
    reference = rng.uniform(-20, 20, (count, 2))
    image = reference + rng.uniform(-1, 1, 2) * searchrad + rng.normal(0, pixel_scale, reference.shape)
    ours = estimate_shift(image, reference, searchrad=searchrad, pixel_scale=pixel_scale)
    theirs = library_shift(image, reference, searchrad, pixel_scale)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_no_pair_within_the_radius_means_no_shift():
    assert estimate_shift(np.zeros((1, 2)), np.full((1, 2), 50.0), searchrad=6.0, pixel_scale=0.11) == (0.0, 0.0)


def test_zero_shift_comes_out_up_to_a_bin_too_large_as_in_the_mission_s_software():
    points = np.array([[0.0, 0.0]])
    shift = estimate_shift(points, points, searchrad=6.0, pixel_scale=0.11)
    assert shift == pytest.approx((55 * 0.11 - 6.0,) * 2, abs=1e-12)


def test_pairs_are_found_across_a_shift():
    rng = np.random.default_rng(1)
    reference = rng.uniform(-200, 200, (300, 2))
    order = rng.permutation(300)
    image = (reference + np.array([3.0, -4.0]))[order]
    image_index, reference_index = match_positions(image, reference, **RULES)
    np.testing.assert_array_equal(order[image_index], reference_index)
    assert len(image_index) > 250


def test_without_the_histogram_only_close_pairs_match():
    reference = np.array([[0.0, 0.0], [50.0, 0.0]])
    image = reference + np.array([[0.5, 0.0], [3.0, 0.0]])
    image_index, reference_index = match_positions(image, reference, **{**RULES, "use2dhist": False})
    assert (image_index.tolist(), reference_index.tolist()) == ([0], [0])


def test_of_two_close_sources_the_lower_one_stays():
    image = np.array([[0.0, 0.5], [0.0, 0.0], [30.0, 0.0]])
    reference = np.array([[0.0, 0.25], [30.0, 0.0]])
    image_index, _ = match_positions(image, reference, **{**RULES, "use2dhist": False})
    assert image_index.tolist() == [2, 1] or image_index.tolist() == [1, 2]


def test_rows_without_a_position_are_never_matched():
    reference = np.array([[np.nan, 0.0], [0.0, 0.0]])
    image = np.array([[np.nan, np.nan], [0.1, 0.0]])
    image_index, reference_index = match_positions(image, reference, **{**RULES, "use2dhist": False})
    assert (image_index.tolist(), reference_index.tolist()) == ([1], [1])
    nothing = np.full((2, 2), np.nan)
    assert len(match_positions(nothing, reference, **RULES)[0]) == 0


def test_separation_must_exceed_the_tolerance_by_sqrt_2():
    points = np.zeros((1, 2))
    with pytest.raises(AlignmentError, match="must be larger than sqrt"):
        match_positions(points, points, **{**RULES, "separation": 0.7 * np.sqrt(2)})


def test_more_matches_than_sources_is_confusion():
    reference = np.array([[-0.55, 0.0], [0.55, 0.0]])
    with pytest.raises(AlignmentError, match="exceeded allocation"):
        match_positions(np.zeros((1, 2)), reference, **{**RULES, "use2dhist": False})


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 9))
def test_sightings_of_a_source_are_averaged_and_those_of_others_left_alone(seed, sources, times):
    rng = np.random.default_rng(seed)
    places = np.column_stack([5.0 * np.arange(sources), rng.uniform(-3, 3, sources)])
    seen = np.vstack([places + rng.normal(0, 0.01, places.shape) for _ in range(times)])
    order = rng.permutation(len(seen))
    found = mean_positions(np.vstack([seen[order], [[np.nan, 0.0]]]), 1.0)
    expected = seen.reshape(times, sources, 2).mean(axis=0)
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], expected, atol=1e-12)


def test_a_position_belongs_to_the_lowest_source_within_the_radius():
    chain = np.array([[0.0, 0.0], [0.0, 0.9], [0.0, 1.8], [0.5, 1.8]])
    np.testing.assert_allclose(mean_positions(chain, 1.0), [[0.0, 0.45], [0.25, 1.8]])
    assert mean_positions(np.zeros((0, 2)), 1.0).shape == (0, 2)
