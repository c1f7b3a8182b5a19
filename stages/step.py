"""The thin base of every calibration stage: skipping, status and reference bookkeeping. Not the science.

A concrete stage gives the class attributes of `stream.stage.Stage` and ``process``, which calls its array-level
function.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from stages.exposure import Exposure, ExposureType, StepStatus
from stream.stage import Facts, Slot, StageParameters, StageResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stages.references import Reference

__all__ = ["ALL_TYPES", "IMAGE_TYPES", "SATURATED_BRANCH", "CalibrationStage"]

ALL_TYPES = frozenset(str(t) for t in ExposureType)
IMAGE_TYPES = frozenset({str(ExposureType.IMAGE), str(ExposureType.LOLO), str(ExposureType.WFSC)})

SATURATED_BRANCH = "SATURATED"
"""Branch of an exposure without a single unsaturated element."""


class CalibrationStage(ABC):
    """Base of the stages.

    Attributes
    ----------
    cal_step : str
        Key of ``meta.cal_step`` that the stage sets.
    optional_references : frozenset of str
        Types for which N/A is allowed by the mission's rules; the stage then gets None.
    """

    name: str
    version: str
    cal_step: ClassVar[str]
    parameters_type: type[StageParameters] = StageParameters
    reference_types: tuple[str, ...] = ()
    optional_references: frozenset[str] = frozenset()
    libraries: tuple[str, ...] = ("numpy", "numba")
    branches: frozenset[str] = ALL_TYPES

    def __init__(self) -> None:
        self.log = logging.getLogger(f"stages.{self.name}")

    def references_for(self, facts: Facts, parameters: Any) -> Sequence[str]:
        """All reference types, but none for a skipped stage or one that the input has behind it."""
        return () if parameters.skip or self.name in facts.get("done", ()) else self.reference_types

    def run(
        self, item: Exposure, references: Mapping[str, Reference | None], parameters: Any, slot: Slot
    ) -> StageResult:
        """Run the stage on one exposure (see `stream.stage.Stage`)."""
        if self.name in item.done:
            self.log.info("Step %s was done before", self.name)
            return StageResult(item, self.branch_of(item))
        if parameters.skip:
            self.log.info("Step %s is skipped by its parameters", self.name)
            item.set_step(self.cal_step, StepStatus.SKIPPED)
            return StageResult(item)
        branch = self.process(item, references, parameters, slot)
        self._record(item, references)
        return StageResult(item, branch)

    def branch_of(self, exposure: Exposure) -> str | None:  # noqa: ARG002
        """Branch on which an exposure goes on that came with the stage behind it; None for its own."""
        return None

    @abstractmethod
    def process(
        self, exposure: Exposure, references: Mapping[str, Reference | None], parameters: Any, slot: Slot
    ) -> str | None:
        """Do the science in place, set the status; return another branch where the exposure leaves its own."""

    def _record(self, exposure: Exposure, references: Mapping[str, Reference | None]) -> None:
        recorded = exposure.meta.get("ref_file", {})
        for reference_type, reference in references.items():
            if reference_type in recorded:
                recorded[reference_type] = "N/A" if reference is None else reference.recorded_name
