"""Overlaps of many groups at once: equal to those of pairs, and remembered no longer than they are true."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tweakreg.hull import SkyPolygon, bounding_circle, common_solid_angle, hull_of_stars, packed
from stages.tweakreg.relative import _Outlines, _Reach
from stages.tweakreg.solid_angle import group_overlaps, overlaps_with
from stages.tweakreg.tangent_plane import unit_vectors


def stars(rng, count, *, ra=(9.5, 10.5), dec=(49.6, 50.4)):
    return unit_vectors(rng.uniform(*ra, count), rng.uniform(*dec, count))


def scattered(rng, groups):
    """Groups of one to three polygons around some stars each, some apart, some overlapping."""
    made = []
    for _ in range(groups):
        middles = rng.uniform([9.5, 49.6], [10.5, 50.4], (rng.integers(1, 4), 2))
        made.append(
            [
                hull_of_stars(stars(rng, 30, ra=(ra - 0.15, ra + 0.15), dec=(dec - 0.1, dec + 0.1)))
                for ra, dec in middles
            ]
        )
    return made


class Outlined(_Outlines):
    """Outlines of polygons that are given."""

    def __init__(self, polygons):
        self._polygons = packed(polygons)
        self._inside = np.zeros(len(self._polygons.radii), dtype=bool)
        self.computed = 0

    def overlaps_with(self, hull, groups, *, grown):
        self.computed += 1
        return super().overlaps_with(hull, groups, grown=grown)


def one_by_one(group, polygon):
    return sum(common_solid_angle(own, polygon) for own in group)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_overlaps_of_groups_are_the_sums_of_those_of_their_polygons(seed):
    groups = scattered(np.random.default_rng(seed), 6)
    circles = [bounding_circle(group) for group in groups]
    found = group_overlaps(packed(groups), np.array([c for c, _ in circles]), np.array([r for _, r in circles]))
    expected = [[0.0 if a is b else sum(one_by_one(a, polygon) for polygon in b) for b in groups] for a in groups]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-18)
    assert np.count_nonzero(found) > 0


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_overlaps_with_a_growing_hull_are_those_with_the_hull_of_all_stars(seed):
    rng = np.random.default_rng(seed)
    groups = scattered(rng, 8)
    together = stars(rng, 20, ra=(9.9, 10.1), dec=(49.9, 50.1))
    reach = _Reach(together, Outlined(groups))
    waiting = list(range(len(groups)))
    for step in range(1, 6):
        expected = [one_by_one(groups[k], hull_of_stars(together)) for k in waiting]
        np.testing.assert_allclose(reach.overlaps(waiting), expected, rtol=1e-9, atol=1e-18)
        waiting.pop(int(rng.integers(len(waiting))))
        added = stars(rng, 15, ra=(10 - 0.1 * step, 10 + 0.1 * step), dec=(50 - 0.08 * step, 50 + 0.08 * step))
        together = np.hstack([together, added])
        reach.add(added)


def test_a_hull_that_does_not_grow_is_not_asked_again():
    rng = np.random.default_rng(1)
    outlines = Outlined(scattered(rng, 4))
    reach = _Reach(stars(rng, 200), outlines)
    first = reach.overlaps([0, 1, 2, 3])
    reach.add(stars(rng, 50, ra=(9.9, 10.1), dec=(49.9, 50.1)))
    assert reach.overlaps([1, 3]) == [first[1], first[3]]
    assert outlines.computed == 1


@pytest.mark.parametrize("count", [1, 2])
def test_the_box_around_a_point_or_a_line_is_forgotten_when_there_is_a_hull(count):
    rng = np.random.default_rng(2)
    groups = scattered(rng, 5)
    line = stars(rng, count)
    reach = _Reach(line, Outlined(groups))
    boxed = reach.overlaps(range(5))
    assert boxed == pytest.approx([sum(polygon.area for polygon in group) for group in groups])
    added = stars(rng, 10, ra=(9.9, 10.1), dec=(49.9, 50.1))
    reach.add(added)
    expected = [one_by_one(group, hull_of_stars(np.hstack([line, added]))) for group in groups]
    np.testing.assert_allclose(reach.overlaps(range(5)), expected, rtol=1e-9, atol=1e-18)


def test_what_was_inside_is_not_asked_again_and_what_was_not_is():
    rng = np.random.default_rng(3)
    inner = SkyPolygon(unit_vectors(np.array([10.0, 10.1, 10.1, 10.0]), np.array([50.0, 50.0, 50.1, 50.1])))
    outer = SkyPolygon(unit_vectors(np.array([10.4, 10.6, 10.6, 10.4]), np.array([50.0, 50.0, 50.1, 50.1])))
    hull = hull_of_stars(stars(rng, 100, ra=(9.8, 10.5), dec=(49.8, 50.3)))
    inside = np.zeros(2, dtype=bool)
    found = overlaps_with(packed([[inner], [outer]]), np.arange(2), packed([[hull]]), inside)
    assert inside.tolist() == [True, False]
    assert found[0] == inner.area
    assert found[1] == pytest.approx(common_solid_angle(outer, hull), rel=1e-12)
    assert 0 < found[1] < outer.area
