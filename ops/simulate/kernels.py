"""The compiled inner loop of the read-out. Not the physics' constants, which come in as arrays."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["read_out_rows"]


@njit(nogil=True, cache=True)
def read_out_rows(  # type: ignore[no-untyped-def]
    first,
    last,
    rng,
    electrons_per_read,
    gain,
    pedestal,
    full_well,
    inverse,
    read_noise,
    decay_amplitude,
    decay_row,
    decay_column,
    common,
    drift,
    lines,
    coupling,
    inl,
    hits,
    hit_start,
    resultant_of_read,
    reads_in_resultant,
    encoding_offset,
    resultants,
    first_read,
):
    """Read rows ``first`` to ``last`` out: every read of every pixel, averaged into resultants.

    Parameters
    ----------
    rng : numpy Generator
        Draws Poisson and Gaussian numbers in a fixed order, so that a block of rows has its own.
    electrons_per_read : float32, (R, 4096)
    gain, pedestal, full_well, read_noise : float32, (R, 4096)
        Electrons per DN; linear DN; linear DN; DN.
    inverse : float32, (6, R, 4096)
        Linear to raw DN.
    decay_amplitude : float64, (reads, terms)
    decay_row, decay_column : float64, (terms, R), (terms, 4096)
        Factors of the exponentials of the time since the start of the read.
    common, drift, lines, coupling : float32
        See `correlated_noise.CorrelatedNoise`.
    inl : float64, (32, 65536)
    hits : int64, (N, 4)
        Cosmic rays (row, read from 0, column, electrons), sorted; ``hit_start`` (R + 1) finds those of a row.
    resultant_of_read : int64, (reads,)
        -1 for a read that is not kept.
    reads_in_resultant : int64, (n,)
    encoding_offset : int
    resultants : uint16, (n, R, 4096)
        Written.
    first_read : uint16, (R, 4096) or (0, 0)
        Written where it has a shape: the first read alone.

    Notes
    -----
    One pass over the frame; per read and pixel a Poisson and a Gaussian number (some 20 ns together), a polynomial of
    six coefficients, two table look-ups. All intermediates float64.
    """
    reads = resultant_of_read.shape[0]
    columns = electrons_per_read.shape[1]
    terms = decay_amplitude.shape[1]
    samples = 140
    length = common.shape[1]
    top = inl.shape[1] - 1
    charge = np.zeros(columns)
    none = np.empty(columns)
    sums = np.zeros(columns, dtype=np.int64)
    shared = np.empty(columns)
    per_electron = np.empty(columns)
    reciprocal = 1.0 / np.maximum(np.arange(101.0), 1.0)
    for row in range(first, last):
        for col in range(columns):
            charge[col] = 0.0
            per_electron[col] = 1.0 / gain[row, col]
            none[col] = np.exp(-np.float64(electrons_per_read[row, col]))
        hit = hit_start[row]
        for read in range(reads):
            for col in range(columns):
                mean = electrons_per_read[row, col]
                if mean <= 0.0:
                    continue
                if mean < 10.0:
                    # Inversion: one uniform number, and on average mean + 1 steps.
                    left = rng.random()
                    probability = none[col]
                    number = 0
                    while left > probability and number < 100:
                        left -= probability
                        number += 1
                        probability *= mean * reciprocal[number]
                    charge[col] += number
                elif charge[col] < 2.0 * full_well[row, col] * gain[row, col]:
                    charge[col] += rng.poisson(mean)
            while hit < hit_start[row + 1] and hits[hit, 1] == read:
                charge[hits[hit, 2]] += hits[hit, 3]
                hit += 1
            resultant = resultant_of_read[read]
            if resultant < 0:
                continue
            for channel in range(32):
                offset = lines[read, channel, 0]
                slope = lines[read, channel, 1]
                strength = coupling[channel]
                for k in range(128):
                    sample = row * samples + (k if channel % 2 == 0 else 127 - k)
                    shared[channel * 128 + k] = (
                        strength * common[read, sample]
                        + drift[read, sample]
                        + offset
                        + slope * (np.float64(sample) / length - 0.5)
                    )
            for col in range(columns):
                linear = min(pedestal[row, col] + charge[col] * per_electron[col], np.float64(full_well[row, col]))
                value = np.float64(inverse[5, row, col])
                for k in range(4, -1, -1):
                    value = value * linear + inverse[k, row, col]
                for term in range(terms):
                    value += decay_amplitude[read, term] * decay_row[term, row] * decay_column[term, col]
                value += shared[col] + read_noise[row, col] * rng.standard_normal()
                # The correction is tabulated over the value that the converter gave: two fixed-point steps invert it.
                raw = value
                for _ in range(2):
                    place = min(max(raw, 0.0), np.float64(top))
                    index = min(int(place), top - 1)
                    low = inl[col // 128, index]
                    raw = value - (low + (place - index) * (inl[col // 128, index + 1] - low))
                count = min(max(int(np.floor(raw + encoding_offset + 0.5)), 0), 65535)
                sums[col] += count
                if read == 0 and first_read.shape[0] > 0:
                    first_read[row, col] = count
            if read + 1 < reads and resultant_of_read[read + 1] == resultant:
                continue
            number = reads_in_resultant[resultant]
            for col in range(columns):
                # Half to even, so that means of two or four reads have no bias.
                whole = sums[col] // number
                rest = 2 * (sums[col] - whole * number)
                if rest > number or (rest == number and whole % 2 == 1):
                    whole += 1
                resultants[resultant, row, col] = whole
                sums[col] = 0
