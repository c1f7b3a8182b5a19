"""Guarantees of ramp fitting that need no oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.exposure import CAL_STEP_KEYS, Exposure, Level
from stages.ramp_fit import RampFit, RampFitParameters
from stages.ramp_fit.image import RateImage, jump_indices, uniform_weights
from stages.ramp_fit.likelihood import covariance_constants, fit_likelihood, resultant_times
from stages.saturated import SKIPPED_STEPS, become_saturated_image
from stream.failure import PermanentError
from stream.stage import Slot

FRAME_TIME = 3.04
SINGLE_READS = [[1], [2], [3], [4]]
PATTERN = [[1], [2, 3], [5, 6, 7, 8], [10, 11], [12, 13], [14, 15, 16, 17, 18, 19]]
PIXELS = np.array([(2, 4, 5, 7), (2, 5, 6, 7), (5, 6, 7, 7), (1, 2, 6, 7)], "f4")
BORDER = 4


class FakeReference:
    recorded_name = "/references/plane.asdf"
    path = "plane.asdf"

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def array(self, *keys: str) -> np.ndarray:
        return {("data",): self.data}[keys]


def frame(ramps: np.ndarray) -> np.ndarray:
    """A frame of one science row whose pixels have the given ramps (pixels, n), with borders of zeros."""
    cube = np.zeros((ramps.shape[1], 1 + 2 * BORDER, ramps.shape[0] + 2 * BORDER), ramps.dtype)
    cube[:, BORDER, BORDER:-BORDER] = ramps.T
    return cube


def make_exposure(data: np.ndarray, pattern: list[list[int]], groupdq: np.ndarray | None = None) -> Exposure:
    n, rows, columns = data.shape
    return Exposure(
        id="r0000101001001001001_0001_wfi01",
        level=Level.RAMP,
        meta={
            "exposure": {"read_pattern": pattern, "frame_time": FRAME_TIME, "type": "WFI_IMAGE"},
            "ref_file": {"gain": "?", "readnoise": "?", "dark": "?"},
            "cal_step": {"saturation": "COMPLETE", "somebody_elses": "COMPLETE"},
        },
        arrays={
            "data": data.copy(),
            "groupdq": np.zeros(data.shape, "u1") if groupdq is None else groupdq.copy(),
            "pixeldq": np.zeros((rows, columns), "u4"),
            "amp33": np.ones((n, rows, 128), "u2"),
            "border_ref_pix_left": np.ones((n, rows, 4), "f4"),
            "dq_border_ref_pix_top": np.ones((4, columns), "u4"),
        },
        extras={"resultantdq": 1},
    )


def fit(
    data: np.ndarray,
    pattern: list[list[int]],
    *,
    gain: float | np.ndarray = 1.0,
    readnoise: float | np.ndarray = 0.01,
    groupdq: np.ndarray | None = None,
    threads: int = 1,
    **parameters: Any,
) -> Exposure:
    exposure = make_exposure(data, pattern, groupdq)
    plane = data.shape[1:]
    references = {
        "gain": FakeReference(np.broadcast_to(np.float32(gain), plane)),
        "readnoise": FakeReference(np.broadcast_to(np.float32(readnoise), plane)),
    }
    RampFit().run(exposure, references, RampFitParameters(**parameters), Slot(threads=threads))  # type: ignore[arg-type]
    return exposure


# Numbers of the mission's acceptance cases.
ACCEPTANCE: list[tuple[dict[str, Any], dict[str, list[float]]]] = [
    (
        {"gain": 1, "readnoise": 0.01},
        {
            "data": [0.54824126, 0.54824126, 0.21930373, 0.6579057],
            "err": [0.2452, 0.2452, 0.155, 0.2686],
            "var_poisson": [0.06012, 0.06012, 0.02405, 0.07214],
            "var_rnoise": [2.4e-6] * 4,
            "chisq": [0.4, 1.6, 0.9995, 3.0],
        },
    ),
    (
        {"gain": 5, "readnoise": 0.01},
        {
            "data": [0.54822373, 0.54822373, 0.21932559, 0.32894737],
            "err": [0.1097, 0.1097, 0.0694, 0.10406],
            "chisq": [1.998, 7.996, 4.992, 0],
        },
    ),
    (
        {"gain": 1, "readnoise": 100},
        {"data": [0.5263168, 0.5263168, 0.23026292, 0.72367984], "err": [14.71] * 4, "var_rnoise": [216.4] * 4},
    ),
    (
        {"gain": 1, "readnoise": 0.01, "algorithm": "ols_cas22"},
        {
            "data": [0.52631587, 0.52631587, 0.23026317, 0.7236843],
            "err": [0.24262, 0.24262, 0.16048, 0.28450],
            "var_poisson": [0.058864, 0.058864, 0.025753, 0.080938],
            "var_rnoise": [2.164e-6] * 4,
        },
    ),
    (
        {"gain": 5, "readnoise": 0.01, "algorithm": "ols_cas22"},
        {"data": [0.526316, 0.526316, 0.230263, 0.701852], "err": [0.108513, 0.108513, 0.071783, 0.124624]},
    ),
]


@pytest.mark.parametrize(("arguments", "expected"), ACCEPTANCE, ids=str)
def test_acceptance_numbers_are_met(arguments: dict[str, Any], expected: dict[str, list[float]]) -> None:
    exposure = fit(frame(PIXELS), SINGLE_READS, include_var_rnoise=True, **arguments)
    for name, values in expected.items():
        tolerance = {"rtol": 1e-5} if name == "data" else {"rtol": 2e-2 if name == "var_rnoise" else 1e-3, "atol": 1e-3}
        np.testing.assert_allclose(exposure.arrays[name][0].astype("f8"), values, err_msg=name, **tolerance)


def dense_fit(ramp: np.ndarray, gain: float, readnoise: float, rate: float) -> tuple[float, float, float]:
    """Rate, error and chi^2 by a dense solve with the covariance of the resultants, built read by read."""
    times = [np.array(reads) * FRAME_TIME for reads in PATTERN]
    n = len(times)
    covariance = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            shared = np.minimum(times[i][:, None], times[j][None, :]).mean()
            covariance[i, j] = rate / gain * shared + (readnoise**2 / len(times[i]) if i == j else 0)
    mean = np.array([t.mean() for t in times])
    difference = np.diff(np.eye(n), axis=0) / np.diff(mean)[:, None]
    inverse = np.linalg.inv(difference @ covariance @ difference.T)
    d = difference @ ramp
    weight = inverse.sum()
    slope = inverse.sum(axis=0) @ d / weight
    residual = d - slope
    return slope, weight**-0.5, residual @ inverse @ residual


def test_fit_agrees_with_a_dense_solution_of_the_covariance() -> None:
    rng = np.random.default_rng(3)
    mean = np.array([np.mean(reads) for reads in PATTERN]) * FRAME_TIME
    ramps = (mean * rng.uniform(1, 30, (200, 1)) + rng.normal(size=(200, len(PATTERN)))).astype("f4")
    exposure = fit(frame(ramps), PATTERN, gain=1.7, readnoise=6)
    differences = np.diff(ramps, axis=1) / np.diff(mean)
    for k, ramp in enumerate(ramps):
        first, _, _ = dense_fit(ramp.astype("f8"), 1.7, 6, float(np.median(differences[k])))
        slope, err, chisq = dense_fit(ramp.astype("f8"), 1.7, 6, first)
        np.testing.assert_allclose(exposure.arrays["data"][0, k], slope, rtol=1e-5)
        np.testing.assert_allclose(exposure.arrays["err"][0, k], err, rtol=1e-3)
        np.testing.assert_allclose(exposure.arrays["chisq"][0, k], chisq, rtol=3e-3)


def test_injected_jump_is_flagged_in_its_resultant_and_taken_out_of_the_rate() -> None:
    ramps = np.tile(np.array([np.mean(reads) for reads in PATTERN]) * FRAME_TIME * 10, (6, 1)).astype("f4")
    for k in range(1, 6):
        ramps[k, k:] += 5000
    exposure = fit(frame(ramps), PATTERN, gain=2, readnoise=5)
    found = exposure.arrays["jump_indices"]
    assert {(1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 0, 4), (5, 0, 5)} <= {tuple(map(int, row)) for row in found}
    np.testing.assert_allclose(exposure.arrays["data"][0], 10, rtol=0.01)
    np.testing.assert_array_equal(exposure.arrays["dq"][0] & 4, [0, 4, 4, 4, 4, 4])


def noisy_scene(seed: int, shape: tuple[int, int] = (41, 300)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean, _, reads = resultant_times(PATTERN, FRAME_TIME)
    data = (
        mean[:, None, None] * rng.uniform(0, 60, shape)
        + rng.normal(size=(6, *shape)) * 8 / np.sqrt(reads)[:, None, None]
    )
    struck = rng.random(shape) < 0.2
    onset = rng.integers(1, 6, shape)
    data += np.where(struck & (np.arange(6)[:, None, None] >= onset), 10 ** rng.uniform(1, 4, shape), 0)
    groupdq = (rng.random(data.shape) < 0.05).astype("u1") * np.uint8(2)
    return data.astype("f4"), groupdq


def test_number_of_threads_and_neighbours_change_no_bit() -> None:
    data, groupdq = noisy_scene(1)
    settings_ = {"gain": 1.8, "readnoise": 8.0, "include_var_rnoise": True}
    whole = fit(data, PATTERN, groupdq=groupdq, **settings_)
    threaded = fit(data, PATTERN, groupdq=groupdq, threads=3, **settings_)
    part = fit(data[:, 3:30, 50:201], PATTERN, groupdq=groupdq[:, 3:30, 50:201], **settings_)
    for name in ("data", "dq", "err", "var_poisson", "var_rnoise", "chisq", "dumo"):
        np.testing.assert_array_equal(whole.arrays[name], threaded.arrays[name], err_msg=name)
        np.testing.assert_array_equal(whole.arrays[name][3:22, 50:193], part.arrays[name], err_msg=name)
    np.testing.assert_array_equal(whole.arrays["jump_indices"], threaded.arrays["jump_indices"])
    assert len(whole.arrays["jump_indices"]) > 100


def test_screening_by_chi_square_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills a screen that lets pixels with a jump pass (30 in place of 18 does)."""
    from stages.ramp_fit import likelihood

    data, groupdq = noisy_scene(2)
    data[3:, 20] += np.linspace(30, 80, 300, dtype="f4")  # jumps around the threshold
    screened = fit(data, PATTERN, groupdq=groupdq, gain=1.8, readnoise=8.0)
    single, pair, calm = likelihood.JUMP_THRESHOLDS
    assert calm < single
    monkeypatch.setattr(likelihood, "JUMP_THRESHOLDS", (single, pair, 0.0))
    searched = fit(data, PATTERN, groupdq=groupdq, gain=1.8, readnoise=8.0)
    for name in ("data", "dq", "err", "chisq", "jump_indices"):
        np.testing.assert_array_equal(screened.arrays[name], searched.arrays[name], err_msg=name)


