"""Subtracting the dark equals romancal's step bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from stages.dark_current import subtract_dark
from tests.parity.record import EQUAL, compare

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


def test_dark_current_equals_romancal_bit_for_bit() -> None:
    from roman_datamodels import datamodels
    from romancal.dark_current import DarkCurrentStep

    rng = np.random.default_rng(5)
    model = datamodels.ImageModel.create_fake_data(shape=(40, 72))
    model.meta.cal_step = {}
    model.data = rng.normal(1, 3, (40, 72)).astype("f4")
    model.dq = rng.choice(np.array([0, 1, 4, 2049], "u4"), (40, 72))
    dark = datamodels.DarkRefModel.create_fake_data(shape=(2, 48, 80))
    dark.dark_slope = rng.normal(0.01, 0.02, (48, 80)).astype("f4")
    dark.dark_slope[rng.random((48, 80)) < 0.05] = np.nan
    dark.dq = rng.choice(np.array([0, 2048, 1 << 23], "u4"), (48, 80))
    data, dq = model.data.copy(), model.dq.copy()

    step = DarkCurrentStep()
    step.override_dark = dark
    theirs = step.process(model)
    subtract_dark(data, dq, dark.dark_slope, dark.dq, threads=2)

    compare("dark_current", "`data`", data, np.asarray(theirs.data), bar=EQUAL)
    compare("dark_current", "`dq`", dq, np.asarray(theirs.dq))
    assert theirs.meta.cal_step.dark == "COMPLETE"
