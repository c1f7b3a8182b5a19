"""Read-level linearity equals romancal's, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.dq import GroupDQ, PixelDQ
from stages.linearity import LinearityStage
from stream.stage import Slot
from tests.parity.record import EQUAL, compare
from tests.stages.ramp_frames import FakeReference, ramp_exposure

pytestmark = pytest.mark.oracle

PATTERNS = [
    [[1], [2, 3, 4]],
    [[1, 2], [3, 4, 5], [9]],
    [[1], [2, 3], [4, 5, 6, 7], [10], list(range(11, 23)), [23, 24]],
]


def _frame(pattern: list[list[int]], rows: int, columns: int) -> dict[str, Any]:
    rng = np.random.default_rng(rows + len(pattern))
    shape = (len(pattern), rows, columns)
    time = np.array([np.mean(reads) for reads in pattern])[:, None, None]
    data = (rng.exponential(1500, shape[1:]) * time + rng.normal(0, 15, shape)).astype(np.float32)
    data[rng.random(shape) < 0.002] = np.nan
    data[rng.random(shape) < 0.002] = -2e6
    groupdq = np.where(np.cumsum(rng.random(shape) < 0.08, axis=0) > 0, int(GroupDQ.SATURATED), 0).astype(np.uint8)
    groupdq[rng.random(shape) < 0.01] |= int(GroupDQ.DO_NOT_USE)
    pixeldq = rng.integers(0, 4, shape[1:], dtype=np.uint32)
    return {"data": data, "groupdq": groupdq, "pixeldq": pixeldq}


def _coefficients(count: int, rows: int, columns: int, sign: float) -> np.ndarray:
    rng = np.random.default_rng(count)
    scale = np.array([0.3, 0.01, *(10.0 ** (-5 * k + 3) for k in range(2, count))])[:, None, None]
    coefficients = (sign * scale * rng.normal(1, 0.1, (count, rows, columns))).astype(np.float32)
    coefficients[1] += 1
    coefficients[1][rng.random((rows, columns)) < 0.02] = 0
    coefficients[rng.random(coefficients.shape) < 0.005] = np.nan
    return coefficients


def _correction(columns: int, grid: np.ndarray) -> dict[str, Any]:
    table = {
        f"science_channel_{channel + 1:02d}": {
            "instrument_channel": channel + 1,
            "correction": 5 * np.sin(np.arange(grid.size) / 700 + channel)
            + np.random.default_rng(channel).normal(0, 1, grid.size),
        }
        for channel in range(columns // 128)
    }
    return {"value": grid, "inl_table": table}


def _oracle(frame: dict[str, Any], pattern: Any, linear: Any, linear_dq: Any, inverse: Any, integral: Any) -> Any:
    from roman_datamodels import datamodels as rdm
    from romancal.linearity.linearity_step import make_inl_correction
    from stcal.linearity.linearity import linearity_correction

    columns = frame["data"].shape[2]
    additional = None
    if integral is not None:
        model = rdm.IntegralnonlinearityRefModel.create_fake_data()
        model.value = integral["value"]
        model.inl_table = integral["inl_table"]
        additional = make_inl_correction(model, columns)
    with np.errstate(all="ignore"):
        data, pixeldq, _ = linearity_correction(
            frame["data"][np.newaxis].copy(),
            frame["groupdq"][np.newaxis].copy(),
            frame["pixeldq"].copy(),
            linear.copy(),
            linear_dq.copy(),
            {flag.name: int(flag) for flag in PixelDQ},
            ilin_coeffs=inverse.copy(),
            additional_correction=additional,
            read_pattern=pattern,
        )
    return np.asarray(data)[0], np.asarray(pixeldq)


@pytest.mark.parametrize("grid", ["none", "consecutive", "uneven"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=len)
def test_data_and_flags_equal_the_oracles(pattern: list[list[int]], grid: str) -> None:
    rows, columns = 70, 256
    frame = _frame(pattern, rows, columns)
    linear, inverse = _coefficients(7, rows, columns, 1.0), _coefficients(5, rows, columns, -1.0)
    linear_dq = np.random.default_rng(5).choice(
        np.array([0, 2, int(PixelDQ.NO_LIN_CORR)], np.uint32), (rows, columns), p=[0.8, 0.1, 0.1]
    )
    values = {
        "none": None,
        "consecutive": np.arange(65536, dtype=np.uint16),
        "uneven": np.unique(np.random.default_rng(3).integers(300, 60000, 4000)).astype(np.uint16),
    }[grid]
    integral = None if values is None else _correction(columns, values)
    data, pixeldq = _oracle(frame, pattern, linear, linear_dq, inverse, integral)

    exposure = ramp_exposure(**{k: v.copy() for k, v in frame.items()}, read_pattern=pattern)
    references = {
        "linearity": FakeReference(coeffs=linear, dq=linear_dq),
        "inverselinearity": FakeReference(coeffs=inverse),
        "integralnonlinearity": None if integral is None else FakeReference(**integral),
    }
    LinearityStage().process(exposure, references, LinearityStage.parameters_type(), Slot(threads=2))
    cut = np.abs(data) > 1e6
    compare("linearity", "`data`", exposure.arrays["data"], np.clip(data, -1e6, 1e6), bar=EQUAL)
    compare("linearity", "`pixeldq`", exposure.arrays["pixeldq"], pixeldq)
    compare("linearity", "`groupdq`", exposure.arrays["groupdq"], frame["groupdq"] | cut)
    assert cut.any()
    assert np.isfinite(data).mean() > 0.9
