"""Compiled kernels of the read-level linearity correction. Not the stage (see linearity)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from stages.dq import GroupDQ, PixelDQ

__all__ = ["CHANNEL_COLUMNS", "linearity_kernel"]

CHANNEL_COLUMNS = 128
"""Columns of a read-out channel, and of the tile that the kernel keeps in the first-level cache."""

SATURATED = np.uint8(GroupDQ.SATURATED)
DO_NOT_USE = np.uint8(GroupDQ.DO_NOT_USE)
NO_LIN_CORR = np.uint32(PixelDQ.NO_LIN_CORR)
LARGEST = np.float32(1e6)
"""Corrected values beyond this are cut and not used."""

W = CHANNEL_COLUMNS


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _load_tile(coefficients, bad, y, x0, width, tile, added):  # type: ignore[no-untyped-def]
    """Copy one tile's coefficients as f8; where they cannot be used, the identity, flagged unless ``bad`` before."""
    count = coefficients.shape[0]
    unusable = np.zeros(W, np.int64)
    for j in range(width):
        unusable[j] = np.int64(coefficients[1, y, x0 + j] == 0)
    for k in range(count):
        for j in range(width):
            value = np.float64(coefficients[k, y, x0 + j])
            tile[k * W + j] = value
            unusable[j] |= np.int64(value != value)  # noqa: PLR0124 - NaN
    found = np.int64(0)
    for j in range(width):
        found |= unusable[j] | bad[j]
    if found == 0:
        return
    for j in range(width):
        if unusable[j] != 0 and bad[j] == 0:
            added[j] |= NO_LIN_CORR
        if unusable[j] != 0 or bad[j] != 0:
            for k in range(count):
                tile[k * W + j] = 1.0 if k == 1 else 0.0


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _add_on_integers(counts, correction):  # type: ignore[no-untyped-def]
    """Add the correction interpolated on the grid 0, 1, 2, …: the grid is its own index (no branch: vectorises)."""
    last = correction.size - 1
    top = np.float64(last)
    for j in range(counts.size):
        value = counts[j]
        inside = min(max(value, 0.0), top - 1.0)
        k = np.int64(inside)
        low = correction[k]
        between = (correction[k + 1] - low) * (value - np.float64(k)) + low
        added = correction[0] if value < 0.0 else between
        counts[j] = value + (correction[last] if value >= top else added)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _add_on_grid(counts, correction, grid):  # type: ignore[no-untyped-def]
    """Add the interpolated correction; beyond the grid its end values count, and NaN stays NaN."""
    last = grid.size - 1
    for j in range(counts.size):
        value = counts[j]
        if value < grid[0]:
            counts[j] = value + correction[0]
        elif value >= grid[last]:
            counts[j] = value + correction[last]
        elif not np.isnan(value):
            k = np.searchsorted(grid, value, side="right") - 1
            slope = (correction[k + 1] - correction[k]) / (grid[k + 1] - grid[k])
            counts[j] = value + (slope * (value - grid[k]) + correction[k])


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _store(total, size, data, groupdq, mean):  # type: ignore[no-untyped-def]
    """Write the mean of the corrected reads where not saturated, then cut and flag what is absurdly large."""
    for j in range(W):
        mean[j] = np.float32(total[j] / size)
    absurd = np.int32(0)
    for j in range(data.size):
        value = mean[j] if (groupdq[j] & SATURATED) == 0 else data[j]
        data[j] = value
        absurd |= np.int32(abs(value) > LARGEST)
    if absurd != 0:
        for j in range(data.size):
            if abs(data[j]) > LARGEST:
                data[j] = LARGEST if data[j] > 0 else -LARGEST
                groupdq[j] |= DO_NOT_USE


