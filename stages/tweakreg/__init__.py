"""tweakreg: align the exposures of an association to each other and to reference stars, from their tie points.

No pixels and no WCS objects: each member is a small file of positions in its own tangent plane (`tie_points`) and the
corrections come out as numbers, which `stages.align` applies to the exposure.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from stages.exposure import ExposureType
from stages.gaia import decimal_year
from stages.tweakreg.absolute import align_to_stars
from stages.tweakreg.cone import SearchCone, search_cone
from stages.tweakreg.fit import Aligned
from stages.tweakreg.matching import AlignmentError
from stages.tweakreg.parameters import TweakregParameters
from stages.tweakreg.relative import align_groups, largest_move
from stages.tweakreg.results import aligned_result, skipped_result, solution
from stages.tweakreg.tie_points import TiePoints, read_tie_points, tie_points_bytes
from stream.failure import PermanentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.gaia import StarList
    from stream.stage import Member, Slot, StageParameters

__all__ = ["TiePoints", "Tweakreg", "TweakregParameters", "read_tie_points", "tie_points_bytes"]

log = logging.getLogger("stages.tweakreg")

_SKIPPED = {
    "failed": "the exposure failed before the alignment",
    "skipped": "no source catalog",
    "saturated": "the exposure is fully saturated",
}


class Tweakreg:
    """The joint alignment (see `stream.stage.JointStage`)."""

    name = "tweakreg"
    version = "1"
    cal_step = "tweakreg"
    parameters_type: type[StageParameters] = TweakregParameters
    libraries: tuple[str, ...] = ("numpy", "scipy", "astropy", "pyerfa", "tweakwcs", "stsci.stimage")
    branches: frozenset[str] = frozenset({str(ExposureType.IMAGE), str(ExposureType.LOLO)})

    def aligns(self, branch: str) -> bool:
        """Whether exposures on this branch have a catalog to align."""
        return branch in self.branches

    def solve(self, members: Sequence[Member], star_list: StarList, parameters: Any, slot: Slot) -> dict[str, Any]:  # noqa: ARG002
        """Align all members that have a catalog.

        Parameters
        ----------
        members : sequence of Member
            In canonical order, with status ``ok``, ``failed``, ``skipped`` or ``saturated``; ``facts`` may hold
            ``group_id`` or ``observation_id`` for a member without tie points.
        star_list : StarList
            Moved here to the epoch of the first member with tie points, where the list has motions.
        parameters : TweakregParameters
        slot : Slot

        Returns
        -------
        dict
            ``members``: for each id ``status`` (COMPLETE, FAILED or SKIPPED), ``reason``, ``corrections`` (matrix and
            shift in arcsec, in the member's plane), ``wcs_fit_results`` and ``name`` of the WCS; ``summary``:
            ``complete``, ``fitted``, ``members``, ``nmatches``, ``rms`` and ``shift`` (arcsec) of the joint fit.

        Raises
        ------
        PermanentError
            A catalog has no usable columns, tie points cannot be read, or no reference star has a position.
        """
        nobody = _why_nobody(members, parameters)
        if nobody is not None:
            log.warning("No alignment: %s", nobody)
            return solution({member.id: skipped_result(nobody) for member in members}, [])
        results: dict[str, dict[str, Any]] = {}
        for member in members:
            if not _takes_part(member):
                log.info("Skipping %s: %s", member.id, _SKIPPED.get(member.status, "no source catalog"))
                results[member.id] = skipped_result(_SKIPPED.get(member.status, "no source catalog"))
        aligned = _started(members)
        if not aligned:
            return solution(results, aligned)
        _align_exposures(members, aligned, parameters)
        failure = _align_to_stars(aligned, star_list, parameters)
        for one in aligned:
            results[one.id] = aligned_result(one, fitted=len(aligned), refcat=parameters.abs_refcat, failure=failure)
        return solution({member.id: results[member.id] for member in members}, aligned)

    def cone(self, members: Sequence[Member], parameters: Any) -> SearchCone | None:
        """Where stars are needed to solve for these members: None where nobody is aligned.

        The relative alignment is done for it, as the mission asks for stars around the positions after that.

        Raises
        ------
        PermanentError
            As `solve`; or the first member does not tell enough of its pixels.
        """
        aligned = [] if _why_nobody(members, parameters) else _started(members)
        if not aligned:
            return None
        _align_exposures(members, aligned, parameters)
        return search_cone(aligned)


def _why_nobody(members: Sequence[Member], parameters: TweakregParameters) -> str | None:
    """Why no member at all is aligned, or None."""
    if parameters.skip:
        return "tweakreg is skipped by its parameters"
    saturated = [member.id for member in members if member.status == "saturated"]
    if saturated and parameters.saturated_member == "skip_association":
        return f"{saturated[0]} is fully saturated, so no member of its association is aligned"
    return None


def _takes_part(member: Member) -> bool:
    return member.status == "ok" and member.tie_points is not None


def _started(members: Sequence[Member]) -> list[Aligned]:
    """The members that take part, before any correction, in canonical order."""
    return [Aligned.start(member.id, _read(member)) for member in members if _takes_part(member)]


def _read(member: Member) -> TiePoints:
    assert member.tie_points is not None
    points = read_tie_points(member.tie_points, member.id)
    if points.error is not None:
        raise PermanentError(f"{member.id}: the source catalog cannot be aligned: {points.error}")
    return points


def _align_exposures(members: Sequence[Member], aligned: list[Aligned], parameters: TweakregParameters) -> None:
    """Relative alignment, where there is more than one group."""
    groups: dict[str, list[Aligned]] = {}
    for one in aligned:
        if one.points.group is None:
            raise PermanentError(f"{one.id}: neither meta.group_id nor meta.observation.observation_id is known")
        groups.setdefault(one.points.group, []).append(one)
    if len(groups.keys() | _groups_without_catalog(members, aligned)) > 1:
        _align_relatively(aligned, list(groups.values()), parameters)


def _align_to_stars(aligned: list[Aligned], stars: StarList, parameters: TweakregParameters) -> str | None:
    """Absolute alignment; returns why it could not be done, or None."""
    epoch = decimal_year(aligned[0].points.start_time)
    try:
        align_to_stars(aligned, stars.at(epoch), parameters)
    except AlignmentError as error:
        log.warning("The absolute alignment failed: %s", error)
        return str(error)
    return None


def _groups_without_catalog(members: Sequence[Member], aligned: Sequence[Aligned]) -> set[str]:
    with_catalog = {one.id for one in aligned}
    return {
        str(member.facts.get("group_id") or member.facts.get("observation_id") or member.id)
        for member in members
        if member.id not in with_catalog
    }


def _align_relatively(aligned: list[Aligned], groups: list[list[Aligned]], parameters: TweakregParameters) -> None:
    """Failures are logged only: the absolute alignment runs in any case, with what was corrected until then."""
    before = [one.corners() for one in aligned]
    try:
        align_groups(groups, parameters)
    except AlignmentError as error:
        log.warning("The relative alignment stopped: %s", error)
        return
    limit = 2 * (parameters.tolerance + (parameters.searchrad if parameters.use2dhist else 0.0))
    moved = largest_move(aligned, before)
    if moved >= limit:
        log.warning("The relative alignment moved a corner by %.2f arcsec, more than %.2f: doubtful", moved, limit)
