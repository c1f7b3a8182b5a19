from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.dark_decay import DarkDecayStage, subtract_dark_decay
from stages.read_times import frame_read_times
from stream.failure import PermanentError
from stream.stage import Slot
from tests.stages.ramp_frames import FakeReference, ramp_exposure

ROWS = 40
PATTERN = [[1], [2, 3, 4]]


def _removed(amplitude: float, *, sca: int = 1, threads: int = 1) -> np.ndarray:
    data = np.zeros((2, ROWS, 4096), np.float32)
    subtract_dark_decay(data, amplitude, 23.0, 3.04, PATTERN, sca, threads=threads)
    return -data


def _table(**row: Any) -> FakeReference:
    return FakeReference("/r/decay.asdf", decay_table={"WFI03": row})


@pytest.mark.parametrize("sca", [1, 3])
def test_each_resultant_loses_the_mean_decay_over_its_reads(sca: int) -> None:
    for removed, reads in zip(_removed(0.5, sca=sca), PATTERN, strict=True):
        times = [frame_read_times(3.04, sca, r - 1.5, rows=ROWS) for r in reads]
        np.testing.assert_allclose(removed, np.mean([0.5 * np.exp(-t / 23) for t in times], axis=0), rtol=1e-7)


def test_twice_the_amplitude_removes_twice_as_much_and_early_resultants_lose_more() -> None:
    np.testing.assert_array_equal(_removed(1.0), 2 * _removed(0.5))
    first, second = _removed(1.0)
    assert np.all(first > second)


def test_threads_do_not_change_a_bit() -> None:
    np.testing.assert_array_equal(_removed(0.7), _removed(0.7, threads=2))


def test_the_stage_takes_its_detectors_row() -> None:
    exposure = ramp_exposure(np.zeros((2, ROWS, 4096)), read_pattern=PATTERN, detector="WFI03")
    reference = _table(amplitude=0.5, time_constant=23.0)
    DarkDecayStage().run(exposure, {"darkdecaysignal": reference}, DarkDecayStage.parameters_type(), Slot())
    np.testing.assert_array_equal(exposure.arrays["data"], -_removed(0.5, sca=3))
    assert exposure.meta["cal_step"]["dark_decay"] == "COMPLETE"
    assert exposure.versions == {"data": 1}


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (None, "needs a darkdecaysignal reference"),
        (_table(amplitude=None, time_constant=2.0), r"/r/decay\.asdf: decay_table\.WFI03"),
        (FakeReference("/r/decay.asdf", decay_table={}), r"/r/decay\.asdf: decay_table\.WFI03"),
    ],
)
def test_a_missing_decay_is_an_error(reference: Any, words: str) -> None:
    exposure = ramp_exposure(np.zeros((2, ROWS, 4096)), read_pattern=PATTERN, detector="WFI03")
    with pytest.raises(PermanentError, match=words):
        DarkDecayStage().run(exposure, {"darkdecaysignal": reference}, DarkDecayStage.parameters_type(), Slot())


def test_a_read_pattern_of_another_length_is_refused() -> None:
    with pytest.raises(PermanentError, match="read_pattern has 1 resultants, the data have 2"):
        subtract_dark_decay(np.zeros((2, 8, 4096), np.float32), 1.0, 2.0, 3.04, [[1]], 1)
