"""The simulated sky: stars and galaxies in tiles of a tangent plane, the same for every detector and dither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ops.simulate.focal_plane import angles, unit_vector
from ops.simulate.options import SCIENCE_COLUMNS
from ops.simulate.streams import Purpose, stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from ops.simulate.options import SimulateOptions

__all__ = ["TARGET_DEC", "TARGET_RA", "Galaxies", "Sky", "Stars", "Tile"]

TARGET_RA, TARGET_DEC = 80.0, -30.0
TILE_ARCSEC = 20.0
BRIGHTEST, FAINTEST = 15.0, 23.5

Tile = tuple[int, int]


@dataclass(frozen=True)
class Stars:
    """Stars by column: identifier, position in degrees (true, at the time of observation), AB magnitude."""

    id: NDArray[np.int64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    mag: NDArray[np.float64]


@dataclass(frozen=True)
class Galaxies:
    """Galaxies by column; a disc (exponential) and a bulge share centre, axis ratio and position angle.

    ``scale`` is the disc's scale length in arcsec, ``axis_ratio`` its b/a, ``angle`` in degrees from the detector's x
    axis, ``bulge`` the bulge's share of the light.
    """

    id: NDArray[np.int64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    mag: NDArray[np.float64]
    scale: NDArray[np.float64]
    axis_ratio: NDArray[np.float64]
    angle: NDArray[np.float64]
    bulge: NDArray[np.float64]


class Sky:
    """Everything there is to see; each tile has a random stream of its own."""

    def __init__(self, options: SimulateOptions) -> None:
        frame_arcsec2 = options.science_rows * SCIENCE_COLUMNS * 0.11**2
        share = TILE_ARCSEC**2 / frame_arcsec2
        self._seed = options.seed
        self._star_density = options.star_count * share
        self._galaxy_density = options.galaxy_count * share
        east = np.array([-np.sin(np.deg2rad(TARGET_RA)), np.cos(np.deg2rad(TARGET_RA)), 0.0])
        centre = unit_vector(TARGET_RA, TARGET_DEC)
        self._axes = np.stack([centre, east, np.cross(centre, east)])

    def tiles(self, ra: NDArray[np.float64], dec: NDArray[np.float64], margin: float = 15.0) -> set[Tile]:
        """Tiles that touch the box around the given positions, widened by ``margin`` arcsec."""
        vectors = unit_vector(ra, dec) @ self._axes.T
        plane = np.rad2deg(vectors[:, 1:] / vectors[:, :1]) * 3600
        low = np.floor((plane.min(axis=0) - margin) / TILE_ARCSEC).astype(int)
        high = np.floor((plane.max(axis=0) + margin) / TILE_ARCSEC).astype(int)
        return {(i, j) for i in range(low[0], high[0] + 1) for j in range(low[1], high[1] + 1)}

    def _place(
        self, tile: Tile, rng: np.random.Generator, number: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        plane = (np.array(tile) + rng.random((number, 2))) * TILE_ARCSEC
        tangent = np.concatenate([np.ones((number, 1)), np.deg2rad(plane / 3600)], axis=1)
        ra, dec = angles((tangent / np.linalg.norm(tangent, axis=1, keepdims=True)) @ self._axes)
        return ra % 360.0, dec

    def stars(self, tiles: Iterable[Tile]) -> Stars:
        """All stars of the tiles, in the order of the tiles' numbers."""
        parts = []
        for tile in sorted(tiles):
            rng = stream(self._seed, Purpose.STARS, *tile)
            number = int(rng.poisson(self._star_density))
            ra, dec = self._place(tile, rng, number)
            # More faint stars than bright ones, but enough bright ones to align and to saturate.
            mag = BRIGHTEST + (FAINTEST - BRIGHTEST) * rng.random(number) ** 0.7
            parts.append((_identifiers(tile, number), ra, dec, mag))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0)] * 4
        return Stars(columns[0].astype(np.int64), *columns[1:])

    def galaxies(self, tiles: Iterable[Tile]) -> Galaxies:
        """All galaxies of the tiles."""
        parts = []
        for tile in sorted(tiles):
            rng = stream(self._seed, Purpose.GALAXIES, *tile)
            number = int(rng.poisson(self._galaxy_density))
            ra, dec = self._place(tile, rng, number)
            mag = 18.5 + 5.0 * rng.random(number) ** 0.5
            scale = np.clip(rng.lognormal(np.log(0.25), 0.5, number) * np.power(10.0, -0.1 * (mag - 21)), 0.05, 0.8)
            axis_ratio = 0.25 + 0.75 * rng.random(number)
            angle = 180.0 * rng.random(number)
            bulge = rng.beta(0.8, 2.0, number)
            parts.append((_identifiers(tile, number), ra, dec, mag, scale, axis_ratio, angle, bulge))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0)] * 8
        return Galaxies(columns[0].astype(np.int64), *columns[1:])


def _identifiers(tile: Tile, number: int) -> NDArray[np.int64]:
    """Numbers that are unique over the sky and do not depend on which tiles were asked for."""
    return ((tile[0] + 32768) << 32) + ((tile[1] + 32768) << 16) + np.arange(number, dtype=np.int64)
