"""The dark decay equals romancal's, which takes full frames alone: few rows of one are enough, and one is whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.dark_decay import DarkDecayStage, subtract_dark_decay
from tests.parity.both_sides import our_ramp, run_stage
from tests.parity.random_ramps import random_ramp
from tests.parity.record import EQUAL, compare, full_length, seeds

pytestmark = pytest.mark.oracle

ROWS = 64


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle's times of the rows that are read first: the others are as good as not there."""
    from romancal.dark_decay import dark_decay

    whole = dark_decay.frame_read_times

    def first_rows(frame_time: float, sca: int, frame_number: float) -> Any:
        # Every third detector is mirrored in columns, the others in rows.
        return (
            whole(frame_time, sca, frame_number)[:ROWS]
            if sca % 3 == 0
            else whole(frame_time, sca, frame_number)[-ROWS:]
        )

    monkeypatch.setattr(dark_decay, "frame_read_times", first_rows)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("seed", seeds(2, 36))
def test_generated_exposures_of_every_detector_equal_the_oracles(seed: int) -> None:
    from romancal.dark_decay.dark_decay import subtract_dark_decay as oracle

    rng = np.random.default_rng(seed)
    sca = (seed + 2) % 18 + 1
    pattern = [[[1], [2, 3], [5]], [[1, 2], [4], [6]], [[1], [2], [3, 4, 5]]][seed % 3]
    case = random_ramp(seed, (ROWS, 4096), pattern=pattern)
    case.detector = f"WFI{sca:02d}"
    amplitude, constant = float(rng.choice([0.7, -0.3, 0.0])), float(rng.uniform(2, 60))
    expected = case.data.copy()
    oracle(expected, amplitude, constant, case.frame_time, pattern, sca)
    table = {case.detector: {"amplitude": amplitude, "time_constant": constant}}
    exposure = run_stage(DarkDecayStage, our_ramp(case), {"darkdecaysignal": {"decay_table": table}})
    compare("dark_decay", "`data`", exposure.arrays["data"], expected, bar=EQUAL)
    assert np.array_equal(exposure.arrays["data"], case.data, equal_nan=True) == (amplitude == 0)


@pytest.mark.slow
@pytest.mark.skipif(not full_length(), reason="the whole frame of test_end_to_end goes through dark_decay")
@pytest.mark.parametrize("sca", [3, 7])
def test_a_full_frame_equals_the_oracles(sca: int) -> None:
    from romancal.dark_decay.dark_decay import subtract_dark_decay as oracle

    pattern = [[1, 2]]
    data = np.random.default_rng(sca).standard_normal((1, 4096, 4096), np.float32) * 9 + 50
    expected = data.copy()
    oracle(expected, 0.7, 23.0, 3.04, pattern, sca)
    subtract_dark_decay(data, 0.7, 23.0, 3.04, pattern, sca, threads=2)
    compare("dark_decay", "`data`", data, expected, bar=EQUAL)
