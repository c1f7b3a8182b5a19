"""The transient of WFI18 is removed as romancal does it, which takes full frames alone."""

from __future__ import annotations

import numpy as np
import pytest

from stages.read_times import frame_read_times
from stages.wfi18_transient import Wfi18TransientStage, double_exponential
from stream.stage import Slot
from tests.parity.both_sides import compare_arrays, our_ramp, run_oracle_step, run_stage, their_ramp
from tests.parity.random_ramps import random_ramp, read_pattern
from tests.parity.record import EQUAL, Bar, compare, seeds
from tests.stages.ramp_frames import ramp_exposure

pytestmark = pytest.mark.oracle


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(1, 4))
def test_a_noisy_full_frame_equals_the_oracles(seed: int) -> None:
    from roman_datamodels import datamodels as rdm
    from romancal.wfi18_transient.wfi18_transient import correct_anomaly

    pattern = [[1], [2, 3], [4], [5, 6, 7], [8 + seed]]
    rng = np.random.default_rng(4 + seed)
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
    compare("wfi18_transient", "`data`, the other resultants", ours[1:], theirs[1:], bar=EQUAL)
    compare("wfi18_transient", "`data`, first resultant", ours[0], theirs[0], bar=Bar("1 ulp", ulp=1))
    assert np.count_nonzero(ours[0] != theirs[0]) < 1e-6 * ours[0].size
    compare("wfi18_transient", "`groupdq`", exposure.arrays["groupdq"], np.asarray(expected.groupdq))
    assert not exposure.arrays["groupdq"].any()
    assert np.abs(ours[0] - before).max() > 10


@pytest.mark.parametrize("detector", ["WFI18", "WFI01"])
@pytest.mark.parametrize("mask_rows", [False, True])
@pytest.mark.parametrize("seed", seeds(2, 30))
def test_exposures_that_cannot_be_fitted_are_flagged_as_by_the_oracle(
    seed: int, mask_rows: bool, detector: str
) -> None:
    from romancal.wfi18_transient import WFI18TransientStep

    # Fewer than five resultants, or rows that are to be flagged: the frame may then be small.
    most = 12 if mask_rows or detector != "WFI18" else 4
    case = random_ramp(seed, (40, 256), pattern=read_pattern(np.random.default_rng(seed), 2, most))
    case.detector = detector
    model = run_oracle_step(WFI18TransientStep, their_ramp(case), {}, mask_rows=mask_rows)
    exposure = run_stage(Wfi18TransientStage, our_ramp(case), {}, mask_rows=mask_rows)
    compare_arrays("wfi18_transient", exposure, model, ("data", "groupdq", "pixeldq"), bar=EQUAL)
    assert exposure.meta["cal_step"]["wfi18_transient"] == ("COMPLETE" if detector == "WFI18" else "N/A")
    assert np.array_equal(exposure.arrays["groupdq"], case.groupdq) == (detector != "WFI18")
