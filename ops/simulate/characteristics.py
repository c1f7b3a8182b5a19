"""What a detector is like: gain, noise, dark current, non-linearity, defects. References say so, the read-out obeys.

Every function returns arrays of the whole frame (R rows, 4096 columns) from a random stream of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ops.simulate.bandpass import MEAN_GAIN
from ops.simulate.options import BORDER, CHANNEL_COLUMNS, CHANNELS, COLUMNS
from ops.simulate.streams import Purpose, detector_number, stream
from stages.dq import PixelDQ

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)

__all__ = ["Characteristics", "DecayTerm", "interior"]

FULL_WELL_DN = 60_000.0
"""Linear DN; about 108 000 electrons."""

THRESHOLD_SHARE = 0.9
"""Saturation threshold over the raw DN at full well."""

PEDESTAL_DN = 600.0
"""Keeps the first read of a dark pixel above zero, where the A/D floor is flagged."""

NONLINEARITY_PER_DN = 1.0e-6
_INVERSE_SHAPE = (1.0, -1.0, 0.4, -0.2, 0.1)
"""Raw = linear * p(z), z = a * linear, with these coefficients of p: 5.8 % below linear at full well."""

COEFFICIENTS = 6
INL_ENTRIES = 65536


@dataclass(frozen=True)
class DecayTerm:
    """An exponential of the time since reset, in DN and seconds; ``reads`` limits it to the first reads."""

    amplitude: float
    time_constant: float
    reads: int | None = None


@lru_cache(maxsize=1)
def _linear_shape() -> NDArray[np.float64]:
    """Coefficients q of linear = raw * q(a * raw), the inverse of the shape above to 1e-7."""
    z = np.linspace(0.0, 0.12, 2001)
    p = np.polynomial.polynomial.polyval(z, _INVERSE_SHAPE)
    w = z * p
    design = np.stack([w**k for k in range(1, COEFFICIENTS - 1)], axis=1)
    return np.concatenate([[1.0], np.linalg.lstsq(design, 1 / p - 1, rcond=None)[0]])


def interior(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """View without the border of reference pixels (last two axes)."""
    return array[..., BORDER:-BORDER, BORDER:-BORDER]


def _smooth(rng: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Smooth large-scale pattern of about unit size."""
    v = np.linspace(-1, 1, rows)[:, None]
    u = np.linspace(-1, 1, COLUMNS)[None, :]
    a = rng.normal(size=5)
    pattern: NDArray[np.float64] = (
        a[0] * u + a[1] * v + a[2] * u * v + a[3] * (u * u - 0.33) + a[4] * (v * v - 0.33)
    ) / 2
    return pattern