def test_pulls_have_unit_scatter() -> None:
    rng = np.random.default_rng(8)
    pattern = [[1, 2, 3, 4], [5], [6, 7, 8], [9, 10, 11, 12]]
    shape = (4, 500)
    signal, data = np.zeros(shape), np.zeros((4, *shape))
    for read in range(1, 13):
        signal += rng.poisson(10, shape)
        k = next(i for i, reads in enumerate(pattern) if read in reads)
        data[k] += (signal + 20 * rng.normal(size=shape)) / len(pattern[k])
    flat = np.concatenate(list(data.transpose(1, 2, 0))).astype("f4")
    for algorithm in ("likely", "ols_cas22"):
        exposure = fit(frame(flat), pattern, gain=1, readnoise=20, algorithm=algorithm)
        pull = (exposure.arrays["data"][0] - 10 / FRAME_TIME) / exposure.arrays["err"][0]
        assert abs(pull.mean()) < 0.1
        assert abs(pull.std() - 1) < 0.05


def test_rates_that_cannot_be_had_are_nan_and_flagged_only_when_saturated() -> None:
    ramps = np.tile(np.array([np.mean(reads) for reads in PATTERN], "f4") * 100, (4, 1))
    data, groupdq = frame(ramps), np.zeros((6, 9, 12), "u1")
    groupdq[:, 4, 4] = 2  # all saturated
    groupdq[1::2, 4, 5] = 8  # no two neighbours good
    data[2, 4, 6] = np.nan
    exposure = fit(data, PATTERN, groupdq=groupdq, gain=2, readnoise=5)
    assert np.isnan(exposure.arrays["data"][0, :3]).all()
    np.testing.assert_array_equal(exposure.arrays["dq"][0], [3, 0, 0, 0])
    assert np.isfinite(exposure.arrays["data"][0, 3])


