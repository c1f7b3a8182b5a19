"""Likelihood ramp fit with jump detection: constants of a read pattern and the array-level entry. Not the kernels.

Source: T. D. Brandt, "Optimal Fitting and Debiasing for Detectors Read Out Up-the-Ramp", PASP 136, 045004 (2024), and
"Likelihood-based Jump Detection and Cosmic Ray Rejection for Detectors Read Out Up-the-Ramp", PASP 136, 045005 (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.ramp_fit.image import BORDER, RateImage, likelihood_dq_rows, uniform_rate_rows, uniform_weights
from stages.ramp_fit.likelihood_search import FIT, REFIT, SEARCH, fit_rows
from stages.ramp_fit.snowballs import flag_snowballs
from stages.rows import buffer, for_row_blocks
from stream.failure import PermanentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stages.ramp_fit.snowballs import SnowballParameters
    from stream.stage import Slot

__all__ = [
    "JUMP_THRESHOLDS",
    "MINIMUM_RESULTANTS",
    "CovarianceConstants",
    "covariance_constants",
    "fit_likelihood",
    "resultant_times",
]

MINIMUM_RESULTANTS = 4
JUMP_THRESHOLDS = (20.25, 23.798545110306268, 18.0)
"""Least gain in chi^2: 4.5 squared for one difference, and the value of equal false-alarm rate with two degrees of
freedom for a pair of neighbours. The third is the chi^2 below which neither can be reached, with room for rounding:
pixels below it are not searched."""


@dataclass(frozen=True, slots=True)
class CovarianceConstants:
    """What the covariance of the scaled differences of one read pattern consists of, all f8.

    With rate c, gain g and read noise s, difference i has variance ``c/g photon[i] + s^2 read[i]`` and covariance
    ``c/g photon_next[i] + s^2 read_next[i]`` with difference i + 1.

    Attributes
    ----------
    steps : (nd,) array, s
        Time between the means of neighbouring resultants; nd is one less than the number of resultants.
    photon, read : (nd,) arrays
    photon_next, read_next : (nd - 1,) arrays
    averaged : (nd - 1,) array
        1 where the resultant that differences i and i + 1 share has more than one read, else 0: only there can one
        event spoil both.
    """

    steps: NDArray[np.float64]
    photon: NDArray[np.float64]
    photon_next: NDArray[np.float64]
    read: NDArray[np.float64]
    read_next: NDArray[np.float64]
    averaged: NDArray[np.float64]

    def as_tuple(self) -> tuple[NDArray[np.float64], ...]:
        """In the order of the kernels."""
        return (self.steps, self.photon, self.photon_next, self.read, self.read_next, self.averaged)


def resultant_times(
    read_pattern: Sequence[Sequence[int]], frame_time: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean time, variance-weighted time (tau) and number of reads of each resultant.

    Parameters
    ----------
    read_pattern : sequence of sequences of int
        Read numbers, from 1.
    frame_time : float
        Seconds per read.

    Returns
    -------
    mean, tau, reads : (n,) f8 arrays; seconds, seconds, number
    """
    times = [np.asarray(reads, dtype=np.float64) * frame_time for reads in read_pattern]
    reads = np.array([t.size for t in times], dtype=np.float64)
    mean = np.array([t.mean() for t in times])
    tau = np.array([np.sum((2 * (t.size - np.arange(t.size)) - 1) * t) / t.size**2 for t in times])
    return mean, tau, reads


def covariance_constants(read_pattern: Sequence[Sequence[int]], frame_time: float) -> CovarianceConstants:
    """Constants of the covariance of the scaled differences.

    Raises
    ------
    stream.failure.PermanentError
        Fewer than four resultants.
    """
    if len(read_pattern) < MINIMUM_RESULTANTS:
        raise PermanentError(
            f"meta.exposure.read_pattern has {len(read_pattern)} resultants; the likelihood ramp fit needs at least "
            f"{MINIMUM_RESULTANTS}"
        )
    mean, tau, reads = resultant_times(read_pattern, frame_time)
    steps = np.diff(mean)
    return CovarianceConstants(
        steps=steps,
        photon=(tau[:-1] + tau[1:] - 2 * mean[:-1]) / steps**2,
        photon_next=(mean[1:-1] - tau[1:-1]) / (steps[1:] * steps[:-1]),
        read=(1 / reads[:-1] + 1 / reads[1:]) / steps**2,
        read_next=-1 / (reads[1:-1] * steps[1:] * steps[:-1]),
        averaged=(reads[1:-1] > 1).astype(np.float64),
    )


