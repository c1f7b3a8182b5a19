"""The stages of the ramp equal romancal's steps on generated exposures, references good, bad and missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.dq import GroupDQ, PixelDQ
from stages.linearity import LinearityStage
from stages.ramp_fit import RampFit
from stages.saturation import SaturationStage
from tests.parity import both_sides as both
from tests.parity.random_ramps import RandomRamp, random_ramp, reference_plane
from tests.parity.record import EQUAL, seeds

# The oracle divides by zero and casts to infinity, with warnings.
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

RAMP = ("data", "groupdq", "pixeldq")
IMAGE = ("data", "dq", "err", "var_poisson", "var_rnoise", "chisq", "dumo", "amp33")


def saturation_reference(case: RandomRamp) -> dict[str, Any]:
    """Thresholds near the full well, some of no use, and flags."""
    rng = case.rng
    planes = case.well * rng.uniform(0.6, 1.0, case.well.shape)
    flags = np.array([0, PixelDQ.DO_NOT_USE, PixelDQ.NO_SAT_CHECK, PixelDQ.OTHER_BAD_PIXEL], np.uint32)
    return {
        "data": reference_plane(rng, planes, values=(np.nan, 0, -5, np.inf)),
        "dq": rng.choice(flags, case.well.shape, p=[0.9, 0.04, 0.04, 0.02]),
    }


@pytest.mark.parametrize("saturated", ["some", "almost", "fully"])
@pytest.mark.parametrize("seed", seeds(3, 120))
def test_saturation(seed: int, saturated: str) -> None:
    from roman_datamodels.datamodels import SaturationRefModel
    from romancal.saturation import SaturationStep

    case = random_ramp(seed, saturated=saturated)
    tree = saturation_reference(case)
    if saturated != "some":
        tree["data"][:], tree["dq"][:] = 60000, 0
    reference = SaturationRefModel.create_fake_data(shape=case.well.shape)
    reference.data, reference.dq = tree["data"].copy(), tree["dq"].copy()
    rng = case.rng
    grow = int(rng.integers(0, 3)) if saturated == "some" else 0
    settings = {"n_pix_grow_sat": grow, "backup": int(rng.integers(0, 4))}
    model = both.run_oracle_step(SaturationStep, both.their_ramp(case), {"saturation": reference}, **settings)
    exposure = both.run_stage(SaturationStage, both.our_ramp(case), {"saturation": tree}, **settings)
    both.compare_arrays("saturation", exposure, model, RAMP)
    flagged = (exposure.arrays["groupdq"] & GroupDQ.SATURATED) != 0
    assert all(plane.any() for plane in flagged[1:])
    assert flagged.all() == (saturated == "fully")


NUMBERS_OF_COEFFICIENTS = ((7, 5), (3, 3), (5, 7), (11, 6), (2, 4), (4, 12))
"""Forward and inverse; the kernel is compiled for each pair, which takes seconds."""


def polynomials(case: RandomRamp) -> dict[str, Any]:
    """Coefficients of linearity and its inverse, some bad, and channels with a correction of their own."""
    rng, shape = case.rng, case.well.shape
    trees: dict[str, Any] = {}
    numbers = NUMBERS_OF_COEFFICIENTS[max(case.seed - 1, 0) % len(NUMBERS_OF_COEFFICIENTS)]
    for kind, sign, count in zip(("linearity", "inverselinearity"), (1.0, -1.0), numbers, strict=True):
        scale = np.array([0.3, 0.01, *(10.0 ** (-5 * k + 3) for k in range(2, count))])[:, None, None]
        coefficients = (sign * scale * rng.normal(1, 0.1, (count, *shape))).astype(np.float32)
        coefficients[1] += 1
        coefficients[1][rng.random(shape) < 0.02] = 0
        coefficients[rng.random(coefficients.shape) < 0.003] = np.nan
        coefficients[:, rng.random(shape) < 0.01] *= -1
        trees[kind] = {"coeffs": coefficients}
    flags = np.array([0, PixelDQ.HOT, PixelDQ.NO_LIN_CORR], np.uint32)
    trees["linearity"]["dq"] = rng.choice(flags, shape, p=[0.9, 0.05, 0.05])
    grid = np.arange(0, 65536, 16, dtype=np.uint16) if case.seed % 2 else np.arange(65536, dtype=np.uint16)
    trees["integralnonlinearity"] = {
        "value": grid,
        "inl_table": {
            f"science_channel_{channel + 1:02d}": {
                "instrument_channel": channel + 1,
                "correction": 5 * np.sin(grid / 700 + channel) + rng.normal(0, 1, grid.size),
            }
            for channel in range(shape[1] // 128)
        },
    }
    return trees


def linearity_models(trees: dict[str, Any]) -> dict[str, Any]:
    from roman_datamodels import datamodels

    models: dict[str, Any] = dict.fromkeys(("linearity", "inverselinearity", "integralnonlinearity"))
    for kind, name in (("linearity", "LinearityRefModel"), ("inverselinearity", "InverselinearityRefModel")):
        if trees[kind] is not None:
            models[kind] = getattr(datamodels, name).create_fake_data(shape=trees[kind]["coeffs"].shape)
            for key, array in trees[kind].items():
                models[kind][key] = array.copy()
    if trees["integralnonlinearity"] is not None:
        models["integralnonlinearity"] = datamodels.IntegralnonlinearityRefModel.create_fake_data()
        for key, value in trees["integralnonlinearity"].items():
            models["integralnonlinearity"][key] = value
    return models


@pytest.mark.parametrize("missing", [None, "integralnonlinearity", "inverselinearity", "linearity"])
@pytest.mark.parametrize("seed", seeds(2, 60))
def test_linearity(seed: int, missing: str | None) -> None:
    from romancal.linearity import LinearityStep

    case = random_ramp(seed)
    saturated = case.data >= 0.95 * case.well
    case.groupdq[np.maximum.accumulate(saturated, axis=0)] |= np.uint8(GroupDQ.SATURATED)
    trees = polynomials(case)
    if missing is not None:
        trees[missing] = None
    model = both.run_oracle_step(LinearityStep, both.their_ramp(case), linearity_models(trees))
    exposure = both.run_stage(LinearityStage, both.our_ramp(case), trees)
    both.compare_arrays("linearity", exposure, model, RAMP, bar=EQUAL)
    expected = "SKIPPED" if missing in {"linearity", "inverselinearity"} else "COMPLETE"
    assert exposure.meta["cal_step"]["linearity"] == expected
    unchanged = np.array_equal(exposure.arrays["data"], case.data, equal_nan=True)
    assert unchanged == (expected == "SKIPPED")


def fit_planes(case: RandomRamp) -> dict[str, Any]:
    """Gain and read noise, a few of them zero, negative, or no numbers."""
    rng, shape = case.rng, case.well.shape
    gain = reference_plane(rng, rng.normal(1.8, 0.1, shape), values=(0, np.nan, -1.5, np.inf), part=0.003)
    noise = reference_plane(rng, 5 + rng.gamma(2, 1, shape), values=(0, np.nan, 1e-3, 100, -4), part=0.003)
    return {"gain": {"data": gain}, "readnoise": {"data": noise}}


def fit_models(trees: dict[str, Any]) -> dict[str, Any]:
    from roman_datamodels import datamodels

    models = {}
    for kind, name in (("gain", "GainRefModel"), ("readnoise", "ReadnoiseRefModel")):
        models[kind] = getattr(datamodels, name).create_fake_data(shape=trees[kind]["data"].shape)
        models[kind].data = trees[kind]["data"].copy()
    return models


def fit_both(case: RandomRamp, **settings: Any) -> tuple[Any, Any]:
    """The exposure and the oracle's model after the fit."""
    from romancal.ramp_fitting import RampFitStep

    trees = fit_planes(case)
    model = both.run_oracle_step(RampFitStep, both.their_ramp(case), fit_models(trees), **settings)
    return both.run_stage(RampFit, both.our_ramp(case), trees, **settings), model


