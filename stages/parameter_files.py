"""The field's parameter files (stpipe, ASDF): of one step, or of the pipeline with its steps. Not which of them counts.

A file has ``class``, ``name``, ``parameters`` and, of the pipeline, ``steps``, a list of the same; the older form has a
mapping ``steps`` inside ``parameters``. Steps are known by class, or by their name in the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.asdf_container import open_container, plain
from stream.failure import PermanentError

__all__ = [
    "OVERRIDE",
    "PIPELINE_CLASS",
    "SAVE_RESULTS",
    "STEP_CLASSES",
    "StepParameters",
    "read_parameter_file",
    "stage_of_step",
]

PIPELINE_CLASS = "ExposurePipeline"

STEP_CLASSES = {
    "dq_init": "DQInitStep",
    "saturation": "SaturationStep",
    "refpix": "RefPixStep",
    "dark_decay": "DarkDecayStep",
    "wfi18_transient": "WFI18TransientStep",
    "linearity": "LinearityStep",
    "ramp_fit": "RampFitStep",
    "dark_current": "DarkCurrentStep",
    "assign_wcs": "AssignWcsStep",
    "photom": "PhotomStep",
    "flat_field": "FlatFieldStep",
    "source_catalog": "SourceCatalogStep",
    "tweakreg": "TweakRegStep",
}
"""The field's class of each stage."""

_STAGES = {name: stage for stage, name in STEP_CLASSES.items()}
_NICKNAMES = {"rampfit": "ramp_fit", "flatfield": "flat_field", "dark": "dark_current"}
"""Names of steps in the field's pipeline that are not the stages' here."""

OVERRIDE = "override_"
"""Begins the name of a step's parameter that is a reference file."""

SAVE_RESULTS = "save_results"
"""A step's parameter that asks for its output as a file."""

_HOUSEKEEPING = frozenset(
    {
        "on_disk", "output_ext", "output_use_index", "output_use_model", "search_output_file", "suffix",
        "update_version",
    }
)  # fmt: skip
"""How the field's steps name files when they run alone: every exported file has them; ignored here."""

_REFUSED = frozenset({"input_dir", "output_dir", "output_file", "post_hooks", "pre_hooks"})
"""Refused unless empty: who set one expects something that would not happen."""


@dataclass(slots=True)
class StepParameters:
    """What a file says.

    Attributes
    ----------
    parameters : dict
        Parameters by stage.
    overrides : dict
        Reference file by type (absolute path, or N/A), from ``override_<type>``.
    saved : dict
        Whether the output of a stage is asked for as a file, by stage, from ``save_results``.
    """

    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)
    saved: dict[str, bool] = field(default_factory=dict)


def read_parameter_file(path: Path) -> StepParameters:
    """Read a file.

    Raises
    ------
    PermanentError
        It is no parameter file, or of a step that the exposure pipeline does not have, or sets what cannot be done. A
        parameter that its stage does not know is told when the stage's parameters are checked.
    """
    tree = open_container(path, blocks=False).tree
    document = plain({key: tree[key] for key in ("class", "name", "parameters", "steps") if key in tree})
    parameters = document.get("parameters")
    if not isinstance(parameters, dict):
        raise PermanentError(f"{path}: not a step's parameter file: expected class, name and parameters")
    found = StepParameters()
    for class_name, name, own in _steps(path, document):
        last = str(class_name or "").rpartition(".")[2]
        if last == PIPELINE_CLASS:
            _pipeline(path, own, found)
            continue
        stage = _STAGES.get(last) or (stage_of_step(str(name or "")) if not last else None)
        if stage is None:
            raise PermanentError(
                f"{path}: {class_name or name!r} is no step of the exposure pipeline; its steps are "
                f"{', '.join(_STAGES)}"
            )
        found.parameters.setdefault(stage, {}).update(_own(path, stage, own, found))
    return found


def _steps(path: Path, document: Mapping[str, Any]) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """Class, name and parameters of the file's own step, then of those inside it."""
    parameters = dict(document["parameters"])
    if "class" in document:
        yield document["class"], document.get("name"), parameters
        inner = document.get("steps") or ()
    else:  # the older form
        within = parameters.pop("steps", None) or {}
        yield parameters.pop("class", None), parameters.pop("name", None), parameters
        inner = [
            {"class": step.pop("class", None), "name": name, "parameters": step}
            for name, step in ((name, dict(step)) for name, step in within.items())
        ]
    for step in inner:
        if not isinstance(step, dict) or not isinstance(step.get("parameters"), dict):
            raise PermanentError(f"{path}: steps: expected class, name and parameters of each, got {step!r}")
        yield from _steps(path, step)


def stage_of_step(name: str) -> str | None:
    """Return the stage that a step of the field's pipeline is, by the step's name there; None for another name."""
    stage = _NICKNAMES.get(name, name)
    return stage if stage in STEP_CLASSES else None


def _own(path: Path, stage: str, parameters: Mapping[str, Any], found: StepParameters) -> dict[str, Any]:
    """What a stage knows; overrides of references go apart."""
    own = {}
    for name, value in parameters.items():
        if name.startswith(OVERRIDE):
            if value not in (None, ""):
                found.overrides[name.removeprefix(OVERRIDE)] = _override(path, f"{stage}.{name}", value)
        elif name == SAVE_RESULTS:
            found.saved[stage] = bool(value)
        elif name in _REFUSED:
            _check_empty(path, f"{stage}.{name}", value)
        elif name not in _HOUSEKEEPING:
            own[name] = value
    return own


def _pipeline(path: Path, parameters: Mapping[str, Any], found: StepParameters) -> None:
    own = _own(path, "the pipeline", {key: parameters[key] for key in parameters if key != SAVE_RESULTS}, found)
    if own.pop("skip", False):
        raise PermanentError(f"{path}: skip: the pipeline cannot be skipped; say which of its steps")
    if own:
        raise PermanentError(f"{path}: {next(iter(own))}: there is no such parameter of the pipeline")


def _check_empty(path: Path, name: str, value: Any) -> None:
    if value not in (None, "", []):
        raise PermanentError(
            f"{path}: {name} = {value!r} has no meaning here: hooks do not run, and products go where --out says; "
            "remove it"
        )


def _override(path: Path, name: str, value: Any) -> str:
    text = str(value)
    if text.upper() == "N/A":
        return "N/A"
    file = Path(text).expanduser().absolute()
    if not file.is_file():
        raise PermanentError(f"{path}: {name}: the file {file} does not exist")
    return str(file)
