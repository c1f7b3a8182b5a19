"""From ramp to rate image, whatever the algorithm: the result, uniform-weight difference, DQ and the list of jumps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from stages.rows import buffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stream.stage import Slot

__all__ = ["BORDER", "RateImage", "jump_indices", "uniform_weights"]

BORDER = 4
"""Reference pixels on each side, which the image does not have."""

_SATURATED = 2
_JUMP_DET = 4
_UNUSABLE = 3  # DO_NOT_USE or SATURATED


@dataclass(frozen=True, slots=True)
class RateImage:
    """Arrays of the fitted image, all (R - 8, C - 8); they lie in the slot's buffers until its next job.

    Attributes
    ----------
    data : f4 array, DN/s
    dq : u4 array
    err, var_poisson : f2 arrays, DN/s and its square
    var_rnoise : f2 array or None
    chisq : f2 array
    dumo : f2 array, DN/s
        Rate by uniform weights minus ``data``.
    """

    data: NDArray[np.float32]
    dq: NDArray[np.uint32]
    err: NDArray[np.float16]
    var_poisson: NDArray[np.float16]
    var_rnoise: NDArray[np.float16] | None
    chisq: NDArray[np.float16]
    dumo: NDArray[np.float16]

    @classmethod
    def in_buffers(cls, slot: Slot, shape: tuple[int, int], *, with_var_rnoise: bool) -> RateImage:
        """Undefined arrays for a ramp of ``shape`` (R, C)."""
        trimmed = (shape[0] - 2 * BORDER, shape[1] - 2 * BORDER)

        def array(name: str, dtype: str) -> NDArray[Any]:
            return buffer(slot, f"ramp_fit.{name}", trimmed, dtype)

        return cls(
            data=array("data", "f4"),
            dq=array("dq", "u4"),
            err=array("err", "f2"),
            var_poisson=array("var_poisson", "f2"),
            var_rnoise=array("var_rnoise", "f2") if with_var_rnoise else None,
            chisq=array("chisq", "f2"),
            dumo=array("dumo", "f2"),
        )

    def fill_rows(self, first: int, last: int, planes: NDArray[np.float32], uniform: NDArray[np.float64]) -> None:
        """Store rows ``first:last`` of the image, rounded to the widths of the product.

        Parameters
        ----------
        first, last : int
            Rows of the image (without border).
        planes : (5, rows, C - 8) f4 array
            Rate, error, Poisson variance, read variance, chi^2.
        uniform : (rows, C - 8) f8 array, DN/s
            Rate by uniform weights; overwritten.
        """
        np.subtract(uniform, planes[0], out=uniform)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            self.data[first:last] = planes[0]
            self.err[first:last] = planes[1]
            self.var_poisson[first:last] = planes[2]
            if self.var_rnoise is not None:
                self.var_rnoise[first:last] = planes[3]
            self.chisq[first:last] = planes[4]
            self.dumo[first:last] = uniform


def uniform_weights(mean_times: NDArray[np.float64], reads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the resultants in a straight-line fit in which every read counts alike.

    Parameters
    ----------
    mean_times, reads : (n,) f8 arrays
        Mean time (s) and number of reads of each resultant.

    Returns
    -------
    (n,) f8 array, 1/s
    """
    n, t, q = reads.sum(), (reads * mean_times).sum(), (reads * mean_times**2).sum()
    with np.errstate(invalid="ignore"):  # one resultant has no slope: NaN
        weights: NDArray[np.float64] = (n * reads * mean_times - t * reads) / (n * q - t**2)
    return weights


@numba.njit(nogil=True, cache=True)
def uniform_rate_rows(data, weights, first, last, out):  # type: ignore[no-untyped-def]
    """Sum of ``weights[i] * data[i]`` over rows ``first:last`` without border columns, in f8, into ``out``.

    One pass over the ramp, two flops an element.
    """
    columns = data.shape[2] - 2 * BORDER
    for row in range(first, last):
        target = out[row - first]
        for x in range(columns):
            target[x] = 0.0
        for i in range(data.shape[0]):
            line, weight = data[i, row, BORDER : BORDER + columns], weights[i]
            for x in range(columns):
                target[x] += weight * line[x]


@numba.njit(nogil=True, cache=True)
def likelihood_dq_rows(working, groupdq, pixeldq, first, last, out):  # type: ignore[no-untyped-def]
    """Image DQ of rows ``first:last`` (of the ramp) from pixel and group DQ.

    Sets DO_NOT_USE where every resultant of ``working`` is SATURATED or DO_NOT_USE, or at most one of ``groupdq`` is
    neither; SATURATED and JUMP_DET where any resultant of ``working`` is.
    """
    columns = pixeldq.shape[1] - 2 * BORDER
    every = np.empty(columns, dtype=np.uint8)
    anyone = np.empty(columns, dtype=np.uint8)
    usable = np.empty(columns, dtype=np.int32)
    for row in range(first, last):
        every[:] = 1
        anyone[:] = 0
        usable[:] = 0
        for i in range(groupdq.shape[0]):
            work = working[i, row, BORDER : BORDER + columns]
            line = groupdq[i, row, BORDER : BORDER + columns]
            for x in range(columns):
                every[x] &= (work[x] | (work[x] >> 1)) & 1
                anyone[x] |= work[x]
            for x in range(columns):
                usable[x] += 1 - ((line[x] | (line[x] >> 1)) & 1)
        base = pixeldq[row, BORDER : BORDER + columns]
        target = out[row - BORDER]
        for x in range(columns):
            lost = every[x] | np.uint8(usable[x] <= 1)
            target[x] = base[x] | np.uint32(anyone[x] & (_SATURATED | _JUMP_DET)) | np.uint32(lost)


@numba.njit(nogil=True, cache=True)
def _count_jumps(groupdq):  # type: ignore[no-untyped-def]
    n, rows, columns = groupdq.shape
    counts = np.zeros((n, rows), dtype=np.int64)
    for i in range(n):
        for y in range(BORDER, rows - BORDER):
            line = groupdq[i, y, BORDER : columns - BORDER]
            total = 0
            for x in range(line.size):
                total += (line[x] >> 2) & 1
            counts[i, y] = total
    return counts


@numba.njit(nogil=True, cache=True)
def _list_jumps(groupdq, counts):  # type: ignore[no-untyped-def]
    n, rows = groupdq.shape[:2]
    found = np.empty((counts.sum(), 3), dtype=np.int16)
    k = 0
    for i in range(n):
        for y in range(BORDER, rows - BORDER):
            left = counts[i, y]
            x = BORDER
            while left > 0:
                if groupdq[i, y, x] & _JUMP_DET:
                    found[k, 0] = i
                    found[k, 1] = y - BORDER
                    found[k, 2] = x - BORDER
                    k += 1
                    left -= 1
                x += 1
    return found


def jump_indices(groupdq: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Where group DQ carries JUMP_DET, border excluded.

    Parameters
    ----------
    groupdq : (n, R, C) u1 array

    Returns
    -------
    (N, 3) i2 array
        (resultant, y, x) in the coordinates of the image, in that order of running; (0, 3) if there are none.
    """
    found: NDArray[np.int16] = _list_jumps(groupdq, _count_jumps(groupdq))
    return found