@pytest.mark.parametrize("seed", seeds(3, 100))
def test_likelihood_fit(seed: int) -> None:
    exposure, model = fit_both(saturated_ramp(seed), include_var_rnoise=True)
    both.compare_arrays("ramp_fit", exposure, model, (*IMAGE, *both.BORDERS, "jump_indices"), bar=EQUAL)
    for bit in (PixelDQ.DO_NOT_USE, PixelDQ.SATURATED, PixelDQ.JUMP_DET):
        assert (exposure.arrays["dq"] & bit).any()


@pytest.mark.parametrize("seed", seeds(1, 40))
def test_likelihood_fit_with_expanded_snowballs(seed: int) -> None:
    """Every saturated pixel is a core: the oracle draws an ellipse for each, which takes seconds."""
    exposure, model = fit_both(saturated_ramp(seed + 200, (16, 48)), include_var_rnoise=True, expand_large_events=True)
    both.compare_arrays("ramp_fit", exposure, model, (*IMAGE, *both.BORDERS, "jump_indices"), bar=EQUAL)
    assert (exposure.arrays["dq"] & PixelDQ.JUMP_DET).any()


@pytest.mark.parametrize("seed", seeds(3, 100))
def test_least_squares_fit(seed: int) -> None:
    case = saturated_ramp(seed + 1000)
    exposure, model = fit_both(case, algorithm="ols_cas22", include_var_rnoise=True)
    both.compare_arrays("ramp_fit", exposure, model, (*IMAGE, *both.BORDERS), bar=EQUAL)
    assert (exposure.arrays["dq"] & PixelDQ.JUMP_DET).any()


def saturated_ramp(seed: int, shape: tuple[int, int] = (32, 128)) -> RandomRamp:
    """A case with the flags that the saturation step would have set."""
    case = random_ramp(seed, shape)
    case.groupdq[np.maximum.accumulate(case.data >= 0.95 * case.well, axis=0)] |= np.uint8(GroupDQ.SATURATED)
    return case
