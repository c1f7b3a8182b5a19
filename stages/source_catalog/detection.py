"""Detection: background subtraction, matched filter, threshold and labelling. Not the measurement of what is found."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from stages.rows import for_row_blocks
from stages.source_catalog.background import Background, mesh_surface

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FWHM_TO_SIGMA", "detect", "gaussian_taps", "label_segments", "subtract_background"]

FWHM_TO_SIGMA = 0.42466090014400953
SUBSAMPLES = 10


def gaussian_taps(fwhm: float) -> NDArray[np.float64]:
    """Pixel-integrated Gaussian along one axis, sum 1.

    Its outer product with itself is the detection kernel: ``ceil(3 fwhm)`` pixels, made odd, each the mean of 10 x 10
    samples.
    """
    size = ceil(3.0 * fwhm)
    size += 1 - size % 2
    half = size // 2
    inside = (np.arange(SUBSAMPLES) - (SUBSAMPLES - 1) / 2) / SUBSAMPLES
    x = np.arange(-half, half + 1)[:, None] + inside
    taps = np.exp(-0.5 * (x / (fwhm * FWHM_TO_SIGMA)) ** 2).mean(axis=1)
    return np.asarray(taps / taps.sum())


@njit(nogil=True, cache=True)
def _surface_row(coefficients, index_y, weight_y, index_x, weight_x, low, high, y, column, row):  # type: ignore[no-untyped-def]
    """One image row of a spline surface, rounded to f4 and kept between the mesh's extremes."""
    for b in range(coefficients.shape[1]):
        total = 0.0
        for k in range(4):
            total += weight_y[y, k] * coefficients[index_y[y, k], b]
        column[b] = total
    for x in range(row.size):
        total = 0.0
        for k in range(4):
            total += weight_x[x, k] * column[index_x[x, k]]
        row[x] = min(max(np.float32(total), low), high)


@njit(nogil=True, cache=True)
def _subtract_rows(data, masked, coefficients, index_y, weight_y, index_x, weight_x, low, high, first, last, out):  # type: ignore[no-untyped-def]
    column = np.empty(coefficients.shape[1])
    row = np.empty(data.shape[1], dtype=np.float32)
    for y in range(first, last):
        _surface_row(coefficients, index_y, weight_y, index_x, weight_x, low, high, y, column, row)
        for x in range(data.shape[1]):
            out[y, x] = data[y, x] if masked[y, x] else data[y, x] - row[x]


@njit(nogil=True, cache=True)
def _filter_rows(data, masked, taps, first, last, out):  # type: ignore[no-untyped-def]
    """Matched filter over rows: sum(k I)/sum(k) over valid pixels; zeros outside the image are valid.

    Two separable sums in f8, 4 len(taps) flops a pixel; one pass over memory.
    """
    ny, nx = data.shape
    half = taps.size // 2
    top = np.zeros(nx + 2 * half)
    bottom = np.ones(nx + 2 * half)
    total = np.empty(nx)
    weight = np.empty(nx)
    for y in range(first, last):
        top[half : half + nx] = 0.0
        bottom[half : half + nx] = 0.0
        for k in range(taps.size):
            yk = y + k - half
            tap = taps[k]
            if yk < 0 or yk >= ny:
                for x in range(nx):
                    bottom[half + x] += tap
                continue
            for x in range(nx):
                valid = not masked[yk, x]
                top[half + x] += tap * (np.float64(data[yk, x]) if valid else 0.0)
                bottom[half + x] += tap if valid else 0.0
        total[:] = 0.0
        weight[:] = 0.0
        for k in range(taps.size):
            tap = taps[k]
            for x in range(nx):
                total[x] += tap * top[k + x]
                weight[x] += tap * bottom[k + x]
        for x in range(nx):
            out[y, x] = total[x] / weight[x] if weight[x] > 0.0 else np.nan


@njit(nogil=True, cache=True)
def _threshold_rows(  # type: ignore[no-untyped-def]
    convolved, masked, coefficients, index_y, weight_y, index_x, weight_x, low, high, snr, first, last, out
):
    column = np.empty(coefficients.shape[1])
    row = np.empty(convolved.shape[1], dtype=np.float32)
    for y in range(first, last):
        _surface_row(coefficients, index_y, weight_y, index_x, weight_x, low, high, y, column, row)
        for x in range(convolved.shape[1]):
            out[y, x] = (not masked[y, x]) and convolved[y, x] > snr * row[x]


