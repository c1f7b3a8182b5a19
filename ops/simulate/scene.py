"""The light that falls on the detector, in electrons per second: stars through the effective PSF, and galaxies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft
from scipy.interpolate import RectBivariateSpline

from ops.simulate.optics import OVERSAMPLE, STAMP
from ops.simulate.options import SCIENCE_COLUMNS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ops.simulate.optics import PointSpread
    from ops.simulate.sky import Galaxies

__all__ = ["Sources", "add_galaxies", "add_stars", "disperse"]

_HALF = STAMP // (2 * OVERSAMPLE)
_GALAXY_PIXELS = 96
_BULGE_INDEX = -0.6
_DISC_INDEX = 0.5


@dataclass(frozen=True)
class Sources:
    """Positions in zero-based science pixels and rates in electrons per second."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    rate: NDArray[np.float64]


def add_stars(scene: NDArray[np.float32], stars: Sources, spread: PointSpread) -> None:
    """Add stars to the scene in place.

    Parameters
    ----------
    scene : ndarray, float32, (rows, 4088)
        Electrons per second and pixel.
    stars : Sources
        Any that reach the frame; others are passed over.
    spread : PointSpread
        Its stamps are used with bicubic splines between their samples and bilinear weights
        between their positions, as in PSF photometry.
    """
    splines: dict[int, RectBivariateSpline] = {}
    axis = np.arange(STAMP, dtype=np.float64)
    rows, columns = scene.shape
    for x, y, rate in zip(stars.x, stars.y, stars.rate, strict=True):
        left, right = max(0, int(np.ceil(x - _HALF))), min(columns - 1, int(np.floor(x + _HALF)))
        low, high = max(0, int(np.ceil(y - _HALF))), min(rows - 1, int(np.floor(y + _HALF)))
        if left > right or low > high:
            continue
        u = OVERSAMPLE * (np.arange(left, right + 1) - x) + (STAMP - 1) / 2
        v = OVERSAMPLE * (np.arange(low, high + 1) - y) + (STAMP - 1) / 2
        light = np.zeros((v.size, u.size))
        for index, weight in spread.weights(float(x), float(y)):
            if index not in splines:
                splines[index] = RectBivariateSpline(axis, axis, spread.stamps[index].astype(np.float64))
            light += weight * splines[index](v, u)
        scene[low : high + 1, left : right + 1] += (rate * np.maximum(light, 0.0)).astype(np.float32)


class _GalaxyPainter:
    """Paints galaxies in Fourier space, where disc and bulge have closed forms (Spergel 2010, ApJS 191, 58)."""

    def __init__(self, spread: PointSpread) -> None:
        size = _GALAXY_PIXELS * OVERSAMPLE
        padded = np.zeros((size, size))
        padded[:STAMP, :STAMP] = spread.stamps[4]
        padded = np.roll(padded, (-(STAMP // 2), -(STAMP // 2)), axis=(0, 1))
        self._transfer = fft.rfft2(padded)
        self._fx = fft.rfftfreq(size)[None, :] * OVERSAMPLE
        self._fy = fft.fftfreq(size)[:, None] * OVERSAMPLE

    def paint(
        self, dx: float, dy: float, *, scale: float, axis_ratio: float, angle: float, bulge: float
    ) -> NDArray[np.float64]:
        """Return a (96, 96) stamp of unit flux centred (dx, dy) from its pixel (48, 48); lengths in pixels."""
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        along, across = c * self._fx + s * self._fy, (-s * self._fx + c * self._fy) * axis_ratio
        k2 = (2 * np.pi * scale) ** 2 * (along**2 + across**2)
        profile = (1 - bulge) * (1 + k2) ** -(1 + _DISC_INDEX) + bulge * (1 + 0.25 * k2) ** -(1 + _BULGE_INDEX)
        half = _GALAXY_PIXELS / 2
        phase = np.exp(-2j * np.pi * (self._fx * (half + dx) + self._fy * (half + dy)))
        stamp = fft.irfft2(self._transfer * profile * phase, s=(self._fy.size, self._fy.size))
        return np.asarray(np.maximum(stamp[::OVERSAMPLE, ::OVERSAMPLE], 0.0))


def add_galaxies(
    scene: NDArray[np.float32], places: Sources, galaxies: Galaxies, spread: PointSpread
) -> NDArray[np.float64]:
    """Add galaxies to the scene in place and return the electrons per second that each put on the frame."""
    painter = _GalaxyPainter(spread)
    rows, columns = scene.shape
    half = _GALAXY_PIXELS // 2
    landed = np.zeros(places.x.size)
    for k, (x, y, rate) in enumerate(zip(places.x, places.y, places.rate, strict=True)):
        column, row = round(x), round(y)
        if not (-half < column < columns + half and -half < row < rows + half):
            continue
        stamp = rate * painter.paint(
            x - column,
            y - row,
            scale=float(galaxies.scale[k]) / 0.11,
            axis_ratio=float(galaxies.axis_ratio[k]),
            angle=float(galaxies.angle[k]),
            bulge=float(galaxies.bulge[k]),
        )
        left, low = column - half, row - half
        inside = stamp[
            max(0, -low) : min(2 * half, rows - low), max(0, -left) : min(2 * half, columns - left)
        ]  # the part of the stamp on the frame
        landed[k] = inside.sum()
        scene[max(0, low) : low + 2 * half, max(0, left) : left + 2 * half] += inside.astype(np.float32)
    return landed


def disperse(scene: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Spread the light of every pixel evenly along ``length`` rows, as a slitless spectrum without lines.

    Light beyond the frame's last row is lost, and none comes in from outside.
    """
    rows = scene.shape[0]
    length = min(length, rows)
    total = np.zeros((rows + 1, SCIENCE_COLUMNS), dtype=np.float64)
    np.cumsum(scene, axis=0, out=total[1:])
    first = np.maximum(np.arange(rows) - length + 1, 0)
    spread: NDArray[np.float32] = ((total[1:] - total[first]) / length).astype(np.float32)
    return spread
