"""Tie points of a dithered mosaic whose exposures point wrongly, and where everything truly is. No images.

Detectors sit and distort as the simulator has them (`ops.simulate.focal_plane`: the instrument's published nominal
places). Each exposure has a pointing error of its own, in position and roll, that all its detectors share. Every star
in a detector's field is found, at its true place but for noise; what `source_catalog` would write of it is written by
the same function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.simulate.focal_plane import (
    CENTER_V2,
    CENTER_V3,
    Attitude,
    DetectorGeometry,
    distortion_model,
    pixels_to_sky,
)
from stages.exposure import CAL_STEP_KEYS, Exposure, Level
from stages.tweakreg import tie_points_bytes
from stages.tweakreg.tangent_plane import TangentPlane, sky_degrees, unit_vectors, v2v3_to_plane
from stages.wcs import wcs_numbers

__all__ = ["Mosaic", "Observed"]

Array = NDArray[np.float64]

RA, DEC = 270.0, 66.0
SIZE = 4088
PIXEL_ARCSEC = 0.11
ABERRATION = 1.00003
REACH_DEGREES = 0.55
"""No part of a detector is farther from the middle of the instrument."""
POINTING_ARCSEC, ROLL_DEGREES = 0.6, 0.002
"""Largest pointing error on an axis, and standard deviation of the roll's."""
REFERENCE_SHARE = 0.3
"""Part of the stars that the reference list has: of the stars that the telescope sees, most are too faint for it."""


@dataclass(frozen=True)
class Observed:
    """A member: its exposure after source_catalog without an image, and what it truly saw."""

    exposure: Exposure
    distortion: Any
    geometry: DetectorGeometry
    attitude: Attitude

    @property
    def id(self) -> str:
        """Id of the member."""
        return self.exposure.id

    def tie_points(self) -> bytes:
        """What source_catalog writes for the joint alignment."""
        return tie_points_bytes(self.exposure, self.distortion)


