from __future__ import annotations

import numpy as np
import pytest

from stages.read_times import frame_read_times
from stages.wfi18_transient import Wfi18TransientStage, double_exponential, remove_transient
from stream.stage import Slot
from tests.stages.ramp_frames import ramp_exposure

ROWS = 1020
FLAG = 129


def _run(data: np.ndarray, *, detector: str = "WFI18", **parameters: bool):
    exposure = ramp_exposure(data.copy(), detector=detector, frame_time=3.0)
    stage = Wfi18TransientStage()
    return stage.run(exposure, {}, stage.parameters_type(**parameters), Slot()).item


def _assert_flagged(exposure, data: np.ndarray) -> None:
    groupdq = exposure.arrays["groupdq"]
    assert np.all(groupdq[0, :1000] == FLAG)
    assert not groupdq[0, 1000:].any()
    assert not groupdq[1:].any()
    np.testing.assert_array_equal(exposure.arrays["data"], data)
    assert exposure.meta["cal_step"]["wfi18_transient"] == "COMPLETE"
    assert exposure.versions == {"groupdq": 1}


def test_other_detectors_are_left_alone() -> None:
    data = np.ones((5, 16, 4096), np.float32)
    exposure = _run(data, detector="WFI17", mask_rows=True)
    assert exposure.meta["cal_step"]["wfi18_transient"] == "N/A"
    np.testing.assert_array_equal(exposure.arrays["data"], data)
    assert not exposure.versions


@pytest.mark.parametrize(("resultants", "rows", "mask_rows"), [(2, ROWS, True), (4, ROWS, False), (5, 1008, False)])
def test_what_cannot_be_fitted_is_flagged_instead(resultants: int, rows: int, mask_rows: bool) -> None:
    data = np.ones((resultants, rows, 64), np.float32)
    _assert_flagged(_run(data, mask_rows=mask_rows), data)


def _glow() -> tuple[np.ndarray, np.ndarray]:
    glow = double_exponential(frame_read_times(3.0, 18, 0)[4:-4, 4:-4], -0.5, 0.1, 0.1, 0.5)
    data = np.ones((5, 4096, 4096), np.float32)
    data[0, 4:-4, 4:-4] += glow.astype(np.float32)
    return data, glow


@pytest.mark.slow
def test_the_glow_is_fitted_and_removed_from_the_first_resultant_alone() -> None:
    data, glow = _glow()
    assert np.abs(glow).max() > 0.3
    assert remove_transient(data, 3.0, [[1], [2], [3], [4], [5]], threads=2)
    np.testing.assert_allclose(data, 1, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_data_without_a_number_are_flagged() -> None:
    data = np.full((5, 4096, 4096), np.nan, np.float32)
    _assert_flagged(_run(data), data)
