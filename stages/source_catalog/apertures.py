"""Fixed circular apertures and the local background annulus around each centroid. Not Kron apertures.

No mask is applied: neighbours and flagged pixels count, and a NaN pixel gives a NaN flux.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isfinite, pi, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from stages.rows import for_row_blocks
from stages.source_catalog.overlap import circle_pixel_overlap

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ANNULUS_ARCSEC", "APERTURE_ARCSEC", "ApertureFluxes", "aperture_sums", "measure_apertures"]

APERTURE_ARCSEC = np.array([0.1, 0.2, 0.4, 0.8, 1.6])
ANNULUS_ARCSEC = np.array([2.4, 2.8])
CLIP_SIGMA = 3.0
CLIP_ITERATIONS = 5


@dataclass(frozen=True, slots=True)
class ApertureFluxes:
    """Sums in the apertures and the background per pixel.

    Attributes
    ----------
    flux, flux_err : ndarray, f8, (n, apertures)
        In the image's unit; NaN for a non-finite centroid.
    background, background_err : ndarray, f8, (n,)
        Clipped median in the annulus per pixel, and its standard error.
    """

    flux: NDArray[np.float64]
    flux_err: NDArray[np.float64]
    background: NDArray[np.float64]
    background_err: NDArray[np.float64]


@njit(nogil=True, cache=True)
def _aperture(data, err, xc, yc, radius):  # type: ignore[no-untyped-def]
    """Flux and error with exact overlap."""
    ny, nx = data.shape
    flux = variance = 0.0
    used = False
    for y in range(max(floor(yc - radius + 0.5), 0), min(floor(yc + radius + 1.5), ny)):
        for x in range(max(floor(xc - radius + 0.5), 0), min(floor(xc + radius + 1.5), nx)):
            w = circle_pixel_overlap(x - xc, y - yc, radius)
            if w > 0.0:
                used = True
                flux += w * np.float64(data[y, x])
                variance += w * np.float64(err[y, x] * err[y, x])
    if not used:
        return np.nan, np.nan
    return flux, sqrt(variance)


@njit(nogil=True, cache=True)
def _annulus(data, xc, yc, inner, outer, values):  # type: ignore[no-untyped-def]
    """Clipped median, plain standard deviation and number of the pixels whose centres lie in the annulus."""
    ny, nx = data.shape
    n = 0
    for y in range(max(floor(yc - outer + 0.5), 0), min(floor(yc + outer + 1.5), ny)):
        for x in range(max(floor(xc - outer + 0.5), 0), min(floor(xc + outer + 1.5), nx)):
            r = sqrt((x - xc) ** 2 + (y - yc) ** 2)
            if r < outer and r >= inner and isfinite(data[y, x]):
                values[n] = data[y, x]
                n += 1
    if n == 0:
        return np.nan, np.nan, 0
    values[:n].sort()
    first, last = 0, n
    median = std = 0.0
    for iteration in range(CLIP_ITERATIONS + 1):
        count = last - first
        mean = 0.0
        for i in range(first, last):
            mean += values[i]
        mean /= count
        std = 0.0
        for i in range(first, last):
            std += (values[i] - mean) ** 2
        std = sqrt(std / count)
        half = (first + last) // 2
        median = values[half] if count % 2 else 0.5 * (values[half - 1] + values[half])
        if iteration == CLIP_ITERATIONS:
            break
        low, high = median - CLIP_SIGMA * std, median + CLIP_SIGMA * std
        while values[first] < low:
            first += 1
        while values[last - 1] > high:
            last -= 1
        if last - first == count:
            break
    return median, std, last - first


@njit(nogil=True, cache=True)
def _measure(data, err, x, y, radii, inner, outer, first, last, flux, flux_err, background, background_err):  # type: ignore[no-untyped-def]
    values = np.empty((int(2 * outer) + 4) ** 2)
    for i in range(first, last):
        xc, yc = np.float64(x[i]), np.float64(y[i])
        if not (isfinite(xc) and isfinite(yc)):
            flux[i] = np.nan
            flux_err[i] = np.nan
            background[i] = background_err[i] = np.nan
            continue
        for k in range(radii.size):
            flux[i, k], flux_err[i, k] = _aperture(data, err, xc, yc, radii[k])
        median, std, n = _annulus(data, xc, yc, inner, outer, values)
        background[i] = median
        background_err[i] = sqrt(pi / (2.0 * n)) * std if n > 0 else np.nan


def measure_apertures(
    data: NDArray[np.float32],
    err: NDArray[np.float32],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    pixel_scale: float,
    *,
    threads: int = 1,
) -> ApertureFluxes:
    """Sums with exact overlap in circles of 0.1" to 1.6", and the clipped background between 2.4" and 2.8".

    Parameters
    ----------
    data, err : ndarray, f4, (ny, nx)
        Background-subtracted image and its errors.
    x, y : ndarray, f4, (n,)
        Centroids, pixels.
    pixel_scale : float
        Arcsec per pixel.
    """
    n = x.size
    radii = APERTURE_ARCSEC / pixel_scale
    inner, outer = ANNULUS_ARCSEC / pixel_scale
    flux, flux_err = np.empty((n, radii.size)), np.empty((n, radii.size))
    background, background_err = np.empty(n), np.empty(n)
    for_row_blocks(
        lambda first, last: _measure(
            data, err, x, y, radii, inner, outer, first, last, flux, flux_err, background, background_err
        ),
        n,
        threads=threads,
    )
    return ApertureFluxes(flux, flux_err, background, background_err)


def aperture_sums(
    data: NDArray[np.float32], masked: NDArray[np.bool_], x: NDArray[np.float32], y: NDArray[np.float32], radius: float
) -> NDArray[np.float64]:
    """Sums of unmasked pixels with exact overlap in one circle around each position, which PSF fits start from.

    Overlaps and sums are photutils' and NumPy's own: in a crowded field the last bit of a start may decide in which
    minimum a fit ends.

    Parameters
    ----------
    data, masked : ndarray, f4 and bool, (ny, nx)
        Image, and pixels to leave out.
    x, y : ndarray, f4, (n,)
        Centroids, pixels.
    radius : float
        Pixels.

    Returns
    -------
    ndarray, f8, (n,)
        NaN for a non-finite position, and for a circle that lies outside the image.
    """
    from photutils.geometry import circular_overlap_grid

    ny, nx = data.shape
    flux = np.full(x.size, np.nan)
    for i in np.flatnonzero(np.isfinite(x) & np.isfinite(y)):
        xc, yc = float(x[i]), float(y[i])
        left, right = floor(xc - radius + 0.5), ceil(xc + radius + 0.5)
        low, high = floor(yc - radius + 0.5), ceil(yc + radius + 0.5)
        weights = circular_overlap_grid(
            left - 0.5 - xc, right - 0.5 - xc, low - 0.5 - yc, high - 0.5 - yc, right - left, high - low, radius, 1, 1
        )
        rows, columns = slice(max(low, 0), min(high, ny)), slice(max(left, 0), min(right, nx))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        inside = weights[rows.start - low : rows.stop - low, columns.start - left : columns.stop - left]
        if np.any(inside > 0.0):
            used = (inside > 0.0) & ~masked[rows, columns]
            flux[i] = np.sum((data[rows, columns] * inside)[used])
    return flux
