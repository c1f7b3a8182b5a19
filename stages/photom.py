"""Copy the flux calibration of the optical element into the metadata. Pixel values do not change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from stages.exposure import Exposure, StepStatus
from stages.step import ALL_TYPES, CalibrationStage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.references import Reference
    from stream.stage import Slot

__all__ = ["Photom", "photometry_of"]

_FIELDS = {
    "conversion_megajanskys": "photmjsr",
    "conversion_megajanskys_uncertainty": "uncertainty",
    "pixel_area": "pixelareasr",
}


def photometry_of(phot_table: Mapping[str, Mapping[str, Any]], optical_element: str) -> dict[str, float | None] | None:
    """``meta.photometry`` for an optical element.

    Parameters
    ----------
    phot_table : mapping
        The reference's table: element to ``photmjsr`` and ``uncertainty`` ((MJy/sr)/(DN/s)) and ``pixelareasr`` (sr).
    optical_element : str
        In any case.

    Returns
    -------
    dict or None
        conversion_megajanskys, conversion_megajanskys_uncertainty, pixel_area, each None for dispersers and darks; None
        if the table does not know the element.
    """
    entry = phot_table.get(optical_element.upper())
    if entry is None:
        return None
    return {key: None if entry[field] is None else float(entry[field]) for key, field in _FIELDS.items()}


class Photom(CalibrationStage):
    """Record the flux calibration (reference ``photom``); SKIPPED without one."""

    name = "photom"
    version = "1"
    cal_step: ClassVar[str] = "photom"
    reference_types = ("photom",)
    optional_references = frozenset({"photom"})
    libraries = ()
    branches = ALL_TYPES

    def process(
        self,
        exposure: Exposure,
        references: Mapping[str, Reference | None],
        parameters: Any,  # noqa: ARG002
        slot: Slot,  # noqa: ARG002
    ) -> str | None:
        """Fill ``meta.photometry``; an element that the table does not have leaves it as it is."""
        reference = references.get("photom")
        if reference is None:
            self.log.warning("No photom reference: photom is skipped")
            exposure.set_step(self.cal_step, StepStatus.SKIPPED)
            return None
        element = str(exposure.meta["instrument"]["optical_element"])
        photometry = photometry_of(reference.value("phot_table"), element)
        if photometry is None:
            self.log.warning("%s has no flux calibration for %s: photometry is unchanged", reference.path, element)
        else:
            exposure.meta.setdefault("photometry", {}).update(photometry)
        exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        return None
