"""Small associations, ours beside tweakwcs: how far the final WCS of any member is from the library's. No timing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.association_scene import SIZE, Mosaic, Observed
from stages.gaia import StarList
from stages.tweakreg import Tweakreg, TweakregParameters
from stages.tweakreg.parameters import MatchAndFit
from stages.tweakreg.tangent_plane import unit_vectors
from stages.wcs import build_wcs
from stream.stage import Member, Slot

__all__ = ["ORACLE_MOSAICS", "Agreement", "compare_with_library"]

ORACLE_MOSAICS = (
    Mosaic(members=4, detectors=1, half_degrees=0.02),
    Mosaic(members=18, detectors=6, half_degrees=0.03),
    Mosaic(members=18),
)
"""Four exposures of one detector, three of six, and all detectors of one; neighbours overlap."""

PARAMETERS = TweakregParameters(expand_refcat=True)


@dataclass(frozen=True)
class Agreement:
    """How ours and the library's compare."""

    members: int
    exposures: int
    aligned: int
    """Members that both have aligned."""
    largest_mas: float
    """Largest distance between the two WCS of a member, on a grid of places."""
    moved_mas: float
    """Median distance between the library's WCS and the one before the alignment."""


def compare_with_library(mosaic: Mosaic) -> Agreement:
    """Align the members of a mosaic with ours and with tweakwcs, and compare."""
    observed = [one for exposure in range(mosaic.exposures) for one in mosaic.observed(exposure)]
    stars = StarList(*mosaic.reference_stars)
    ours = _ours(observed, stars)
    theirs = _theirs(observed, stars)
    grid = np.linspace(0.0, SIZE - 1.0, 5)
    x, y = (axis.ravel() for axis in np.meshgrid(grid, grid))
    largest, moved, aligned = 0.0, [], 0
    for one in observed:
        result, (status, wcs) = ours[one.id], theirs[one.id]
        numbers = one.exposure.wcs
        assert numbers is not None
        corrected = {**numbers, "corrections": result["corrections"]}
        here = unit_vectors(*build_wcs(corrected, one.distortion)(x, y))
        there = unit_vectors(*wcs(x, y))
        before = unit_vectors(*build_wcs(numbers, one.distortion)(x, y))
        largest = max(largest, float(_mas(here - there).max()))
        moved.append(float(np.median(_mas(before - there))))
        aligned += result["status"] == "COMPLETE" and status == "SUCCESS"
    return Agreement(mosaic.members, mosaic.exposures, aligned, largest, float(np.median(moved)))


def _mas(differences: Any) -> Any:
    return np.rad2deg(np.linalg.norm(differences, axis=0)) * 3.6e6


def _ours(observed: list[Observed], stars: StarList) -> dict[str, Any]:
    members = [Member(one.id, "ok", {}, one.tie_points()) for one in observed]
    found: dict[str, Any] = Tweakreg().solve(members, stars, PARAMETERS, Slot())["members"]
    return found


def _theirs(observed: list[Observed], stars: StarList) -> dict[str, tuple[str, Any]]:
    """The steps of the mission's pipeline: relative alignment of the groups, then all as one group to the stars."""
    from astropy.table import Table
    from tweakwcs.correctors import RomanWCSCorrector

    correctors = []
    for one in observed:
        numbers = one.exposure.wcs
        assert numbers is not None
        assert one.exposure.catalog is not None
        correctors.append(
            RomanWCSCorrector(
                build_wcs(numbers, one.distortion),
                {key: numbers[key] for key in ("v2_ref", "v3_ref", "roll_ref")},
                meta={
                    "catalog": Table(one.exposure.catalog["x_psf", "y_psf"], names=("x", "y")),
                    "name": one.id,
                    "group_id": one.exposure.meta["observation"]["observation_id"],
                },
            )
        )
    if len({corrector.meta["group_id"] for corrector in correctors}) > 1:
        _align(correctors, PARAMETERS.relative, None)
    for corrector in correctors:
        corrector.meta["group_id"] = 987654
    _align(correctors, PARAMETERS.absolute, Table({"RA": stars.ra, "DEC": stars.dec}))
    return {
        one.id: (corrector.meta["fit_info"]["status"], corrector.wcs)
        for one, corrector in zip(observed, correctors, strict=True)
    }


def _align(correctors: list[Any], parameters: MatchAndFit, stars: Any) -> None:
    from tweakwcs.imalign import align_wcs
    from tweakwcs.matchutils import XYXYMatch

    match = XYXYMatch(
        searchrad=parameters.searchrad,
        separation=parameters.separation,
        use2dhist=parameters.use2dhist,
        tolerance=parameters.tolerance,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        align_wcs(
            correctors,
            refcat=stars,
            enforce_user_order=False,
            expand_refcat=PARAMETERS.expand_refcat,
            minobj=parameters.minobj,
            match=match,
            fitgeom=parameters.fitgeometry,
            nclip=parameters.nclip,
            sigma=(parameters.sigma, "rmse"),
            clip_accum=True,
        )
