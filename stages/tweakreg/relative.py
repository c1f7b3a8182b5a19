"""Relative alignment: groups of members one after the other to the sources of a reference group.

Differs from the field's library in one place: when a group's list is expanded after success, sources of a member behind
one without sources keep their own WCS (the library takes an earlier member's).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from stages.tweakreg.fit import SUCCESS, Aligned, align_group
from stages.tweakreg.hull import SkyPolygon, bounding_circle, common_solid_angle, hull_of_stars
from stages.tweakreg.matching import AlignmentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stages.tweakreg.parameters import TweakregParameters

    Array = NDArray[np.float64]

__all__ = ["align_groups", "largest_move"]

log = logging.getLogger("stages.tweakreg")

REFERENCE = "REFERENCE"


class _Group:
    """Members that keep their places relative to each other, with their polygons on the sky before the alignment."""

    def __init__(self, members: Sequence[Aligned]) -> None:
        self.members = members
        self.polygons: list[SkyPolygon] = []
        self.centers, self.radii = np.zeros((0, 3)), np.zeros(0)
        self.center = np.zeros(3)
        self.radius = 0.0

    def __len__(self) -> int:
        return sum(len(member.points.positions) for member in self.members)

    def outline(self) -> None:
        """Note where the group is now: not repeated when it moves."""
        self.polygons = [SkyPolygon(m.plane.detector_to_sky(m.points.hull)) for m in self.members]
        self.centers = np.array([polygon.center for polygon in self.polygons])
        self.radii = np.array([polygon.radius for polygon in self.polygons])
        self.center, self.radius = bounding_circle(self.polygons)

    def sky(self) -> Array:
        """Unit vectors (3, n) of all sources."""
        vectors = np.hstack([member.sky() for member in self.members])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=0))

    def overlap(self, other: _Group) -> float:
        """Solid angle, steradian, common to two groups, summed over pairs of polygons."""
        distance = 2 * np.arcsin(min(1.0, float(np.linalg.norm(self.center - other.center)) / 2))
        if distance > self.radius + other.radius:
            return 0.0
        gaps = np.linalg.norm(self.centers[:, None] - other.centers[None], axis=2)
        close = 2 * np.arcsin(np.minimum(1.0, gaps / 2)) <= self.radii[:, None] + other.radii
        return sum(common_solid_angle(self.polygons[i], other.polygons[j]) for i, j in np.argwhere(close))

    def overlap_with(self, polygon: SkyPolygon) -> float:
        """The same with one polygon."""
        return sum(common_solid_angle(own, polygon) for own in self.polygons)


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
    reference, current, overlap, waiting = _first_pair(waiting, in_order=in_order)
    for member in reference.members:
        member.fit_info = {"status": REFERENCE}
    stars = reference.sky()
    outline = stars
    noted: float | None = overlap
    while True:
        matched = align_group(current.members, stars, None, parameters.relative)
        if parameters.expands and (_succeeded(current) or not noted):
            added = current.sky()[:, ~matched]
            stars = np.hstack([stars, added])
            outline = np.hstack([outline, added])
        if not waiting:
            return
        if in_order:
            current, noted = waiting.pop(0), None
            continue
        hull = hull_of_stars(outline)
        if outline.shape[1] > 2:
            outline = hull.vectors  # the hull of a hull and new sources is the hull of all
        areas = [group.overlap_with(hull) for group in waiting]
        best = int(np.argmax(areas))
        current, noted = waiting.pop(best), areas[best]


def _succeeded(group: _Group) -> bool:
    return bool(group.members[-1].fit_info["status"] == SUCCESS)


def _first_pair(groups: list[_Group], *, in_order: bool) -> tuple[_Group, _Group, float, list[_Group]]:
    """Reference group, the one aligned first, the overlap noted for it, and the rest in the order of the list."""
    for group in groups:
        group.outline()
    if len(groups) == 2 or in_order:
        return groups[0], groups[1], groups[0].overlap(groups[1]), groups[2:]
    n = len(groups)
    overlaps = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            overlaps[i, j] = overlaps[j, i] = groups[i].overlap(groups[j])
    i, j = (int(k) for k in np.unravel_index(overlaps.argmax(), overlaps.shape))
    if i == j:  # nothing overlaps
        j = 1
    elif overlaps[i].sum() < overlaps[j].sum():
        i, j = j, i
    # parity: for i < j the library looks one column too far left
    noted = float(overlaps[i, j - 1] if i < j else overlaps[i, j])
    rest = [k for k in range(n) if k not in (i, j)]
    order = np.argsort(overlaps[i, rest], kind="stable")[::-1]
    return groups[i], groups[j], noted, [groups[rest[k]] for k in order]


def largest_move(members: Sequence[Aligned], before: Sequence[Array]) -> float:
    """Largest distance, arcsec, of a bounding box corner from where it was ``before`` (unit vectors (3, 4) each)."""
    moves = [
        np.max(np.linalg.norm(member.corners() - corners, axis=0))
        for member, corners in zip(members, before, strict=True)
    ]
    return float(np.rad2deg(2 * np.arcsin(max(moves) / 2)) * 3600) if moves else 0.0