def subtract_background(
    data: NDArray[np.float32],
    masked: NDArray[np.bool_],
    background: Background,
    out: NDArray[np.float32],
    *,
    threads: int = 1,
) -> None:
    """Write ``data - background`` (f4, one rounding); masked pixels keep their value."""
    surface = mesh_surface(background.level, background.box, data.shape)
    low, high = background.level.min(), background.level.max()
    for_row_blocks(
        lambda first, last: _subtract_rows(data, masked, *surface, low, high, first, last, out),
        data.shape[0],
        threads=threads,
    )


def detect(
    data: NDArray[np.float32],
    masked: NDArray[np.bool_],
    background: Background,
    fwhm: float,
    snr: float,
    *,
    convolved: NDArray[np.float32],
    detected: NDArray[np.bool_],
    threads: int = 1,
) -> None:
    """Filter the background-subtracted image and mark what stands above ``snr`` times the background's rms.

    Parameters
    ----------
    data : ndarray, f4, (ny, nx)
        Background-subtracted image.
    masked : ndarray, bool, (ny, nx)
        Pixels left out of the filter and never detected (must include all NaN).
    background : Background
        Its rms gives the threshold (f4).
    fwhm : float
        Of the Gaussian filter, pixels.
    convolved, detected : ndarray, f4 and bool, (ny, nx)
        Results; ``convolved`` is NaN where no pixel under the kernel is valid.
    """
    taps = gaussian_taps(fwhm)
    surface = mesh_surface(background.rms, background.box, data.shape)
    low, high = background.rms.min(), background.rms.max()

    def work(first: int, last: int) -> None:
        _filter_rows(data, masked, taps, first, last, convolved)
        _threshold_rows(convolved, masked, *surface, low, high, np.float32(snr), first, last, detected)

    for_row_blocks(work, data.shape[0], threads=threads)


@njit(nogil=True, cache=True)
def _root(parent, i):  # type: ignore[no-untyped-def]
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(nogil=True, cache=True)
def label_segments(detected, minimum_pixels, segmentation):  # type: ignore[no-untyped-def]
    """Label 8-connected regions of at least ``minimum_pixels`` pixels from 1 in raster order of their first pixel.

    Works on runs of pixels, joined to those of the row before (union to the smaller index).

    Parameters
    ----------
    detected : ndarray, bool, (ny, nx)
        Pixels above threshold.
    minimum_pixels : int
        Smaller regions are dropped.
    segmentation : ndarray, u4, (ny, nx)
        Result; every element is written.

    Returns
    -------
    int
        Number of labels.
    """
    ny, nx = detected.shape
    count = 0
    for y in range(ny):
        before = False
        for x in range(nx):
            count += detected[y, x] and not before
            before = detected[y, x]
    start = np.empty(count, dtype=np.int32)
    stop = np.empty(count, dtype=np.int32)
    of_row = np.empty(ny + 1, dtype=np.int64)
    parent = np.arange(count)
    n = 0
    for y in range(ny):
        of_row[y] = n
        before = False
        for x in range(nx):
            segmentation[y, x] = 0
            if detected[y, x]:
                if not before:
                    start[n] = x
                    n += 1
                stop[n - 1] = x + 1
            before = detected[y, x]
        if y == 0:
            continue
        above = of_row[y - 1]
        for run in range(of_row[y], n):
            while above < of_row[y] and stop[above] < start[run]:
                above += 1
            other = above
            while other < of_row[y] and start[other] <= stop[run]:
                a, b = _root(parent, other), _root(parent, run)
                parent[max(a, b)] = min(a, b)
                other += 1
    of_row[ny] = n
    size = np.zeros(count, dtype=np.int64)
    for run in range(count):
        parent[run] = _root(parent, run)
        size[parent[run]] += stop[run] - start[run]
    label = np.zeros(count, dtype=np.uint32)
    labels = 0
    for run in range(count):
        if parent[run] == run and size[run] >= minimum_pixels:
            labels += 1
            label[run] = labels
    for y in range(ny):
        for run in range(of_row[y], of_row[y + 1]):
            for x in range(start[run], stop[run]):
                segmentation[y, x] = label[parent[run]]
    return labels
