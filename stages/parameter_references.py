"""Parameters that CRDS has for an exposure: the ``pars-*`` references of its step, then of the pipeline."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from stages.crds_context import CrdsContext, reference_path
from stages.parameter_files import PIPELINE_CLASS, STEP_CLASSES, StepParameters, read_parameter_file
from stream.failure import PermanentError

if TYPE_CHECKING:
    from stream.stage import Facts

__all__ = ["ParameterReferences", "parameter_types"]

log = logging.getLogger(__name__)


def parameter_types(stage: str) -> tuple[str, ...]:
    """Types of the references that have parameters for a stage, the later winning; none for a stage of one's own."""
    if stage not in STEP_CLASSES:
        return ()
    return tuple(f"pars-{name.lower()}" for name in (STEP_CLASSES[stage], PIPELINE_CLASS))


class ParameterReferences:
    """Parameters from one CRDS context.

    Parameters
    ----------
    context : CrdsContext
        The rules.
    """

    def __init__(self, context: CrdsContext) -> None:
        self._context = context
        self._read: dict[str, StepParameters] = {}

    def parameters(self, stage: str, facts: Facts) -> dict[str, Any]:
        """Return what CRDS says about a stage's parameters for an exposure; empty where it says nothing.

        Raises
        ------
        PermanentError
            A file that the context has for the exposure is not in the cache, or is no parameter file.
        """
        found: dict[str, Any] = {}
        for kind in parameter_types(stage):
            found.update(self._file(kind, facts).parameters.get(stage, {}))
        return found

    def _file(self, kind: str, facts: Facts) -> StepParameters:
        try:
            name = self._context.best(kind, facts)
        except PermanentError as error:
            log.debug("no parameters from %s: %s", kind, error)
            name = None  # as the mission has it, a look-up that fails is one that finds nothing
        if name is None:
            return StepParameters()
        if name not in self._read:
            path = reference_path(self._context.cache, name)
            if not path.is_file():
                raise PermanentError(
                    f"{name}, which has parameters of type {kind}, is not in the CRDS cache {self._context.cache}; "
                    f"{self._context.remedy}"
                )
            read = read_parameter_file(path)
            if read.overrides:
                raise PermanentError(f"{name}: a parameter reference cannot override references ({read.overrides})")
            self._read[name] = read
        return self._read[name]
