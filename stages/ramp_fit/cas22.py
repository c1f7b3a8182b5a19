# mypy: disable-error-code="no-untyped-def"
"""Least-squares ramp fit with jump detection on runs of good resultants: the mission's older, deprecated algorithm.

Source: S. Casertano, "Determining the best-fitting slope and its uncertainty for up-the-ramp sampled images with
unevenly distributed resultants", Roman-STScI-000394 (2022).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from stages.dq import PixelDQ
from stages.ramp_fit.image import BORDER, RateImage, uniform_rate_rows, uniform_weights
from stages.ramp_fit.likelihood import resultant_times
from stages.rows import for_row_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stream.stage import Slot

__all__ = ["INTERCEPT", "SLOPE", "fit_cas22"]

INTERCEPT = 5.5
SLOPE = 1 / 3
"""A jump is what exceeds INTERCEPT - SLOPE log10(rate) standard deviations."""

_F = np.float32
_NOISE_LIMITS = np.array([5, 10, 20, 50, 100], dtype=np.float32)
_POWERS = np.array([0, 0.4, 1, 3, 6, 10], dtype=np.float32)  # Casertano's table of weighting powers
_JUMP = 4
_ONE = _F(1)
_NO_GAIN_VALUE = np.uint32(PixelDQ.NO_GAIN_VALUE)

_kernel = numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True)
_entry = numba.njit(nogil=True, cache=True, error_model="numpy")


class _Pattern(NamedTuple):
    """Mean times and tau (f4, s) and numbers of reads (f4) of the resultants."""

    times: NDArray[np.float32]
    tau: NDArray[np.float32]
    reads: NDArray[np.float32]


def _pattern(read_pattern: Sequence[Sequence[int]], frame_time: float) -> _Pattern:
    return _Pattern(*(values.astype(np.float32) for values in resultant_times(read_pattern, float(_F(frame_time)))))


@_kernel
def _fit_run(ramp, noise2, times, tau, reads, s, e):
    """Slope, read variance and Poisson coefficient of resultants ``s`` to ``e`` (f4), weights in f8."""
    signal = ramp[e] - ramp[s]
    if not signal > 0:
        signal = _F(0)
    ratio = _F(np.float64(signal) / math.sqrt(np.float64(noise2) + np.float64(signal)))
    level = 0
    while level < 5 and not ratio < _NOISE_LIMITS[level]:
        level += 1
    power = np.float64(_POWERS[level])
    middle = np.float64((times[s] + times[e]) / _F(2))
    span = np.float64((times[e] - times[s]) / _F(2))
    half = 1.0 if span == 0 else span
    f0, f1, f2 = 0.0, 0.0, 0.0
    weights = np.empty(e - s + 1)
    for i in range(s, e + 1):
        n, t = np.float64(reads[i]), np.float64(times[i])
        w = (1 + power) * n / (1 + power * n) * abs((t - middle) / half) ** power
        weights[i - s] = w
        f0 += w
        f1 += w * t
        f2 += w * np.float64(times[i] * times[i])
    determinant = f2 * f0 - f1 * f1
    slope, read_var, poisson = _F(0), _F(0), _F(0)
    if determinant == 0:
        return slope, read_var, poisson
    before = 0.0
    for i in range(s, e + 1):
        n, t = np.float64(reads[i]), np.float64(times[i])
        k = (f0 * t - f1) * weights[i - s] / determinant
        slope = _F(np.float64(slope) + k * np.float64(ramp[i]))
        read_var = _F(np.float64(read_var) + k * k * np.float64(noise2) / n)
        poisson = _F(np.float64(poisson) + (k * k * np.float64(tau[i]) + 2 * k * before))
        before += k * t
    return slope, read_var, poisson


@_kernel
def _significance(ramp, noise2, times, tau, reads, slope, length, j, o):
    """Size of the step from resultant ``j`` to ``j + o`` in standard deviations; every operation f4."""
    step = times[j + o] - times[j]
    excess = (ramp[j + o] - ramp[j]) / step - slope
    inverse = _ONE / reads[j + o] + _ONE / reads[j]
    overlap = (tau[j + o] + tau[j]) - _F(2) * min(times[j], times[j + o])
    variance = (noise2 * inverse + slope * overlap) / (step * step) + (-slope / length)
    return excess / np.sqrt(variance)


@_kernel
def _largest_jump(ramp, noise2, times, tau, reads, slope, s, e):
    """Largest significance in a run and where; a NaN in the last difference is never replaced."""
    length = times[e] - times[s]
    where = e - 1
    best = _significance(ramp, noise2, times, tau, reads, slope, length, e - 1, 1)
    for j in range(s, e - 1):
        one = _significance(ramp, noise2, times, tau, reads, slope, length, j, 1)
        two = _significance(ramp, noise2, times, tau, reads, slope, length, j, 2)
        value = two if (two > one or one != one) else one  # noqa: PLR0124 - NaN
        if value > best:
            best, where = value, j
    return best, where


@_kernel
def _fit_pixel(ramp, flags, noise, times, tau, reads, search, intercept, constant, stack):
    """Slope and the two variances (f4) of one pixel; assigns JUMP_DET in ``flags``."""
    n = ramp.size
    depth, start = 0, -1
    for i in range(n + 1):
        good = i < n and flags[i] == 0
        if good and start < 0:
            start = i
        if not good and start >= 0:
            stack[depth, 0], stack[depth, 1] = start, i - 1
            depth += 1
            start = -1
    noise2 = noise * noise
    total, slopes, reads_total, poisson_total = _F(0), _F(0), _F(0), _F(0)
    while depth > 0:
        depth -= 1
        s, e = stack[depth, 0], stack[depth, 1]
        if s == e:
            continue
        slope, read_var, poisson = _fit_run(ramp, noise2, times, tau, reads, s, e)
        if slope != slope:  # noqa: PLR0124 - NaN
            continue
        if search:
            best, j = _largest_jump(ramp, noise2, times, tau, reads, slope, s, e)
            threshold = intercept - constant * np.log10(min(max(slope, _ONE), _F(1e4)))
            if best > threshold:
                flags[j] = _JUMP
                flags[j + 1] = _JUMP
                if j > s:
                    stack[depth, 0], stack[depth, 1] = s, j - 1
                    depth += 1
                if j + 2 <= e:
                    stack[depth, 0], stack[depth, 1] = j + 2, e
                    depth += 1
                continue
        weight = _F(0) if read_var == 0 else _ONE / read_var
        total += weight
        slopes += weight * slope
        reads_total += weight * weight * read_var
        poisson_total += weight * weight * poisson
    divisor = _ONE if total == 0 else total
    rate = slopes / divisor
    squared = divisor * divisor
    positive = rate if not rate < 0 else _F(0)
    return rate, poisson_total / squared * positive, reads_total / squared


@_entry
def _fit_rows(data, groupdq, pixeldq, gain, readnoise, pattern, search, limits, first, last, planes, dq):
    times, tau, reads = pattern
    n, _, columns = data.shape
    ramp = np.empty(n, dtype=np.float32)
    flags = np.empty(n, dtype=np.int32)
    stack = np.empty((n + 1, 2), dtype=np.int64)
    for y in range(first, last):
        for x in range(BORDER, columns - BORDER):
            g = gain[y - first, x]
            for i in range(n):
                ramp[i] = data[i, y, x] * g
                flags[i] = groupdq[i, y, x]
            rate, poisson, read = _fit_pixel(
                ramp, flags, readnoise[y - first, x] * g, times, tau, reads, search, limits[0], limits[1], stack
            )
            rate, poisson, read = rate / g, poisson / (g * g), read / (g * g)
            err = np.sqrt(poisson + read)
            k, m = y - first, x - BORDER
            planes[0, k, m] = rate
            planes[1, k, m] = err
            planes[2, k, m] = poisson
            planes[3, k, m] = read
            planes[4, k, m] = 0
            jump, saturated, lost = 0, 2, 1
            for i in range(n):
                jump |= flags[i] & _JUMP
                saturated &= flags[i]
                lost &= flags[i] | (flags[i] >> 1)
            flag = np.uint32(pixeldq[y, x]) | np.uint32(jump | saturated | lost)
            if not np.isfinite(rate) or err <= 0:
                flag |= np.uint32(1)
            if g < 0 or not np.isfinite(g):
                flag |= _NO_GAIN_VALUE
            dq[y - BORDER, m] = flag


def fit_cas22(
    data: NDArray[np.float32],
    groupdq: NDArray[np.uint8],
    pixeldq: NDArray[np.uint32],
    *,
    gain: NDArray[np.float32],
    readnoise: NDArray[np.float32],
    read_pattern: Sequence[Sequence[int]],
    frame_time: float,
    slot: Slot,
    search_jumps: bool = True,
    intercept: float | None = None,
    slope: float | None = None,
    with_var_rnoise: bool = False,
) -> RateImage:
    """Fit all ramps by least squares with weights that depend on the signal-to-noise ratio.

    Parameters
    ----------
    data : (n, R, C) f4 array, DN
    groupdq : (n, R, C) u1 array
        Not changed. A resultant with any flag is not used.
    pixeldq : (R, C) u4 array
    gain : (R, C) f4 array, electrons/DN
    readnoise : (R, C) f4 array, DN, of a single read
    read_pattern : sequence of sequences of int
    frame_time : float, s
    slot : Slot
    search_jumps : bool
    intercept, slope : float or None
        Of the threshold; None for `INTERCEPT` and `SLOPE`.
    with_var_rnoise : bool
        Also give the read-noise variance.

    Returns
    -------
    RateImage
        ``chisq`` is zero. DQ: JUMP_DET for any jump, SATURATED where all resultants are, DO_NOT_USE where none is
        usable, the rate is not finite or the error not positive, NO_GAIN_VALUE for a gain negative or not finite.
    """
    pattern = _pattern(read_pattern, frame_time)
    limits = (_F(INTERCEPT if intercept is None else intercept), _F(SLOPE if slope is None else slope))
    mean_times, _, reads = resultant_times(read_pattern, frame_time)
    weights = uniform_weights(mean_times, reads)
    rows, columns = data.shape[1:]
    image = RateImage.in_buffers(slot, (rows, columns), with_var_rnoise=with_var_rnoise)

    def fit(first: int, last: int) -> None:
        top, bottom = first + BORDER, last + BORDER
        planes = np.empty((5, last - first, columns - 2 * BORDER), np.float32)
        uniform = np.empty(planes.shape[1:])
        gains, noise = gain[top:bottom].astype(np.float32), readnoise[top:bottom].astype(np.float32)
        _fit_rows(
            data, groupdq, pixeldq, gains, noise, tuple(pattern), search_jumps, limits, top, bottom, planes, image.dq
        )
        uniform_rate_rows(data, weights, top, bottom, uniform)
        image.fill_rows(first, last, planes, uniform)

    for_row_blocks(fit, rows - 2 * BORDER, threads=slot.threads, block=16)
    return image
