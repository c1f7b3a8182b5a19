from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.dq import PixelDQ
from stages.refpix import RefpixParameters, RefpixStage, RefpixSwitches, correct_reference_pixels
from stream.failure import PermanentError
from stream.stage import Slot
from tests.stages.ramp_frames import FakeReference, ramp_exposure

N, ROWS = 3, 8
FREQUENCIES = 70 * ROWS + 1


def _coefficients(gamma: complex = 0, zeta: complex = 0, alpha: complex = 0) -> dict[str, np.ndarray]:
    named = {"gamma": gamma, "zeta": zeta, "alpha": alpha}
    return {name: np.full((32, FREQUENCIES), value, np.complex128) for name, value in named.items()}


def _ramp(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    data = (rng.normal(0, 5, (N, ROWS, 4096)) + rng.uniform(0, 500, (ROWS, 4096))).astype(np.float32)
    return data, rng.integers(10, 60, (N, ROWS, 128), dtype=np.uint16)


def _run(data: np.ndarray, amp33: np.ndarray, tree: Any, pixeldq: Any = None, **parameters: bool) -> Any:
    exposure = ramp_exposure(data.copy(), amp33=amp33.copy(), pixeldq=pixeldq)
    reference = None if tree is None else FakeReference("/r/refpix.asdf", **tree)
    return RefpixStage().run(exposure, {"refpix": reference}, RefpixParameters(**parameters), Slot()).item


def test_without_weights_only_the_trend_goes() -> None:
    data, amp33 = _ramp()
    plain = _run(data, amp33, _coefficients(), cosine_interpolate=False).arrays["data"]
    np.testing.assert_allclose(plain, data, rtol=0, atol=1e-4)
    tilted = data + np.linspace(-20, 20, N)[:, None, None].astype(np.float32)
    level = _run(tilted, amp33, _coefficients()).arrays["data"]
    assert abs(np.ptp((level - data).mean(axis=(1, 2)))) < 1


def test_noise_common_to_a_row_and_the_left_columns_is_removed() -> None:
    """gamma = 1 predicts each row's mean from its own left reference pixels (up to what 4 of 140 samples tell)."""
    rng = np.random.default_rng(3)
    data = np.full((N, ROWS, 4096), 100, np.float32)
    wave = 10 * np.sin(np.arange(ROWS) * 0.7)[None, :, None] * rng.choice([-1, 1], (N, 1, 1))
    data += wave.astype(np.float32)
    low = np.zeros(FREQUENCIES)
    low[: ROWS // 2] = 1  # frequencies below one period in two rows
    tree = _coefficients()
    tree["gamma"][:] = low
    before = np.var(data - data.mean(axis=0), axis=1).sum()
    after_data = _run(data, np.zeros((N, ROWS, 128), np.uint16), tree, cosine_interpolate=False).arrays["data"]
    after = np.var(after_data - after_data.mean(axis=0), axis=1).sum()
    assert after < 0.5 * before


def test_border_copies_follow_the_correction_at_the_sides_alone() -> None:
    data, amp33 = _ramp()
    exposure = _run(data, amp33, _coefficients(gamma=0.3, zeta=0.2j, alpha=0.5))
    arrays = exposure.arrays
    assert not np.array_equal(arrays["data"], data)
    np.testing.assert_array_equal(arrays["border_ref_pix_left"], arrays["data"][:, :, :4])
    np.testing.assert_array_equal(arrays["border_ref_pix_right"], arrays["data"][:, :, -4:])
    np.testing.assert_array_equal(arrays["border_ref_pix_top"], data[:, :4])
    np.testing.assert_array_equal(arrays["border_ref_pix_bottom"], data[:, -4:])
    assert exposure.meta["cal_step"]["refpix"] == "COMPLETE"
    assert exposure.versions == {"data": 1, "amp33": 1, "border_ref_pix_left": 1, "border_ref_pix_right": 1}


def test_bad_reference_pixels_count_as_zero() -> None:
    data, amp33 = _ramp()
    pixeldq = np.zeros((ROWS, 4096), np.uint32)
    pixeldq[3, 2] = int(PixelDQ.BAD_REF_PIXEL)
    zeroed = data.copy()
    zeroed[:, 3, 2] = 0
    tree = _coefficients(gamma=0.3)
    np.testing.assert_array_equal(
        _run(data, amp33, tree, pixeldq).arrays["data"], _run(zeroed, amp33, tree).arrays["data"]
    )
    # The switch named remove_offset is the one that keeps them (see RefpixParameters).
    kept = _run(data, amp33, tree, pixeldq, remove_offset=False).arrays["data"]
    np.testing.assert_array_equal(kept, _run(data, amp33, tree).arrays["data"])


def test_each_parameter_switches_the_step_before_the_one_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RefpixSwitches] = []

    def fake(data: Any, amp33: Any, pixeldq: Any, coefficients: Any, *, switches: RefpixSwitches, slot: Slot) -> Any:
        seen.append(switches)
        return amp33

    monkeypatch.setattr("stages.refpix.correct_reference_pixels", fake)
    data, amp33 = _ramp()
    for name in ("remove_offset", "remove_trends", "cosine_interpolate", "fft_interpolate"):
        _run(data, amp33, _coefficients(), **{name: False})
    assert seen == [
        RefpixSwitches(zero_bad=False),
        RefpixSwitches(remove_offset=False),
        RefpixSwitches(remove_trends=False),
        RefpixSwitches(cosine_interpolate=False),
    ]


def test_gaps_of_amp33_are_filled_from_their_neighbours() -> None:
    data = np.zeros((N, ROWS, 4096), np.float32)
    amp33 = np.full((N, ROWS, 128), 40, np.uint16)
    amp33[1] = 50
    filled = _run(data, amp33, _coefficients(), cosine_interpolate=False).arrays["amp33"]
    assert filled.dtype == np.uint16
    assert np.abs(filled.astype(int) - amp33).max() <= 1


def test_without_a_reference_nothing_changes() -> None:
    data, amp33 = _ramp()
    exposure = _run(data, amp33, None)
    np.testing.assert_array_equal(exposure.arrays["data"], data)
    assert exposure.meta["cal_step"]["refpix"] == "SKIPPED"
    assert not exposure.versions


def test_threads_and_read_only_weights_do_not_change_a_bit() -> None:
    data, amp33 = _ramp()
    weights = tuple(_coefficients(gamma=0.3, zeta=0.1j, alpha=0.5).values())
    results = []
    for threads in (1, 2):
        work = data.copy()
        cleaned = correct_reference_pixels(
            work, amp33, np.zeros((ROWS, 4096), np.uint32), weights, slot=Slot(threads=threads)
        )
        results.append((work, cleaned))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_weights_for_another_frame_are_refused_by_name() -> None:
    data, amp33 = _ramp()
    tree = _coefficients()
    tree["zeta"] = tree["zeta"][:, :-1]
    with pytest.raises(PermanentError, match=r"/r/refpix\.asdf: zeta has shape \(32, 560\), expected \(32, 561\)"):
        _run(data, amp33, tree)


def test_frames_of_another_width_are_refused() -> None:
    with pytest.raises(PermanentError, match="4096 columns"):
        correct_reference_pixels(
            np.zeros((2, 8, 256), np.float32),
            np.zeros((2, 8, 128), np.uint16),
            np.zeros((8, 256), np.uint32),
            (np.zeros((32, 561), np.complex128),) * 3,
        )
