"""Statistics of the final image for ``meta.statistics``. Not a background estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from stages.dq import PixelDQ

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["image_statistics", "median_of"]

_SIGMA_PER_MAD = 1.482602218505602
"""Standard deviation of a normal distribution over its median absolute deviation, 1 / Phi^-1(3/4)."""

_UNKNOWN = -1.0
_HALF = 1 << 16


def image_statistics(
    data: NDArray[np.float32], dq: NDArray[np.uint32], err: NDArray[np.floating[Any]]
) -> dict[str, float]:
    """Median, scatter and fraction of the good pixels.

    Parameters
    ----------
    data : ndarray, f4, (ny, nx)
        Rate image, DN/s.
    dq : ndarray, u4, (ny, nx)
        Flags; a pixel is good without DO_NOT_USE.
    err : ndarray, f2 or f4, (ny, nx)
        Error, DN/s; a pixel is good where it is positive.

    Returns
    -------
    dict
        ``zodiacal_light`` (-1: not estimated), ``image_median`` and ``image_rms`` (1.4826 times the median absolute
        deviation) in DN/s, NaN without a good pixel, and ``good_pixel_fraction``. Computed in f4.
    """
    good = np.isfinite(data)
    good &= (dq & np.uint32(PixelDQ.DO_NOT_USE)) == 0
    good &= err > 0
    count = int(np.count_nonzero(good))
    if count == 0:
        return _statistics(float("nan"), float("nan"), 0.0)
    median = median_of(data, good, count)
    deviation = median_of(data, good, count, center=median)
    return _statistics(float(median), float(deviation * np.float32(_SIGMA_PER_MAD)), count / data.size)


def median_of(
    data: NDArray[np.float32], good: NDArray[np.bool_], count: int, *, center: np.float32 | None = None
) -> np.float32:
    """Median of the good values, or of their absolute deviations from ``center``, exactly as ``numpy.median`` has it.

    Parameters
    ----------
    data : ndarray, f4, (ny, nx)
        No good value is NaN.
    good : ndarray, bool, (ny, nx)
        Which values count.
    count : int
        How many they are; at least one.
    center : f4, optional
        For the deviations, formed in f4.

    Notes
    -----
    A selection by counting: the upper, then the lower 16 bits of each value's place in the order of floats. Two or
    three passes over memory, no copy.
    """
    reference, deviations = np.float32(0 if center is None else center), center is not None
    counts = np.zeros(_HALF, np.int64)
    _count_upper(data, good, reference, deviations, counts)
    upper = np.cumsum(counts)
    values = np.empty(2, np.uint32)
    for place, rank in enumerate(((count - 1) // 2, count // 2)):
        half = int(np.searchsorted(upper, rank, side="right"))
        if place == 0 or half != values[0] >> 16:
            counts[:] = 0
            _count_lower(data, good, reference, deviations, half, counts)
            lower = np.cumsum(counts) + (upper[half - 1] if half else 0)
        values[place] = (half << 16) | int(np.searchsorted(lower, rank, side="right"))
    first, last = np.where(values >> 31, values ^ np.uint32(1 << 31), ~values).view(np.float32)
    return np.float32((first + last) * np.float32(0.5)) if count % 2 == 0 else np.float32(first)


@njit(nogil=True, cache=True)
def _keys(data, center, deviations, row, keys):  # type: ignore[no-untyped-def]
    """Places of one row's values in the order of floats, as u4."""
    values = keys.view(np.float32)
    for x in range(keys.size):
        values[x] = abs(data[row, x] - center) if deviations else data[row, x]
    for x in range(keys.size):
        bits = keys[x]
        keys[x] = bits ^ (np.uint32(0xFFFFFFFF) if bits >> np.uint32(31) else np.uint32(0x80000000))


@njit(nogil=True, cache=True)
def _count_upper(data, good, center, deviations, counts):  # type: ignore[no-untyped-def]
    keys = np.empty(data.shape[1], np.uint32)
    for row in range(data.shape[0]):
        _keys(data, center, deviations, row, keys)
        for x in range(keys.size):
            if good[row, x]:
                counts[keys[x] >> np.uint32(16)] += 1


@njit(nogil=True, cache=True)
def _count_lower(data, good, center, deviations, half, counts):  # type: ignore[no-untyped-def]
    keys = np.empty(data.shape[1], np.uint32)
    for row in range(data.shape[0]):
        _keys(data, center, deviations, row, keys)
        for x in range(keys.size):
            if good[row, x] and keys[x] >> np.uint32(16) == half:
                counts[keys[x] & np.uint32(0xFFFF)] += 1


def _statistics(median: float, rms: float, fraction: float) -> dict[str, float]:
    return {
        "zodiacal_light": _UNKNOWN,
        "image_median": median,
        "image_rms": rms,
        "good_pixel_fraction": fraction,
    }
