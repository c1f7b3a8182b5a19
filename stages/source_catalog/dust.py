"""Galactic reddening at sky positions from a pair of polar maps (Schlegel, Finkbeiner & Davis 1998, ApJ 500, 525)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["dust_reddening"]


def dust_reddening(ra: NDArray[np.float64], dec: NDArray[np.float64], north: Path, south: Path) -> NDArray[np.float32]:
    """E(B-V) by cubic-spline sampling of the map of each position's galactic hemisphere.

    Parameters
    ----------
    ra, dec : ndarray, f8, (n,)
        ICRS, degrees.
    north, south : Path
        FITS files; the primary HDU holds the map and its galactic WCS. A file is opened only when needed.

    Returns
    -------
    ndarray, f4, (n,)
        Magnitudes.

    Raises
    ------
    ValueError
        ra and dec differ in shape.
    """
    from astropy import units
    from astropy.coordinates import SkyCoord

    ra, dec = np.asarray(ra), np.asarray(dec)
    if ra.shape != dec.shape:
        raise ValueError(f"ra and dec must have the same shape, found {ra.shape} and {dec.shape}")
    galactic = SkyCoord(ra * units.deg, dec * units.deg, frame="icrs").galactic
    longitude, latitude = galactic.l.deg, galactic.b.deg
    reddening = np.full(ra.shape, np.nan, dtype=np.float32)
    for path, where in ((north, latitude >= 0), (south, ~(latitude >= 0))):
        if where.any():
            reddening[where] = _sample(path, longitude[where], latitude[where])
    return reddening


def _sample(path: Path, longitude: NDArray[np.float64], latitude: NDArray[np.float64]) -> NDArray[np.float64]:
    from astropy.io import fits
    from astropy.wcs import WCS
    from scipy.ndimage import map_coordinates

    with fits.open(path) as hdus, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the maps' headers are old
        wcs = WCS(hdus[0].header)
        x, y = wcs.wcs_world2pix(longitude, latitude, 0)
        return np.asarray(map_coordinates(hdus[0].data, [y, x], order=3, mode="nearest"))
