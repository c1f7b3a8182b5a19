"""Split segments that hold several peaks: multi-threshold markers and a watershed. Not the detection.

The scheme of SExtractor (Bertin & Arnouts 1996, A&AS 117, 393) in the form of photutils ``deblend_sources``.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from stages.source_catalog.shapes import find_segments

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["deblend_segments"]

LEVELS = 32
CONTRAST = 1e-4
MOST_MARKERS = 200
EIGHT = np.ones((3, 3), dtype=np.int8)
AROUND = tuple((j, i) for j in (-1, 0, 1) for i in (-1, 0, 1) if (j, i) != (0, 0))


def deblend_segments(image: NDArray[np.float32], segmentation: NDArray[np.uint32], minimum_pixels: int) -> None:
    """Split segments in place; the parts of a split one move to the end, and labels stay consecutive.

    Parameters
    ----------
    image : ndarray, f4, (ny, nx)
        Detection image.
    segmentation : ndarray, u4, (ny, nx)
        Consecutive labels from 1; changed.
    minimum_pixels : int
        Least pixels of a peak above its level.
    """
    segments = find_segments(segmentation)
    next_label = int(segments.labels.max(initial=0)) + 1
    for label, (x0, x1, y0, y1) in zip(segments.labels, segments.box, strict=True):
        window = (slice(y0, y1 + 1), slice(x0, x1 + 1))
        inside = segmentation[window] == label
        if np.count_nonzero(inside) < 2 * minimum_pixels:
            continue
        parts = _split(image[window], inside, minimum_pixels)
        if parts is None:
            continue
        segmentation[window][inside] = parts[inside] + np.uint32(next_label - 1)
        next_label += int(parts.max())
    _renumber(segmentation)


def _renumber(segmentation: NDArray[np.uint32]) -> None:
    labels = find_segments(segmentation).labels
    new = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.uint32)
    new[labels] = np.arange(1, labels.size + 1)
    segmentation[:] = new[segmentation]


def _split(values: NDArray[np.float32], inside: NDArray[np.bool_], minimum_pixels: int) -> NDArray[np.uint32] | None:
    """Labels 1, 2, ... of the parts, or None when there is only one."""
    low, high = float(values[inside].min()), float(values[inside].max())
    if not low < high:
        return None
    exponential = low > 0
    markers = _markers(values, inside, _levels(low, high, exponential=exponential), minimum_pixels)
    if exponential and markers is not None and markers.max() > MOST_MARKERS:
        markers = _markers(values, inside, _levels(low, high, exponential=False), minimum_pixels)
    if markers is None:
        return None
    total = values[inside].sum(dtype=np.float64)
    while True:
        parts = _watershed(values, markers, inside)
        n = int(parts.max())
        sums = np.bincount(parts[inside], weights=values[inside].astype(np.float64), minlength=n + 1)[1:]
        present = np.bincount(parts[inside], minlength=n + 1)[1:] > 0
        weak = present & (sums / total < CONTRAST)
        if not weak.any():
            break
        faintest = int(np.argmin(np.where(present, sums, np.inf))) + 1
        parts[parts == faintest] = 0
        markers = parts
    used = np.unique(parts[inside & (parts > 0)])
    if used.size < 2:
        return None
    new = np.zeros(n + 1, dtype=np.uint32)
    new[used] = np.arange(1, used.size + 1)
    return np.asarray(new[parts])


def _levels(low: float, high: float, *, exponential: bool) -> NDArray[np.float64]:
    steps = np.arange(1, LEVELS + 1) / (LEVELS + 1)
    return low * (high / low) ** steps if exponential else low + (high - low) * steps


def _components(mask: NDArray[np.bool_], minimum_pixels: int) -> tuple[NDArray[np.int32], int]:
    """8-connected components of at least ``minimum_pixels`` pixels, from 1 in raster order."""
    from scipy.ndimage import label

    labels, n = label(mask, structure=EIGHT)
    large = np.bincount(labels.ravel(), minlength=n + 1) >= minimum_pixels
    large[0] = False
    return np.where(large, np.cumsum(large), 0)[labels].astype(np.int32), int(np.count_nonzero(large))


def _markers(
    values: NDArray[np.float32], inside: NDArray[np.bool_], levels: NDArray[np.float64], minimum_pixels: int
) -> NDArray[np.int32] | None:
    """Peaks that separate at some level; None if none does."""
    markers: NDArray[np.int32] | None = None
    for level in levels:
        components, n = _components(inside & (values > level), minimum_pixels)
        if n < 2:
            continue
        if markers is None:
            markers = components
            continue
        markers = _refined(markers, components)
    return markers


def _refined(markers: NDArray[np.int32], components: NDArray[np.int32]) -> NDArray[np.int32]:
    """Replace each marker that holds two or more components by these, and relabel in raster order."""
    result = markers.copy()
    changed = False
    highest = int(markers.max())
    for marker in range(1, highest + 1):
        of_marker = markers == marker
        held = np.unique(components[of_marker])
        held = held[held > 0]
        if held.size >= 2:
            changed = True
            result[of_marker] = 0
            where = of_marker & (components > 0)
            result[where] = components[where] + highest
    if not changed:
        return markers
    _, first, inverse = np.unique(result, return_index=True, return_inverse=True)
    order = np.zeros(first.size, dtype=np.int32)
    start = 1 if result.min() == 0 else 0
    order[start + np.argsort(first[start:])] = np.arange(1, first.size - start + 1)
    return np.asarray(order[inverse].reshape(result.shape))


def _watershed(values: NDArray[np.float32], markers: NDArray[np.int32], inside: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Flood the segment downhill from its markers; a pixel gets the label that first reaches it."""
    ny, nx = values.shape
    parts = np.where(inside, markers, 0).astype(np.int32)
    height = (-values.astype(np.float64)).tolist()
    age = 0
    heap: list[tuple[float, int, int, int]] = []
    for y, x in np.argwhere(parts > 0).tolist():
        heap.append((height[y][x], age, y, x))
    heapq.heapify(heap)
    while heap:
        _, _, y, x = heapq.heappop(heap)
        for j, i in AROUND:
            yn, xn = y + j, x + i
            if 0 <= yn < ny and 0 <= xn < nx and inside[yn, xn] and parts[yn, xn] == 0:
                parts[yn, xn] = parts[y, x]
                age += 1
                heapq.heappush(heap, (height[yn][xn], age, yn, xn))
    return parts
