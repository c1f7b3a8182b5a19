"""Geometry and compiled kernels of the reference-pixel correction. Not the order of its steps (see refpix)."""

from __future__ import annotations

import numpy as np
from numba import njit

from stages.dq import PixelDQ

__all__ = [
    "AMP33_CHANNEL",
    "CHANNEL_WIDTH",
    "DETECTOR_CHANNELS",
    "DETECTOR_COLUMNS",
    "PADDED_WIDTH",
    "apply_rows",
    "channel_spectrum",
    "offset_rows",
    "residual_channel",
]

CHANNEL_WIDTH = 128
"""Columns of a read-out channel."""

PADDED_WIDTH = 140
"""Samples of a row in time order: the columns and 12 without data."""

DETECTOR_CHANNELS = 32
DETECTOR_COLUMNS = CHANNEL_WIDTH * DETECTOR_CHANNELS
AMP33_CHANNEL = 32

BAD_REF_PIXEL = np.uint32(PixelDQ.BAD_REF_PIXEL)


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def offset_rows(data, amp33, pixeldq, zero_bad, remove_offset, offset, first, last):  # type: ignore[no-untyped-def]
    """Zero bad reference pixels in ``data``, then fit each pixel's value at the middle of the ramp into ``offset``.

    A straight line over the centred resultant index; its sum vanishes exactly, which leaves ``sum(x) S / (n S)``, in
    f4 as the mission's pipeline has it. One pass over data.
    """
    resultants, _, columns = data.shape
    squares = np.float32(0)
    for i in range(resultants):
        centred = np.float32(i) - np.float32(resultants - 1) / np.float32(2)
        squares += centred * centred
    divisor = np.float32(resultants) * squares
    total = np.empty(columns + CHANNEL_WIDTH, np.float32)
    for y in range(first, last):
        if zero_bad:
            for x in range(columns):
                if (pixeldq[y, x] & BAD_REF_PIXEL) != 0:
                    for i in range(resultants):
                        data[i, y, x] = 0
        if not remove_offset:
            offset[y] = 0
            continue
        total[:] = 0
        for i in range(resultants):
            for x in range(columns):
                total[x] += data[i, y, x]
            for x in range(CHANNEL_WIDTH):
                total[columns + x] += np.float32(amp33[i, y, x])
        for x in range(columns + CHANNEL_WIDTH):
            offset[y, x] = total[x] * squares / divisor


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def residual_channel(frame, offset, first_column, width, mirrored, slope, intercept, samples):  # type: ignore[no-untyped-def]
    """Fill ``samples`` (R, 140) with some columns of a channel in time order, without offset and trend; 0 elsewhere.

    ``frame`` holds the first of the columns at index 0 and ``offset`` at ``first_column``; exact zeros are missing
    samples, which get no trend.
    """
    rows = frame.shape[0]
    middle = (rows * PADDED_WIDTH - 1) / 2
    for y in range(rows):
        samples[y] = 0
        for j in range(width):
            x = width - 1 - j if mirrored else j
            value = np.float32(frame[y, x]) - offset[y, first_column + x]
            if value != 0:
                trend = slope * (np.float64(y * PADDED_WIDTH + j) - middle) + intercept
                value = np.float32(np.float64(value) - trend)
            samples[y, j] = value


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def channel_spectrum(left, right, amp33, gamma, zeta, alpha, factor, spectrum):  # type: ignore[no-untyped-def]
    """Weigh the three reference spectra (c8) with one channel's coefficients (c16) into ``spectrum`` (c16)."""
    for k in range(spectrum.size):
        weighted = (
            np.complex128(left[k]) * gamma[k] + np.complex128(right[k]) * zeta[k] + np.complex128(amp33[k]) * alpha[k]
        )
        spectrum[k] = complex(weighted.real * factor, weighted.imag * factor)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def apply_rows(frame, offset, correction, channel, slope, intercept):  # type: ignore[no-untyped-def]
    """Take trend and correction off one channel of one frame in place; the offset goes off before and on after.

    ``correction`` is (R, 140) f8 in time order: odd channels are read from their last column.
    """
    rows = frame.shape[0]
    middle = (rows * PADDED_WIDTH - 1) / 2
    x0 = channel * CHANNEL_WIDTH
    mirrored = channel % 2 == 1
    in_order = np.empty(CHANNEL_WIDTH, np.float32)
    trend = np.empty(CHANNEL_WIDTH, np.float64)
    for y in range(rows):
        start = np.float64(y * PADDED_WIDTH) - middle
        if mirrored:
            for j in range(CHANNEL_WIDTH):
                in_order[j] = np.float32(correction[y, CHANNEL_WIDTH - 1 - j])
                trend[j] = slope * (start + np.float64(CHANNEL_WIDTH - 1 - j)) + intercept
        else:
            for j in range(CHANNEL_WIDTH):
                in_order[j] = np.float32(correction[y, j])
                trend[j] = slope * (start + np.float64(j)) + intercept
        pixels = frame[y, x0 : x0 + CHANNEL_WIDTH]
        levels = offset[y, x0 : x0 + CHANNEL_WIDTH]
        for j in range(CHANNEL_WIDTH):
            value = pixels[j] - levels[j]
            detrended = np.float32(np.float64(value) - trend[j])
            value = detrended if value != 0 else value
            pixels[j] = (value - in_order[j]) + levels[j]
