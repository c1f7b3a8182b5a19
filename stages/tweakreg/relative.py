"""Relative alignment: groups of members one after the other to the sources of a reference group.

Differs from the field's library in one place: when a group's list is expanded after success, sources of a member behind
one without sources keep their own WCS (the library takes an earlier member's).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.tweakreg.fit import SUCCESS, Aligned, align_group
from stages.tweakreg.hull import SkyPolygon, bounding_circle, flat_hull, packed, polygon_around
from stages.tweakreg.matching import AlignmentError
from stages.tweakreg.solid_angle import group_overlaps, overlaps_with
from stages.tweakreg.tangent_plane import lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stages.tweakreg.parameters import TweakregParameters

    Array = NDArray[np.float64]

__all__ = ["align_groups", "largest_move"]

log = logging.getLogger("stages.tweakreg")

REFERENCE = "REFERENCE"


class _Group:
    """Members that keep their places relative to each other."""

    def __init__(self, members: Sequence[Aligned]) -> None:
        self.members = members

    def __len__(self) -> int:
        return sum(len(member.points.positions) for member in self.members)

    def polygons(self) -> list[SkyPolygon]:
        """Where the members are now."""
        return [SkyPolygon(m.plane.detector_to_sky(m.points.hull)) for m in self.members]

    def sky(self) -> Array:
        """Unit vectors (3, n) of all sources."""
        vectors = np.hstack([member.sky() for member in self.members])
        return np.asarray(vectors / lengths(vectors))


class _Outlines:
    """Polygons of all groups before the alignment: not repeated when a group moves."""

    def __init__(self, groups: Sequence[_Group]) -> None:
        polygons = [group.polygons() for group in groups]
        circles = [bounding_circle(of_group) for of_group in polygons]
        self._centers, self._radii = np.array([center for center, _ in circles]), np.array([r for _, r in circles])
        self._polygons = packed(polygons)
        self._inside = np.zeros(len(self._polygons.radii), dtype=bool)

    def overlaps(self) -> Array:
        """Matrix of solid angles, steradian, common to two groups, summed over pairs of polygons."""
        return np.asarray(group_overlaps(self._polygons, self._centers, self._radii))

    def overlaps_with(self, hull: SkyPolygon, groups: Sequence[int], *, grown: bool) -> Array:
        """The same of some groups with one polygon; ``grown`` when it holds all that earlier ones held."""
        if not grown:
            self._inside[:] = False
        return np.asarray(overlaps_with(self._polygons, np.array(groups), packed([[hull]]), self._inside))


class _Reach:
    """The convex hull of a growing list of reference sources, and how much of each waiting group lies in it.

    Few sources lie outside the hull of those before, so it seldom changes; and what lies in it stays there.
    """

    def __init__(self, stars: Array, outlines: _Outlines) -> None:
        self._outlines = outlines
        self._corners = stars
        self._hull: SkyPolygon | None = None
        self._overlaps: dict[int, float] = {}

    def add(self, stars: Array) -> None:
        """Take more sources, unit vectors (3, n), into the list."""
        outside = stars if self._hull is None else stars[:, ~self._hull.holds(stars)]
        if outside.shape[1]:
            self._corners = np.hstack([self._corners, outside])
            self._overlaps.clear()

    def overlaps(self, groups: Sequence[int]) -> list[float]:
        """Solid angle, steradian, that each of some groups has in common with the hull."""
        if not self._overlaps:
            grown = self._hull is not None
            axes, flat = flat_hull(self._corners)
            hull = polygon_around(axes, flat)
            # the hull of a hull and new sources is the hull of all; the box around a point or a line is no hull
            self._hull, self._corners = (hull, hull.vectors) if len(flat) > 2 else (None, self._corners)
            found = self._outlines.overlaps_with(hull, groups, grown=grown)
            self._overlaps = dict(zip(groups, found.tolist(), strict=True))
        return [self._overlaps[group] for group in groups]


def align_groups(groups: Sequence[Sequence[Aligned]], parameters: TweakregParameters) -> None:
    """Align groups to each other; corrects the members and leaves the outcome in their ``fit_info``.

    Parameters
    ----------
    groups : sequence of sequences of Aligned
        In order of first appearance.
    parameters : TweakregParameters

    Raises
    ------
    AlignmentError
        Fewer than two groups have sources, or the matching or a fit failed; groups aligned until then stay moved.
    """
    waiting = []
    for members in groups:
        group = _Group(members)
        if len(group) == 0:
            for member in members:
                member.fit_info = {"status": "FAILED: empty source catalog"}
        else:
            waiting.append(group)
    if len(waiting) < 2:
        raise AlignmentError("at least two groups with sources are needed for the relative alignment")
    in_order = parameters.enforce_user_order or not parameters.expands
    outlines = _Outlines(waiting[:2] if in_order else waiting)
    order = _first_pair(outlines.overlaps(), len(waiting), in_order=in_order)
    reference, current = waiting[order.reference], waiting[order.first]
    for member in reference.members:
        member.fit_info = {"status": REFERENCE}
    stars = reference.sky()
    reach = None if in_order else _Reach(stars, outlines)
    noted: float | None = order.noted
    rest = list(order.rest)
    while True:
        matched = align_group(current.members, stars, None, parameters.relative)
        if parameters.expands and (_succeeded(current) or not noted):
            added = current.sky()[:, ~matched]
            stars = np.hstack([stars, added])
            if reach is not None:
                reach.add(added)
        if not rest:
            return
        if reach is None:
            current, noted = waiting[rest.pop(0)], None
            continue
        areas = reach.overlaps(rest)
        best = int(np.argmax(areas))
        current, noted = waiting[rest.pop(best)], areas[best]


def _succeeded(group: _Group) -> bool:
    return bool(group.members[-1].fit_info["status"] == SUCCESS)


@dataclass(frozen=True, slots=True)
class _Order:
    """Numbers of the reference group, of the one aligned first, and of the rest in the order of the list."""

    reference: int
    first: int
    rest: list[int]
    noted: float
    """Overlap that the library notes for the one aligned first."""


def _first_pair(overlaps: Array, count: int, *, in_order: bool) -> _Order:
    """Order of so many groups by their matrix of overlaps, of which only the first two are asked for ``in_order``."""
    if count == 2 or in_order:
        return _Order(0, 1, list(range(2, count)), float(overlaps[0, 1]))
    i, j = (int(k) for k in np.unravel_index(overlaps.argmax(), overlaps.shape))
    if i == j:  # nothing overlaps
        j = 1
    elif overlaps[i].sum() < overlaps[j].sum():
        i, j = j, i
    # parity: for i < j the library looks one column too far left
    noted = float(overlaps[i, j - 1] if i < j else overlaps[i, j])
    rest = [k for k in range(count) if k not in (i, j)]
    order = np.argsort(overlaps[i, rest], kind="stable")[::-1]
    return _Order(i, j, [rest[k] for k in order], noted)


def largest_move(members: Sequence[Aligned], before: Sequence[Array]) -> float:
    """Largest distance, arcsec, of a bounding box corner from where it was ``before`` (unit vectors (3, 4) each)."""
    moves = [np.max(lengths(member.corners() - corners)) for member, corners in zip(members, before, strict=True)]
    return float(np.rad2deg(2 * np.arcsin(max(moves) / 2)) * 3600) if moves else 0.0
