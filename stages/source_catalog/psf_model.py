"""The effective PSF: stamps matched to the exposure's jitter, and their splines on a detector grid. Not the fit.

Effective PSF as in Anderson & King 2000 (PASP 112, 1360): a stamp holds the light per pixel at sub-pixel offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, pi
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["GriddedPSF", "build_psf", "jitter_transfer", "match_jitter", "psf_values"]

REFERENCE_PIXEL_ARCSEC = 0.11
DEFAULT_JITTER = (8.0, 8.0, 0.0)
"""Major and minor axis in mas, position angle in degrees, where the metadata do not say."""
JITTER_KEYS = ("jitter_major", "jitter_minor", "jitter_position_angle")
DEFOCUS, SPECTRAL_TYPE = 0, 1
"""The stamps used: in focus, second spectral type."""


@dataclass(frozen=True, slots=True)
class GriddedPSF:
    """Splines of the stamps on a rectangular grid of detector positions.

    Attributes
    ----------
    coefficients : ndarray, f8, (y nodes, x nodes, stamp x, stamp y)
        Bicubic B-spline coefficients of each stamp.
    knots_x, knots_y : ndarray, f8
        Knots in stamp pixels.
    grid_x, grid_y : ndarray, f8
        Detector positions of the nodes, rising.
    oversample : float
        Stamp pixels per detector pixel.
    """

    coefficients: NDArray[np.float64]
    knots_x: NDArray[np.float64]
    knots_y: NDArray[np.float64]
    grid_x: NDArray[np.float64]
    grid_y: NDArray[np.float64]
    oversample: float


def _jitter(meta: Mapping[str, Any]) -> tuple[float, float, float]:
    return tuple(  # type: ignore[return-value]
        default if (value := meta.get(key)) is None else float(value)
        for key, default in zip(JITTER_KEYS, DEFAULT_JITTER, strict=True)
    )


def jitter_transfer(meta: Mapping[str, Any], fx: NDArray[np.float64], fy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fourier transform of the Gaussian jitter kernel, 1 at zero frequency.

    Parameters
    ----------
    meta : mapping
        ``jitter_major``, ``jitter_minor`` (mas, rms along the axes) and ``jitter_position_angle`` (degrees from +y
        towards +x); 8, 8 and 0 where missing.
    fx, fy : ndarray, f8
        Frequencies along x and y, cycles per arcsec.
    """
    major, minor, position_angle = _jitter(meta)
    angle = pi / 2.0 - np.deg2rad(position_angle)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    covariance = rotation @ np.diag([(major / 1000.0) ** 2, (minor / 1000.0) ** 2]) @ rotation.T
    frequencies = np.stack([fx, fy], axis=-1)
    exponent = np.einsum("...i,ij,...j", frequencies, covariance, frequencies)
    return np.asarray(np.exp(-2.0 * pi**2 * exponent))


