"""Geometry of a member's tangent plane in plain numpy. Knows nothing of files or catalogs.

For a member with reference point (v2_ref, v3_ref), roll_ref and sky position (ra_ref, dec_ref)

* the *plane* is tangent at the reference point, its axes rolled onto the sky: (v2, v3) -> unit vector -> rotation
  ``zyx`` by (v2_ref, -v3_ref, roll_ref) -> (x, y, z) -> (y/x, z/x), in arcsec;
* the sky is one more rotation away, Rz(-ra_ref) Ry(dec_ref), so that a GWCS is not needed here;
* an affine correction p -> M p + T acts on plane coordinates. As in the field's library the plane of a corrected member
  includes its correction: what comes from the sky goes through it once, what comes from the detector twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = [
    "ARCSEC_PER_RADIAN",
    "TangentPlane",
    "lengths",
    "plane_map",
    "plane_to_v2v3",
    "sky_degrees",
    "unit_vectors",
    "v2v3_to_plane",
]

ARCSEC_PER_RADIAN = 3600.0 * np.rad2deg(1.0)


def _rotation(axis: str, degrees: float) -> Array:
    """Rotation of the axes about x, y or z (the sense of astropy's RotationSequence3D)."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    if axis == "x":
        rows = [[1, 0, 0], [0, c, s], [0, -s, c]]
    elif axis == "y":
        rows = [[c, 0, -s], [0, 1, 0], [s, 0, c]]
    else:
        rows = [[c, s, 0], [-s, c, 0], [0, 0, 1]]
    return np.array(rows, dtype=float)


def lengths(vectors: Array) -> Array:
    """Of vectors (3, n); `numpy.linalg.norm` has the same sums and takes longer than they do for a few vectors."""
    x, y, z = vectors
    return np.asarray(np.sqrt(x * x + y * y + z * z))


def unit_vectors(lon: Array, lat: Array) -> Array:
    """Unit vectors, shape (3, n), of longitudes and latitudes in degrees."""
    lon, lat = np.deg2rad(np.asarray(lon, dtype=float)), np.deg2rad(np.asarray(lat, dtype=float))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def sky_degrees(vectors: Array) -> tuple[Array, Array]:
    """RA in [0, 360) and Dec, degrees, of vectors of shape (3, n)."""
    x, y, z = vectors
    return np.rad2deg(np.arctan2(y, x)) % 360.0, np.rad2deg(np.arctan2(z, np.hypot(x, y)))


def _v2v3_rotation(numbers: Mapping[str, Any]) -> Array:
    """From unit vectors in (v2, v3) to the axes of the plane."""
    rotation = _rotation("x", numbers["roll_ref"]) @ _rotation("y", -numbers["v3_ref"] / 3600.0)
    return np.asarray(rotation @ _rotation("z", numbers["v2_ref"] / 3600.0), dtype=float)


def v2v3_to_plane(numbers: Mapping[str, Any], v2: Array, v3: Array) -> Array:
    """Plane coordinates, arcsec, shape (n, 2), of aberration-corrected (v2, v3) in arcsec."""
    x, y, z = _v2v3_rotation(numbers) @ unit_vectors(np.asarray(v2) / 3600.0, np.asarray(v3) / 3600.0)
    return np.column_stack([y / x, z / x]) * ARCSEC_PER_RADIAN


def plane_to_v2v3(numbers: Mapping[str, Any], xy: Array) -> tuple[Array, Array]:
    """Aberration-corrected (v2, v3) in arcsec of plane coordinates; v2 between -180 and 180 degrees."""
    x, y, z = _v2v3_rotation(numbers).T @ _vectors_of_plane(xy)
    v2 = np.rad2deg(np.arctan2(y, x)) * 3600.0
    return v2, np.rad2deg(np.arctan2(z, np.hypot(x, y))) * 3600.0


def _vectors_of_plane(xy: Array) -> Array:
    """Vectors, shape (3, n), not of unit length, of plane coordinates in arcsec."""
    vectors = np.empty((3, len(xy)))
    vectors[0] = 1.0
    np.divide(np.asarray(xy, dtype=float).T, ARCSEC_PER_RADIAN, out=vectors[1:])
    return vectors


@dataclass(frozen=True, slots=True)
class TangentPlane:
    """A member's plane with the corrections made so far.

    Parameters
    ----------
    to_sky : ndarray (3, 3)
        From the plane's axes to ICRS.
    matrix : ndarray (2, 2)
    shift : ndarray (2,), arcsec
        All corrections multiplied into one; identity and zero before the first.
    """

    to_sky: Array
    matrix: Array = field(default_factory=lambda: np.eye(2))
    shift: Array = field(default_factory=lambda: np.zeros(2))

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> TangentPlane:
        """Plane for the numbers of a WCS (see `stages.wcs`), its corrections included."""
        plane = cls(_rotation("z", -numbers["ra_ref"]) @ _rotation("y", numbers["dec_ref"]))
        for correction in numbers.get("corrections", ()):
            plane = plane.corrected(np.asarray(correction["matrix"]), np.asarray(correction["shift"]))
        return plane

    def corrected(self, matrix: Array, shift: Array) -> TangentPlane:
        """The plane after one more correction, which is given in this plane."""
        return TangentPlane(self.to_sky, matrix @ self.matrix, matrix @ self.shift + shift)

    def affine(self, xy: Array) -> Array:
        """Apply the correction to coordinates of shape (n, 2)."""
        return np.asarray(xy @ self.matrix.T + self.shift)

    def inverse_affine(self, xy: Array) -> Array:
        """Undo the correction."""
        return np.asarray((xy - self.shift) @ np.linalg.inv(self.matrix).T)

    def detector_to_sky(self, positions: Array) -> Array:
        """Sky vectors (3, n), not normalised, of uncorrected plane coordinates that came from the detector."""
        return np.asarray(self.to_sky @ _vectors_of_plane(self.affine(positions)))

    def from_sky(self, vectors: Array) -> Array:
        """Plane coordinates (n, 2), arcsec, of sky vectors (3, n) of any length."""
        x, y, z = self.to_sky.T @ vectors
        xy = np.empty((len(x), 2))
        np.divide(y, x, out=xy[:, 0])
        np.divide(z, x, out=xy[:, 1])
        xy *= ARCSEC_PER_RADIAN
        return self.affine(xy)

    def sky(self, xy: Array) -> Array:
        """Sky vectors (3, n) of plane coordinates."""
        return np.asarray(self.to_sky @ _vectors_of_plane(self.inverse_affine(np.asarray(xy, dtype=float))))


def plane_map(reference: TangentPlane, image: TangentPlane, step: float) -> tuple[Array, Array]:
    """Linearised map from one plane to another: matrix from forward differences of ``step`` arcsec, and origin."""
    points = np.array([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.0, 0.0]]) * step
    mapped = image.from_sky(reference.sky(points))
    matrix = np.column_stack([mapped[1] - mapped[0], mapped[2] - mapped[0]]) / step
    return matrix, mapped[3]
