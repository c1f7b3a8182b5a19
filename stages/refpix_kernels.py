"""Geometry, transform and compiled kernels of the reference-pixel correction. Not its order of steps (see refpix)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from scipy import fft

from stages.dq import PixelDQ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "AMP33_CHANNEL",
    "CHANNEL_WIDTH",
    "DETECTOR_CHANNELS",
    "DETECTOR_COLUMNS",
    "PADDED_WIDTH",
    "NoiseTransform",
    "apply_rows",
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


class NoiseTransform:
    """Inverse real transform, in f8, of weighted reference spectra of one length.

    Parameters
    ----------
    length : int
        Samples of a frame in time order, even.

    Notes
    -----
    The half spectrum of ``length`` real samples is packed into one of half as many complex ones, whose transform is
    done in two rounds of short ones with twiddle factors between (Bailey 1990, "FFTs in external or hierarchical
    memory"). A single long transform works on 5 to 9 MB at once, beyond the cache, and takes 2 to 3 times as long.
    Agrees with it to rounding in f8.
    """

    def __init__(self, length: int) -> None:
        half = length // 2
        self.length = length
        self.rows = next(p for p in range(int(half**0.5), 0, -1) if half % p == 0)
        self.columns = half // self.rows
        order = np.arange(self.rows)[:, np.newaxis] * np.arange(self.columns)
        self._twiddle = np.exp(2j * np.pi * order / half)
        self._pack = np.exp(2j * np.pi * np.arange(half // 2 + 1) / length)

    def workspace(self) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
        """Memory for one thread: the packed spectrum and the samples."""
        return (
            np.empty((self.rows, self.columns), np.complex128),
            np.empty((self.columns, self.rows), np.complex128),
        )

    def noise(
        self,
        spectra: Sequence[NDArray[np.complex64]],
        weights: Sequence[NDArray[np.complex128]],
        factor: float,
        workspace: tuple[NDArray[np.complex128], NDArray[np.complex128]],
    ) -> NDArray[np.float64]:
        """Samples of ``factor`` times the weighted sum of the three spectra: f8, (length,), lies in the workspace."""
        packed, samples = workspace
        _pack_weighted(*spectra, *weights, factor / self.length, self._pack, packed.reshape(-1))
        packed = fft.ifft(packed, axis=0, norm="forward", overwrite_x=True)
        packed *= self._twiddle
        packed = fft.ifft(packed, axis=1, norm="forward", overwrite_x=True)
        _transpose(packed, samples)
        return samples.reshape(-1).view(np.float64)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _pack_weighted(left, right, amp33, gamma, zeta, alpha, scale, turn, packed):  # type: ignore[no-untyped-def]
    """Weigh the reference spectra (c8) with one channel's coefficients (c16), and pack both halves into one (c16)."""
    half = packed.size
    for k in range(half // 2 + 1):
        m = half - k
        low = np.complex128(left[k]) * gamma[k] + np.complex128(right[k]) * zeta[k] + np.complex128(amp33[k]) * alpha[k]
        high = (
            np.complex128(left[m]) * gamma[m] + np.complex128(right[m]) * zeta[m] + np.complex128(amp33[m]) * alpha[m]
        )
        low_real, low_imag = low.real * scale, low.imag * scale
        high_real, high_imag = high.real * scale, high.imag * scale
        if k == 0:
            # The first and last frequency of a real signal are real.
            low_imag = high_imag = 0.0
        even_real, even_imag = low_real + high_real, low_imag - high_imag
        odd_real, odd_imag = low_real - high_real, low_imag + high_imag
        # i exp(2 pi i k / length) (low - conj(high))
        turned_real = -(turn[k].real * odd_imag + turn[k].imag * odd_real)
        turned_imag = turn[k].real * odd_real - turn[k].imag * odd_imag
        packed[k] = complex(even_real + turned_real, even_imag + turned_imag)
        if k > 0:
            packed[m] = complex(even_real - turned_real, turned_imag - even_imag)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _transpose(source, target):  # type: ignore[no-untyped-def]
    rows, columns = source.shape
    tile = 16
    for y0 in range(0, rows, tile):
        for x0 in range(0, columns, tile):
            for x in range(x0, min(x0 + tile, columns)):
                for y in range(y0, min(y0 + tile, rows)):
                    target[x, y] = source[y, x]


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
