"""Fit a group of detectors to reference positions in one plane and hand each its own correction. Not the matching."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.tweakreg.matching import AlignmentError, match_positions, mean_positions
from stages.tweakreg.tangent_plane import ARCSEC_PER_RADIAN, TangentPlane, lengths, plane_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stages.tweakreg.parameters import MatchAndFit
    from stages.tweakreg.tie_points import TiePoints

    Array = NDArray[np.float64]

__all__ = ["NOT_ENOUGH_MATCHES", "Aligned", "align_group", "fit_affine"]

log = logging.getLogger("stages.tweakreg")

SUCCESS = "SUCCESS"
NOT_ENOUGH_MATCHES = "FAILED: not enough matches"

_REPORTED = (
    "matrix",
    "shift",
    "center",
    "proper_rot",
    "proper",
    "rot",
    "<rot>",
    "scale",
    "<scale>",
    "skew",
    "rmse",
    "mae",
)


@dataclass(slots=True)
class Aligned:
    """One member on its way: its sources, its plane with the corrections so far, and its last fit.

    ``corrections`` are in the member's own plane, in the order in which they were made.
    """

    id: str
    points: TiePoints
    plane: TangentPlane
    corrections: list[dict[str, Any]] = field(default_factory=list)
    fit_info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, member: str, points: TiePoints) -> Aligned:
        """A member before any correction."""
        return cls(member, points, TangentPlane.of(points.numbers))

    def sky(self) -> Array:
        """Sky vectors (3, n) of the sources with the corrections so far."""
        return self.plane.detector_to_sky(self.points.positions)

    def corners(self) -> Array:
        """Unit vectors (3, 4) of the corners of the bounding box with the corrections so far."""
        vectors = self.plane.detector_to_sky(self.points.corners)
        return np.asarray(vectors / lengths(vectors))

    def correct(self, matrix: Array, shift: Array) -> None:
        """Add a correction given in this member's plane."""
        self.plane = self.plane.corrected(matrix, shift)
        self.corrections.append({"matrix": matrix.tolist(), "shift": shift.tolist()})


def fit_affine(
    image: Array, reference: Array, weight: Array | None, *, fitgeometry: str, nclip: int, sigma: float
) -> dict[str, Any]:
    """Fit reference = F image + s with clipping, in extended precision (tweakwcs).

    Parameters
    ----------
    image, reference : ndarray (n, 2), arcsec
    weight : ndarray (n,) or None
    fitgeometry : {"shift", "rshift", "rscale", "general"}
    nclip, sigma : int, float
        At most this many rounds in which pairs off by sigma rms or more are left out for good.

    Returns
    -------
    dict
        JSON values: ``status``, ``fitgeom``, ``matrix`` F, ``shift`` s (arcsec, about the plane's origin), ``center``
        (of all pairs), ``proper_rot``, ``proper``, ``rot``, ``<rot>`` (degrees), ``scale``, ``<scale>``, ``skew``,
        ``rmse``, ``mae`` (arcsec, of the pairs kept) and ``nmatches`` (before clipping).

    Raises
    ------
    AlignmentError
        Too few or collinear pairs for the geometry.
    """
    from tweakwcs.linearfit import NotEnoughPointsError, SingularMatrixError, iter_linear_fit

    try:
        fit = iter_linear_fit(
            reference, image, weight, None, fitgeom=fitgeometry, nclip=nclip, sigma=(sigma, "rmse"), clip_accum=True
        )
    except (NotEnoughPointsError, SingularMatrixError, ValueError) as error:
        raise AlignmentError(f"a fit of geometry {fitgeometry!r} to {len(image)} pairs failed: {error}") from error
    center = fit["center_ld"]
    fit["shift"] = (fit["shift_ld"] + center - np.dot(center, fit["matrix_ld"].T)).astype(float)
    info: dict[str, Any] = {"status": SUCCESS, "fitgeom": fitgeometry}
    info.update({name: _plain(fit[name]) for name in _REPORTED})
    info["nmatches"] = len(image)
    return info


def _near(sources: Array, reference: Array, parameters: MatchAndFit) -> NDArray[np.intp]:
    """Reference positions that can have to do with the sources: a catalog of the whole sky costs one pass.

    The margin of an arcminute keeps whole chains of positions closer than the separation, of which only some survive.
    """
    units = sources / lengths(sources)
    center = units.mean(axis=1)
    center /= np.linalg.norm(center)
    margin = 2 * parameters.searchrad + parameters.tolerance + parameters.separation + 60.0
    radius = np.arccos(np.clip(np.min(center @ units), -1, 1)) + margin / ARCSEC_PER_RADIAN
    if radius > np.pi / 2:
        return np.arange(reference.shape[1])
    return np.flatnonzero(center @ reference >= np.cos(radius) * lengths(reference))


def _plain(value: Any) -> Any:
    """JSON value of a numpy scalar, an array or a tuple."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    return np.asarray(value, dtype=float).tolist()


def align_group(
    members: Sequence[Aligned], reference: Array, weight: Array | None, parameters: MatchAndFit
) -> NDArray[np.bool_]:
    """Match and fit the sources of several members together and correct all of them.

    Parameters
    ----------
    members : sequence of Aligned
        Their sources are taken together in this order; the plane of the first one is used (also when it has none).
    reference : ndarray (3, m)
        Sky vectors; NaN is never matched.
    weight : ndarray (m,) or None
        Of the reference positions.
    parameters : MatchAndFit

    Returns
    -------
    ndarray of bool
        Which of the sources (or of the averaged ones) were matched; ``fit_info`` of each member tells whether that was
        enough.

    Raises
    ------
    AlignmentError
        See `stages.tweakreg.matching.match_positions` and `fit_affine`.
    """
    plane = members[0].plane
    pixel_scale = members[0].points.pixel_scale(plane)
    sources = np.hstack([member.sky() for member in members])
    near = _near(sources, reference, parameters)
    image, places = plane.from_sky(sources), plane.from_sky(reference[:, near])
    if parameters.average:
        image = mean_positions(image, parameters.separation)
    image_index, reference_index = match_positions(
        image,
        places,
        searchrad=parameters.searchrad,
        separation=parameters.separation,
        tolerance=parameters.tolerance,
        use2dhist=parameters.use2dhist,
        pixel_scale=pixel_scale,
    )
    matched = np.zeros(len(image), dtype=bool)
    matched[image_index] = True
    if len(image_index) < parameters.minobj:
        log.warning("Not enough matches: found %d, need %d", len(image_index), parameters.minobj)
        for member in members:
            member.fit_info = {"status": NOT_ENOUGH_MATCHES}
        return matched
    info = fit_affine(
        image[image_index],
        places[reference_index],
        None if weight is None else weight[near][reference_index],
        fitgeometry=parameters.fitgeometry,
        nclip=parameters.nclip,
        sigma=parameters.sigma,
    )
    log.info("Fit of %d pairs: shift %s arcsec, rms %g arcsec", info["nmatches"], info["shift"], info["rmse"])
    matrix, shift = np.array(info["matrix"]), np.array(info["shift"])
    for member in members:
        to_member, origin = plane_map(plane, member.plane, pixel_scale)
        own = to_member @ matrix @ np.linalg.inv(to_member)
        member.correct(own, to_member @ shift - own @ origin + origin)
        member.fit_info = dict(info)
    return matched
