from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from stages.dq import PixelDQ
from stages.saturation import SaturationParameters, SaturationStage, flag_saturation
from stages.step import SATURATED_BRANCH
from stream.failure import PermanentError
from stream.stage import Slot
from tests.stages.ramp_frames import FakeReference, ramp_exposure

T = 60000.0


def _flags(values: list[float], pattern: list[list[int]] | None = None, **kwargs: Any) -> list[int]:
    """Group flags of one pixel with the threshold 60000."""
    data = np.full((len(values), 8, 16), 100, np.float32)
    data[:, 4, 5] = values
    groupdq = np.zeros(data.shape, np.uint8)
    pattern = [[i + 1] for i in range(len(values))] if pattern is None else pattern
    level = np.full((8, 16), T, np.float32)
    none = np.zeros((8, 16), np.uint32)
    flag_saturation(data, groupdq, none.copy(), level, none, pattern, **kwargs)
    others = groupdq.copy()
    others[:, 4, 5] = 0
    assert not others.any() or kwargs.get("n_pix_grow_sat")
    return [int(flag) for flag in groupdq[:, 4, 5]]


def test_the_threshold_itself_is_saturated_and_so_is_all_after() -> None:
    assert _flags([0.5, 20000, 40000, 60000, 62000]) == [0, 0, 0, 2, 2]
    assert _flags([10, 60001, 20, 30, 40]) == [0, 2, 2, 2, 2]
    assert _flags([70000] * 4) == [2] * 4


def test_an_average_that_hides_saturation_is_not_used() -> None:
    flags = _flags([1, 20000, 40000, 60000, 62000, 62000], [[1], [2], list(range(3, 11)), [11], [12], [13]])
    assert flags == [0, 0, 1, 2, 2, 2]


def test_a_second_resultant_that_jumps_to_saturation_is_not_used() -> None:
    assert _flags([100, 20100, 62000], [[1], [2, 3, 4], [5]]) == [0, 1, 2]
    assert _flags([100, 10100, 62000], [[1], [2, 3, 4], [5]]) == [0, 0, 2]


def test_values_at_the_floor_are_flagged_in_their_resultant_alone() -> None:
    assert _flags([-1, 5, 0, 61000, -2]) == [65, 0, 65, 2, 67]


def test_nan_is_never_flagged() -> None:
    assert _flags([np.nan, 5, np.nan]) == [0, 0, 0]


@pytest.mark.parametrize(
    ("backup", "expected"), [(0, [0, 0, 0, 2]), (1, [0, 0, 2, 2]), (2, [0, 2, 2, 2]), (3, [0, 2, 2, 2])]
)
def test_backup_reaches_averaged_resultants_but_not_single_reads(backup: int, expected: list[int]) -> None:
    assert _flags([10, 20, 30, 60000], [[1], [2, 3], [4, 5], [6, 7]], backup=backup) == expected


@pytest.mark.parametrize("level", [np.nan, T])
def test_unchecked_pixels_get_no_saturation(level: float) -> None:
    exposure = ramp_exposure(np.full((3, 8, 16), 65000.0), pixeldq=np.full((8, 16), 5, np.uint32))
    flags = np.full((8, 16), 10 if np.isnan(level) else 10 | int(PixelDQ.NO_SAT_CHECK), np.uint32)
    reference = FakeReference(data=np.full((8, 16), level, np.float32), dq=flags)
    SaturationStage().run(exposure, {"saturation": reference}, SaturationParameters(), Slot())
    assert not exposure.arrays["groupdq"].any()
    assert np.all(exposure.arrays["pixeldq"] == 15 | int(PixelDQ.NO_SAT_CHECK))


def test_a_wholly_saturated_exposure_leaves_for_its_own_branch() -> None:
    exposure = ramp_exposure(np.full((3, 8, 16), 65000.0))
    reference = FakeReference(data=np.full((8, 16), T, np.float32), dq=np.zeros((8, 16), np.uint32))
    stage = SaturationStage()
    assert stage.run(exposure, {"saturation": reference}, SaturationParameters(), Slot()).branch == SATURATED_BRANCH
    assert exposure.meta["cal_step"]["saturation"] == "COMPLETE"
    exposure.arrays["groupdq"][1, 7, 15] = 1
    assert stage.run(exposure, {"saturation": None}, SaturationParameters(), Slot()).branch is None
    exposure.arrays["pixeldq"][:] = 2
    assert stage.run(exposure, {"saturation": None}, SaturationParameters(), Slot()).branch == SATURATED_BRANCH


def test_without_a_reference_nothing_changes() -> None:
    exposure = ramp_exposure(np.full((3, 8, 16), -5.0))
    SaturationStage().run(exposure, {"saturation": None}, SaturationParameters(), Slot())
    assert exposure.meta["cal_step"]["saturation"] == "SKIPPED"
    assert not exposure.arrays["groupdq"].any()
    assert not exposure.versions


def test_a_reference_of_another_shape_is_refused_by_its_name() -> None:
    exposure = ramp_exposure(np.zeros((3, 8, 16)))
    reference = FakeReference("/r/sat.asdf", data=np.zeros((4, 4), np.float32), dq=np.zeros((4, 4), np.uint32))
    with pytest.raises(PermanentError, match=r"/r/sat\.asdf: data has shape"):
        SaturationStage().run(exposure, {"saturation": reference}, SaturationParameters(), Slot())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), grow=st.integers(1, 3))
def test_growth_equals_binary_dilation_up_to_the_edges(seed: int, grow: int) -> None:
    rng = np.random.default_rng(seed)
    data = np.where(rng.random((2, 12, 20)) < 0.05, 65000, 100).astype(np.float32)
    groupdq = np.zeros(data.shape, np.uint8)
    none = np.zeros((12, 20), np.uint32)
    flag_saturation(data, groupdq, none.copy(), np.full((12, 20), T, np.float32), none, [[1], [2]], n_pix_grow_sat=grow)
    over = np.logical_or.accumulate(data >= T, axis=0)
    box = np.ones((2 * grow + 1, 2 * grow + 1), bool)
    for g in range(2):
        np.testing.assert_array_equal(groupdq[g] == 2, ndimage.binary_dilation(over[g], box))


@pytest.mark.parametrize("grow", [0, 1])
def test_threads_do_not_change_a_flag(grow: int) -> None:
    rng = np.random.default_rng(1)
    data = np.cumsum(rng.exponential(20000, (4, 300, 16)), axis=0).astype(np.float32)
    results = []
    for threads in (1, 2):
        groupdq = np.zeros(data.shape, np.uint8)
        none = np.zeros((300, 16), np.uint32)
        level = np.full((300, 16), T, np.float32)
        pattern = [[1], [2, 3], [4, 5], [6]]
        flag_saturation(data, groupdq, none.copy(), level, none, pattern, n_pix_grow_sat=grow, slot=Slot(threads))
        results.append(groupdq)
    np.testing.assert_array_equal(*results)
    assert results[0].any()
