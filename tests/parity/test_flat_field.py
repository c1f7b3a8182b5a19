"""Dividing by the flat equals romancal's step bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.flat_field import divide_by_flat
from tests.parity.record import EQUAL, compare

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

SHAPE = (60, 90)


def image_and_flat(seed: int) -> tuple[Any, Any]:
    from roman_datamodels import datamodels

    rng = np.random.default_rng(seed)
    model = datamodels.ImageModel.create_fake_data(shape=SHAPE)
    model.meta.cal_step = {}
    model.data = (rng.normal(size=SHAPE) * 10 ** rng.uniform(-2, 4, SHAPE)).astype("f4")
    model.data[rng.random(SHAPE) < 0.02] = np.nan
    model.dq = rng.choice(np.array([0, 1, 4], "u4"), SHAPE)
    for name in ("err", "var_poisson", "var_rnoise", "dumo", "chisq"):
        model[name] = (10 ** rng.uniform(-6, 4, SHAPE)).astype("f2")
    model.err[rng.random(SHAPE) < 0.02] = 0
    flat = datamodels.FlatRefModel.create_fake_data(shape=SHAPE)
    flat.data = rng.normal(1, 0.2, SHAPE).astype("f4")
    for value in (0, np.nan, -0.7, 1e-6, np.inf):
        flat.data[rng.random(SHAPE) < 0.02] = value
    flat.err = rng.uniform(0, 0.05, SHAPE).astype("f4")
    flat.dq = rng.choice(np.array([0, 1 << 18, 1 << 13, 1], "u4"), SHAPE, p=[0.9, 0.03, 0.04, 0.03])
    return model, flat


@pytest.mark.parametrize("include_var_flat", [False, True])
def test_flat_field_equals_romancal_bit_for_bit(include_var_flat: bool) -> None:
    from romancal.flatfield import FlatFieldStep

    model, flat = image_and_flat(7)
    names = ["data", "dq", "err", "var_poisson", "var_rnoise", "dumo", "chisq"]
    ours = {name: np.array(model[name]) for name in names}
    if include_var_flat:
        names.append("var_flat")
        ours["var_flat"] = np.empty(SHAPE, "f2")
    flat_err = flat.err if include_var_flat else None
    divide_by_flat(ours, flat.data.copy(), flat.dq.copy(), flat_err=flat_err, threads=2)

    step = FlatFieldStep(include_var_flat=include_var_flat)
    step.override_flat = flat
    theirs = step.process(model)
    for name in names:
        expected = np.asarray(theirs[name])
        if name in {"err", "var_flat"}:  # f4 with include_var_flat, which the oracle then cannot save
            expected = expected.astype("f2")
        compare("flat_field", f"`{name}`", ours[name], expected, bar=EQUAL)
    assert (ours["dq"] & (1 << 18)).any()
