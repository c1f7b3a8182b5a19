"""All columns of the catalog for one image and one set of segments. Not detection, nor the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.dq import PixelDQ
from stages.source_catalog.apertures import APERTURE_ARCSEC, ApertureFluxes, measure_apertures
from stages.source_catalog.daofind import measure_daofind
from stages.source_catalog.kron import measure_kron
from stages.source_catalog.neighbours import nearest_neighbours
from stages.source_catalog.psf import fit_psf_fluxes
from stages.source_catalog.shapes import Segments, Shapes, measure_shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.source_catalog.kron import KronMeasures
    from stages.source_catalog.psf_model import GriddedPSF

__all__ = ["Image", "PlateScale", "enclosed_energy", "measure_all", "measure_positions", "plate_scale"]

Columns = dict[str, "NDArray[Any]"]
ARCSEC_PER_RADIAN = 180.0 / np.pi * 3600.0
NJY_IN_AB = np.float32(10.0 ** (-31.4 / 2.5))
"""1 nJy over the flux density of AB magnitude 0."""
EXTENDED_RATIO = 1.2
APERTURE_NAMES = tuple(f"aper{round(10 * radius):02d}_flux" for radius in APERTURE_ARCSEC)


@dataclass(frozen=True, slots=True)
class Image:
    """What is measured, in nJy per pixel.

    Attributes
    ----------
    data, err, convolved : ndarray, f4, (ny, nx)
        Background-subtracted image, its errors and the detection image.
    masked : ndarray, bool, (ny, nx)
        Pixels without valid data.
    dq : ndarray, u4, (ny, nx)
        Flags.
    segmentation : ndarray, u4, (ny, nx)
        Labels.
    """

    data: NDArray[np.float32]
    err: NDArray[np.float32]
    convolved: NDArray[np.float32]
    masked: NDArray[np.bool_]
    dq: NDArray[np.uint32]
    segmentation: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class PlateScale:
    """Scales of the image.

    Attributes
    ----------
    pixel_scale : float
        Arcsec per pixel at the image's centre, along the meridian.
    angle : float
        Degrees from the x axis to north there.
    pixel_area : float
        Arcsec^2, of ``meta.photometry`` (else ``pixel_scale`` squared).
    """

    pixel_scale: float
    angle: float
    pixel_area: float


def plate_scale(wcs: Any, shape: tuple[int, int], pixel_area: float | None) -> PlateScale:
    """Scales from the WCS at the image's centre, and the nominal pixel area.

    Parameters
    ----------
    wcs : gwcs.WCS
        Of the image, with an inverse.
    pixel_area : float or None
        Steradian.
    """
    from astropy import units
    from astropy.coordinates import SkyCoord

    x, y = (shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0
    ra, dec = wcs.pixel_to_world_values(x, y)
    north = SkyCoord(ra * units.deg, dec * units.deg).directional_offset_by(0.0 * units.deg, 1.0 * units.arcsec)
    # Both ends go through the inverse, which may be approximate.
    start, end = wcs.world_to_pixel_values(ra, dec), wcs.world_to_pixel_values(north.ra.deg, north.dec.deg)
    dx, dy = float(end[0]) - float(start[0]), float(end[1]) - float(start[1])
    scale = 1.0 / float(np.hypot(dx, dy))
    area = scale**2 if pixel_area is None or not pixel_area > 0 else float(pixel_area) * ARCSEC_PER_RADIAN**2
    return PlateScale(scale, float(np.rad2deg(np.arctan2(dy, dx))), area)


def enclosed_energy(radii: NDArray[np.float64], fractions: NDArray[np.float64]) -> NDArray[np.float32]:
    """Enclosed-energy fraction of each circular aperture.

    Notes
    -----
    The curve's radii are pixels, yet it is evaluated at the apertures' radii in arcsec: so does the field's pipeline,
    and ``is_extended`` depends on it.
    """
    from scipy.interpolate import InterpolatedUnivariateSpline

    return np.asarray(InterpolatedUnivariateSpline(radii, fractions, k=3)(APERTURE_ARCSEC), dtype=np.float32)


def _sky(wcs: Any, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ra, dec = wcs.pixel_to_world_values(x.astype(np.float64), y.astype(np.float64))
    return np.asarray(ra), np.asarray(dec)


def _position_columns(shapes: Shapes, segments: Segments, scale: PlateScale, wcs: Any) -> Columns:
    """Centroids, sky positions, ellipse and nearest neighbour."""
    n = len(segments)
    zero = np.zeros(n, dtype=np.float32)
    side = np.sqrt(scale.pixel_area)
    ra, dec = _sky(wcs, shapes.x, shapes.y)
    x, y = shapes.x.astype(np.float32), shapes.y.astype(np.float32)
    nn_label, nn_distance = nearest_neighbours(segments.labels, x, y, scale.pixel_scale)
    orientation = shapes.orientation.astype(np.float32)
    columns: Columns = {
        "flagged_spatial_id": np.zeros(n, dtype=np.int64),
        "x_centroid": x,
        "y_centroid": y,
        "ra": ra,
        "dec": dec,
        "ra_centroid": ra,
        "dec_centroid": dec,
        "semimajor": shapes.semimajor * side,
        "semiminor": shapes.semiminor * side,
        "fwhm": shapes.fwhm * side,
        "ellipticity": shapes.ellipticity,
        "orientation_pix": orientation,
        "orientation_sky": (180.0 - scale.angle + orientation.astype(np.float64)) % 360.0,
        "cxx": shapes.cxx / scale.pixel_area,
        "cxy": shapes.cxy / scale.pixel_area,
        "cyy": shapes.cyy / scale.pixel_area,
        "nn_label": nn_label,
        "nn_distance": nn_distance,
    }
    for name in ("x_centroid_err", "y_centroid_err", "ra_centroid_err", "dec_centroid_err"):
        columns[name] = zero
    return columns


def measure_positions(image: Image, segments: Segments, scale: PlateScale, wcs: Any, *, threads: int = 1) -> Columns:
    """Positions and shapes alone (for the second half of a forced catalog)."""
    shapes = _shapes(image, segments, threads)
    kron = _kron(image, segments, shapes, threads)
    columns = _position_columns(shapes, segments, scale, wcs)
    columns["kron_radius"] = kron.radius * np.sqrt(scale.pixel_area)
    return columns


def _shapes(image: Image, segments: Segments, threads: int) -> Shapes:
    return measure_shapes(
        image.convolved, image.data, image.err, image.masked, image.segmentation, segments, threads=threads
    )


def _kron(image: Image, segments: Segments, shapes: Shapes, threads: int) -> KronMeasures:
    return measure_kron(image.data, image.err, image.masked, image.segmentation, segments, shapes, threads=threads)


def measure_all(
    image: Image,
    segments: Segments,
    scale: PlateScale,
    wcs: Any,
    *,
    ee_fractions: NDArray[np.float32] | None,
    psf: GriddedPSF | None,
    kernel_fwhm: float,
    threads: int = 1,
) -> Columns:
    """Measure every column but ``dust_ebv``.

    Parameters
    ----------
    ee_fractions : ndarray, f4, (5,), or None
        Enclosed energy of the apertures; without it no source is called extended.
    psf : GriddedPSF or None
        None: no PSF columns.
    kernel_fwhm : float
        Of the detection filter, pixels (for DAOFind).

    Returns
    -------
    dict of ndarray
        By column name; types as measured (the table rounds them).
    """
    shapes = _shapes(image, segments, threads)
    kron = _kron(image, segments, shapes, threads)
    columns = _position_columns(shapes, segments, scale, wcs)
    x, y = columns["x_centroid"], columns["y_centroid"]
    apertures = measure_apertures(image.data, image.err, x, y, scale.pixel_scale, threads=threads)
    columns |= _segment_columns(shapes, segments, scale)
    columns |= _kron_columns(kron, scale, wcs)
    columns |= _aperture_columns(apertures, scale, ee_fractions)
    columns["sharpness"], columns["roundness1"] = measure_daofind(image.data, x, y, kernel_fwhm)
    columns["warning_flags"] = _warning_flags(image.dq, x, y)
    columns["image_flags"] = np.zeros(len(segments), dtype=np.int32)
    if psf is not None:
        columns |= _psf_columns(psf, image, x, y, wcs, threads)
    return columns


def _segment_columns(shapes: Shapes, segments: Segments, scale: PlateScale) -> Columns:
    return {
        "label": segments.labels,
        "bbox_xmin": segments.box[:, 0],
        "bbox_xmax": segments.box[:, 1],
        "bbox_ymin": segments.box[:, 2],
        "bbox_ymax": segments.box[:, 3],
        "segment_area": shapes.area * scale.pixel_area,
        "segment_flux": shapes.flux,
        "segment_flux_err": shapes.flux_err,
    }


def _kron_columns(kron: KronMeasures, scale: PlateScale, wcs: Any) -> Columns:
    side = np.sqrt(scale.pixel_area)
    ra, dec = _sky(wcs, kron.x_window, kron.y_window)
    zero = np.zeros(kron.radius.size, dtype=np.float32)
    flux, flux_err = kron.flux.astype(np.float32), kron.flux_err.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        positive = np.where(flux > 0, flux, np.float32(np.nan))
        magnitude = -2.5 * np.log10(positive * NJY_IN_AB)
        magnitude_err = 2.5 * np.log10(1.0 + flux_err / positive)
    columns: Columns = {
        "x_centroid_win": kron.x_window,
        "y_centroid_win": kron.y_window,
        "ra_centroid_win": ra,
        "dec_centroid_win": dec,
        "kron_radius": kron.radius * side,
        "fluxfrac_radius_50": kron.half_light * side,
        "kron_flux": flux,
        "kron_flux_err": flux_err,
        "kron_abmag": magnitude,
        "kron_abmag_err": magnitude_err,
    }
    for name in ("x_centroid_win_err", "y_centroid_win_err", "ra_centroid_win_err", "dec_centroid_win_err"):
        columns[name] = zero
    return columns


def _aperture_columns(
    apertures: ApertureFluxes, scale: PlateScale, ee_fractions: NDArray[np.float32] | None
) -> Columns:
    columns: Columns = {
        "aper_bkg_flux": apertures.background / scale.pixel_scale**2,
        "aper_bkg_flux_err": apertures.background_err / scale.pixel_scale**2,
    }
    for k, name in enumerate(APERTURE_NAMES):
        columns[name] = apertures.flux[:, k].astype(np.float32)
        columns[f"{name}_err"] = apertures.flux_err[:, k]
    if ee_fractions is None:
        columns["is_extended"] = np.zeros(len(apertures.flux), dtype=np.bool_)
    else:
        small, large = ee_fractions[1], ee_fractions[2]
        columns["is_extended"] = columns["aper04_flux"] > columns["aper02_flux"] * EXTENDED_RATIO * large / small
    return columns


def _psf_columns(
    psf: GriddedPSF, image: Image, x: NDArray[np.float32], y: NDArray[np.float32], wcs: Any, threads: int
) -> Columns:
    fits = fit_psf_fluxes(psf, image.data, image.err, image.masked, x, y, threads=threads)
    x_psf, y_psf = fits.x.astype(np.float32), fits.y.astype(np.float32)
    ra, dec = _sky(wcs, x_psf, y_psf)
    zero = np.zeros(x.size, dtype=np.float32)
    return {
        "x_psf": x_psf,
        "x_psf_err": fits.x_err,
        "y_psf": y_psf,
        "y_psf_err": fits.y_err,
        "ra_psf": ra,
        "dec_psf": dec,
        "ra_psf_err": zero,
        "dec_psf_err": zero,
        "psf_flux": fits.flux,
        "psf_flux_err": fits.flux_err,
        "psf_flags": fits.flags,
        "psf_gof": fits.goodness,
    }


def _warning_flags(dq: NDArray[np.uint32], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.int32]:
    """DO_NOT_USE at the pixel of the centroid; also set where there is no centroid."""
    flags = np.full(x.size, int(PixelDQ.DO_NOT_USE), dtype=np.int32)
    finite = np.isfinite(x) & np.isfinite(y)
    columns, rows = np.rint(x[finite]).astype(np.int64), np.rint(y[finite]).astype(np.int64)
    flags[finite] = dq[rows, columns] & np.uint32(PixelDQ.DO_NOT_USE)
    return flags