_BLOCK = 16
"""Rows of a block: its scratch (5 planes of f4 and one of f8, 1.8 MB) stays in the second-level cache of most CPUs."""


def fit_likelihood(
    data: NDArray[np.float32],
    groupdq: NDArray[np.uint8],
    pixeldq: NDArray[np.uint32],
    *,
    gain: NDArray[np.float32],
    readnoise: NDArray[np.float32],
    read_pattern: Sequence[Sequence[int]],
    frame_time: float,
    slot: Slot,
    with_var_rnoise: bool = False,
    snowballs: SnowballParameters | None = None,
) -> RateImage:
    """Fit all ramps by maximum likelihood, searching for jumps.

    All arithmetic is f8 except the differences of resultants, which are f4. Cost: one pass over the ramp, and about 700
    flops a pixel and fit; 0.3 us a pixel for 10 resultants on one AVX2 core.

    Parameters
    ----------
    data : (n, R, C) f4 array, DN
    groupdq : (n, R, C) u1 array
        JUMP_DET is set in place in the later resultant of each difference found to hold a jump. A resultant with any
        flag is not used.
    pixeldq : (R, C) u4 array
    gain : (R, C) f4 array, electrons/DN
    readnoise : (R, C) f4 array, DN, of a single read
    read_pattern : sequence of sequences of int
    frame_time : float, s
    slot : Slot
    with_var_rnoise : bool
        Also give the read-noise variance.
    snowballs : SnowballParameters or None
        Expand the flags of large events before the last fit.

    Returns
    -------
    RateImage
        DQ: DO_NOT_USE, SATURATED and JUMP_DET are added to ``pixeldq``. Rates that cannot be had are NaN, unflagged.

    Raises
    ------
    stream.failure.PermanentError
        Fewer than four resultants.
    """
    constants = covariance_constants(read_pattern, frame_time).as_tuple()
    mean_times, _, reads = resultant_times(read_pattern, frame_time)
    weights = uniform_weights(mean_times, reads)
    data = np.require(data, np.float32, ("C", "A", "W"))
    rows, columns = data.shape[1:]
    image = RateImage.in_buffers(slot, (rows, columns), with_var_rnoise=with_var_rnoise)
    mode, working = FIT, groupdq
    used, counts = np.empty((0, 0, 0), np.uint8), np.empty((0, 0))

    def fit_block(mode: int, top: int, bottom: int, border: int, planes: NDArray[np.float32]) -> None:
        # Copies: arrays mapped from reference files may be unaligned, big-endian, and are read-only.
        gains, noise = gain[top:bottom].astype(np.float32), readnoise[top:bottom].astype(np.float32)
        columns_in = (border, columns - border)
        fit_rows(
            mode,
            data,
            working,
            gains,
            noise,
            constants,
            JUMP_THRESHOLDS,
            top,
            bottom,
            *columns_in,
            planes,
            used,
            counts,
        )

    if snowballs is not None:
        mode = REFIT
        used = buffer(slot, "ramp_fit.used", (data.shape[0] - 1, rows, columns), "u1")
        counts = buffer(slot, "ramp_fit.counts", (rows, columns), "f8")
        working = buffer(slot, "ramp_fit.working", groupdq.shape, "u1")
        np.copyto(working, groupdq)
        nothing = np.empty((5, 0, 0), np.float32)
        for_row_blocks(
            lambda top, bottom: fit_block(SEARCH, top, bottom, 0, nothing), rows, threads=slot.threads, block=_BLOCK
        )
        flag_snowballs(working, snowballs)
        np.bitwise_or(groupdq, working, out=groupdq)

    def fit(first: int, last: int) -> None:
        top, bottom = first + BORDER, last + BORDER
        planes = np.empty((5, last - first, columns - 2 * BORDER), np.float32)
        uniform = np.empty(planes.shape[1:])
        fit_block(mode, top, bottom, BORDER, planes)
        uniform_rate_rows(data, weights, top, bottom, uniform)
        likelihood_dq_rows(working, groupdq, pixeldq, top, bottom, image.dq)
        image.fill_rows(first, last, planes, uniform)

    for_row_blocks(fit, rows - 2 * BORDER, threads=slot.threads, block=_BLOCK)
    return image
