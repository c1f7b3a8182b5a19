"""The cone of sky in which an alignment needs reference stars, and the epoch it needs them at. Asks nobody for stars.

The cone is the mission's: a frame of member 0's pixels, large enough for the corners of all members, is laid on the
plane that is tangent at their middle, and the cone holds that frame's corners.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.gaia import decimal_year
from stages.tweakreg.tangent_plane import sky_degrees, unit_vectors
from stream.failure import PermanentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stages.tweakreg.fit import Aligned

    Array = NDArray[np.float64]

__all__ = ["SearchCone", "search_cone"]


@dataclass(frozen=True, slots=True)
class SearchCone:
    """Where and when stars are wanted.

    Parameters
    ----------
    ra, dec : float
        Centre, ICRS degrees.
    radius : float
        Degrees.
    epoch : float
        Decimal year (UTC).
    """

    ra: float
    dec: float
    radius: float
    epoch: float

    def holds(self, ra: Array, dec: Array) -> NDArray[np.bool_]:
        """Which of the positions (degrees) lie inside; NaN does not."""
        center = unit_vectors(np.array([self.ra]), np.array([self.dec]))[:, 0]
        return np.asarray(center @ unit_vectors(ra, dec) >= np.cos(np.deg2rad(self.radius)))


def search_cone(members: Sequence[Aligned]) -> SearchCone:
    """The cone for members that take part, relatively aligned, in canonical order.

    Raises
    ------
    PermanentError
        The first member's tie points do not tell the size and the orientation of its pixels.
    """
    corners = np.hstack([member.corners() for member in members])
    east, north, middle = _axes(_middle(corners))
    plane = np.stack([east @ corners, north @ corners]) / (middle @ corners)
    pixels = _pixel_matrix(members[0])
    corner_pixels = np.linalg.solve(pixels, plane)
    low, high = corner_pixels.min(axis=1), corner_pixels.max(axis=1)
    low -= 0.5
    high = low + np.floor(high - low)
    frame = pixels @ np.array([[low[0], low[0], high[0], high[0]], [low[1], high[1], high[1], low[1]]])
    sky = middle[:, None] + east[:, None] * frame[0] + north[:, None] * frame[1]
    sky /= np.linalg.norm(sky, axis=0)
    center = _middle(sky)
    # the angle by its sine and cosine: the cosine alone is good for 0.003 arcsec only
    distances = np.arctan2(np.linalg.norm(np.cross(center, sky.T), axis=1), center @ sky)
    ra, dec = sky_degrees(center[:, None])
    epoch = decimal_year(members[0].points.start_time)
    return SearchCone(float(ra[0]), float(dec[0]), float(np.rad2deg(distances.max())), epoch)


def _middle(vectors: Array) -> Array:
    """Direction of the middle of the box around unit vectors (3, n)."""
    center = (vectors.min(axis=1) + vectors.max(axis=1)) / 2
    return np.asarray(center / np.linalg.norm(center))


def _axes(middle: Array) -> tuple[Array, Array, Array]:
    """Unit vectors to the east and to the north of a direction, and that direction."""
    x, y, z = middle
    across = np.hypot(x, y)
    cos, sin = (x / across, y / across) if across > 0 else (1.0, 0.0)
    return np.array([-sin, cos, 0.0]), np.array([-z * cos, -z * sin, across]), middle


def _pixel_matrix(member: Aligned) -> Array:
    """From pixels of a frame that is oriented as the member's detector to the plane, in radians."""
    known = {name: value for name, value in member.points.search.items() if value is not None}
    lacking = [name for name in ("vparity", "v3yangle", "pixel_size") if name not in known]
    if lacking:
        raise PermanentError(
            f"{member.id}: where to look for reference stars is not known: its tie points do not tell "
            f"{', '.join(lacking)} (meta.wcsinfo has none, the distortion has no inverse, or an earlier version wrote "
            "them); give a table of stars with --gaia"
        )
    parity = known["vparity"]
    angle = np.deg2rad(member.points.numbers["roll_ref"] - parity * known["v3yangle"])
    cos, sin = np.cos(angle), np.sin(angle)
    return np.deg2rad(known["pixel_size"]) * np.array([[parity * cos, sin], [-parity * sin, cos]])
