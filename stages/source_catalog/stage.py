"""The source_catalog stage: references and metadata in, catalog and segmentation map out. Not the measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from stages.assign_wcs import read_distortion
from stages.exposure import Exposure, ExposureType, StepStatus
from stages.rows import buffer
from stages.source_catalog.catalog import DetectionSettings, Forcing, make_catalog
from stages.source_catalog.dust import dust_reddening
from stages.source_catalog.measurements import enclosed_energy
from stages.source_catalog.psf_model import DEFOCUS, SPECTRAL_TYPE, GriddedPSF, build_psf
from stages.source_catalog.table import add_reddening
from stages.step import CalibrationStage
from stream.failure import PermanentError
from stream.stage import Facts, Slot, StageParameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from stages.references import Reference

__all__ = ["SourceCatalogParameters", "SourceCatalogStage"]


class SourceCatalogParameters(StageParameters):
    """How sources are detected and measured."""

    bkg_boxsize: int = Field(default=1000, gt=0, description="Side of the background boxes, pixels.")
    kernel_fwhm: float = Field(default=2.0, gt=0, description="FWHM of the Gaussian detection filter, pixels.")
    snr_threshold: float = Field(default=3.0, description="Detection threshold per pixel, in background rms.")
    npixels: int = Field(default=25, gt=0, description="Least number of connected pixels of a source.")
    deblend: bool = Field(default=False, description="Split sources that hold several peaks.")
    fit_psf: bool = Field(default=True, description="Measure positions and fluxes with the PSF.")
    forced_segmentation: str = Field(
        default="", description="Path of a segmentation map whose sources are measured instead of this image's own."
    )

    def named_files(self) -> tuple[str, ...]:
        """The segmentation map, where one is given."""
        return (self.forced_segmentation,) if self.forced_segmentation else ()


class SourceCatalogStage(CalibrationStage):
    """Detect the sources of a calibrated image and measure positions, shapes and fluxes.

    Sets ``exposure.catalog``, ``exposure.tie_points`` for the joint alignment, and the arrays ``segmentation`` (u4) and
    ``detection_image`` (f4). When nothing is detected the catalog is empty, the status stays as it was and no reference
    is recorded.
    """

    name = "source_catalog"
    version = "3"
    cal_step = "source_catalog"
    parameters_type = SourceCatalogParameters
    reference_types = ("apcorr", "epsf", "distortion", "dustmap_north", "dustmap_south")
    optional_references = frozenset({"dustmap_north", "dustmap_south"})
    libraries = ("numpy", "numba", "scipy", "astropy", "photutils", "gwcs")
    branches = frozenset({str(ExposureType.IMAGE), str(ExposureType.LOLO)})

    def references_for(self, facts: Facts, parameters: Any) -> Sequence[str]:
        """All types, without the PSF where none is fitted."""
        types = super().references_for(facts, parameters)
        return [t for t in types if t != "epsf" or parameters.fit_psf]

    def process(
        self, exposure: Exposure, references: Mapping[str, Reference | None], parameters: Any, slot: Slot
    ) -> str | None:
        """Make the catalog of an image (see `stages.source_catalog.catalog.make_catalog`)."""
        data = exposure.arrays["data"]
        err = buffer(slot, "source_catalog.err", data.shape, np.float32)
        np.copyto(err, exposure.arrays["err"])
        work = (
            buffer(slot, "source_catalog.subtracted", data.shape, np.float32),
            buffer(slot, "source_catalog.masked", data.shape, np.bool_),
            buffer(slot, "source_catalog.detected", data.shape, np.bool_),
        )
        distortion = read_distortion(_required(exposure, references, "distortion"))
        result = make_catalog(
            data,
            err,
            exposure.arrays["dq"],
            wcs=_wcs(exposure, distortion),
            conversion=_conversion(exposure),
            pixel_area=exposure.meta["photometry"].get("pixel_area"),
            settings=DetectionSettings(
                parameters.bkg_boxsize,
                parameters.kernel_fwhm,
                parameters.snr_threshold,
                parameters.npixels,
                parameters.deblend,
            ),
            ee_fractions=_ee_fractions(exposure, references),
            psf=_psf(exposure, references) if parameters.fit_psf else None,
            forcing=_forcing(parameters.forced_segmentation, data.shape),
            work=work,
            threads=slot.threads,
        )
        exposure.set_array("segmentation", result.segmentation)
        if result.detection_image is not None:
            exposure.set_array("detection_image", result.detection_image)
        exposure.catalog = result.table
        if len(result.table) == 0:
            self.log.warning("No source detected: the catalog is empty")
        else:
            add_reddening(result.table, self._reddening(result.table, references))
            self.log.info("Measured %d sources", len(result.table))
            exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        if parameters.forced_segmentation:
            exposure.meta.setdefault("image", {})["forced_segmentation"] = parameters.forced_segmentation
        from stages.tweakreg.tie_points import tie_points_bytes

        exposure.tie_points = tie_points_bytes(exposure, distortion)
        return None

    def _record(self, exposure: Exposure, references: Mapping[str, Reference | None]) -> None:
        """Record references only for a catalog with sources; the distortion was recorded by assign_wcs."""
        if exposure.meta.get("cal_step", {}).get(self.cal_step) == str(StepStatus.COMPLETE):
            super()._record(exposure, {t: references[t] for t in ("apcorr", "epsf") if t in references})

    def _reddening(self, table: Any, references: Mapping[str, Reference | None]) -> NDArray[np.float32]:
        """E(B-V) of each source; NaN for all, with a warning, when the maps cannot be used."""
        north, south = references.get("dustmap_north"), references.get("dustmap_south")
        reason: object = "no map of both galactic hemispheres"
        if north is not None and south is not None:
            try:
                return dust_reddening(np.asarray(table["ra"]), np.asarray(table["dec"]), north.path, south.path)
            except Exception as error:  # noqa: BLE001 - nothing about the maps may cost the catalog
                reason = error
        self.log.warning("dust_ebv is set to NaN: %s", reason)
        return np.full(len(table), np.nan, dtype=np.float32)


def _required(exposure: Exposure, references: Mapping[str, Reference | None], kind: str) -> Reference:
    reference = references.get(kind)
    if reference is None:
        raise PermanentError(f"{exposure.id}: source_catalog needs a reference of type {kind!r}, found none")
    return reference


def _wcs(exposure: Exposure, distortion: Any) -> Any:
    from stages.wcs import build_wcs

    if exposure.wcs is None:
        raise PermanentError(f"{exposure.id}: source_catalog needs a WCS, but assign_wcs has not set one")
    return build_wcs(exposure.wcs, distortion)


def _conversion(exposure: Exposure) -> float:
    value = exposure.meta["photometry"].get("conversion_megajanskys")
    if value is None or not value > 0:
        raise PermanentError(
            f"{exposure.id}: meta.photometry.conversion_megajanskys is {value}; source_catalog needs a positive "
            "number, as photom writes it (where photom is skipped, skip source_catalog and tweakreg too)"
        )
    return float(value)


def _ee_fractions(exposure: Exposure, references: Mapping[str, Reference | None]) -> NDArray[np.float32] | None:
    """Enclosed energy of the apertures for the exposure's optical element, None where the file has no curve."""
    element = exposure.meta["instrument"]["optical_element"]
    reference = _required(exposure, references, "apcorr")
    curve = reference.value("data", element)
    radii, fractions = curve["ee_radii"], curve["ee_fractions"]
    if radii is None or fractions is None:
        return None
    return enclosed_energy(np.asarray(radii, dtype=np.float64), np.asarray(fractions, dtype=np.float64))


