"""What to simulate: the options of ``rampstream simulate`` and the kinds of exposure. Not how it is done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "BORDER",
    "CHANNELS",
    "CHANNEL_COLUMNS",
    "COLUMNS",
    "DEFAULT_READ_PATTERN",
    "SCIENCE_COLUMNS",
    "ExposureKind",
    "SimulateOptions",
    "Variant",
    "exposure_kind",
]

COLUMNS = 4096
BORDER = 4
SCIENCE_COLUMNS = COLUMNS - 2 * BORDER
CHANNELS = 32
CHANNEL_COLUMNS = COLUMNS // CHANNELS

DEFAULT_READ_PATTERN: tuple[tuple[int, ...], ...] = (
    (1,),
    (2, 3),
    (4, 5, 6),
    *(tuple(range(first, first + 4)) for first in (7, 11, 15, 19, 23, 27, 31)),
)
"""Ten resultants of 34 reads: a single first read, then more and more reads averaged, as the mission's tables do."""

IMAGING_ELEMENTS = ("F062", "F087", "F106", "F129", "F146", "F158", "F184", "F213")


class Variant(StrEnum):
    """A kind of exposure that can be asked for by name."""

    IMAGING = "imaging"
    GRISM = "grism"
    PRISM = "prism"
    SATURATED = "saturated"
    DARK = "dark"
    SPECTRAL_DARK = "spectral_dark"
    FLAT = "flat"
    LOLO = "lolo"
    WFSC = "wfsc"
    WFI18 = "wfi18"
    REFERENCE_READ = "reference_read"
    RESULTANT_DQ = "resultantdq"


@dataclass(frozen=True, slots=True)
class ExposureKind:
    """What tells one variant from another.

    Attributes
    ----------
    exposure_type : str
        ``meta.exposure.type``.
    element : str or None
        Optical element; None for the one of the options.
    light : str
        What falls on the detector: "sky", "dispersed", "defocused", "lamp", "none" or "flood".
    dithered : bool
        Whether it is repeated at every dither position.
    detectors : tuple of str or None
        Detectors of this variant; None for those of the options.
    frame_time : float
        Seconds per read.
    """

    exposure_type: str
    element: str | None
    light: str
    dithered: bool = False
    detectors: tuple[str, ...] | None = None
    frame_time: float = 3.04


_KINDS = {
    Variant.IMAGING: ExposureKind("WFI_IMAGE", None, "sky", dithered=True),
    Variant.GRISM: ExposureKind("WFI_SPECTRAL", "GRISM", "dispersed", dithered=True, frame_time=4.03),
    Variant.PRISM: ExposureKind("WFI_SPECTRAL", "PRISM", "dispersed", dithered=True, frame_time=4.03),
    Variant.SATURATED: ExposureKind("WFI_IMAGE", None, "flood"),
    Variant.DARK: ExposureKind("WFI_IM_DARK", "DARK", "none"),
    Variant.SPECTRAL_DARK: ExposureKind("WFI_SP_DARK", "DARK", "none", frame_time=4.03),
    Variant.FLAT: ExposureKind("WFI_FLAT", None, "lamp"),
    Variant.LOLO: ExposureKind("WFI_LOLO", None, "sky", dithered=True),
    Variant.WFSC: ExposureKind("WFI_WFSC", None, "defocused"),
    Variant.WFI18: ExposureKind("WFI_IMAGE", None, "sky", dithered=True, detectors=("WFI18",)),
    Variant.REFERENCE_READ: ExposureKind("WFI_IMAGE", None, "sky", dithered=True),
    Variant.RESULTANT_DQ: ExposureKind("WFI_IMAGE", None, "sky", dithered=True),
}


def exposure_kind(variant: Variant) -> ExposureKind:
    """What the variant stands for."""
    return _KINDS[variant]


