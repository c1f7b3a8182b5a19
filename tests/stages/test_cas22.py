"""Guarantees of the older least-squares fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.ramp_fit.cas22 import fit_cas22
from stages.ramp_fit.image import RateImage
from stream.stage import Slot

FRAME_TIME = 3.04
PATTERN = [[1], [2, 3], [5, 6, 7, 8], [10, 11], [12, 13], [14, 15, 16, 17, 18, 19], [21, 22]]
TIMES = np.array([np.mean(reads) for reads in PATTERN]) * FRAME_TIME


def fit(ramps: np.ndarray, groupdq: np.ndarray | None = None, **arguments: Any) -> RateImage:
    """Fit a frame of one science row with the given ramps (pixels, n)."""
    pixels, n = ramps.shape
    data = np.zeros((n, 9, pixels + 8), "f4")
    data[:, 4, 4:-4] = ramps.T
    flags = np.zeros(data.shape, "u1")
    if groupdq is not None:
        flags[:, 4, 4:-4] = groupdq.T
    planes = {"gain": np.full(data.shape[1:], 2, "f4"), "readnoise": np.full(data.shape[1:], 5, "f4")}
    for name in planes.keys() & arguments.keys():
        planes[name][4, 4:-4] = arguments.pop(name)
    return fit_cas22(
        data, flags, np.zeros(data.shape[1:], "u4"), read_pattern=PATTERN[:n], frame_time=FRAME_TIME, slot=Slot(),
        with_var_rnoise=True, **planes, **arguments,
    )  # fmt: skip


def test_straight_ramp_gives_its_slope_whatever_is_flagged() -> None:
    rng = np.random.default_rng(2)
    groupdq = (rng.random((300, 7)) < 0.3).astype("u1")
    groupdq[:, :2] = 0  # always one run of two
    image = fit(np.tile(TIMES * 20, (300, 1)), groupdq)
    np.testing.assert_allclose(image.data[0], 20, rtol=1e-5)
    np.testing.assert_array_equal(image.dq, 0)
    assert (image.err > 0).all()


def test_jump_is_found_and_both_of_its_resultants_are_left_out() -> None:
    ramps = np.tile(TIMES * 20, (5, 1))
    for k in range(1, 5):
        ramps[k, k + 1 :] += 3000
    image = fit(ramps)
    np.testing.assert_array_equal(image.dq[0], [0, 4, 4, 4, 4])
    np.testing.assert_allclose(image.data[0], 20, rtol=1e-4)
    blind = fit(ramps, search_jumps=False)
    assert (blind.data[0, 1:] > 25).all()
    high = fit(ramps, intercept=1e6)
    np.testing.assert_array_equal(high.data, blind.data)


def test_pixels_without_two_good_neighbours_have_rate_zero_and_are_not_to_be_used() -> None:
    groupdq = np.zeros((3, 7), "u1")
    groupdq[0] = 2
    groupdq[1, ::2] = 1
    image = fit(np.tile(TIMES * 20, (3, 1)), groupdq)
    np.testing.assert_array_equal(image.data[0, :2], 0)
    np.testing.assert_array_equal(image.dq[0], [3, 1, 0])


def test_bad_gains_are_flagged() -> None:
    image = fit(np.tile(TIMES * 20, (4, 1)), gain=np.array([2, -2, np.nan, np.inf], "f4"))
    np.testing.assert_array_equal((image.dq[0] & (1 << 19)) > 0, [False, True, True, True])


@pytest.mark.parametrize("resultants", [1, 2, 3])
def test_short_ramps_are_accepted(resultants: int) -> None:
    image = fit(np.tile(TIMES[:resultants] * 20, (2, 1)))
    expected = 0 if resultants == 1 else 20
    np.testing.assert_allclose(image.data[0], expected, rtol=1e-5)
    assert not image.chisq.any()
