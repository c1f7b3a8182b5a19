"""The table of reference stars (as from Gaia) and the motions that lead from its epoch to the observation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ops.simulate.focal_plane import angles, unit_vector
from ops.simulate.streams import Purpose, stream

if TYPE_CHECKING:
    from astropy.time import Time
    from numpy.typing import NDArray

    from ops.simulate.sky import Stars

__all__ = ["FAINTEST_LISTED", "star_table"]

FAINTEST_LISTED = 22.5
CATALOG_EPOCH = 2016.0
_RADIANS_PER_MAS = np.pi / (180 * 3600 * 1000)


def star_table(stars: Stars, seed: int, time: Time, *, proper_motions: bool) -> dict[str, NDArray[Any]]:
    """Columns of the star table, brightest first.

    Parameters
    ----------
    stars : Stars
        With their true positions at the time of observation.
    seed : int
        Decides motions and parallaxes.
    time : astropy Time
        Of the observation.
    proper_motions : bool
        Give proper motions (mas/yr, right ascension with the cosine) and parallaxes (mas), and positions at epoch
        2016.0 from which they lead to the true ones. Without: positions and epoch of the observation.

    Returns
    -------
    dict
        ``ra``, ``dec`` (deg), ``mag``, ``epoch`` (year), ``objID``, and with motions ``pmra``, ``pmdec``, ``parallax``.
    """
    order = np.argsort(stars.mag, kind="stable")
    order = order[stars.mag[order] < FAINTEST_LISTED]
    ra, dec, identifier = stars.ra[order], stars.dec[order], stars.id[order]
    columns: dict[str, NDArray[Any]] = {"ra": ra, "dec": dec, "mag": stars.mag[order], "objID": identifier}
    if not proper_motions:
        return columns | {"epoch": np.full(ra.size, float(time.decimalyear))}
    # By tile and number, so that a star moves alike whatever else is in the table.
    motions = np.empty((ra.size, 3))
    for k, name in enumerate(identifier):
        rng = stream(seed, Purpose.MOTIONS, int(name) >> 32, int(name) & 0xFFFFFFFF)
        motions[k] = (*rng.normal(0.0, 5.0, 2), rng.lognormal(-0.5, 0.5))
    columns["ra"], columns["dec"] = _at_catalog_epoch(ra, dec, motions, time)
    pmra, pmdec, parallax = motions.T
    epoch = np.full(ra.size, CATALOG_EPOCH)
    return columns | {"epoch": epoch, "pmra": pmra.copy(), "pmdec": pmdec.copy(), "parallax": parallax.copy()}


def _at_catalog_epoch(
    ra: NDArray[np.float64], dec: NDArray[np.float64], motions: NDArray[np.float64], time: Time
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions at the catalog's epoch: motion and parallax undone, to first order about the earlier position."""
    from astropy.coordinates import get_body_barycentric, solar_system_ephemeris

    with solar_system_ephemeris.set("builtin"):
        earth = np.array(get_body_barycentric("earth", time).xyz.to_value("au"), dtype=np.float64)
    years = float(time.decimalyear) - CATALOG_EPOCH
    true = unit_vector(ra, dec)
    early_ra, early_dec = ra, dec
    for _ in range(3):
        lon, lat = np.deg2rad(early_ra), np.deg2rad(early_dec)
        east = np.stack([-np.sin(lon), np.cos(lon), 0 * lon], axis=-1)
        north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)], axis=-1)
        step_east = years * motions[:, 0] - motions[:, 2] * (east @ earth)
        step_north = years * motions[:, 1] - motions[:, 2] * (north @ earth)
        early = true - _RADIANS_PER_MAS * (step_east[:, None] * east + step_north[:, None] * north)
        early_ra, early_dec = angles(early)
    return early_ra % 360.0, early_dec
