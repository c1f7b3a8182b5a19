"""Saturation flags equal romancal's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from stages.dq import GroupDQ, PixelDQ
from stages.saturation import flag_saturation
from stream.stage import Slot
from tests.parity.record import compare

pytestmark = pytest.mark.oracle

PATTERNS = [
    [[1]],
    [[1], [2, 3, 4]],
    [[1, 2], [3, 4, 5], [6], [7, 8, 9, 10]],
    [[1], [2, 3], [4, 5, 6, 7], [8, 9], [10, 11, 12]],
]


def _frame(pattern: list[list[int]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(pattern))
    shape = (len(pattern), 40, 96)
    time = np.array([np.mean(reads) for reads in pattern])[:, None, None]
    data = (rng.exponential(7000, shape[1:]) * time + rng.normal(0, 400, shape)).astype(np.float32)
    data[rng.random(shape) < 0.02] = -3
    data[rng.random(shape) < 0.01] = 0
    data[rng.random(shape) < 0.01] = np.nan
    threshold = rng.uniform(30000, 60000, shape[1:]).astype(np.float32)
    threshold[rng.random(shape[1:]) < 0.05] = np.nan
    flags = rng.choice(np.array([0, 1, 10, int(PixelDQ.NO_SAT_CHECK)], np.uint32), shape[1:], p=[0.7, 0.1, 0.1, 0.1])
    groupdq = np.where(rng.random(shape) < 0.01, int(GroupDQ.SATURATED), 0).astype(np.uint8)
    groupdq[rng.random(shape) < 0.01] |= int(GroupDQ.DO_NOT_USE)
    return {
        "data": data,
        "groupdq": groupdq,
        "pixeldq": rng.integers(0, 8, shape[1:], dtype=np.uint32),
        "threshold": threshold,
        "threshold_dq": flags,
    }


def _oracle(frame: dict[str, np.ndarray], pattern: list[list[int]], *, grow: int, backup: int) -> tuple:
    from roman_datamodels import datamodels as rdm
    from romancal.saturation.saturation import flag_saturation as oracle

    n, rows, columns = frame["data"].shape
    ramp = rdm.RampModel.create_fake_data(shape=(n, rows, columns))
    ramp.data, ramp.groupdq, ramp.pixeldq = (frame[name].copy() for name in ("data", "groupdq", "pixeldq"))
    ramp.meta.exposure.read_pattern = pattern
    reference = rdm.SaturationRefModel.create_fake_data(shape=(rows, columns))
    reference.data, reference.dq = frame["threshold"].copy(), frame["threshold_dq"].copy()
    result = oracle(ramp, reference, n_pix_grow_sat=grow, backup=backup)
    return np.asarray(result.groupdq), np.asarray(result.pixeldq)


@pytest.mark.parametrize("backup", [0, 2])
@pytest.mark.parametrize("grow", [0, 1, 2])
@pytest.mark.parametrize("pattern", PATTERNS, ids=len)
def test_flags_equal_the_oracles(pattern: list[list[int]], grow: int, backup: int) -> None:
    frame = _frame(pattern)
    groupdq, pixeldq = _oracle(frame, pattern, grow=grow, backup=backup)
    flag_saturation(**frame, read_pattern=pattern, n_pix_grow_sat=grow, backup=backup, slot=Slot(threads=2))
    compare("saturation", "`groupdq`", frame["groupdq"], groupdq)
    compare("saturation", "`pixeldq`", frame["pixeldq"], pixeldq)
    assert len(pattern) == 1 or np.any(groupdq & 1)
