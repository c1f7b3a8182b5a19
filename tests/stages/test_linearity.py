from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.dq import PixelDQ
from stages.linearity import LinearityStage, correct_linearity
from stages.linearity_kernels import _add_on_grid, _add_on_integers
from stream.failure import PermanentError
from stream.stage import Slot
from tests.stages.ramp_frames import FakeReference, ramp_exposure

ROWS, COLUMNS = 6, 256
NO_LIN_CORR = int(PixelDQ.NO_LIN_CORR)


def _polynomial(*coefficients: float) -> np.ndarray:
    coefficients = (*coefficients, *[0.0] * (4 - len(coefficients)))  # one size: the kernel compiles for each
    return np.broadcast_to(np.array(coefficients, np.float32)[:, None, None], (len(coefficients), ROWS, COLUMNS)).copy()


def _references(linear: np.ndarray, inverse: np.ndarray, integral: Any = None) -> dict[str, Any]:
    return {
        "linearity": FakeReference("/r/lin.asdf", coeffs=linear, dq=np.zeros(linear.shape[1:], np.uint32)),
        "inverselinearity": FakeReference("/r/inv.asdf", coeffs=inverse),
        "integralnonlinearity": integral,
    }


def _run(exposure: Any, references: dict[str, Any]) -> Any:
    return LinearityStage().run(exposure, references, LinearityStage.parameters_type(), Slot()).item


def _inl(correction: float, size: int = 65536) -> FakeReference:
    table = {f"science_channel_{c:02d}": {"correction": np.full(size, correction)} for c in range(1, 3)}
    return FakeReference("/r/inl.asdf", value=np.arange(size, dtype=np.uint16), inl_table=table)


def test_gain_and_integral_nonlinearity_act_on_each_read() -> None:
    data = np.zeros((2, ROWS, COLUMNS), np.float32)
    data[1] = 100
    exposure = _run(ramp_exposure(data), _references(_polynomial(0, 2), _polynomial(0, 0.5), _inl(1)))
    assert np.all(exposure.arrays["data"][0] == 2)
    assert np.all(exposure.arrays["data"][1] == 202)
    assert exposure.meta["cal_step"]["linearity"] == "COMPLETE"
    assert exposure.versions == {"data": 1, "groupdq": 1, "pixeldq": 1}


@pytest.mark.parametrize("missing", ["linearity", "inverselinearity"])
def test_without_a_polynomial_the_step_is_skipped(missing: str) -> None:
    references = _references(_polynomial(0, 2), _polynomial(0, 0.5)) | {missing: None}
    exposure = _run(ramp_exposure(np.full((3, ROWS, COLUMNS), 5.0)), references)
    assert exposure.meta["cal_step"]["linearity"] == "SKIPPED"
    assert np.all(exposure.arrays["data"] == 5)


@pytest.mark.parametrize("which", ["linearity", "inverselinearity"])
@pytest.mark.parametrize("bad", ["zero", "nan"])
def test_unusable_coefficients_are_flagged_and_replaced_by_the_identity(which: str, bad: str) -> None:
    references = _references(_polynomial(0, 1, 0), _polynomial(0, 1, 0))
    coefficients = references[which]._tree["coeffs"]
    if bad == "zero":
        coefficients[1, 2, 3] = 0
    else:
        coefficients[2, 2, 3] = np.nan
    exposure = _run(ramp_exposure(np.arange(1, 4)[:, None, None] * np.full((3, ROWS, COLUMNS), 8.0)), references)
    expected = np.zeros((ROWS, COLUMNS), np.uint32)
    expected[2, 3] = NO_LIN_CORR
    np.testing.assert_array_equal(exposure.arrays["pixeldq"], expected)
    np.testing.assert_array_equal(exposure.arrays["data"][:, 2, 3], [8, 16, 24])


def test_pixels_flagged_in_the_reference_and_saturated_resultants_stay_raw() -> None:
    groupdq = np.zeros((4, ROWS, COLUMNS), np.uint8)
    groupdq[2:, 1, 1] = 2
    references = _references(_polynomial(0, 2), _polynomial(0, 0.5))
    references["linearity"]._tree["dq"][0, 0] = NO_LIN_CORR | 4
    data = np.arange(1, 5)[:, None, None] * np.full((4, ROWS, COLUMNS), 8.0)
    arrays = _run(ramp_exposure(data, groupdq=groupdq), references).arrays
    np.testing.assert_array_equal(arrays["data"][:, 0, 0], [8, 16, 24, 32])
    np.testing.assert_array_equal(arrays["data"][:, 1, 1], [16, 32, 24, 32])
    np.testing.assert_array_equal(arrays["data"][:, 2, 2], [16, 32, 48, 64])
    assert arrays["pixeldq"][0, 0] == NO_LIN_CORR | 4


