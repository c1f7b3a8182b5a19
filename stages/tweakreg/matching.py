"""Match two lists of positions in a common plane: shift from a 2-D histogram, then nearest neighbours. Not the fit.

The rules are those of tweakwcs' ``XYXYMatch``; the nearest-neighbour search is the C routine of stsci.stimage that it
uses. The histogram is counted here in one pass over sorted lists, so that ten million sources need no list of pairs.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["AlignmentError", "estimate_shift", "match_positions", "mean_positions"]

log = logging.getLogger("stages.tweakreg")

PEAK_BOX = 5
"""Bins on a side of the box in which the histogram's peak is refined."""


class AlignmentError(Exception):
    """The alignment could not be done: its members end FAILED and keep their WCS. Never leaves the stage."""


@numba.njit(nogil=True, cache=True)
def _count_differences(image: Array, reference: Array, r: float, n: int) -> Array:
    """Histogram (2n+1, 2n+1), [y, x], of image - reference; both lists sorted by y.

    Differences in [-r-0.5, r+0.5) are counted in bins of width 1 whose edges are half integers from -n-0.5 on. Cost:
    one subtraction and comparison for each pair within the strip.
    """
    counts = np.zeros((2 * n + 1, 2 * n + 1))
    limit = r + 0.5
    first = 0
    for i in range(len(image)):
        x, y = image[i, 0], image[i, 1]
        while first < len(reference) and y - reference[first, 1] >= limit:
            first += 1
        for j in range(first, len(reference)):
            dy = y - reference[j, 1]
            if dy < -limit:
                break
            dx = x - reference[j, 0]
            if dx < limit and dx >= -limit:
                counts[_bin(dy, n), _bin(dx, n)] += 1
    return counts


@numba.njit(nogil=True, cache=True)
def _bin(difference: float, n: int) -> int:
    k = min(max(int(np.floor(difference + n + 0.5)), 0), 2 * n)
    # the sum above may have been rounded across an edge
    if difference < k - n - 0.5:
        return max(k - 1, 0)
    if difference >= k - n + 0.5:
        return min(k + 1, 2 * n)
    return k


def estimate_shift(image: Array, reference: Array, *, searchrad: float, pixel_scale: float) -> tuple[float, float]:
    """Estimate the shift of an image list with respect to a reference list.

    Parameters
    ----------
    image, reference : ndarray (n, 2), (m, 2)
        Plane coordinates, arcsec.
    searchrad : float
        Largest shift looked for, arcsec.
    pixel_scale : float
        Size of a histogram bin, arcsec.

    Returns
    -------
    x, y : float
        Arcsec; (0, 0) when no pair is within the radius. The bin of zero shift is ``ceil(searchrad / pixel_scale)``
        while ``searchrad`` is subtracted, so that a shift is up to a bin too large: parity.
    """
    r = searchrad / pixel_scale
    image, reference = image / pixel_scale, reference / pixel_scale
    image = np.ascontiguousarray(image[np.argsort(image[:, 1], kind="stable")])
    reference = np.ascontiguousarray(reference[np.argsort(reference[:, 1], kind="stable")])
    counts = _count_differences(image, reference, r, math.ceil(r))
    filled = np.count_nonzero(counts)
    if filled == 0:
        log.warning("No matches found within a search radius of %g arcsec", searchrad)
        return 0.0, 0.0
    x, y = _peak(counts)
    shift = pixel_scale * x - searchrad, pixel_scale * y - searchrad
    log.info("Initial shift from the 2-D histogram: %g, %g arcsec (%d pairs in the peak)", *shift, int(counts.max()))
    return shift


