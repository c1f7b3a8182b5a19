"""What the field's users write among a step's parameters and is none of a stage: overrides, saving, other names.

``steps.flatfield.override_flat`` pins a reference, ``steps.rampfit.save_results`` keeps a file, and the field's names
of three steps are not those of the stages here. Not the checking of what remains, which is the stages' own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.parameter_files import OVERRIDE, SAVE_RESULTS, read_parameter_file, stage_of_step
from stream.failure import PermanentError

__all__ = ["StepWords", "step_words"]


@dataclass(slots=True)
class StepWords:
    """Parameters of stages, and what was written among them.

    Attributes
    ----------
    parameters : dict
        Parameters by stage.
    overrides : dict
        Reference file by type, or N/A.
    save : dict
        Whether the output of a stage is asked for as a file.
    """

    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    overrides: dict[str, Path] = field(default_factory=dict)
    save: dict[str, bool] = field(default_factory=dict)

    def saved(self, named: Iterable[str]) -> tuple[str, ...]:
        """Stages whose output is asked for, those that are named too; by the stages' own names."""
        wanted = [stage for stage, save in self.save.items() if save]
        return tuple(dict.fromkeys([*wanted, *(stage_of_step(name) or name for name in named)]))


def step_words(parameters: Mapping[str, Mapping[str, Any]], files: Sequence[Path]) -> StepWords:
    """Sort parameters of settings, and those of parameter files where settings say nothing.

    Parameters
    ----------
    parameters : mapping
        By stage, or by the field's name of a step.
    files : sequence of Path
        The field's parameter files; later ones win.

    Raises
    ------
    PermanentError
        A file cannot be read, or an override names one that does not exist.
    """
    words = StepWords()
    for path in files:
        found = read_parameter_file(path)
        for stage, own in found.parameters.items():
            words.parameters.setdefault(stage, {}).update(own)
        words.overrides |= {kind: Path(name) for kind, name in found.overrides.items()}
        words.save |= found.saved
    for name, given in parameters.items():
        stage = stage_of_step(name) or name
        own = words.parameters.setdefault(stage, {})
        for parameter, value in given.items():
            if parameter == SAVE_RESULTS:
                words.save[stage] = _switch(f"{name}.{parameter}", value)
            elif parameter.startswith(OVERRIDE):
                words.overrides |= _override(f"{name}.{parameter}", parameter.removeprefix(OVERRIDE), value)
            else:
                own[parameter] = value
    words.parameters = {stage: own for stage, own in words.parameters.items() if own or stage_of_step(stage) is None}
    return words


def _override(where: str, kind: str, value: Any) -> dict[str, Path]:
    if value in (None, ""):
        return {}
    if str(value).upper() == "N/A":
        return {kind: Path("N/A")}
    path = Path(str(value)).expanduser().absolute()
    if not path.is_file():
        raise PermanentError(f"{where}: the file {path} does not exist")
    return {kind: path}


def _switch(where: str, value: Any) -> bool:
    # an environment variable's value is text
    known = {"true": True, "false": False, "1": True, "0": False}.get(str(value).lower())
    if known is None:
        raise PermanentError(f"{where} is {value!r}; expected true or false")
    return known
