"""Two-dimensional background: clipped statistics of boxes, and the smooth surface through them. Not the detection.

The method is that of SExtractor (Bertin & Arnouts 1996, A&AS 117, 393) in the form of photutils ``Background2D``:
boxes, sigma clipping about the median, a 3 x 3 median filter on the mesh, and a bicubic spline up to the image.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Background", "estimate_background", "mesh_surface"]

CLIP_SIGMA = 3.0
CLIP_ITERATIONS = 5
MAD_TO_SIGMA = 1.482602218505602
EXCLUDED_FRACTION = 0.1
"""A box of which this fraction or more is masked, clipped or outside the image is not used."""
NEIGHBOURS = 10
"""Valid boxes from which a dropped one is filled."""


@dataclass(frozen=True, slots=True)
class Background:
    """Background and its rms as low-resolution meshes.

    Attributes
    ----------
    level, rms : ndarray, f4, (boxes in y, boxes in x)
        Filled and filtered box values, in the units of the image.
    box : tuple of int
        Rows and columns of a box.
    """

    level: NDArray[np.float32]
    rms: NDArray[np.float32]
    box: tuple[int, int]


def estimate_background(
    data: NDArray[np.float32], masked: NDArray[np.bool_], box_size: int, *, threads: int = 1
) -> Background:
    """Clipped median and standard deviation in boxes, completed and smoothed.

    Parameters
    ----------
    data : ndarray, f4, (ny, nx)
        Image.
    masked : ndarray, bool, (ny, nx)
        Pixels to leave out (non-finite ones must be masked; at least one pixel must not be).
    box_size : int
        Rows and columns of a box, at most the image's.

    Returns
    -------
    Background

    Notes
    -----
    Costs one sort of each pixel: median, median absolute deviation and clipping then are binary searches.
    """
    ny, nx = data.shape
    box = (min(box_size, ny), min(box_size, nx))
    level, rms = _mesh(data, masked, box, (1.0 - EXCLUDED_FRACTION) * (box[0] * box[1]), threads)
    if np.isnan(level).all():
        box = (ny, nx)
        level, rms = _mesh(data, masked, box, 0.0, threads)
    return Background(_filtered(_filled(level)), _filtered(_filled(rms)), box)


def _mesh(
    data: NDArray[np.float32], masked: NDArray[np.bool_], box: tuple[int, int], needed: float, threads: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Statistics of every box; NaN where not more than ``needed`` pixels survive."""
    ny, nx = data.shape
    shape = (-(-ny // box[0]), -(-nx // box[1]))
    level = np.full(shape, np.nan, dtype=np.float32)
    rms = np.full(shape, np.nan, dtype=np.float32)

    def work(index: tuple[int, int]) -> None:
        rows = slice(index[0] * box[0], (index[0] + 1) * box[0])
        columns = slice(index[1] * box[1], (index[1] + 1) * box[1])
        values = data[rows, columns][~masked[rows, columns]]
        if values.size > needed:
            level[index], rms[index] = _box_statistics(data[rows, columns], masked[rows, columns], values, needed)

    indices = list(np.ndindex(*shape))
    if threads > 1 and len(indices) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, indices))
    else:
        for index in indices:
            work(index)
    return level, rms


def _box_statistics(
    pixels: NDArray[np.float32], masked: NDArray[np.bool_], values: NDArray[np.float32], needed: float
) -> tuple[np.float32, np.float32]:
    nothing = np.float32(np.nan), np.float32(np.nan)
    values.sort()
    first, last, low, high = _clip_sorted(values)
    if last - first <= needed:
        return nothing
    half = (first + last) // 2
    level = values[half] if (last - first) % 2 else np.float32((values[half - 1] + values[half]) / np.float32(2))
    # The sum runs over the box in its own order with zeros for what is left out: the last bit depends on it.
    kept = np.where(masked | (pixels < low) | (pixels > high), np.float32(np.nan), pixels).reshape(1, -1)
    return level, np.nanstd(kept, axis=-1)[0]


@njit(nogil=True, cache=True)
def _median_of_sorted(values, first, last):  # type: ignore[no-untyped-def]
    half = (first + last) // 2
    if (last - first) % 2:
        return float(values[half])
    return 0.5 * (float(values[half - 1]) + float(values[half]))