@cache
def linearity_kernel(n_linear: int, n_inverse: int) -> Any:
    """Compile the kernel for polynomials of so many coefficients (a fixed number lets the inner loops unroll).

    Returns
    -------
    callable
        ``kernel(data, groupdq, pixeldq, linear, linear_dq, inverse, starts, reads, mean_reads, correction, grid,
        direct, first, last)``. ``starts`` (n + 1) delimits each resultant's entries in ``reads`` (read number minus
        the mean of the first resultant, f8); ``correction`` is (channels, m) f8 or empty.

    Notes
    -----
    Cost: 2 (n_linear + n_inverse) flops a pixel and read; one pass over data, groupdq and both coefficient sets.
    Intermediates are f8 but for the two ends of the ramp and their difference (f4).
    """

    @njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
    def kernel(  # type: ignore[no-untyped-def]
        data,
        groupdq,
        pixeldq,
        linear,
        linear_dq,
        inverse,
        starts,
        reads,
        mean_reads,
        correction,
        grid,
        direct,
        first,
        last,
    ):
        resultants, _, columns = data.shape
        longest = 0
        for i in range(resultants):
            longest = max(longest, starts[i + 1] - starts[i])
        forward = np.zeros(n_linear * W, np.float64)
        backward = np.zeros(n_inverse * W, np.float64)
        counts = np.empty((longest, W), np.float64)
        total = np.zeros(W, np.float64)
        begin = np.zeros(W, np.float64)
        rate = np.zeros(W, np.float64)
        span = np.ones(W, np.float64)
        high = np.zeros(W, np.float32)
        mean = np.zeros(W, np.float32)
        bad = np.zeros(W, np.int64)
        added = np.zeros(W, np.uint32)
        unsaturated = np.zeros(W, np.int64)
        for y in range(first, last):
            for x0 in range(0, columns, W):
                width = min(W, columns - x0)
                for j in range(width):
                    bad[j] = np.int64(linear_dq[y, x0 + j] & NO_LIN_CORR)
                    added[j] = linear_dq[y, x0 + j]
                    unsaturated[j] = 0
                _load_tile(linear, bad, y, x0, width, forward, added)
                _load_tile(inverse, bad, y, x0, width, backward, added)
                for j in range(width):
                    pixeldq[y, x0 + j] |= added[j]
                for i in range(resultants):
                    for j in range(width):
                        unsaturated[j] += np.int64((groupdq[i, y, x0 + j] & SATURATED) == 0)
                for j in range(width):
                    # One before the last good one: the mission's pipeline counts so.
                    end = max(unsaturated[j] - 1, 2) - 1
                    high[j] = data[end, y, x0 + j]
                    span[j] = mean_reads[end] - mean_reads[0]
                    # Saturated ends stay as they are: 1 marks the ends to correct.
                    bad[j] = np.int64((groupdq[end, y, x0 + j] & SATURATED) == 0)
                for j in range(width):
                    low = data[0, y, x0 + j]
                    corrected_low = np.float32(forward[(n_linear - 1) * W + j]) * low
                    corrected_high = np.float32(forward[(n_linear - 1) * W + j]) * high[j]
                    for k in range(n_linear - 2):
                        coefficient = np.float32(forward[(n_linear - 2 - k) * W + j])
                        corrected_low = (corrected_low + coefficient) * low
                        corrected_high = (corrected_high + coefficient) * high[j]
                    corrected_low = corrected_low + np.float32(forward[j])
                    corrected_high = corrected_high + np.float32(forward[j])
                    start = corrected_low if (groupdq[0, y, x0 + j] & SATURATED) == 0 else low
                    stop = corrected_high if bad[j] != 0 else high[j]
                    begin[j] = np.float64(start)
                    rate[j] = np.float64(stop - start) / span[j]
                for i in range(resultants):
                    size = starts[i + 1] - starts[i]
                    for j in range(W):
                        total[j] = 0.0
                    for r in range(size):
                        elapsed = reads[starts[i] + r]
                        for j in range(W):
                            expected = begin[j] + rate[j] * elapsed
                            value = backward[(n_inverse - 1) * W + j] * expected
                            for k in range(n_inverse - 2):
                                value = (value + backward[(n_inverse - 2 - k) * W + j]) * expected
                            value = value + backward[j]
                            counts[r, j] = value
                            total[j] += value
                    for j in range(width):
                        total[j] = np.float64(data[i, y, x0 + j]) - total[j] / size
                    for r in range(size):
                        for j in range(W):
                            counts[r, j] += total[j]
                        if correction.shape[0] > 0:
                            if direct:
                                _add_on_integers(counts[r], correction[x0 // W])
                            else:
                                _add_on_grid(counts[r], correction[x0 // W], grid)
                    for j in range(W):
                        total[j] = 0.0
                    for r in range(size):
                        for j in range(W):
                            read = counts[r, j]
                            value = forward[(n_linear - 1) * W + j] * read
                            for k in range(n_linear - 2):
                                value = (value + forward[(n_linear - 2 - k) * W + j]) * read
                            total[j] += value + forward[j]
                    _store(total, size, data[i, y, x0 : x0 + width], groupdq[i, y, x0 : x0 + width], mean)

    return kernel
