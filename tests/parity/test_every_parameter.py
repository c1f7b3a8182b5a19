"""Every parameter of the stages up to flat_field away from its default, on both sides; none may be left out.

Those of source_catalog and tweakreg are with the tests of these stages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from stages.pipeline import TABLE, make_stage
from tests.parity import both_sides as both
from tests.parity.random_ramps import random_ramp, reference_plane
from tests.parity.record import EQUAL, compare
from tests.parity.test_dq_init import ramp_of_counts
from tests.parity.test_generated_images import random_image
from tests.parity.test_ramp_fit import Ramp, run_oracle, run_stage, snowball_scene
from tests.parity.test_ramp_fit import random_ramp as ramp_to_fit
from tests.parity.test_refpix import one_case

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

ELSEWHERE = {"source_catalog", "tweakreg", "finalize"}
STAGES = {row.name: row.entry for row in TABLE if row.name not in ELSEWHERE}

STEPS = {
    "dq_init": "romancal.dq_init:DQInitStep",
    "saturation": "romancal.saturation:SaturationStep",
    "refpix": "romancal.refpix:RefPixStep",
    "dark_decay": "romancal.dark_decay:DarkDecayStep",
    "wfi18_transient": "romancal.wfi18_transient:WFI18TransientStep",
    "linearity": "romancal.linearity:LinearityStep",
    "ramp_fit": "romancal.ramp_fitting:RampFitStep",
    "dark_current": "romancal.dark_current:DarkCurrentStep",
    "assign_wcs": "romancal.assign_wcs:AssignWcsStep",
    "photom": "romancal.photom:PhotomStep",
    "flat_field": "romancal.flatfield:FlatFieldStep",
}


@dataclass(frozen=True)
class Away:
    """A value that is not the default, the other settings that it needs to matter, and whether it then does."""

    value: Any
    base: dict[str, Any] = field(default_factory=dict)
    matters: bool = True


SNOWBALLS: dict[str, Any] = {"expand_large_events": True}
OLDER: dict[str, Any] = {"algorithm": "ols_cas22"}

AWAY: dict[str, dict[str, Away]] = {
    "dq_init": {"expand_gw_flagging": Away(5)},
    "saturation": {"n_pix_grow_sat": Away(2), "backup": Away(3)},
    "refpix": {
        name: Away(False) for name in ("remove_offset", "remove_trends", "cosine_interpolate", "fft_interpolate")
    },
    # A frame of few rows is flagged either way; test_wfi18_transient has whole ones, which are not.
    "wfi18_transient": {"mask_rows": Away(True, matters=False)},
    "ramp_fit": {
        "algorithm": Away("ols_cas22"),
        "rejection_threshold": Away(2.5, matters=False),
        "use_ramp_jump_detection": Away(False, OLDER),
        "threshold_intercept": Away(3.5, OLDER),
        "threshold_constant": Away(0.9, OLDER),
        "include_var_rnoise": Away(True),
        "record_jumps": Away(False),
        "expand_large_events": Away(True),
        "min_sat_area": Away(8.0, SNOWBALLS),
        "min_jump_area": Away(90.0, SNOWBALLS | {"sat_required_snowball": False}),
        "expand_factor": Away(2.7, SNOWBALLS),
        "sat_required_snowball": Away(False, SNOWBALLS),
        "min_sat_radius_extend": Away(4.0, SNOWBALLS),
        "sat_expand": Away(4, SNOWBALLS),
        "edge_size": Away(20, SNOWBALLS),
        "maximum_cores": Away("quarter", matters=False),
    },
    "flat_field": {"include_var_flat": Away(True)},
}
"""For each stage with parameters of its own."""


def load(entry: str) -> Any:
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("stage", STAGES)
def test_the_list_has_every_parameter_of_both_sides(stage: str) -> None:
    ours = make_stage(STAGES[stage]).parameters_type.model_fields
    own = ours.keys() - {"skip"}
    assert AWAY.get(stage, {}).keys() == own
    # What a step without parameters of its own has is of all steps: how it names and keeps files.
    assert set(load(STEPS[stage])().get_pars()) - set(load(STEPS["linearity"])().get_pars()) == own
    for name, away in AWAY.get(stage, {}).items():
        assert away.value != ours[name].default
        assert type(ours[name].default) in {type(away.value), type(None), float}


def scene(stage: str, parameter: str) -> Any:
    """The case on which a parameter is tried."""
    if stage != "ramp_fit":
        return None
    wide = AWAY["ramp_fit"][parameter].base.get("expand_large_events") or parameter == "expand_large_events"
    return snowball_scene(2) if wide else ramp_to_fit([[1], [2, 3], [5, 6, 7], [9], [10, 11]], seed=4, shape=(30, 60))


def sides(stage: str, case: Any, settings: dict[str, Any], *, oracle: bool = True) -> tuple[dict[str, Any], Any]:
    """Our arrays after the stage, and the oracle's model (None if it was not asked for)."""
    if stage == "ramp_fit":
        assert isinstance(case, Ramp)
        exposure, model = run_stage(case, **settings), run_oracle(case, **settings) if oracle else None
        return exposure.arrays, model
    if stage == "flat_field":
        exposure, model = random_image(11)
        rng = np.random.default_rng(12)
        shape = exposure.arrays["data"].shape
        flat = {name: reference_plane(rng, rng.normal(1, 0.1, shape), values=()) for name in ("data", "err")}
        references = {"flat": {**flat, "dq": np.zeros(shape, np.uint32)}}
    elif stage == "dq_init":
        exposure, model = ramp_of_counts((10, 20, 12, 30))
        references = {"mask": {"dq": np.ones(exposure.arrays["data"].shape[1:], np.uint32) << 10}}
    elif stage == "refpix":
        ramp, tree = one_case()
        exposure, model, references = both.our_ramp(ramp), both.their_ramp(ramp), {"refpix": tree}
    else:
        ramp = random_ramp(3, (40, 128), pattern=[[1], [2, 3], [4, 5, 6], [7, 8], [9, 10], [11, 12, 13]], flagged=False)
        ramp.detector = "WFI18"
        exposure, model = both.our_ramp(ramp), both.their_ramp(ramp)
        plane = {"data": (0.9 * ramp.well).astype(np.float32), "dq": np.zeros(ramp.well.shape, np.uint32)}
        references = {"saturation": plane} if stage == "saturation" else {}
    if oracle:
        models = {kind: reference_model(kind, tree) for kind, tree in references.items()}
        model = both.run_oracle_step(load(STEPS[stage]), model, models, **settings)
    both.run_stage(load(STAGES[stage]), exposure, references, **settings)
    return exposure.arrays, model