def test_two_hundred_resultants_do_not_overflow() -> None:
    pattern = [[i] for i in range(1, 201)]
    ramps = np.tile(np.arange(1, 201, dtype="f4") * 30, (3, 1))
    exposure = fit(frame(ramps), pattern, gain=2, readnoise=5)
    np.testing.assert_allclose(exposure.arrays["data"][0], 30 / FRAME_TIME, rtol=1e-6)
    assert np.isfinite(exposure.arrays["err"]).all()


def test_uniform_rate_difference_vanishes_when_read_noise_dominates() -> None:
    rng = np.random.default_rng(4)
    ramps = (np.arange(1, 9) * 50 + rng.normal(size=(20, 8)) * 5).astype("f4")
    pattern = [[i] for i in range(1, 9)]
    quiet = fit(frame(ramps), pattern, gain=1, readnoise=1e5)
    assert np.abs(quiet.arrays["dumo"]).max() < 1e-5
    bright = fit(frame(ramps), pattern, gain=1, readnoise=0.01)
    assert np.abs(bright.arrays["dumo"]).max() > 1e-2


@given(st.lists(st.integers(1, 8), min_size=2, max_size=12), st.floats(0.5, 10), st.floats(-100, 100))
@settings(deadline=None, max_examples=50)
def test_uniform_weights_give_the_slope_of_any_straight_ramp(
    counts: list[int], frame_time: float, slope: float
) -> None:
    ends = np.cumsum(counts)
    pattern = [list(range(end - count + 1, end + 1)) for end, count in zip(ends, counts, strict=True)]
    mean, _, reads = resultant_times(pattern, frame_time)
    weights = uniform_weights(mean, reads)
    assert weights @ (slope * mean + 17) == pytest.approx(slope, abs=1e-9)