def test_absurd_values_are_cut_and_not_used() -> None:
    data = np.full((2, ROWS, COLUMNS), 9.0, np.float32)
    data[1, 0, 0], data[1, 0, 1] = 3e6, -3e6
    arrays = _run(ramp_exposure(data), _references(_polynomial(0, 1), _polynomial(0, 1))).arrays
    np.testing.assert_array_equal(arrays["data"][1, 0, :3], [1e6, -1e6, 9])
    np.testing.assert_array_equal(arrays["groupdq"][1, 0, :3], [1, 1, 0])


def test_correcting_reads_beats_correcting_averages() -> None:
    """A simulated averaged ramp comes back to 0.004 DN, less than half the error of correcting the averages."""
    pattern = [[1], [2, 3, 4, 5, 6, 7, 8, 9], list(range(10, 30)), [30]]
    forward, backward = (0.0, 1.0, 2e-6), (0.0, 1.0, -2e-6, 8e-12)
    polynomial = np.polynomial.polynomial.polyval
    counts = [np.mean([polynomial(400.0 * r, backward) for r in reads]) for reads in pattern]
    data = np.broadcast_to(np.array(counts, np.float32)[:, None, None], (4, ROWS, COLUMNS)).copy()
    truth = np.array([400 * np.mean(reads) for reads in pattern])
    averages = np.abs(polynomial(np.array(counts), forward) - truth)
    none = np.zeros((ROWS, COLUMNS), np.uint32)
    groupdq = np.zeros(data.shape, np.uint8)
    correct_linearity(data, groupdq, none.copy(), _polynomial(*forward), none, _polynomial(*backward), pattern)
    error = np.abs(data[:, 0, 0] - truth)
    assert error[2] < 0.5 * averages[2]


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.floats(-70000, 140000) | st.integers(-3, 65539).map(float), min_size=1, max_size=50))
def test_interpolation_equals_numpys_to_the_last_bit(values: list[float]) -> None:
    rng = np.random.default_rng(len(values))
    correction = rng.normal(0, 3, 65536)
    grid = np.arange(65536.0)
    x = np.array([*values, np.nan])
    for add, arguments in ((_add_on_integers, (correction,)), (_add_on_grid, (correction, grid))):
        ours = x.copy()
        add(ours, *arguments)
        np.testing.assert_array_equal(ours, x + np.interp(x, grid, correction))
    uneven = np.unique(rng.integers(0, 65536, 900)).astype(float)
    ours = x.copy()
    _add_on_grid(ours, correction[: uneven.size], uneven)
    np.testing.assert_array_equal(ours, x + np.interp(x, uneven, correction[: uneven.size]))


def test_threads_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(0)
    results = []
    start = np.cumsum(rng.exponential(900, (3, 200, COLUMNS)), axis=0).astype(np.float32)
    linear = np.repeat(_polynomial(0.1, 1.01, 3e-6)[:, :1], 200, axis=1)
    inverse = np.repeat(_polynomial(-0.1, 0.99, -3e-6)[:, :1], 200, axis=1)
    none = np.zeros((200, COLUMNS), np.uint32)
    for threads in (1, 2):
        data, groupdq = start.copy(), np.zeros(start.shape, np.uint8)
        correct_linearity(data, groupdq, none.copy(), linear, none, inverse, [[1], [2, 3], [4]], threads=threads)
        results.append(data)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    ("references", "words"),
    [
        (_references(_polynomial(0, 1)[:1], _polynomial(0, 1)), r"/r/lin\.asdf: coeffs has shape"),
        (_references(_polynomial(0, 1), _polynomial(0, 1)[:, :3]), r"/r/inv\.asdf: coeffs has shape"),
        (
            _references(
                _polynomial(0, 1), _polynomial(0, 1), FakeReference("/r/inl.asdf", value=np.arange(4), inl_table={})
            ),
            r"/r/inl\.asdf: inl_table\.science_channel_01\.correction must hold 4 numbers",
        ),
    ],
)
def test_references_that_do_not_fit_are_refused_by_name(references: dict[str, Any], words: str) -> None:
    with pytest.raises(PermanentError, match=words):
        _run(ramp_exposure(np.zeros((3, ROWS, COLUMNS))), references)


def test_one_resultant_is_refused() -> None:
    with pytest.raises(PermanentError, match="at least 2 resultants"):
        _run(ramp_exposure(np.zeros((1, ROWS, COLUMNS))), _references(_polynomial(0, 1), _polynomial(0, 1)))
