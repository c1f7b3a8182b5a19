"""From an image to its source catalog and segmentation map: the order of the steps. Not the steps themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from stages.dq import PixelDQ
from stages.rows import for_row_blocks
from stages.source_catalog.apertures import APERTURE_ARCSEC
from stages.source_catalog.background import estimate_background
from stages.source_catalog.deblend import deblend_segments
from stages.source_catalog.detection import detect, label_segments, subtract_background
from stages.source_catalog.measurements import Image, PlateScale, measure_all, measure_positions, plate_scale
from stages.source_catalog.shapes import Segments, find_segments
from stages.source_catalog.table import aperture_metadata, catalog_table, empty_table, forced_table, table_metadata

if TYPE_CHECKING:
    from astropy.table import Table
    from numpy.typing import NDArray

    from stages.source_catalog.psf_model import GriddedPSF

__all__ = ["CatalogResult", "DetectionSettings", "Forcing", "make_catalog", "pixel_mask"]

MJY_PER_SR_TO_NJY_PER_SR = 1e15


@dataclass(frozen=True, slots=True)
class DetectionSettings:
    """Background box (pixels), filter FWHM (pixels), threshold (background rms), least pixels, and deblending."""

    box: int = 1000
    kernel_fwhm: float = 2.0
    snr: float = 3.0
    minimum_pixels: int = 25
    deblend: bool = False


@dataclass(frozen=True, slots=True)
class Forcing:
    """Segments (u4) and detection image (f4) of another image, to be measured in this one."""

    segmentation: NDArray[np.uint32]
    detection_image: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CatalogResult:
    """What the stage keeps.

    Attributes
    ----------
    table : Table
        The catalog, without ``dust_ebv`` unless it is empty.
    segmentation : ndarray, u4, (ny, nx)
        Labels.
    detection_image : ndarray, f4, (ny, nx), or None
        Convolved image in nJy (DN/s when nothing was detected); None when every pixel is masked.
    """

    table: Table
    segmentation: NDArray[np.uint32]
    detection_image: NDArray[np.float32] | None


@njit(nogil=True, cache=True)
def _mask_rows(data, err, dq, flag, first, last, masked):  # type: ignore[no-untyped-def]
    for y in range(first, last):
        for x in range(data.shape[1]):
            value, error = data[y, x], err[y, x]
            usable = abs(value) < np.inf and error < np.inf and error > 0 and (dq[y, x] & flag) == 0
            masked[y, x] = not usable


def pixel_mask(
    data: NDArray[np.float32],
    err: NDArray[np.float32],
    dq: NDArray[np.uint32],
    out: NDArray[np.bool_],
    *,
    threads: int = 1,
) -> None:
    """Mark pixels that are not finite, have no positive finite error, or carry DO_NOT_USE."""
    flag = np.uint32(PixelDQ.DO_NOT_USE)
    for_row_blocks(
        lambda first, last: _mask_rows(data, err, dq, flag, first, last, out), data.shape[0], threads=threads
    )


@njit(nogil=True, cache=True)
def _scale_rows(array, first_factor, second_factor, first, last):  # type: ignore[no-untyped-def]
    for y in range(first, last):
        for x in range(array.shape[1]):
            array[y, x] = np.float64(array[y, x] * first_factor) * second_factor


def _to_nanojansky(array: NDArray[np.float32], conversion: float, pixel_area: float, threads: int) -> None:
    """Scale from DN/s to nJy per pixel in place: an f4 product, then an f8 product rounded to f4."""
    factors = np.float32(conversion), np.float64(pixel_area * MJY_PER_SR_TO_NJY_PER_SR)
    for_row_blocks(lambda first, last: _scale_rows(array, *factors, first, last), array.shape[0], threads=threads)


def make_catalog(
    data: NDArray[np.float32],
    err: NDArray[np.float32],
    dq: NDArray[np.uint32],
    *,
    wcs: Any,
    conversion: float,
    pixel_area: float | None,
    settings: DetectionSettings,
    ee_fractions: NDArray[np.float32] | None = None,
    psf: GriddedPSF | None = None,
    forcing: Forcing | None = None,
    work: tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    threads: int = 1,
) -> CatalogResult:
    """Detect sources in a rate image and measure them.

    Parameters
    ----------
    data : ndarray, f4, (ny, nx)
        Rate, DN/s; not changed.
    err : ndarray, f4, (ny, nx)
        Error, DN/s; **overwritten** (a copy of the exposure's f2 array).
    dq : ndarray, u4, (ny, nx)
        Flags; DO_NOT_USE is left out of detection.
    wcs : gwcs.WCS
        Pixels to ICRS degrees.
    conversion : float
        MJy/sr per DN/s.
    pixel_area : float or None
        Steradian; where not positive, from the WCS.
    settings : DetectionSettings
        How to detect.
    ee_fractions : ndarray, f4, (5,), or None
        See `stages.source_catalog.measurements.enclosed_energy`.
    psf : GriddedPSF or None
        For PSF photometry; None leaves it out.
    forcing : Forcing or None
        Measure another image's segments instead of this image's.
    work : tuple of ndarray or None
        Scratch: f4 and two bool arrays of the image's shape.

    Returns
    -------
    CatalogResult
    """
    if work is None:
        work = np.empty(data.shape, np.float32), np.empty(data.shape, np.bool_), np.empty(data.shape, np.bool_)
    subtracted, masked, detected = work
    pixel_mask(data, err, dq, masked, threads=threads)
    if masked.all():
        return CatalogResult(empty_table(), np.zeros(data.shape, dtype=np.uint32), None)
    background = estimate_background(data, masked, settings.box, threads=threads)
    subtract_background(data, masked, background, subtracted, threads=threads)
    convolved = np.empty(data.shape, dtype=np.float32)
    detect(
        subtracted,
        masked,
        background,
        settings.kernel_fwhm,
        settings.snr,
        convolved=convolved,
        detected=detected,
        threads=threads,
    )
    segments, segmentation = _segments(detected, convolved, masked, settings, forcing)
    if len(segments) == 0:
        return CatalogResult(empty_table(), segmentation, convolved)
    scale = plate_scale(wcs, data.shape, pixel_area)
    area = pixel_area if pixel_area is not None and pixel_area > 0 else scale.pixel_area / _SQUARE_ARCSEC_PER_SR
    for array in (subtracted, err, convolved):
        _to_nanojansky(array, conversion, area, threads)
    image = Image(subtracted, err, convolved, masked, dq, segmentation)
    measure = partial(
        measure_all,
        segments=segments,
        scale=scale,
        wcs=wcs,
        ee_fractions=ee_fractions,
        psf=psf,
        kernel_fwhm=settings.kernel_fwhm,
        threads=threads,
    )
    if forcing is None:
        table = catalog_table(measure(image))
        table.meta.update(table_metadata())
        table.meta.update(_aperture_metadata(scale, ee_fractions))
        return CatalogResult(table, segmentation, convolved)
    given = forcing.detection_image.astype(np.float32)
    _to_nanojansky(given, conversion, area, threads)
    full = measure(Image(subtracted, err, given, masked, dq, segmentation))
    table = forced_table(full, measure_positions(image, segments, scale, wcs, threads=threads))
    table.meta.update(table_metadata())
    return CatalogResult(table, segmentation, given)


_SQUARE_ARCSEC_PER_SR = (180.0 / np.pi * 3600.0) ** 2


def _aperture_metadata(scale: PlateScale, ee_fractions: NDArray[np.float32] | None) -> dict[str, Any]:
    unknown = np.full(APERTURE_ARCSEC.size, np.nan, dtype=np.float32)
    return aperture_metadata(scale.pixel_scale, unknown if ee_fractions is None else ee_fractions)


def _segments(
    detected: NDArray[np.bool_],
    convolved: NDArray[np.float32],
    masked: NDArray[np.bool_],
    settings: DetectionSettings,
    forcing: Forcing | None,
) -> tuple[Segments, NDArray[np.uint32]]:
    """Labelled segments: detected here, or given from outside less those that are fully masked here."""
    if forcing is not None:
        segmentation = forcing.segmentation.astype(np.uint32)
        seen = np.zeros(int(segmentation.max()) + 1, dtype=np.bool_)
        seen[np.unique(segmentation[~masked])] = True
        seen[0] = False
        segmentation *= seen[segmentation]
        return find_segments(segmentation), segmentation
    segmentation = np.empty(detected.shape, dtype=np.uint32)
    label_segments(detected, settings.minimum_pixels, segmentation)
    if settings.deblend:
        deblend_segments(convolved, segmentation, settings.minimum_pixels)
    return find_segments(segmentation), segmentation
