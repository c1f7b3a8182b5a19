"""DAOFind sharpness and roundness (Stetson 1987, PASP 99, 191) around each centroid. Not the detection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from stages.source_catalog.detection import FWHM_TO_SIGMA

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["measure_daofind"]


def _kernel(fwhm: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Zero-sum Gaussian within radius max(2, 1.5 sigma), and its mask."""
    sigma = fwhm * FWHM_TO_SIGMA
    radius = max(2.0, 1.5 * sigma)
    half = int(radius)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    inside = np.hypot(x, y) <= radius
    gaussian = np.where(inside, np.exp(-0.5 * (x**2 + y**2) / sigma**2), 0.0)
    n = np.count_nonzero(inside)
    norm = np.sum(gaussian**2) - np.sum(gaussian) ** 2 / n
    return np.where(inside, (gaussian - gaussian.sum() / n) / norm, 0.0), inside


@njit(nogil=True, cache=True)
def _response(data, kernel, yc, xc):  # type: ignore[no-untyped-def]
    """Kernel response at one pixel, zeros outside the image and NaN under zero taps left out."""
    ny, nx = data.shape
    half = kernel.shape[0] // 2
    total = 0.0
    for j in range(kernel.shape[0]):
        for i in range(kernel.shape[1]):
            y, x = yc + j - half, xc + i - half
            if kernel[j, i] != 0.0 and y >= 0 and y < ny and x >= 0 and x < nx:
                total += kernel[j, i] * np.float64(data[y, x])
    return total


@njit(nogil=True, cache=True)
def _cutouts(data, x, y, kernel, pixels, responses):  # type: ignore[no-untyped-def]
    """Pixels and f4 responses around each centroid, 0 outside the image."""
    ny, nx = data.shape
    side = kernel.shape[0]
    for n in range(x.size):
        if not (np.isfinite(x[n]) and np.isfinite(y[n])):
            pixels[n] = np.nan
            responses[n] = np.nan
            continue
        x0 = int(np.ceil(np.float64(x[n]) - 0.5)) - side // 2
        y0 = int(np.ceil(np.float64(y[n]) - 0.5)) - side // 2
        for j in range(side):
            for i in range(side):
                inside = y0 + j >= 0 and y0 + j < ny and x0 + i >= 0 and x0 + i < nx
                pixels[n, j, i] = data[y0 + j, x0 + i] if inside else 0.0
                responses[n, j, i] = _response(data, kernel, y0 + j, x0 + i) if inside else 0.0


def measure_daofind(
    data: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32], fwhm: float
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Sharpness and roundness1 at the pixels of the centroids.

    Parameters
    ----------
    data : ndarray, f4, (ny, nx)
        Background-subtracted image; zero is assumed outside.
    x, y : ndarray, f4, (n,)
        Centroids.
    fwhm : float
        Of the Gaussian, pixels.

    Returns
    -------
    sharpness, roundness1 : ndarray, f8 and f4, (n,)
    """
    kernel, inside = _kernel(fwhm)
    half = kernel.shape[0] // 2
    pixels = np.empty((x.size, *kernel.shape), dtype=np.float32)
    responses = np.empty_like(pixels)
    _cutouts(data, x, y, kernel, pixels, responses)
    centre, peak = pixels[:, half, half], responses[:, half, half].copy()
    around = inside.astype(np.float64)
    around[half, half] = 0.0
    mean = np.sum(pixels * around, axis=(1, 2)) / np.count_nonzero(around)
    responses[:, half, half] = 0.0
    first = responses[:, : half + 1, half + 1 :].sum(axis=(1, 2))
    second = responses[:, :half, : half + 1].sum(axis=(1, 2))
    third = responses[:, half:, :half].sum(axis=(1, 2))
    fourth = responses[:, half + 1 :, half:].sum(axis=(1, 2))
    total = np.abs(responses).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        sharpness = (centre - mean) / peak
        roundness = np.where(total == 0, np.nan, 2.0 * (-first + second - third + fourth) / total)
    return sharpness, roundness
