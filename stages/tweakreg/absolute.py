"""Absolute alignment: all members together, as one rigid catalog, to the reference stars."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from stages.tweakreg.fit import align_group
from stages.tweakreg.matching import AlignmentError
from stages.tweakreg.tangent_plane import unit_vectors
from stream.failure import PermanentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.gaia import StarList
    from stages.tweakreg.fit import Aligned
    from stages.tweakreg.parameters import TweakregParameters

__all__ = ["align_to_stars"]

log = logging.getLogger("stages.tweakreg")


def align_to_stars(members: Sequence[Aligned], stars: StarList, parameters: TweakregParameters) -> None:
    """Correct all members by one fit in the plane of the first.

    Parameters
    ----------
    members : sequence of Aligned
        Members with a catalog (which may be empty), relatively aligned, in canonical order.
    stars : StarList
        At the epoch of the observation.
    parameters : TweakregParameters

    Raises
    ------
    AlignmentError
        Fewer stars than ``abs_minobj``, only empty catalogs, or the matching or the fit failed.
    PermanentError
        No star has a position.
    """
    if len(stars) < parameters.abs_minobj:
        raise AlignmentError(
            f"{stars.name} has {len(stars)} reference stars, fewer than abs_minobj = {parameters.abs_minobj}"
        )
    if not np.any(np.isfinite(stars.ra) & np.isfinite(stars.dec)):
        raise PermanentError(f"{stars.name}: none of the {len(stars)} reference stars has a position")
    if all(len(member.points.positions) == 0 for member in members):
        raise AlignmentError("all source catalogs are empty")
    log.info("Aligning %d members to %d reference stars", len(members), len(stars))
    align_group(members, unit_vectors(stars.ra, stars.dec), stars.weight, parameters.absolute)
