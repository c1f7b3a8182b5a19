"""The effective point-spread function of a detector: oversampled stamps on a grid of positions. Not the scene.

A stamp is the diffraction pattern of an annular aperture with a little defocus, astigmatism and coma that vary over the
field and the detector, times charge diffusion, pointing jitter and the pixel's square (so it is an *effective* PSF: its
value is the fraction of light in a pixel at that offset; a stamp sums to the oversampling squared).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft

from ops.simulate.bandpass import bandpass
from ops.simulate.options import SCIENCE_COLUMNS
from ops.simulate.streams import detector_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["JITTER_MAS", "OVERSAMPLE", "SPECTRAL_TYPES", "STAMP", "PointSpread", "point_spread"]

OVERSAMPLE = 4
STAMP = 45 * OVERSAMPLE + 1
SPECTRAL_TYPES = {"A0V": 0.97, "G2V": 1.0, "M5V": 1.03}
"""Effective wavelength over the element's central one; the second type is the one that photometry uses."""

JITTER_MAS = 8.0

_DIAMETER_M = 2.37
_OBSCURATION = 0.31
_DIFFUSION_PIXELS = 0.25
_PIXEL_RADIANS = 0.11 / 206264.80624709636
_GRID = 256


@dataclass(frozen=True)
class PointSpread:
    """Stamps on a 3 x 3 grid of pixel positions.

    Attributes
    ----------
    stamps : ndarray, float32, (9, n, n)
        By grid position; each sums to ``OVERSAMPLE**2``.
    pixel_x, pixel_y : ndarray, float64, (9,)
        Grid positions, x running fastest.
    """

    stamps: NDArray[np.float32]
    pixel_x: NDArray[np.float64]
    pixel_y: NDArray[np.float64]

    def weights(self, x: float, y: float) -> list[tuple[int, float]]:
        """Bilinear weights of the stamps at a position (clipped to the grid), zero ones left out."""
        columns, rows = self.pixel_x[:3], self.pixel_y[::3]
        u = float(np.interp(x, columns, (0.0, 1.0, 2.0)))
        v = float(np.interp(y, rows, (0.0, 1.0, 2.0)))
        i, j = min(int(u), 1), min(int(v), 1)
        return [
            (3 * (j + b) + i + a, w)
            for a in (0, 1)
            for b in (0, 1)
            if (w := (u - i if a else 1 - u + i) * (v - j if b else 1 - v + j)) > 0
        ]


def _aberrations(detector: str, u: float, v: float) -> tuple[float, float, float, float]:
    """Defocus, astigmatism (0 and 45 degrees) and coma in waves of 1 um, at field position u, v in [-1, 1]."""
    phase = 0.7 * detector_number(detector)
    return (
        0.03 * np.cos(phase) + 0.02 * u,
        0.03 * np.sin(phase) + 0.02 * v,
        0.02 * u * v,
        0.015 * np.cos(2 * phase) * (1 + 0.3 * u),
    )


def _stamp(wavelength_um: float, waves: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """One oversampled stamp."""
    # A pupil grid whose transform has OVERSAMPLE samples a pixel.
    step = wavelength_um * 1e-6 / (_PIXEL_RADIANS / OVERSAMPLE) / _GRID
    axis = (np.arange(_GRID) - _GRID // 2) * step / (_DIAMETER_M / 2)
    x, y = np.meshgrid(axis, axis)
    r2 = x * x + y * y
    softness = step / (_DIAMETER_M / 2)
    radius = np.sqrt(r2)
    # Soft edges keep the coarse pupil from ringing.
    open_ = np.clip((1 - radius) / softness + 0.5, 0, 1) * np.clip((radius - _OBSCURATION) / softness + 0.5, 0, 1)
    defocus, astigmatism, oblique, coma = waves
    path = defocus * (2 * r2 - 1) + astigmatism * (x * x - y * y) + 2 * oblique * x * y + coma * (3 * r2 - 2) * x
    field = open_ * np.exp(2j * np.pi * path / wavelength_um)
    intensity = np.abs(fft.fftshift(fft.fft2(fft.ifftshift(field)))) ** 2
    frequency = fft.fftfreq(_GRID)
    jitter = JITTER_MAS / 110.0 * OVERSAMPLE
    blur = np.exp(-2 * (np.pi * frequency) ** 2 * ((_DIFFUSION_PIXELS * OVERSAMPLE) ** 2 + jitter**2))
    pixel = np.sinc(frequency * OVERSAMPLE)
    transfer = np.outer(blur * pixel, blur * pixel)
    smooth: NDArray[np.float64] = fft.fftshift(fft.ifft2(fft.fft2(fft.ifftshift(intensity)) * transfer).real)
    first = _GRID // 2 - STAMP // 2
    stamp: NDArray[np.float64] = np.maximum(smooth[first : first + STAMP, first : first + STAMP], 0.0) * _taper()
    return np.asarray(stamp * (OVERSAMPLE**2 / stamp.sum()))


def _taper() -> NDArray[np.float64]:
    """One inside, falling smoothly to zero at the stamp's edge, so that stars have no square halo."""
    half = STAMP // 2
    axis = np.abs(np.arange(STAMP) - half)
    fall = 0.5 * (1 + np.cos(np.pi * np.clip((axis - 0.75 * half) / (0.25 * half), 0, 1)))
    return np.outer(fall, fall)


@lru_cache(maxsize=12)
def point_spread(
    detector: str, element: str, science_rows: int, *, colour: float = 1.0, defocus_waves: float = 0.0
) -> PointSpread:
    """Effective PSF of a detector behind an element.

    Parameters
    ----------
    detector, element : str
    science_rows : int
        Rows that see light; the grid spans them.
    colour : float
        Effective wavelength over the element's central one.
    defocus_waves : float
        Extra defocus in waves of 1 um, for wavefront sensing.
    """
    wavelength = bandpass(element).wavelength_um * colour
    columns = np.array([0.0, (SCIENCE_COLUMNS - 1) / 2, SCIENCE_COLUMNS - 1.0])
    rows = np.array([0.0, (science_rows - 1) / 2, science_rows - 1.0])
    grid = [(u, v) for v in (-1.0, 0.0, 1.0) for u in (-1.0, 0.0, 1.0)]
    stamps = np.empty((len(grid), STAMP, STAMP), dtype=np.float32)
    for g, (u, v) in enumerate(grid):
        defocus, *others = _aberrations(detector, u, v)
        stamps[g] = _stamp(wavelength, (defocus + defocus_waves, others[0], others[1], others[2]))
    return PointSpread(stamps, np.tile(columns, 3), np.repeat(rows, 3))


def encircled_energy(detector: str, element: str, radii: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fraction of the light within circles about a star at the detector's centre; radii in pixels."""
    stamp = _stamp(bandpass(element).wavelength_um, _aberrations(detector, 0.0, 0.0)) / OVERSAMPLE**2
    axis = (np.arange(STAMP) - STAMP // 2) / OVERSAMPLE
    distance = np.hypot(axis[:, None], axis[None, :]).ravel()
    order = np.argsort(distance)
    return np.interp(radii, distance[order], np.cumsum(stamp.ravel()[order]))