def match_jitter(
    stamps: NDArray[np.float32], oversample: int, image_meta: Mapping[str, Any], reference_meta: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Replace the jitter in the stamps by that of the exposure.

    Parameters
    ----------
    stamps : ndarray, f4, (n, ny, nx)
        Effective PSFs; their transform is single precision, the rest double.
    image_meta, reference_meta : mapping
        Jitter keys (see `jitter_transfer`) of ``meta.guide_star`` and of the reference file.
    """
    ny, nx = stamps.shape[-2:]
    pixel = REFERENCE_PIXEL_ARCSEC / oversample
    fy, fx = np.meshgrid(np.fft.fftfreq(ny, pixel), np.fft.rfftfreq(nx, pixel), indexing="ij")
    ratio = jitter_transfer(image_meta, fx, fy) / jitter_transfer(reference_meta, fx, fy)
    return np.fft.irfft2(np.fft.rfft2(stamps) * ratio, s=(ny, nx))


def _box_average(stamps: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean over a box of ``width`` stamp pixels with zeros outside; an even box has half weight at both ends."""
    from scipy.ndimage import correlate1d

    taps = np.ones(width + 1 - width % 2)
    if width % 2 == 0:
        taps[[0, -1]] = 0.5
    taps /= width
    for axis in (-2, -1):
        stamps = correlate1d(stamps, taps, axis=axis, mode="constant", cval=0.0)
    return stamps


def build_psf(
    stamps: NDArray[np.float32],
    oversample: int,
    pixel_x: NDArray[np.float64],
    pixel_y: NDArray[np.float64],
    image_meta: Mapping[str, Any],
    reference_meta: Mapping[str, Any],
) -> GriddedPSF:
    """Gridded PSF of an exposure.

    Parameters
    ----------
    stamps : ndarray, f4, (n, ny, nx)
        Effective PSFs at the grid positions, in any order of a full rectangular grid.
    oversample : int
        Stamp pixels per detector pixel.
    pixel_x, pixel_y : ndarray, f8, (n,)
        Positions of the stamps, pixels of the science image.
    image_meta, reference_meta : mapping
        See `match_jitter`.

    Raises
    ------
    ValueError
        The positions are not a full rectangular grid.
    """
    from scipy.interpolate import RectBivariateSpline

    images = match_jitter(stamps, oversample, image_meta, reference_meta)
    if np.median(images.sum(axis=(-2, -1))) < oversample**2 / 2:
        # Stamps of an older format hold the PSF itself rather than its integral over a detector pixel.
        images = _box_average(images, oversample) * oversample**2
    grid_x, ix = np.unique(pixel_x, return_inverse=True)
    grid_y, iy = np.unique(pixel_y, return_inverse=True)
    if grid_x.size * grid_y.size != len(images) or len(np.unique(iy * grid_x.size + ix)) != len(images):
        raise ValueError(f"pixel_x and pixel_y of {len(images)} stamps do not form a full rectangular grid")
    ny, nx = images.shape[-2:]
    coefficients = np.empty((grid_y.size, grid_x.size, nx, ny))
    for i, image in enumerate(images):
        spline = RectBivariateSpline(np.arange(nx), np.arange(ny), image.T, kx=3, ky=3, s=0)
        knots_x, knots_y, values = spline.tck
        coefficients[iy[i], ix[i]] = values.reshape(nx, ny)
    return GriddedPSF(coefficients, knots_x, knots_y, grid_x, grid_y, float(oversample))


@njit(nogil=True, cache=True)
def _basis(knots, x, values):  # type: ignore[no-untyped-def]
    """The four cubic B-splines that are not zero at x (de Boor 1978); returns the index of the first."""
    n = knots.size - 4
    interval = min(max(floor(x) + 2, 3), n - 1)  # interior knots lie at 2, 3, ..., n - 3
    values[0] = 1.0
    for degree in range(1, 4):
        carried = 0.0
        for i in range(degree):
            right, left = knots[interval + i + 1], knots[interval + i + 1 - degree]
            part = values[i] / (right - left)
            values[i] = carried + part * (right - x)
            carried = part * (x - left)
        values[degree] = carried
    return interval - 3


@njit(nogil=True, cache=True)
def _node(grid, x):  # type: ignore[no-untyped-def]
    """Left node of the cell that holds x, and distances of x, clipped to the grid, from its right and its left node."""
    if grid.size == 1:
        return 0, 1.0, 0.0
    left = min(max(np.searchsorted(grid, x) - 1, 0), grid.size - 2)
    x = min(max(x, grid[left]), grid[left + 1])
    return left, grid[left + 1] - x, x - grid[left]


@njit(nogil=True, cache=True)
def psf_values(coefficients, knots_x, knots_y, grid_x, grid_y, oversample, flux, x0, y0, px, py, out):  # type: ignore[no-untyped-def]
    """Model of one source at pixels (px, py): bilinear over the grid at (x0, y0), bicubic in the stamp, 0 outside.

    The order of all sums is that of FITPACK (``bispeu``) and of photutils' ``GriddedPSFModel``: a fit takes differences
    of these values, and in a crowded field the last bit may decide in which minimum it ends.

    Parameters
    ----------
    coefficients, knots_x, knots_y, grid_x, grid_y, oversample
        Of a `GriddedPSF`.
    flux, x0, y0 : float
        Source.
    px, py : ndarray
        Pixels.
    out : ndarray, f8
        Values.
    """
    nx, ny = coefficients.shape[2:]
    column, from_right, from_left = _node(grid_x, x0)
    row, from_top, from_bottom = _node(grid_y, y0)
    area = (from_right + from_left) * (from_top + from_bottom)
    if grid_x.size > 1 and grid_y.size > 1:
        area = (grid_x[column + 1] - grid_x[column]) * (grid_y[row + 1] - grid_y[row])
    bx, by = np.empty(4), np.empty(4)
    for p in range(px.size):
        x = oversample * (px[p] - x0) + 0.5 * (nx - 1)
        y = oversample * (py[p] - y0) + 0.5 * (ny - 1)
        if not (x >= 0.0 and x <= nx - 1 and y >= 0.0 and y <= ny - 1):
            out[p] = 0.0
            continue
        ix, iy = _basis(knots_x, x, bx), _basis(knots_y, y, by)
        value = 0.0
        for node in range(4):
            j, i = node // 2, node % 2
            weight = (from_left if i else from_right) * (from_bottom if j else from_top) / area
            if weight == 0.0:
                continue
            stamp = 0.0
            for kx in range(4):
                for ky in range(4):
                    stamp += coefficients[row + j, column + i, ix + kx, iy + ky] * bx[kx] * by[ky]
            value += stamp * weight
        out[p] = flux * value
