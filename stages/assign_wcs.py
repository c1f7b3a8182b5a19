"""assign_wcs: give the exposure the numbers of its WCS and its footprint on the sky. Not the alignment to Gaia."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.exposure import Exposure, StepStatus
from stages.step import ALL_TYPES, CalibrationStage
from stages.wcs import build_wcs, s_region, wcs_numbers
from stream.failure import PermanentError
from stream.stage import Slot, StageParameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.references import Reference

__all__ = ["AssignWcs", "AssignWcsParameters", "read_distortion"]


class AssignWcsParameters(StageParameters):
    """assign_wcs has no parameters of its own."""


def read_distortion(reference: Reference) -> Any:
    """Distortion model (x, y pixel -> v2, v3 arcsec) of a distortion reference.

    Raises
    ------
    PermanentError
        The file holds no model of two inputs and two outputs.
    """
    model = reference.value("coordinate_distortion_transform")
    if getattr(model, "n_inputs", None) != 2 or getattr(model, "n_outputs", None) != 2:
        raise PermanentError(
            f"{reference.path}: coordinate_distortion_transform must be an astropy model from (x, y) to (v2, v3), "
            f"found {type(model).__name__}"
        )
    return model


class AssignWcs(CalibrationStage):
    """Set ``exposure.wcs``, ``meta.wcsinfo.s_region`` and ``cal_step.assign_wcs``.

    Without a distortion reference the step is SKIPPED: ``exposure.wcs`` is None and s_region stays.
    """

    name = "assign_wcs"
    version = "1"
    cal_step = "assign_wcs"
    parameters_type = AssignWcsParameters
    reference_types = ("distortion",)
    optional_references = frozenset({"distortion"})
    libraries = ("numpy", "astropy", "gwcs")
    branches = ALL_TYPES

    def process(
        self,
        exposure: Exposure,
        references: Mapping[str, Reference | None],
        parameters: Any,  # noqa: ARG002
        slot: Slot,  # noqa: ARG002
    ) -> None:
        """Assign the WCS (see `stages.step.CalibrationStage.process`)."""
        reference = references["distortion"]
        if reference is None:
            self.log.warning("No distortion reference: assign_wcs is skipped")
            exposure.wcs = None
            exposure.set_step(self.cal_step, StepStatus.SKIPPED)
            return
        ny, nx = exposure.arrays["data"].shape[-2:]
        numbers = wcs_numbers(exposure.meta, (ny, nx), source=exposure.id)
        region = s_region(build_wcs(numbers, read_distortion(reference)))
        if region is not None:
            exposure.meta["wcsinfo"]["s_region"] = region
        exposure.wcs = numbers
        exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        self.log.info("s_region: %s", exposure.meta["wcsinfo"].get("s_region"))
