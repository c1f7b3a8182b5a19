"""Sums in NumPy's order. What starts or steers a fit must be equal to the last bit, or it may end elsewhere."""

from __future__ import annotations

from numba import njit

__all__ = ["MOST", "sum_in_numpy_order"]

MOST = 128
"""Values that are summed so; NumPy halves longer arrays first."""


@njit(nogil=True, cache=True)
def sum_in_numpy_order(values):  # type: ignore[no-untyped-def]
    """Sum of up to 128 values as ``np.sum`` has it: eight sums side by side, then what is left.

    Parameters
    ----------
    values : ndarray, f8, (n,)
        Values, n at most `MOST`.
    """
    blocks = values.size - values.size % 8
    total = 0.0
    if blocks > 0:
        r = values[:8].copy()
        for first in range(8, blocks, 8):
            for k in range(8):
                r[k] += values[first + k]
        total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]))
    for i in range(blocks, values.size):
        total += values[i]
    return total
