"""The default table of stages, in order, each with the exposure types it applies to. Data, not control flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.step import ALL_TYPES, SATURATED_BRANCH, CalibrationStage

__all__ = ["FINALIZE", "JOINT", "TABLE", "TableRow", "make_stage", "stage_names"]

IMAGE_TYPES = frozenset({"WFI_IMAGE", "WFI_LOLO", "WFI_WFSC"})
CATALOG_TYPES = frozenset({"WFI_IMAGE", "WFI_LOLO"})
EVERYTHING = ALL_TYPES | {SATURATED_BRANCH}

JOINT = "tweakreg"
FINALIZE = "finalize"


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: the stage's name, where its class is, its branches, and whether a balanced segment starts here."""

    name: str
    entry: str
    branches: frozenset[str]
    balanced_head: bool = False
    joint: bool = False


TABLE = (
    TableRow("dq_init", "stages.dq_init:DQInitStage", ALL_TYPES, balanced_head=True),
    TableRow("saturation", "stages.saturation:SaturationStage", ALL_TYPES),
    TableRow("refpix", "stages.refpix:RefpixStage", ALL_TYPES),
    TableRow("dark_decay", "stages.dark_decay:DarkDecayStage", ALL_TYPES),
    TableRow("wfi18_transient", "stages.wfi18_transient:Wfi18TransientStage", ALL_TYPES),
    TableRow("linearity", "stages.linearity:LinearityStage", ALL_TYPES),
    TableRow("ramp_fit", "stages.ramp_fit:RampFit", ALL_TYPES),
    TableRow("dark_current", "stages.dark_current:DarkCurrent", ALL_TYPES),
    TableRow("assign_wcs", "stages.assign_wcs:AssignWcs", ALL_TYPES, balanced_head=True),
    TableRow("photom", "stages.photom:Photom", ALL_TYPES),
    TableRow("flat_field", "stages.flat_field:FlatField", IMAGE_TYPES),
    TableRow("source_catalog", "stages.source_catalog:SourceCatalogStage", CATALOG_TYPES),
    TableRow(JOINT, "stages.tweakreg:Tweakreg", EVERYTHING, balanced_head=True, joint=True),
    TableRow(FINALIZE, "stages.finalize:Finalize", EVERYTHING, balanced_head=True),
)
"""A spectral, flat or dark exposure leaves after photom; a fully saturated one is on a branch of its own after
saturation. All go through the joint stage, which finalizes at once those that cannot be aligned."""


def stage_names() -> tuple[str, ...]:
    """Names of the default stages in order."""
    return tuple(row.name for row in TABLE)


def make_stage(entry: str) -> Any:
    """Make a stage from ``module:Class``.

    Raises
    ------
    ImportError, AttributeError
        There is no such class.
    """
    from importlib import import_module

    module, _, name = entry.partition(":")
    stage: CalibrationStage = getattr(import_module(module), name)()
    return stage
