"""The detector chain: from electrons per second to the resultants of an exposure, the inverse of calibration.

Each read: Poisson charge and cosmic rays, divided by the gain, added to the pedestal, cut at full well, made
non-linear, then dark decay, correlated and read noise, the converter's integral non-linearity, and rounding. Reads are
then averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ops.simulate.correlated_noise import AMP33_NOISE_DN, SAMPLES_PER_ROW, CorrelatedNoise, draw_noise
from ops.simulate.kernels import read_out_rows
from ops.simulate.options import BORDER, CHANNEL_COLUMNS, CHANNELS, COLUMNS
from ops.simulate.streams import Purpose, detector_number
from stages.rows import for_row_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ops.simulate.characteristics import Characteristics, DecayTerm
    from ops.simulate.cosmic_rays import CosmicRays

__all__ = ["ENCODING_OFFSET", "Calibration", "Readout", "read_out", "read_start_times"]

ENCODING_OFFSET = 200
_BLOCK = 32
_CLOCK_SECONDS = 4.915263e-6
_CYCLES_PER_ROW = 142
_GUIDE_ROWS = 256


@dataclass(frozen=True)
class Calibration:
    """What the references say about a detector, as whole-frame arrays (memory-mapped where they are large)."""

    gain: NDArray[np.float32]
    read_noise: NDArray[np.float32]
    dark_slope: NDArray[np.float32]
    inverse_linearity: NDArray[np.float32]
    inl: NDArray[np.float64]


@dataclass(frozen=True)
class Readout:
    """One exposure as the telescope sends it, uint16 (n, R, 4096) and (n, R, 128), and its first read if asked for."""

    data: NDArray[np.uint16]
    amp33: NDArray[np.uint16]
    reference_read: NDArray[np.uint16] | None = None
    reference_amp33: NDArray[np.uint16] | None = None


def read_start_times(frame_time: float, detector: str, rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds from the start of a read to each pixel's sample: parts by row (R,) and by column (4096,), to be added.

    A row takes 142 clock cycles; after each 256 rows the guide window is read. Odd channels run backwards; detectors
    with a number divisible by 3 are turned one way, all others the other way.
    """
    row = np.arange(rows)
    last = (rows - 1) * _CYCLES_PER_ROW + CHANNEL_COLUMNS - 1
    guide = (frame_time / _CLOCK_SECONDS - last) / 16 * 1.5
    cycles = row * _CYCLES_PER_ROW + (row // _GUIDE_ROWS) * guide
    unit = frame_time / (cycles[-1] + CHANNEL_COLUMNS - 1 + guide)
    channel = np.arange(CHANNEL_COLUMNS)
    by_column = np.tile(np.concatenate([channel, channel[::-1]]), CHANNELS // 2) * unit
    by_row = cycles * unit
    if detector_number(detector) % 3 == 0:
        return by_row, by_column[::-1].copy()
    return by_row[::-1].copy(), by_column


def _decay(
    terms: list[DecayTerm], frame_time: float, detector: str, rows: int, reads: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Factors of the exponentials by read, row and column."""
    by_row, by_column = read_start_times(frame_time, detector, rows)
    tau = np.array([term.time_constant for term in terms])[:, None]
    amplitude = np.zeros((reads, len(terms)))
    for k, term in enumerate(terms):
        number = np.arange(1, reads + 1)
        if term.reads is None:
            amplitude[:, k] = term.amplitude * np.exp(-(number - 1.5) * frame_time / term.time_constant)
        else:
            amplitude[: term.reads, k] = term.amplitude
    factors = np.exp(-by_row / tau), np.exp(-by_column / tau)
    for factor in factors:
        # Reference pixels collect no charge and so have none that decays; else their trend would hold it too.
        factor[:, :BORDER] = factor[:, -BORDER:] = 0.0
    return amplitude, *factors


def _read_out_amp33(
    noise: CorrelatedNoise, rng: np.random.Generator, resultant_of_read: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Resultants and first read of the amplifier without pixels."""
    rows = noise.common.shape[1] // SAMPLES_PER_ROW
    time = (np.arange(rows * SAMPLES_PER_ROW, dtype=np.float64) / (rows * SAMPLES_PER_ROW) - 0.5).reshape(rows, -1)
    level = 600.0 + 20.0 * rng.standard_normal((rows, CHANNEL_COLUMNS))
    sums = np.zeros((counts.size, rows, CHANNEL_COLUMNS), dtype=np.int64)
    first = np.zeros((rows, CHANNEL_COLUMNS), dtype=np.uint16)
    for read, resultant in enumerate(resultant_of_read):
        white = AMP33_NOISE_DN * rng.standard_normal((rows, CHANNEL_COLUMNS))
        value = level + white + noise.common[read].reshape(rows, -1)[:, :CHANNEL_COLUMNS]
        offset, slope = noise.lines[read, CHANNELS]
        value += offset + slope * time[:, :CHANNEL_COLUMNS]
        count = np.clip(np.rint(value + ENCODING_OFFSET), 0, 65535).astype(np.int64)
        if read == 0:
            first[:] = count
        if resultant >= 0:
            sums[resultant] += count
    return np.rint(sums / counts[:, None, None]).astype(np.uint16), first


def read_out(
    light: NDArray[np.float32],
    *,
    detector: Characteristics,
    calibration: Calibration,
    cosmic_rays: CosmicRays,
    exposure: int,
    read_pattern: tuple[tuple[int, ...], ...],
    frame_time: float,
    keep_first_read: bool,
    threads: int,
) -> Readout:
    """Expose the detector and read it out.

    Parameters
    ----------
    light : ndarray, float32, (R - 8, 4088)
        Electrons per second that pixels collect (quantum efficiency included, dark current not). Not changed.
    detector : Characteristics
        What no reference tells: pedestal, full well, noise streams.
    calibration : Calibration
        What the references tell.
    cosmic_rays : CosmicRays
    exposure : int
        Number of the exposure; decides the noise.
    read_pattern : tuple of tuples
        Reads (from 1) of each resultant.
    frame_time : float
        Seconds per read.
    keep_first_read : bool
        Subtract the first read from the resultants and give it apart.
    threads : int
        Does not change the result: each block of rows has a random stream of its own.
    """
    reads = read_pattern[-1][-1]
    resultant_of_read = np.full(reads, -1, dtype=np.int64)
    for k, members in enumerate(read_pattern):
        resultant_of_read[np.array(members) - 1] = k
    counts = np.array([len(members) for members in read_pattern], dtype=np.int64)
    electrons = calibration.dark_slope * calibration.gain
    electrons[BORDER:-BORDER, BORDER:-BORDER] += light
    electrons *= np.float32(frame_time)
    noise = draw_noise(detector, exposure, reads)
    decay = _decay(detector.decay_terms(), frame_time, detector.detector, detector.rows, reads)
    data = np.empty((counts.size, detector.rows, COLUMNS), dtype=np.uint16)
    first_read = np.zeros(detector.shape if keep_first_read else (0, 0), dtype=np.uint16)
    frame: tuple[Any, ...] = (
        electrons, calibration.gain, detector.pedestal(), detector.full_well(), calibration.inverse_linearity,
        calibration.read_noise, *decay, noise.common, noise.drift, noise.lines, noise.coupling, calibration.inl,
        cosmic_rays.hits, cosmic_rays.row_start, resultant_of_read, counts, ENCODING_OFFSET, data, first_read,
    )  # fmt: skip

    def work(first: int, last: int) -> None:
        read_out_rows(first, last, detector.stream(Purpose.READ_OUT, exposure, first), *frame)

    for_row_blocks(work, detector.rows, threads=threads, block=_BLOCK)
    amp33_stream = detector.stream(Purpose.READ_OUT, exposure, detector.rows)
    amp33, first_amp33 = _read_out_amp33(noise, amp33_stream, resultant_of_read, counts)
    if not keep_first_read:
        return Readout(data, amp33)
    reference_read, reference_amp33 = _above_offset(first_read), _above_offset(first_amp33)
    _subtract(data, reference_read)
    _subtract(amp33, reference_amp33)
    return Readout(data, amp33, reference_read, reference_amp33)


def _above_offset(first: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """First read without the encoding offset, which stays in the resultants."""
    return np.maximum(first, ENCODING_OFFSET) - np.uint16(ENCODING_OFFSET)


def _subtract(resultants: NDArray[np.uint16], reference: NDArray[np.uint16]) -> None:
    for plane in resultants:
        plane[:] = np.maximum(plane, reference) - reference