def reference_model(kind: str, tree: dict[str, Any]) -> Any:
    from roman_datamodels import datamodels

    model = getattr(datamodels, f"{kind.capitalize()}RefModel").create_fake_data()
    for name, array in tree.items():
        model[name] = array.copy()
    return model


CASES = [(stage, name) for stage, parameters in AWAY.items() for name in parameters]


@pytest.mark.parametrize(("stage", "parameter"), CASES)
def test_away_from_its_default_the_numbers_are_the_oracles(stage: str, parameter: str) -> None:
    away = AWAY[stage][parameter]
    case = scene(stage, parameter)
    ours, model = sides(stage, case, {**away.base, parameter: away.value})
    for name, array in ours.items():
        theirs = np.asarray(model[name])
        if stage == "flat_field" and name in {"err", "var_flat"}:  # f4 there: "var-flat-f2"
            theirs = theirs.astype(np.float16)
        if array.ndim >= 2:
            compare(stage, f"`{name}`", array, theirs, bar=None if stage == "refpix" else EQUAL)
    default, _ = sides(stage, case, away.base, oracle=False)
    changed = default.keys() != ours.keys() or any(
        array.shape != default[name].shape
        or not np.array_equal(array, default[name], equal_nan=array.dtype.kind == "f")
        for name, array in ours.items()
    )
    assert changed == away.matters


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from romancal.pipeline import ExposurePipeline

    return ExposurePipeline()


@pytest.mark.parametrize("stage", STAGES)
def test_a_skipped_stage_says_so_as_the_oracles_does(stage: str, pipeline: Any) -> None:
    ramp = random_ramp(1, (16, 128))
    image = TABLE_INDEX[stage] > TABLE_INDEX["ramp_fit"]
    exposure, model = random_image(1) if image else (both.our_ramp(ramp), both.their_ramp(ramp))
    before = {name: array.copy() for name, array in exposure.arrays.items()}
    # A step that runs alone does not heed the switch.
    step = getattr(pipeline, {"ramp_fit": "rampfit", "flat_field": "flatfield"}.get(stage, stage))
    assert type(step) is load(STEPS[stage])
    step.skip = True
    model = step.run(model)
    kinds = make_stage(STAGES[stage]).reference_types
    both.run_stage(load(STAGES[stage]), exposure, dict.fromkeys(kinds), skip=True)
    both.compare_arrays(stage, exposure, model, ("data",), bar=EQUAL)
    assert "SKIPPED" in exposure.meta["cal_step"].values()
    for name, array in before.items():
        np.testing.assert_array_equal(exposure.arrays[name], array)


TABLE_INDEX = {row.name: i for i, row in enumerate(TABLE)}
