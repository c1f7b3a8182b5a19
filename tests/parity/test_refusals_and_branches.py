"""What the oracle cannot do is refused here too, and each type of exposure goes through the same steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stages.dark_decay import DarkDecayStage
from stages.exposure import CAL_STEP_KEYS, ExposureType
from stages.linearity import LinearityStage
from stages.pipeline import TABLE
from stages.ramp_fit import RampFit
from stages.saturation import SaturationStage
from stream.failure import PermanentError
from tests.parity import both_sides as both
from tests.parity.random_ramps import random_ramp
from tests.parity.record import EQUAL, compare_same
from tests.parity.test_generated_ramps import fit_models, fit_planes, linearity_models, polynomials

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

THEIR_NAMES = {"ramp_fit": "rampfit", "flat_field": "flatfield"}


def test_saturation_without_a_reference() -> None:
    from romancal.saturation import SaturationStep

    case = random_ramp(1, (16, 128))
    model = both.run_oracle_step(SaturationStep, both.their_ramp(case), {"saturation": None})
    exposure = both.run_stage(SaturationStage, both.our_ramp(case), {"saturation": None})
    both.compare_arrays("saturation", exposure, model, ("data", "groupdq", "pixeldq"), bar=EQUAL)
    assert exposure.meta["cal_step"]["saturation"] == "SKIPPED"


def too_few_resultants_for_the_likelihood() -> tuple[Any, ...]:
    from romancal.ramp_fitting import RampFitStep

    case = random_ramp(1, (16, 16), pattern=[[1], [2, 3], [4]])
    trees = fit_planes(case)
    return case, RampFitStep, fit_models(trees), RampFit, trees


def a_read_pattern_of_other_length() -> tuple[Any, ...]:
    case, *others = too_few_resultants_for_the_likelihood()
    case = random_ramp(1, (16, 16), pattern=[[1], [2, 3], [4], [5], [6]])
    case.pattern = case.pattern[:4]
    return case, *others


def one_resultant_for_linearity() -> tuple[Any, ...]:
    from romancal.linearity import LinearityStep

    case = random_ramp(1, (16, 128), pattern=[[1, 2]])
    trees = polynomials(case)
    return case, LinearityStep, linearity_models(trees), LinearityStage, trees


def no_gain() -> tuple[Any, ...]:
    case, step, models, stage, trees = too_few_resultants_for_the_likelihood()
    case = random_ramp(1, (16, 16), pattern=[[1], [2, 3], [4], [5], [6]])
    return case, step, {**models, "gain": None}, stage, {**trees, "gain": None}


def no_read_noise() -> tuple[Any, ...]:
    case, step, models, stage, trees = no_gain()
    return case, step, {**models, "readnoise": None}, stage, {**trees, "readnoise": None}


def no_dark_decay() -> tuple[Any, ...]:
    from romancal.dark_decay import DarkDecayStep

    case = random_ramp(1, (16, 128))
    return case, DarkDecayStep, {"darkdecaysignal": None}, DarkDecayStage, {"darkdecaysignal": None}


@pytest.mark.parametrize(
    "scene",
    [
        too_few_resultants_for_the_likelihood,
        a_read_pattern_of_other_length,
        one_resultant_for_linearity,
        no_gain,
        no_read_noise,
        no_dark_decay,
    ],
)
def test_what_the_oracle_cannot_do_is_refused(scene: Callable[[], tuple[Any, ...]]) -> None:
    case, step, models, stage, trees = scene()
    with pytest.raises((ValueError, IndexError, OSError, RuntimeError)):
        both.run_oracle_step(step, both.their_ramp(case), models)
    with pytest.raises(PermanentError):
        both.run_stage(stage, both.our_ramp(case), trees)


@pytest.mark.parametrize("kind", list(ExposureType))
def test_each_type_goes_through_the_oracles_steps(kind: ExposureType, monkeypatch: pytest.MonkeyPatch) -> None:
    from roman_datamodels.datamodels import ImageModel
    from romancal.pipeline import ExposurePipeline
    from stpipe import Step

    went: list[str] = []

    def went_through(step: Any, model: Any, *_: Any) -> Any:
        went.append(step.name)
        return (None, None) if step.name == "source_catalog" else model

    model = ImageModel.create_fake_data(shape=(8, 8))
    model["groupdq"], model["pixeldq"] = model.dq[None].copy(), model.dq.copy()
    model.meta["cal_step"] = dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE")
    model.meta.exposure.type = str(kind)
    pipeline = ExposurePipeline()
    monkeypatch.setattr(Step, "run", went_through)
    pipeline.process(model)
    # For tweakreg all go to the joint stage, here and there: it skips those without a catalog.
    ours = [THEIR_NAMES.get(row.name, row.name) for row in TABLE if kind in row.branches and row.name != "finalize"]
    compare_same("branches", "steps by type of exposure", ours, went)