@njit(nogil=True, cache=True)
def _kth_deviation(values, first, last, median, k):  # type: ignore[no-untyped-def]
    """k-th smallest (from 0) of |values - median|: a selection from two sorted halves."""
    middle = first + np.searchsorted(values[first:last], median)
    below = middle - first
    above = last - middle
    low = max(0, k + 1 - above)
    high = min(k + 1, below)
    while low < high:  # how many of the k + 1 smallest lie below the median
        n = (low + high) // 2
        if median - float(values[middle - 1 - n]) < float(values[middle + (k - n)]) - median:
            low = n + 1
        else:
            high = n
    result = -1.0
    if low > 0:
        result = median - float(values[middle - low])
    if k + 1 - low > 0:
        result = max(result, float(values[middle + k - low]) - median)
    return result


@njit(nogil=True, cache=True)
def _clip_sorted(values):  # type: ignore[no-untyped-def]
    """Survivors [first, last) of sigma clipping, and the last bounds (f8)."""
    first, last = 0, values.size
    low, high = -np.inf, np.inf
    for _ in range(CLIP_ITERATIONS):
        n = last - first
        median = _median_of_sorted(values, first, last)
        deviation = _kth_deviation(values, first, last, median, n // 2)
        if n % 2 == 0:
            deviation = 0.5 * (_kth_deviation(values, first, last, median, n // 2 - 1) + deviation)
        sigma = deviation * MAD_TO_SIGMA
        low, high = median - CLIP_SIGMA * sigma, median + CLIP_SIGMA * sigma
        first_kept = first + np.searchsorted(values[first:last], low)
        last_kept = first + np.searchsorted(values[first:last], high, side="right")
        if first_kept == first and last_kept == last:
            break
        first, last = first_kept, last_kept
    # The last bounds decide alone: they may be wider than some before, and what those left out comes back.
    return np.searchsorted(values, low), np.searchsorted(values, high, side="right"), low, high


def _filled(mesh: NDArray[np.float32]) -> NDArray[np.float32]:
    """Dropped boxes from the nearest valid ones, weighted by inverse distance in box indices."""
    dropped = np.isnan(mesh)
    if not dropped.any():
        return mesh
    from scipy.spatial import cKDTree

    # The tree decides which of several equidistant boxes count, so its leaf size is part of the result.
    values = mesh[~dropped]
    tree = cKDTree(np.argwhere(~dropped), leafsize=10)
    distance, index = tree.query(np.argwhere(dropped), k=NEIGHBOURS)
    known = np.isfinite(distance)
    weight = np.where(known, 1.0 / np.where(known, distance, 1.0), 0.0)
    result = mesh.copy()
    result[dropped] = np.sum(weight * values[np.where(known, index, 0)], axis=1) / np.sum(weight, axis=1)
    return result


def _filtered(mesh: NDArray[np.float32]) -> NDArray[np.float32]:
    """3 x 3 median of what lies inside the mesh."""
    padded = np.pad(mesh.astype(np.float64), 1, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*mesh.shape, 9)
    return np.nanmedian(windows, axis=-1).astype(np.float32)


def mesh_surface(
    mesh: NDArray[np.float32], box: tuple[int, int], shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[np.float64], NDArray[Any], NDArray[np.float64]]:
    """Bicubic spline through the mesh, as the separable pieces from which a kernel evaluates any row.

    Parameters
    ----------
    mesh : ndarray, f4, (by, bx)
        Box values.
    box, shape : tuple of int
        Rows and columns of a box and of the image.

    Returns
    -------
    coefficients : ndarray, f8, (by, bx)
        Spline coefficients; for a constant mesh the value itself.
    index_y, weight_y : ndarray, i8 and f8, (ny, 4)
        Coefficients and weights for each row.
    index_x, weight_x : ndarray, i8 and f8, (nx, 4)
        The same for each column.
    """
    from scipy.ndimage import spline_filter

    if np.ptp(mesh) == 0:
        coefficients = mesh.astype(np.float64)
    else:
        coefficients = spline_filter(mesh.astype(np.float64), order=3, output=np.float64, mode="reflect")
    index_y, weight_y = _spline_weights(shape[0], mesh.shape[0], box[0])
    index_x, weight_x = _spline_weights(shape[1], mesh.shape[1], box[1])
    return coefficients, index_y, weight_y, index_x, weight_x


def _spline_weights(n: int, boxes: int, box: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    position = (np.arange(n) + 0.5) * (boxes / (boxes * box)) - 0.5
    start = np.floor(position)
    t = position - start
    s = 1.0 - t
    weight = np.stack(
        [s**3 / 6.0, (t * t * (t - 2.0) * 3.0 + 4.0) / 6.0, (s * s * (s - 2.0) * 3.0 + 4.0) / 6.0, t**3 / 6.0], axis=1
    )
    index = start.astype(np.int64)[:, None] + np.arange(-1, 3)
    index %= 2 * boxes  # reflection about the outer edge of the first and last box
    return np.where(index >= boxes, 2 * boxes - 1 - index, index), weight