class SimulateOptions(BaseModel):
    """Options of a simulation; everything that decides a byte of it, and where it goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(description="Folder that gets l1/, references/, gaia.parquet, associations/ and truth/.")
    detectors: tuple[str, ...] = Field(default=("WFI01",), min_length=1, description="Detectors to expose.")
    variants: tuple[Variant, ...] = Field(default=(Variant.IMAGING,), min_length=1, description="Kinds of exposure.")
    dithers: int = Field(default=1, ge=1, le=999, description="Dither positions of the variants that look at the sky.")
    exposures: int = Field(default=1, ge=1, description="Exposures at each dither position.")
    rate: float | None = Field(
        default=None, gt=0, description="Exposures per hour, for a steady stream; none: as fast as they can be made."
    )
    rows: int = Field(
        default=4096, ge=64, le=4096, description="Rows of the frame, borders included; 4096 is the real one."
    )
    seed: int = Field(default=1, ge=0, description="Equal seeds and options give equal exposures.")
    read_pattern: tuple[tuple[int, ...], ...] = Field(
        default=DEFAULT_READ_PATTERN, description="Reads (from 1) averaged into each resultant."
    )
    optical_element: str = Field(default="F158", description="Imaging element of the variants that have one.")
    stars: int | None = Field(
        default=None, ge=0, description="Stars per detector frame; default 1500 in a full frame, never under 80."
    )
    galaxies: int | None = Field(
        default=None, ge=0, description="Galaxies per detector frame; default 300, never under 8."
    )
    cosmic_ray_rate: float = Field(default=5.0, ge=0, description="Cosmic rays per cm^2 and second.")
    pointing_error_mas: float = Field(
        default=300.0, ge=0, le=2000, description="Largest error of the recorded pointing, in milliarcseconds."
    )
    proper_motions: bool = Field(
        default=False, description="Give the star table proper motions and parallaxes, with positions at epoch 2016.0."
    )
    compress: bool = Field(default=True, description="Compress the exposures with lz4, as the archive does.")
    threads: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)), ge=1, description="Threads; they change no number."
    )

    @field_validator("detectors")
    @classmethod
    def _known_detectors(cls, detectors: tuple[str, ...]) -> tuple[str, ...]:
        known = {f"WFI{number:02d}" for number in range(1, 19)}
        wrong = [name for name in detectors if name not in known]
        if wrong or len(set(detectors)) != len(detectors):
            raise ValueError(f"detectors must be different names from WFI01 to WFI18, found {', '.join(detectors)}")
        return detectors

    @field_validator("optical_element")
    @classmethod
    def _imaging_element(cls, element: str) -> str:
        if element not in IMAGING_ELEMENTS:
            raise ValueError(f"optical_element must be one of {', '.join(IMAGING_ELEMENTS)}, found {element!r}")
        return element

    @field_validator("read_pattern")
    @classmethod
    def _rising_reads(cls, pattern: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        reads = [read for resultant in pattern for read in resultant]
        rising = all(a < b for a, b in pairwise(reads))
        if len(pattern) < 2 or not all(pattern) or reads[0] < 1 or not rising:
            raise ValueError("read_pattern must have two or more resultants of rising read numbers from 1 on")
        return pattern

    @model_validator(mode="after")
    def _different_variants(self) -> SimulateOptions:
        if len(set(self.variants)) != len(self.variants):
            raise ValueError("each variant may be named once")
        return self

    @property
    def science_rows(self) -> int:
        """Rows that see light."""
        return self.rows - 2 * BORDER

    @property
    def star_count(self) -> int:
        """Expected number of stars in a detector frame."""
        return max(80, round(1500 * self.science_rows / SCIENCE_COLUMNS)) if self.stars is None else self.stars

    @property
    def galaxy_count(self) -> int:
        """Expected number of galaxies in a detector frame."""
        return max(8, round(300 * self.science_rows / SCIENCE_COLUMNS)) if self.galaxies is None else self.galaxies

    def detectors_of(self, variant: Variant) -> tuple[str, ...]:
        """Detectors that the variant exposes."""
        return exposure_kind(variant).detectors or self.detectors

    def element_of(self, variant: Variant) -> str:
        """Optical element of the variant."""
        return exposure_kind(variant).element or self.optical_element