def _per_channel(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.repeat(values, CHANNEL_COLUMNS)[None, :]


class Characteristics:
    """All properties of one detector, made from the seed when asked for.

    Parameters
    ----------
    seed : int
    detector : str
        ``WFI01`` to ``WFI18``.
    rows : int
        Rows of the frame, borders included.
    """

    def __init__(self, seed: int, detector: str, rows: int) -> None:
        self.detector = detector
        self.rows = rows
        self._seed = seed
        self._number = detector_number(detector)

    def stream(self, purpose: Purpose, *keys: int) -> np.random.Generator:
        """Random stream of this detector."""
        return stream(self._seed, purpose, self._number, *keys)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a frame."""
        return self.rows, COLUMNS

    def _noise(self, rng: np.random.Generator) -> NDArray[np.float32]:
        return rng.standard_normal(self.shape, dtype=np.float32)

    def gain(self) -> NDArray[np.float32]:
        """Electrons per DN."""
        rng = self.stream(Purpose.GAIN)
        channel = 1 + 0.01 * np.clip(rng.normal(size=CHANNELS), -2.5, 2.5)
        return np.asarray(MEAN_GAIN * _per_channel(channel) * (1 + 0.003 * self._noise(rng)), dtype=np.float32)

    def read_noise(self) -> NDArray[np.float32]:
        """Standard deviation of one read, DN."""
        rng = self.stream(Purpose.READ_NOISE)
        noise = np.asarray(np.clip(6.0 * (1 + 0.08 * self._noise(rng)), 3.5, 9.0), dtype=np.float32)
        noisy = rng.random(self.shape, dtype=np.float32) < 3e-4
        noise[noisy] *= rng.uniform(2.5, 6.0, int(noisy.sum())).astype(np.float32)
        return noise

    def dark(self) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Dark rate in DN/s (zero in the border), and its DQ: WARM, HOT."""
        rng = self.stream(Purpose.DARK)
        rate = (0.003 * np.exp(0.3 * self._noise(rng))).astype(np.float32)
        chosen = rng.random(self.shape, dtype=np.float32) < 1e-3
        rate[chosen] = np.exp(rng.uniform(np.log(0.05), np.log(30.0), int(chosen.sum()))).astype(np.float32)
        border = np.ones(self.shape, dtype=bool)
        interior(border)[:] = False
        rate[border] = 0.0
        dq = np.zeros(self.shape, dtype=np.uint32)
        dq[rate > 0.05] = PixelDQ.WARM
        dq[rate > 1.0] = PixelDQ.HOT
        return rate, dq

    def sensitivity(self) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Relative quantum efficiency (0 for dead pixels) of the whole frame, and its DQ: LOW_QE, DEAD."""
        rng = self.stream(Purpose.QUANTUM_EFFICIENCY)
        pattern = (1 + 0.015 * np.clip(_smooth(rng, self.rows), -2, 2)).astype(np.float32)
        values = pattern * np.clip(1 + 0.006 * self._noise(rng), 0.97, 1.03)
        chosen = rng.random(self.shape, dtype=np.float32)
        low = chosen < 4e-4
        values[low] *= rng.uniform(0.3, 0.8, int(low.sum())).astype(np.float32)
        dead = chosen > 1 - 1e-4
        values[dead] = 0.0
        dq = np.zeros(self.shape, dtype=np.uint32)
        dq[low] = PixelDQ.LOW_QE
        dq[dead] = PixelDQ.DEAD | PixelDQ.DO_NOT_USE
        return values.astype(np.float32), dq

    def nonlinearity(self) -> NDArray[np.float32]:
        """The parameter a of the non-linearity, per DN; zero in the border."""
        rng = self.stream(Purpose.LINEARITY)
        channel = _per_channel(1 + 0.05 * np.clip(rng.normal(size=CHANNELS), -2.5, 2.5))
        pixel = np.clip(1 + 0.05 * self._noise(rng), 0.8, 1.2)
        a = np.asarray(NONLINEARITY_PER_DN * channel * pixel, dtype=np.float32)
        kept = interior(a).copy()
        a[:] = 0.0
        interior(a)[:] = kept
        return a

    @staticmethod
    def polynomial(a: NDArray[np.float32], *, inverse: bool) -> NDArray[np.float32]:
        """Coefficients (6, rows, columns) by power, raw to linear DN, or the other way where ``inverse``."""
        shape = _INVERSE_SHAPE if inverse else _linear_shape()
        out = np.zeros((COEFFICIENTS, *a.shape), dtype=np.float32)
        power = np.ones(a.shape, dtype=np.float64)
        for k, factor in enumerate(shape):
            out[k + 1] = factor * power
            power *= a
        return out

    def full_well(self) -> NDArray[np.float32]:
        """Linear DN at which a pixel is full."""
        rng = self.stream(Purpose.FULL_WELL)
        return np.asarray(FULL_WELL_DN * (1 + 0.015 * np.clip(self._noise(rng), -3, 3)), dtype=np.float32)

    def thresholds(self) -> NDArray[np.float32]:
        """Saturation threshold in raw DN."""
        a = self.nonlinearity()
        full = self.full_well()
        raw = full * np.polynomial.polynomial.polyval(a * full, _INVERSE_SHAPE)
        return np.asarray(THRESHOLD_SHARE * raw, dtype=np.float32)

    def pedestal(self) -> NDArray[np.float32]:
        """Linear DN of an empty pixel."""
        rng = self.stream(Purpose.PEDESTAL)
        channel = np.clip(40 * rng.normal(size=CHANNELS), -100, 100)
        return (PEDESTAL_DN + _per_channel(channel) + np.clip(30 * self._noise(rng), -120, 120)).astype(np.float32)

    def inl_correction(self) -> NDArray[np.float64]:
        """DN to add to a raw value, (32, 65536) by channel and value."""
        rng = self.stream(Purpose.INTEGRAL_NONLINEARITY)
        value = np.arange(INL_ENTRIES, dtype=np.float64)
        table = np.zeros((CHANNELS, INL_ENTRIES))
        for channel in range(CHANNELS):
            for period, size in ((40_000.0, 2.0), (11_000.0, 1.0), (4_096.0, 0.5)):
                table[channel] += size * rng.uniform(0.5, 1.0) * np.sin(2 * np.pi * (value / period + rng.random()))
        return table

    def mask(self) -> NDArray[np.uint32]:
        """Bad-pixel mask: border, defects of sensitivity, telegraph pixels, bad reference pixels."""
        rng = self.stream(Purpose.MASK)
        dq = self.sensitivity()[1]
        dq[rng.random(self.shape, dtype=np.float32) < 1e-4] |= np.uint32(PixelDQ.TELEGRAPH)
        dq[rng.random(self.shape, dtype=np.float32) < 5e-5] |= np.uint32(PixelDQ.OTHER_BAD_PIXEL | PixelDQ.DO_NOT_USE)
        border = np.full(self.shape, PixelDQ.REFERENCE_PIXEL, dtype=np.uint32)
        interior(border)[:] = interior(dq)
        sides = np.concatenate([np.arange(BORDER), np.arange(COLUMNS - BORDER, COLUMNS)])
        for _ in range(max(1, self.rows // 512)):
            border[rng.integers(BORDER, self.rows - BORDER), rng.choice(sides)] |= np.uint32(PixelDQ.BAD_REF_PIXEL)
        return border

    def dark_decay(self) -> DecayTerm:
        """Signal that decays after reset, DN and seconds."""
        return DecayTerm(8.0 + 0.7 * self._number, 12.0 + 0.5 * self._number)

    def decay_terms(self) -> list[DecayTerm]:
        """Decay after reset, and in WFI18 the transient of the first read."""
        terms = [self.dark_decay()]
        if self.detector == "WFI18":
            terms += [DecayTerm(-150.0, 0.1, reads=1), DecayTerm(30.0, 0.5, reads=1)]
        return terms