def _peak(counts: Array) -> tuple[float, float]:
    """Index (x, y) of the peak, refined by a quadratic polynomial or the centre of mass."""
    ny, nx = counts.shape
    row, column = (int(k) for k in np.unravel_index(np.argmax(counts), counts.shape))
    if np.count_nonzero(counts) == 1:
        return float(column), float(row)
    x1, y1 = max(0, column - PEAK_BOX // 2), max(0, row - PEAK_BOX // 2)
    x2, y2 = min(nx, x1 + PEAK_BOX), min(ny, y1 + PEAK_BOX)
    if column in (x1, x2 - 1) or row in (y1, y2 - 1):
        log.info("The histogram's peak lies at its edge: a larger search radius may do better")
        return float(column), float(row)
    # a box cut off at the upper end is moved back to its full size
    x1, y1 = max(0, x2 - PEAK_BOX), max(0, y2 - PEAK_BOX)
    box = counts[y1:y2, x1:x2]
    # coordinates from 1 on, as the polynomial's conditioning has it
    y, x = (np.asarray(grid, dtype=float) + 1.0 for grid in np.indices(box.shape))
    good = box > 0
    x, y, values = x[good], y[good], box[good]
    center = float(x1 + x @ values / values.sum() - 1), float(y1 + y @ values / values.sum() - 1)
    if len(values) < 6:
        return center
    design = np.column_stack([np.ones_like(x), x, y, x * y, x * x, y * y])
    _, c10, c01, c11, c20, c02 = np.linalg.lstsq(design, values, rcond=None)[0]
    determinant = 4 * c02 * c20 - c11**2
    if determinant <= 0 or c20 > 0 or c02 > 0:
        return center
    peak_x = float((c01 * c11 - 2 * c02 * c10) / determinant + x1 - 1)
    peak_y = float((c10 * c11 - 2 * c01 * c20) / determinant + y1 - 1)
    if x1 <= peak_x <= x2 - 1 and y1 <= peak_y <= y2 - 1:
        return peak_x, peak_y
    return center


@numba.njit(nogil=True, cache=True)
def _sightings(positions: Array, radius: float) -> tuple[NDArray[np.int64], int]:
    """Number of the source that each position belongs to, and how many there are; the list is sorted by y.

    A position belongs to the lowest source whose first position is no farther than the radius, else to a new one. Cost:
    one distance for each source in the strip below.
    """
    source = np.empty(len(positions), dtype=np.int64)
    first = np.empty(len(positions), dtype=np.int64)
    count = lowest = 0
    for i in range(len(positions)):
        x, y = positions[i, 0], positions[i, 1]
        while lowest < count and y - positions[first[lowest], 1] > radius:
            lowest += 1
        source[i] = count
        for k in range(lowest, count):
            if (x - positions[first[k], 0]) ** 2 + (y - positions[first[k], 1]) ** 2 <= radius * radius:
                source[i] = k
                break
        if source[i] == count:
            first[count] = i
            count += 1
    return source, count


def mean_positions(positions: Array, radius: float) -> Array:
    """Mean position of each source that was seen several times.

    Parameters
    ----------
    positions : ndarray (n, 2)
        Plane coordinates, arcsec; rows that are not finite are left out.
    radius : float
        Positions no farther than this from the lowest one of a source are its own, arcsec.

    Returns
    -------
    ndarray (m, 2)
        By rising y of the lowest one.
    """
    positions = positions[np.all(np.isfinite(positions), axis=1)]
    positions = np.ascontiguousarray(positions[np.lexsort((positions[:, 0], positions[:, 1]))])
    source, count = _sightings(positions, radius)
    seen = np.bincount(source, minlength=count)
    return np.column_stack([np.bincount(source, positions[:, axis], count) / seen for axis in (0, 1)])


def match_positions(
    image: Array,
    reference: Array,
    *,
    searchrad: float,
    separation: float,
    tolerance: float,
    use2dhist: bool,
    pixel_scale: float,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match image positions to reference positions.

    Parameters
    ----------
    image, reference : ndarray (n, 2), (m, 2), f8
        Plane coordinates, arcsec; rows that are not finite are never matched.
    searchrad, separation, tolerance, pixel_scale : float
        Arcsec.
    use2dhist : bool
        Look for a shift first; else it is zero.

    Returns
    -------
    image_index, reference_index : ndarray (k,)
        Matched pairs in the order of the sorted reference list. An image position may be taken twice.

    Raises
    ------
    AlignmentError
        More matches than the matcher allows for, or the separation is not above sqrt(2) times the tolerance.
    """
    from stsci.stimage import xyxymatch  # type: ignore[import-untyped]

    if separation <= math.sqrt(2.0) * tolerance:
        raise AlignmentError(f"separation ({separation}) must be larger than sqrt(2) * tolerance ({tolerance})")
    image_rows = np.flatnonzero(np.all(np.isfinite(image), axis=1))
    reference_rows = np.flatnonzero(np.all(np.isfinite(reference), axis=1))
    if len(image_rows) == 0 or len(reference_rows) == 0:
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    image, reference = image[image_rows], reference[reference_rows]
    shift = (0.0, 0.0)
    if use2dhist:
        shift = estimate_shift(image, reference, searchrad=searchrad, pixel_scale=pixel_scale)
    try:
        pairs = xyxymatch(image, reference, origin=shift, tolerance=tolerance, separation=separation)
    except RuntimeError as error:
        if "exceeded allocation" in str(error):
            raise AlignmentError(str(error)) from error
        raise
    return image_rows[pairs["input_idx"]], reference_rows[pairs["ref_idx"]]
