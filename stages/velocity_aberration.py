"""Velocity aberration of a pointing: apparent position and scale. Not run by the pipeline.

For observers who make their own exposures: the numbers belong into ``meta.velocity_aberration``.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

__all__ = ["set_velocity_aberration", "velocity_aberration"]

SPEED_OF_LIGHT = 299792.458
"""km/s"""

log = logging.getLogger("stages.velocity_aberration")


def velocity_aberration(velocity: tuple[float, float, float], ra: float, dec: float) -> tuple[float, float, float]:
    """Apparent position of a target and the scale of the field around it.

    Parameters
    ----------
    velocity : (x, y, z)
        Of the observatory with respect to the barycentre, ICRS axes, km/s.
    ra, dec : float
        Target, degrees.

    Returns
    -------
    scale_factor, ra_apparent, dec_apparent : float
        Position in degrees, RA in [0, 360).

    Notes
    -----
    The Lorentz transformation of a direction: with b = v/c, k = sqrt(1 - b.b) and u the unit vector to the target,
    u' = (k u + b (1 + (1 - k)(u.b)/(b.b))) / (1 + u.b) and scale = (1 + u.b) / k.
    """
    lon, lat = np.deg2rad(ra), np.deg2rad(dec)
    u = np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    b = np.asarray(velocity, dtype=float) / SPEED_OF_LIGHT
    b2 = float(b @ b)
    if b2 == 0.0:
        log.warning("The observatory's velocity is zero: no velocity aberration")
        return 1.0, float(ra), float(dec)
    k = np.sqrt(1.0 - b2)
    ub = float(u @ b)
    apparent = (k * u + b * (1.0 + (1.0 - k) * ub / b2)) / (1.0 + ub)
    ra_apparent = np.rad2deg(np.arctan2(apparent[1], apparent[0])) % 360.0 % 360.0  # -1e-200 % 360 is 360
    dec_apparent = np.rad2deg(np.arctan2(apparent[2], np.hypot(apparent[0], apparent[1])))
    return float((1.0 + ub) / k), float(ra_apparent), float(dec_apparent)


def set_velocity_aberration(meta: dict[str, Any]) -> None:
    """Fill ``meta.velocity_aberration`` from the velocity (km/s) in ``meta.ephemeris`` and ra_ref, dec_ref."""
    ephemeris, wcsinfo = meta["ephemeris"], meta["wcsinfo"]
    velocity = (ephemeris["velocity_x"], ephemeris["velocity_y"], ephemeris["velocity_z"])
    scale, ra, dec = velocity_aberration(velocity, wcsinfo["ra_ref"], wcsinfo["dec_ref"])
    meta["velocity_aberration"] = {"ra_reference": ra, "dec_reference": dec, "scale_factor": scale}