def _psf(exposure: Exposure, references: Mapping[str, Reference | None]) -> GriddedPSF:
    reference = _required(exposure, references, "epsf")
    stamps = reference.array("psf")
    if stamps.ndim != 5 or stamps.shape[0] <= DEFOCUS or stamps.shape[1] <= SPECTRAL_TYPE:
        raise PermanentError(
            f"{reference.path}: roman.psf must have axes (defocus, spectral type >= 2, grid, y, x), "
            f"found shape {stamps.shape}"
        )
    meta = reference.value("meta")
    try:
        return build_psf(
            np.asarray(stamps[DEFOCUS, SPECTRAL_TYPE]),
            int(meta["oversample"]),
            np.asarray(meta["pixel_x"], dtype=np.float64),
            np.asarray(meta["pixel_y"], dtype=np.float64),
            exposure.meta.get("guide_star", {}),
            meta,
        )
    except ValueError as error:
        raise PermanentError(f"{reference.path}: {error}") from error


def _forcing(path: str, shape: tuple[int, ...]) -> Forcing | None:
    if not path:
        return None
    import asdf

    try:
        with asdf.open(path, memmap=False) as file:
            segmentation = np.array(file["roman"]["data"])
            detection_image = np.array(file["roman"]["detection_image"])
    except (OSError, KeyError, ValueError) as error:
        raise PermanentError(f"{path}: not a segmentation map with data and detection_image ({error})") from error
    if segmentation.shape != shape or detection_image.shape != shape:
        raise PermanentError(f"{path}: the segmentation map has shape {segmentation.shape}, the image {shape}")
    return Forcing(segmentation, detection_image)