def test_jump_indices_leave_the_border_out_and_run_by_resultant() -> None:
    groupdq = np.zeros((3, 12, 20), "u1")
    for where in [(2, 4, 4), (1, 7, 15), (1, 4, 5), (0, 3, 10), (1, 8, 10), (2, 7, 16), (2, 5, 3)]:
        groupdq[where] = 4
    groupdq[0, 6, 6] = 2
    found = jump_indices(groupdq)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, [(1, 0, 1), (1, 3, 11), (2, 0, 0)])
    assert jump_indices(np.zeros((3, 12, 20), "u1")).shape == (0, 3)


def test_exposure_becomes_an_image() -> None:
    exposure = fit(frame(PIXELS), SINGLE_READS)
    assert exposure.level is Level.IMAGE
    widths = {"data": "f4", "dq": "u4", "err": "f2", "var_poisson": "f2", "chisq": "f2", "dumo": "f2"}
    for name, dtype in widths.items():
        assert exposure.arrays[name].dtype == dtype, name
        assert exposure.arrays[name].shape == (1, 4), name
    kept = {"amp33", "border_ref_pix_left", "dq_border_ref_pix_top"}
    assert set(exposure.arrays) == {*widths, *kept, "jump_indices"}
    assert not kept & {name for name, version in exposure.versions.items() if version}
    assert exposure.extras == {}
    meta = exposure.meta
    assert (meta["model_type"], meta["product_type"]) == ("ImageModel", "l2")
    assert set(meta["cal_step"]) == set(CAL_STEP_KEYS)
    assert (meta["cal_step"]["ramp_fit"], meta["cal_step"]["saturation"]) == ("COMPLETE", "COMPLETE")
    assert set(meta["photometry"].values()) == {-999999}
    assert meta["ref_file"] == {
        "gain": FakeReference.recorded_name,
        "readnoise": FakeReference.recorded_name,
        "dark": "?",
    }


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(
        PermanentError, match=r"read_pattern has 3 resultants; the likelihood ramp fit needs at least 4"
    ):
        fit(frame(PIXELS[:, :3]), SINGLE_READS[:3])
    with pytest.raises(PermanentError, match=r"read_pattern has 3 resultants, but the ramp has 4"):
        fit(frame(PIXELS), SINGLE_READS[:3])
    exposure = make_exposure(frame(PIXELS), SINGLE_READS)
    small = FakeReference(np.ones((2, 2), "f4"))
    with pytest.raises(PermanentError, match=r"plane.asdf: data has shape \(2, 2\); expected \(9, 12\)"):
        RampFit().run(exposure, {"gain": small, "readnoise": small}, RampFitParameters(), Slot())  # type: ignore[dict-item]
    with pytest.raises(PermanentError, match=r"needs a gain reference"):
        RampFit().run(exposure, {"gain": None, "readnoise": None}, RampFitParameters(), Slot())


