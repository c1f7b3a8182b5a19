"""Noise that pixels share, and the reference-pixel coefficients that take it out again.

Three parts, made read by read in the time order of the read-out (140 samples a row and channel, 128 of them pixels):

* 1/f noise n(t) in every channel c with strength a_c, and in the separate amp33 channel with strength 1;
* a slow drift d(t), equal in all channels, that amp33 does not see, but the reference columns do;
* an offset and a slope of each channel in each read, which reference rows take out.

The coefficients are the least-squares (Wiener) weights W for the noise of what is measured:
``alpha_c = a_c W_n - m W_d`` for amp33 and ``gamma = zeta = W_d / 2`` for the reference columns left and right, where
m = (a_0 + a_31) / 2 is what these already take out of n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft

from ops.simulate.options import CHANNELS
from ops.simulate.streams import Purpose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ops.simulate.characteristics import Characteristics

__all__ = ["AMP33_NOISE_DN", "SAMPLES_PER_ROW", "CorrelatedNoise", "coefficients", "coupling", "draw_noise"]

SAMPLES_PER_ROW = 140
AMP33_NOISE_DN = 5.0
ONE_OVER_F_DN = 3.0
DRIFT_DN = 1.5
CHANNEL_OFFSET_DN = 2.0
CHANNEL_SLOPE_DN = 1.0
TYPICAL_READ_NOISE_DN = 6.0


@dataclass(frozen=True)
class CorrelatedNoise:
    """Correlated noise of all reads of an exposure, DN.

    Attributes
    ----------
    common, drift : ndarray, float32, (reads, 140 R)
        n(t) and d(t).
    lines : ndarray, float32, (reads, 33, 2)
        Offset, and slope over the frame, of each channel; the last one is amp33.
    coupling : ndarray, float32, (32,)
        a_c.
    """

    common: NDArray[np.float32]
    drift: NDArray[np.float32]
    lines: NDArray[np.float32]
    coupling: NDArray[np.float32]


def coupling(detector: Characteristics) -> NDArray[np.float64]:
    """Strength a_c of the 1/f noise in each channel, (32,)."""
    return detector.stream(Purpose.COUPLING).uniform(0.7, 1.2, CHANNELS)


def _spectra(rows: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variance in each frequency k = 0 … 70 R of n and of d; each sums to the square of its rms."""
    k = np.arange(SAMPLES_PER_ROW // 2 * rows + 1, dtype=np.float64)
    knee = rows * SAMPLES_PER_ROW / 2000.0
    common = np.zeros_like(k)
    common[1:] = 1 / k[1:] / (1 + (k[1:] / knee) ** 2)
    drift = np.zeros_like(k)
    drift[1:] = 1 / (1 + (k[1:] / max(2.0, rows / 64)) ** 4)
    return common * (ONE_OVER_F_DN**2 / common.sum()), drift * (DRIFT_DN**2 / drift.sum())


def coefficients(detector: Characteristics) -> dict[str, NDArray[np.complex128]]:
    """``gamma``, ``zeta`` and ``alpha`` of the ``refpix`` reference, each complex128 (32, 70 R + 1)."""
    common, drift = _spectra(detector.rows)
    strength = coupling(detector)
    frequencies = common.size
    white = AMP33_NOISE_DN**2 / frequencies
    weight_common = common / (common + white)
    rows = detector.rows
    columns_noise = TYPICAL_READ_NOISE_DN**2 / 8 / (rows / 2)
    weight_drift = drift / (drift + columns_noise)
    # Taking out the reference rows' straight line leaves a mean, to be corrected like the slowest wave.
    weight_common[0], weight_drift[0] = weight_common[1], weight_drift[1]
    weight_drift[rows // 4 :] = 0.0  # above, four columns a row cannot tell a frequency from its aliases
    sides = (strength[0] + strength[CHANNELS - 1]) / 2
    alpha = strength[:, None] * weight_common[None, :] - sides * weight_drift[None, :]
    side = np.broadcast_to(weight_drift / 2, (CHANNELS, frequencies))
    return {
        "gamma": side.astype(np.complex128),
        "zeta": side.astype(np.complex128),
        "alpha": alpha.astype(np.complex128),
    }


def _series(rng: np.random.Generator, variance: NDArray[np.float64], length: int) -> NDArray[np.float32]:
    """Real Gaussian series of ``length`` samples with the given variance in each frequency."""
    used = int(np.nonzero(variance > 1e-9 * variance.max())[0][-1]) + 1
    spectrum = np.zeros(variance.size, dtype=np.complex64)
    parts = rng.standard_normal((2, used))
    spectrum[:used] = (parts[0] + 1j * parts[1]) * np.sqrt(variance[:used] / 4) * length
    return np.asarray(fft.irfft(spectrum, n=length), dtype=np.float32)


def draw_noise(detector: Characteristics, exposure: int, reads: int) -> CorrelatedNoise:
    """Draw the correlated noise of an exposure."""
    common, drift = _spectra(detector.rows)
    length = SAMPLES_PER_ROW * detector.rows
    out = CorrelatedNoise(
        common=np.empty((reads, length), dtype=np.float32),
        drift=np.empty((reads, length), dtype=np.float32),
        lines=np.empty((reads, CHANNELS + 1, 2), dtype=np.float32),
        coupling=coupling(detector).astype(np.float32),
    )
    for read in range(reads):
        rng = detector.stream(Purpose.CORRELATED_NOISE, exposure, read)
        out.common[read] = _series(rng, common, length)
        out.drift[read] = _series(rng, drift, length)
        out.lines[read] = rng.normal(size=(CHANNELS + 1, 2)) * (CHANNEL_OFFSET_DN, CHANNEL_SLOPE_DN)
    return out
