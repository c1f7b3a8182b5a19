"""Cosmic rays: straight tracks through the detector layer, from single hits to long trails. Not their detection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ops.simulate.options import BORDER, SCIENCE_COLUMNS
from ops.simulate.streams import Purpose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ops.simulate.characteristics import Characteristics

__all__ = ["CosmicRays", "draw_cosmic_rays"]

_PIXEL_CM = 1e-3
_THICKNESS_PIXELS = 0.5
_ELECTRONS_PER_PIXEL_LENGTH = 1500.0
_DIFFUSION_PIXELS = 0.3
_LONGEST_PIXELS = 150.0


@dataclass(frozen=True)
class CosmicRays:
    """Charge that cosmic rays put into pixels.

    Attributes
    ----------
    hits : ndarray, int64, (N, 4)
        Row and column in the full frame, as (row, read from 0, column, electrons), sorted.
    event : ndarray, int64, (N,)
        Which hits belong to one track.
    row_start : ndarray, int64, (R + 1,)
        Where each row's hits begin.
    """

    hits: NDArray[np.int64]
    event: NDArray[np.int64]
    row_start: NDArray[np.int64]


def draw_cosmic_rays(
    detector: Characteristics, exposure: int, *, rate: float, frame_time: float, reads: int
) -> CosmicRays:
    """Draw the cosmic rays of an exposure.

    Parameters
    ----------
    detector : Characteristics
        For its frame and random stream; reference pixels are not hit.
    exposure : int
        Number of the exposure.
    rate : float
        Events per cm^2 and second.
    frame_time : float
        Seconds per read.
    reads : int
        Number of reads; charge that comes during a read is in that read and all later ones.
    """
    rng = detector.stream(Purpose.COSMIC_RAYS, exposure)
    rows = detector.rows - 2 * BORDER
    area = rows * SCIENCE_COLUMNS * _PIXEL_CM**2
    number = int(rng.poisson(rate * area * frame_time * reads))
    read = rng.integers(0, reads, number)
    start = rng.random((number, 2)) * (SCIENCE_COLUMNS, rows) - 0.5
    cosine = np.sqrt(rng.random(number))
    length = np.minimum(_THICKNESS_PIXELS * np.sqrt(1 - cosine**2) / np.maximum(cosine, 1e-3), _LONGEST_PIXELS)
    direction = 2 * np.pi * rng.random(number)
    loss = rng.lognormal(0.0, 0.7, number) * _ELECTRONS_PER_PIXEL_LENGTH
    total = loss * np.hypot(length, _THICKNESS_PIXELS)
    points = np.ceil(length / 0.1).astype(np.int64) + 12
    event = np.repeat(np.arange(number), points)
    step = (np.arange(event.size) - np.repeat(np.cumsum(points) - points, points)) / np.repeat(points, points)
    scatter = rng.normal(0.0, _DIFFUSION_PIXELS, (event.size, 2))
    x = start[event, 0] + step * (length * np.cos(direction))[event] + scatter[:, 0]
    y = start[event, 1] + step * (length * np.sin(direction))[event] + scatter[:, 1]
    column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    inside = (column >= 0) & (column < SCIENCE_COLUMNS) & (row >= 0) & (row < rows)
    keys = np.stack([row + BORDER, read[event], column + BORDER, event], axis=1)[inside]
    unique, where = np.unique(keys, axis=0, return_inverse=True)
    charge = np.bincount(where.ravel(), weights=(total / points)[event][inside], minlength=len(unique))
    electrons = np.rint(charge).astype(np.int64)
    kept = electrons > 0
    hits = np.column_stack([unique[:, :3], electrons])[kept]
    row_start = np.searchsorted(hits[:, 0], np.arange(detector.rows + 1))
    return CosmicRays(hits, unique[kept, 3], row_start.astype(np.int64))