def test_buffers_are_reused_between_exposures() -> None:
    slot, data = Slot(), frame(PIXELS)
    planes = np.ones(data.shape[1:], "f4")

    def once() -> RateImage:
        return fit_likelihood(
            data.copy(), np.zeros(data.shape, "u1"), np.zeros(data.shape[1:], "u4"), gain=planes, readnoise=planes,
            read_pattern=SINGLE_READS, frame_time=FRAME_TIME, slot=slot,
        )  # fmt: skip

    assert np.shares_memory(once().data, once().data)


def test_covariance_of_single_reads_has_no_shared_photons() -> None:
    constants = covariance_constants(SINGLE_READS, FRAME_TIME)
    np.testing.assert_allclose(constants.photon, 1 / FRAME_TIME)
    np.testing.assert_array_equal(constants.photon_next, 0)
    np.testing.assert_allclose(constants.read, 2 / FRAME_TIME**2)
    np.testing.assert_array_equal(constants.averaged, 0)


def test_fully_saturated_exposure_becomes_an_image_of_zeros() -> None:
    data = frame(PIXELS)
    groupdq = np.full(data.shape, 2, "u1")
    groupdq[0] |= 8
    exposure = make_exposure(data, SINGLE_READS, groupdq)
    exposure.arrays["pixeldq"][:] = 2048
    slot = Slot(scratch={"ramp_fit.data": np.full(10_000, 7, "u1")})
    become_saturated_image(exposure, slot)
    for name in ("data", "err", "var_poisson", "chisq", "dumo"):
        assert exposure.arrays[name].shape == (1, 4)
        assert not exposure.arrays[name].any(), name
    np.testing.assert_array_equal(exposure.arrays["dq"], 2048 | 8 | 2)
    assert exposure.wcs is None
    assert exposure.level is Level.IMAGE
    assert {exposure.meta["cal_step"][key] for key in SKIPPED_STEPS} == {"SKIPPED"}
    assert exposure.meta["cal_step"]["saturation"] == "COMPLETE"
