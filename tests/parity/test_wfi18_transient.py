"""The transient of WFI18 is removed as romancal does it, which takes full frames alone."""

from __future__ import annotations

import numpy as np
import pytest

from stages.read_times import frame_read_times
from stages.wfi18_transient import Wfi18TransientStage, double_exponential
from stream.stage import Slot
from tests.stages.ramp_frames import ramp_exposure

pytestmark = pytest.mark.oracle


@pytest.mark.slow
def test_a_noisy_full_frame_equals_the_oracles() -> None:
    from roman_datamodels import datamodels as rdm
    from romancal.wfi18_transient.wfi18_transient import correct_anomaly

    pattern = [[1], [2, 3], [4], [5, 6, 7], [8]]
    rng = np.random.default_rng(4)
    data = np.empty((5, 4096, 4096), np.float32)
    rate = rng.exponential(3, (4096, 4096)).astype(np.float32)
    for i, reads in enumerate(pattern):
        data[i] = rate * np.float32(np.mean(reads)) + rng.standard_normal((4096, 4096), np.float32) * 5
    data[0] += double_exponential(frame_read_times(3.04, 18, 0), -30.0, 12.0, 0.1, 0.5)
    data[2, 100, 200] = np.nan
    before = data[0].copy()
    ramp = rdm.RampModel.create_fake_data(shape=(5, 8, 4096))
    ramp.data = data.copy()
    ramp.groupdq = np.zeros((5, 4096, 4096), np.uint8)
    ramp.meta.exposure.read_pattern = pattern
    ramp.meta.exposure.frame_time = 3.04
    ramp.meta.instrument.detector = "WFI18"

    expected = correct_anomaly(ramp)
    expected = ramp if expected is None else expected
    exposure = ramp_exposure(data, read_pattern=pattern, detector="WFI18")
    Wfi18TransientStage().process(exposure, {}, Wfi18TransientStage.parameters_type(), Slot(threads=2))
    ours, theirs = exposure.arrays["data"], np.asarray(expected.data)
    np.testing.assert_array_equal(ours[1:], theirs[1:])
    np.testing.assert_array_max_ulp(ours[0], theirs[0], 1)
    assert np.count_nonzero(ours[0] != theirs[0]) < 1e-6 * ours[0].size
    np.testing.assert_array_equal(exposure.arrays["groupdq"], np.asarray(expected.groupdq))
    assert not exposure.arrays["groupdq"].any()
    assert np.abs(ours[0] - before).max() > 10