@dataclass(frozen=True)
class Mosaic:
    """What is observed.

    Parameters
    ----------
    members : int
        Detectors of exposures, all together.
    detectors : int
        Detectors of one exposure.
    sources : float
        Stars on a detector, on average.
    noise : float
        Standard deviation of a measured position, pixel.
    half_degrees : float
        Pointings lie in a square of this half side.
    seed : int
        Of everything that is random.
    """

    members: int
    detectors: int = 18
    sources: float = 300.0
    noise: float = 0.01
    half_degrees: float = 0.45
    seed: int = 1

    @property
    def exposures(self) -> int:
        """Number of exposures; the last one may have fewer detectors."""
        return -(-self.members // self.detectors)

    @property
    def field_degrees(self) -> float:
        """Largest extent of what is observed along an axis."""
        return 2 * (self.half_degrees + REACH_DEGREES)

    @cached_property
    def stars(self) -> tuple[Array, Array]:
        """Positions of all stars, degrees."""
        rng = np.random.default_rng([self.seed, 0])
        half = (self.half_degrees + REACH_DEGREES) * 3600
        count = int(self.sources / (SIZE * PIXEL_ARCSEC) ** 2 * (2 * half) ** 2)
        plane = TangentPlane.of({"ra_ref": RA, "dec_ref": DEC})
        return sky_degrees(plane.sky(rng.uniform(-half, half, (count, 2))))

    @property
    def reference_stars(self) -> tuple[Array, Array]:
        """Positions of the stars in the reference list."""
        ra, dec = self.stars
        chosen = np.random.default_rng([self.seed, 1]).random(len(ra)) < REFERENCE_SHARE
        return ra[chosen], dec[chosen]

    def attitudes(self, exposure: int) -> tuple[Attitude, Attitude]:
        """Where an exposure is said to point, and where it points."""
        rng = np.random.default_rng([self.seed, 2, exposure])
        plane = TangentPlane.of({"ra_ref": RA, "dec_ref": DEC})
        half = self.half_degrees * 3600
        ra, dec = (float(value[0]) for value in sky_degrees(plane.sky(rng.uniform(-half, half, (1, 2)))))
        roll = 30.0 + rng.uniform(-2, 2)
        d_ra, d_dec = rng.uniform(-POINTING_ARCSEC, POINTING_ARCSEC, 2) / 3600
        wrong = ra + d_ra / np.cos(np.deg2rad(dec)), dec + d_dec, roll + rng.normal(0, ROLL_DEGREES)
        return (
            Attitude.pointing(CENTER_V2, CENTER_V3, ra, dec, roll),
            Attitude.pointing(CENTER_V2, CENTER_V3, *wrong),
        )

    @cached_property
    def instrument(self) -> list[tuple[DetectorGeometry, Any]]:
        """Geometry and distortion of the detectors that are used."""
        geometries = [DetectorGeometry.of(f"WFI{number + 1:02d}", SIZE) for number in range(self.detectors)]
        return [(geometry, distortion_model(geometry)) for geometry in geometries]

    def observed(self, exposure: int) -> Iterator[Observed]:
        """The members of an exposure."""
        nominal, true = self.attitudes(exposure)
        v2, v3 = true.to_v2v3(*self.stars)
        for number in range(min(self.detectors, self.members - exposure * self.detectors)):
            geometry, distortion = self.instrument[number]
            x, y = _pixels(geometry, distortion, v2, v3)
            rng = np.random.default_rng([self.seed, 3, exposure, number])
            x, y = x + rng.normal(0, self.noise, x.shape), y + rng.normal(0, self.noise, y.shape)
            inside = (x > 0) & (x < SIZE - 1) & (y > 0) & (y < SIZE - 1)
            made = _exposure(f"r{exposure:06d}_wfi{number + 1:02d}", exposure, nominal, geometry, x[inside], y[inside])
            yield Observed(made, distortion, geometry, true)

    def errors(self, exposure: int, corrections: dict[str, list[dict[str, Any]]]) -> Array:
        """Where corrected members see places of their detectors, less where they truly saw them.

        Returns
        -------
        ndarray (n, 3)
            Differences of unit vectors, in mas, of a grid of 3 x 3 places on each member that has corrections.
        """
        nominal, true = self.attitudes(exposure)
        grid = np.linspace(0.0, SIZE - 1.0, 3)
        x, y = (axis.ravel() for axis in np.meshgrid(grid, grid))
        found = [np.zeros((0, 3))]
        for number, (geometry, _) in enumerate(self.instrument):
            made = corrections.get(f"r{exposure:06d}_wfi{number + 1:02d}")
            if made is None:
                continue
            numbers = _numbers(nominal, geometry) | {"corrections": made}
            v2, v3 = geometry.to_v2v3(x, y)
            v2 = ABERRATION * v2 + (1 - ABERRATION) * geometry.v2_ref
            v3 = ABERRATION * v3 + (1 - ABERRATION) * geometry.v3_ref
            sky = TangentPlane.of(numbers).detector_to_sky(v2v3_to_plane(numbers, v2, v3))
            truth = unit_vectors(*pixels_to_sky(true, geometry, ABERRATION, x, y))
            found.append((sky / np.linalg.norm(sky, axis=0) - truth).T * np.rad2deg(1.0) * 3.6e6)
        return np.concatenate(found)


def _pixels(geometry: DetectorGeometry, distortion: Any, v2: Array, v3: Array) -> tuple[Array, Array]:
    """Pixels of stars near a detector: the polynomial inverse, then a Newton step, which leaves less than 1e-4."""
    v2 = (v2 - (1 - ABERRATION) * geometry.v2_ref) / ABERRATION
    v3 = (v3 - (1 - ABERRATION) * geometry.v3_ref) / ABERRATION
    near = np.hypot(v2 - geometry.v2_ref, v3 - geometry.v3_ref) < 0.75 * SIZE * PIXEL_ARCSEC
    v2, v3 = v2[near], v3[near]
    x, y = distortion.inverse(v2, v3)
    middle = np.stack(geometry.to_v2v3(geometry.x_ref + np.array([0.0, 1.0, 0.0]), geometry.y_ref + np.eye(3)[2]))
    inverse = np.linalg.inv(middle[:, 1:] - middle[:, :1])
    step = inverse @ (np.stack([v2, v3]) - np.stack(geometry.to_v2v3(x, y)))
    return x + step[0], y + step[1]


def _numbers(attitude: Attitude, geometry: DetectorGeometry) -> dict[str, Any]:
    return wcs_numbers(_meta(attitude, geometry, 0), (SIZE, SIZE))


def _meta(attitude: Attitude, geometry: DetectorGeometry, exposure: int) -> dict[str, Any]:
    ra, dec, roll = attitude.at(geometry.v2_ref, geometry.v3_ref)
    wcsinfo = {"v2_ref": geometry.v2_ref, "v3_ref": geometry.v3_ref, "ra_ref": ra, "dec_ref": dec, "roll_ref": roll}
    return {
        "wcsinfo": wcsinfo | {"vparity": -1, "v3yangle": -60.0, "s_region": ""},
        "velocity_aberration": {"scale_factor": ABERRATION},
        "observation": {"observation_id": f"r{exposure:06d}"},
        "exposure": {"type": "WFI_IMAGE", "start_time": "2027-03-01T00:00:00.000"},
        "instrument": {"detector": geometry.detector},
        "cal_step": dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE"),
    }


def _exposure(name: str, number: int, attitude: Attitude, geometry: DetectorGeometry, x: Array, y: Array) -> Exposure:
    from astropy.table import Table

    flux = np.full(len(x), 100.0, dtype=np.float32)
    columns = {"x_psf": x.astype(np.float32), "y_psf": y.astype(np.float32), "psf_flux": flux}
    catalog = Table({**columns, "warning_flags": np.zeros(len(x), dtype=np.int32)})
    meta = _meta(attitude, geometry, number)
    made = Exposure(name, Level.IMAGE, meta, {"data": np.zeros((4, 4), dtype=np.float32)}, catalog=catalog)
    made.wcs = wcs_numbers(meta, (SIZE, SIZE))
    return made
