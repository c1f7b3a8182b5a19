"""Runs one stage and the oracle's step on the same arrays and references, whole. Knows no case and compares little."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.exposure import CAL_STEP_KEYS, Exposure
from stream.stage import Slot
from tests.parity.random_ramps import RandomRamp
from tests.parity.record import Bar, compare, compare_same
from tests.stages.ramp_frames import FakeReference, ramp_exposure

__all__ = ["BORDERS", "compare_arrays", "our_ramp", "run_oracle_step", "run_stage", "shown", "their_ramp"]

BORDERS = tuple(
    f"{prefix}border_ref_pix_{side}" for prefix in ("", "dq_") for side in ("left", "right", "top", "bottom")
)


def our_ramp(case: RandomRamp) -> Exposure:
    """The case as the stages take it."""
    own = case.copy()
    exposure = ramp_exposure(
        own.data,
        read_pattern=case.pattern,
        groupdq=own.groupdq,
        pixeldq=own.pixeldq,
        amp33=own.amp33,
        detector=case.detector,
        frame_time=case.frame_time,
    )
    edges = {"left": np.s_[:, :4], "right": np.s_[:, -4:], "top": np.s_[:4], "bottom": np.s_[-4:]}
    for side, edge in edges.items():
        exposure.arrays[f"dq_border_ref_pix_{side}"] = own.pixeldq[edge].copy()
    return exposure


def their_ramp(case: RandomRamp) -> Any:
    """The case as the oracle's steps take it."""
    from roman_datamodels import datamodels

    own = our_ramp(case)
    ramp = datamodels.RampModel.create_fake_data(shape=case.data.shape)
    for name, array in own.arrays.items():
        ramp[name] = array
    ramp.meta.exposure.read_pattern = copy.deepcopy(case.pattern)
    ramp.meta.exposure.frame_time = case.frame_time
    ramp.meta.exposure.nresultants = len(case.pattern)
    ramp.meta.instrument.detector = case.detector
    ramp.meta["cal_step"] = dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE")
    return ramp


def run_oracle_step(step: Any, model: Any, references: Mapping[str, Any], **parameters: Any) -> Any:
    """Run a step of romancal's: references are models by type, or None for N/A."""
    step = step(**parameters)
    for kind, reference in references.items():
        setattr(step, f"override_{kind}", "N/A" if reference is None else reference)
    with np.errstate(all="ignore"):
        return step.process(model)


def run_stage(
    stage: Any, exposure: Exposure, references: Mapping[str, Mapping[str, Any] | None], **parameters: Any
) -> Exposure:
    """Run a stage in place: references are trees by type, or None for N/A."""
    fakes = {kind: None if tree is None else FakeReference(**tree) for kind, tree in references.items()}
    stage().run(exposure, fakes, stage.parameters_type(**parameters), Slot(threads=2))
    return exposure


def shown(name: str) -> str:
    """An array as the page calls it: the four sides of the border are one row."""
    return f"`{name.rpartition('_')[0]}_*`" if "border_ref_pix" in name else f"`{name}`"


def compare_arrays(
    stage: str, exposure: Exposure, model: Any, names: tuple[str, ...], *, bar: Bar | None = None, **accepted: Any
) -> None:
    """Compare arrays of an exposure, and the status of its stage, with those of a model."""
    for name in names:
        compare(stage, shown(name), exposure.arrays[name], np.asarray(model[name]), bar=bar, accepted=accepted)
    statuses = {key: str(value) for key, value in exposure.meta["cal_step"].items()}
    compare_same(stage, "`cal_step`", statuses, {key: str(value) for key, value in model.meta.cal_step.items()})
