"""Which exposures a simulation makes, when, and where the telescope points in each. No pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ops.simulate.focal_plane import CENTER_V2, CENTER_V3, Attitude, DetectorGeometry, pixels_to_sky
from ops.simulate.metadata import Ephemeris, ephemeris
from ops.simulate.options import SCIENCE_COLUMNS, ExposureKind, SimulateOptions, Variant, exposure_kind
from ops.simulate.sky import TARGET_DEC, TARGET_RA
from ops.simulate.streams import Purpose, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PlannedExposure", "PointingError", "corners", "plan_exposures"]

_ROLL = 75.0
_ROLL_ERROR_ARCSEC = 2.0
_OVERHEAD_SECONDS = 60.0
_START = "2027-06-01T00:00:00.000"


@dataclass(frozen=True)
class PointingError:
    """True pointing minus the recorded one: shift on the sky (east, north) in mas, roll in arcsec."""

    east_mas: float
    north_mas: float
    roll_arcsec: float


@dataclass(frozen=True)
class PlannedExposure:
    """One exposure of all its detectors.

    Attributes
    ----------
    key : int
        Enters random streams; unlike any other exposure's of any variant.
    number : int
        Exposure number in its visit, from 1.
    recorded_attitude, true_attitude : Attitude
        What the metadata say, and what the sky sees.
    aberration : tuple of float
        Apparent (ra, dec) of the target and the scale factor.
    start, end, visit_start : astropy Time
    """

    key: int
    variant: Variant
    kind: ExposureKind
    element: str
    detectors: tuple[str, ...]
    observation: int
    number: int
    exposures_in_visit: int
    recorded_attitude: Attitude
    true_attitude: Attitude
    error: PointingError
    ephemeris: Ephemeris
    aberration: tuple[float, float, float]
    start: Any
    end: Any
    visit_start: Any

    @property
    def visit_id(self) -> str:
        """Program, execution plan, pass, segment, observation and visit: 19 digits."""
        return f"00001{1:02d}{1:03d}{1:03d}{self.observation:03d}{1:03d}"

    @property
    def observation_id(self) -> str:
        """Visit, file group 2, sequence 1, activity 01 and exposure: 28 digits, the same for all its detectors."""
        return f"{self.visit_id}02101{self.number:04d}"

    def file_name(self, detector: str) -> str:
        """Name of the L1 file."""
        return f"r{self.visit_id}_{self.number:04d}_{detector.lower()}_uncal.asdf"


def _dither(number: int, rows: int) -> tuple[float, float]:
    """Offset in the ideal frame, arcsec: a spiral that stays inside the frame's height."""
    if number == 0:
        return 0.0, 0.0
    angle = number * np.pi * (3 - np.sqrt(5))
    radius = min(1.0, 0.35 * np.sqrt(number))
    height = min(15.0, 0.12 * rows * 0.11)
    return float(15.0 * radius * np.cos(angle)), float(height * radius * np.sin(angle))


def _attitudes(options: SimulateOptions, key: int, dither: int) -> tuple[Attitude, Attitude, PointingError]:
    """Recorded and true attitude, and their difference."""
    x, y = _dither(dither, options.rows)
    # Moving the target by (x, y) in the frame is pointing a shifted place of the focal plane at it.
    angle = np.deg2rad(-60.0)
    v2 = CENTER_V2 - np.cos(angle) * x + np.sin(angle) * y
    v3 = CENTER_V3 + np.sin(angle) * x + np.cos(angle) * y
    recorded = Attitude.pointing(float(v2), float(v3), TARGET_RA, TARGET_DEC, _ROLL)
    rng = stream(options.seed, Purpose.POINTING, key)
    size = options.pointing_error_mas * rng.uniform(0.5, 1.0)
    direction = rng.uniform(0, 2 * np.pi)
    limited = options.pointing_error_mas > 0
    error = PointingError(
        float(size * np.cos(direction)),
        float(size * np.sin(direction)),
        float(np.clip(_ROLL_ERROR_ARCSEC * rng.normal(), -2, 2)) if limited else 0.0,
    )
    ra, dec, roll = recorded.at(CENTER_V2, CENTER_V3)
    true = Attitude.pointing(
        CENTER_V2,
        CENTER_V3,
        ra + error.east_mas / 3.6e6 / float(np.cos(np.deg2rad(dec))),
        dec + error.north_mas / 3.6e6,
        roll + error.roll_arcsec / 3600,
    )
    return recorded, true, error


def plan_exposures(options: SimulateOptions) -> list[PlannedExposure]:
    """List all exposures in the order of their making: variant by variant, dither by dither."""
    from astropy.time import Time, TimeDelta

    begin = Time(_START, format="isot", scale="utc")
    plan: list[PlannedExposure] = []
    seconds_between = None if options.rate is None else 3600.0 / options.rate
    for variant in options.variants:
        kind = exposure_kind(variant)
        observation = list(Variant).index(variant) + 1
        count = (options.dithers if kind.dithered else 1) * options.exposures
        duration = kind.frame_time * options.read_pattern[-1][-1]
        # Observations start a day apart, so that adding a variant moves no other one in time.
        visit_start = begin + TimeDelta(86400.0 * (observation - 1), format="sec")
        where = ephemeris(visit_start)
        step = seconds_between or duration + _OVERHEAD_SECONDS
        for number in range(count):
            key = observation * 100_000 + number
            recorded, true, error = _attitudes(options, key, number // options.exposures)
            start = visit_start + TimeDelta(step * number, format="sec")
            plan.append(
                PlannedExposure(
                    key=key,
                    variant=variant,
                    kind=kind,
                    element=options.element_of(variant),
                    detectors=options.detectors_of(variant),
                    observation=observation,
                    number=number + 1,
                    exposures_in_visit=count,
                    recorded_attitude=recorded,
                    true_attitude=true,
                    error=error,
                    ephemeris=where,
                    aberration=where.aberration(TARGET_RA, TARGET_DEC),
                    start=start,
                    end=start + TimeDelta(duration, format="sec"),
                    visit_start=visit_start,
                )
            )
    return plan


def corners(exposure: PlannedExposure, geometry: DetectorGeometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True (ra, dec) of points along the frame's edge."""
    along = np.linspace(0, 1, 5)
    x = np.concatenate([along, along, 0 * along, 0 * along + 1]) * SCIENCE_COLUMNS
    y = np.concatenate([0 * along, 0 * along + 1, along, along]) * geometry.science_rows
    return pixels_to_sky(exposure.true_attitude, geometry, exposure.aberration[2], x, y)
