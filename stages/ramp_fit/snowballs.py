"""Expansion of snowballs: round events of large charge, whose faint halo the jump search does not see.

Regions are described and drawn by the conventions of scikit-image (``label``, ``regionprops``, ``draw.ellipse``), but
on scipy alone. Source of the method: M. Regan, "Detection and Flagging of Showers and Snowballs in JWST",
JWST-STScI-008545 (2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Ellipse", "SnowballParameters", "ellipse_mask", "find_ellipses", "flag_snowballs"]

_SATURATED = np.uint8(2)
_JUMP_DET = np.uint8(4)
_LARGEST_AXIS = 200.0


@dataclass(frozen=True, slots=True)
class SnowballParameters:
    """What counts as a snowball and how far it is expanded.

    Attributes
    ----------
    min_sat_area, min_jump_area : float
        Least area of a saturated core and of a group of jumps, pixels, holes included.
    expand_factor : float
        Factor on the minor axis; the major axis grows by as many pixels.
    sat_required_snowball : bool
        Groups of jumps without a newly saturated core are not snowballs.
    min_sat_radius_extend : float
        Cores with a longer minor axis than this (pixels) are enlarged.
    sat_expand : float
        Their axes grow by twice this, pixels.
    edge_size : float
        Within this distance of the edge (pixels) no core is needed.
    """

    min_sat_area: float = 1.0
    min_jump_area: float = 6.0
    expand_factor: float = 1.9
    sat_required_snowball: bool = True
    min_sat_radius_extend: float = 0.5
    sat_expand: float = 2
    edge_size: float = 0


class Ellipse(NamedTuple):
    """Ellipse of equal second moments: centre (pixels), full axes less one pixel, angle from the row axis (radians)."""

    x: float
    y: float
    minor: float
    major: float
    angle: float

    def grown(self, minor: float, major: float) -> Ellipse:
        """With other axes, capped at 200 pixels."""
        return self._replace(minor=min(minor, _LARGEST_AXIS), major=min(major, _LARGEST_AXIS))

    def holds(self, other: Ellipse) -> bool:
        """Whether the centre of ``other`` lies in the mirrored ellipse that the mission's pipeline tests."""
        turn = math.pi - self.angle
        dx, dy = other.x - self.x, other.y - self.y
        u = dx * math.cos(turn) - dy * math.sin(turn)
        v = dx * math.sin(turn) + dy * math.cos(turn)
        longer, shorter = max(self.major, self.minor) / 2, min(self.major, self.minor) / 2
        if longer == 0 or shorter == 0:
            return False
        return u**2 / longer**2 + v**2 / shorter**2 <= 1


def _describe(region: NDArray[np.bool_], row: int, column: int) -> Ellipse:
    ys, xs = np.nonzero(region)
    area = ys.size
    y, x = ys.sum() / area, xs.sum() / area
    # Central moments by the very operations of regionprops: the last bit of the angle decides on pixels that lie
    # exactly on the edge of a circle.
    orders = np.arange(4.0)
    of_rows = (np.arange(float(region.shape[0])) - y)[:, None] ** orders
    of_columns = (np.arange(float(region.shape[1])) - x)[:, None] ** orders
    of_region = np.einsum(region.astype(np.float64), [2, 1], of_rows, [2, 3], [3, 1], optimize="greedy")
    moments = np.einsum(of_region, [0, 2], of_columns, [2, 3], [0, 3], optimize="greedy")
    yy, xx, xy = moments[2, 0], moments[0, 2], moments[1, 1] / area
    xx, yy = ((xx + yy) - yy) / area, ((xx + yy) - xx) / area
    shorter, longer = np.linalg.eigvalsh(np.array([[xx, -xy], [-xy, yy]])).clip(0)
    angle = 0.5 * math.atan2(2 * xy, yy - xx) if xx != yy else math.copysign(math.pi / 4, xy or -1.0)
    return Ellipse(x + column, y + row, 4 * math.sqrt(shorter) - 1, 4 * math.sqrt(longer) - 1, angle)


def find_ellipses(mask: NDArray[np.bool_], min_area: float) -> list[Ellipse]:
    """8-connected regions of at least ``min_area`` pixels, holes included, in the order of their first pixel."""
    from scipy import ndimage

    eight = np.ones((3, 3))
    labels, _ = ndimage.label(mask, eight)
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        if (box[0].stop - box[0].start) * (box[1].stop - box[1].start) < min_area:
            continue
        region = labels[box] == number
        if ndimage.binary_fill_holes(region, eight).sum() >= min_area:
            found.append(_describe(region, box[0].start, box[1].start))
    return found


def ellipse_mask(ellipse: Ellipse, shape: tuple[int, int]) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Pixels strictly inside an ellipse whose centre and semi-axes are rounded half to even.

    Returns
    -------
    window : tuple of slices
        Part of a frame of ``shape`` that holds the ellipse.
    inside : bool array over the window
        All False if a semi-axis rounds to zero.
    """
    row_radius, column_radius = round(ellipse.major / 2), round(ellipse.minor / 2)
    y, x = round(ellipse.y), round(ellipse.x)
    reach = max(row_radius, column_radius, 0) + 2
    window = (
        slice(max(y - reach, 0), max(min(y + reach + 1, shape[0]), 0)),
        slice(max(x - reach, 0), max(min(x + reach + 1, shape[1]), 0)),
    )
    rows = np.arange(window[0].start, window[0].stop)[:, None] - y
    columns = np.arange(window[1].start, window[1].stop)[None, :] - x
    if row_radius == 0 or column_radius == 0:
        return window, np.zeros((rows.shape[0], columns.shape[1]), dtype=bool)
    turn = ellipse.angle % math.pi
    sine, cosine = math.sin(turn), math.cos(turn)
    along = (rows * cosine + columns * sine) / row_radius
    across = (rows * sine - columns * cosine) / column_radius
    return window, along**2 + across**2 < 1


def flag_snowballs(groupdq: NDArray[np.uint8], parameters: SnowballParameters) -> None:
    """Expand snowballs, resultant by resultant, in place.

    Parameters
    ----------
    groupdq : (n, R, C) u1 array
        With JUMP_DET from the jump search. Receives JUMP_DET in expanded snowballs where not saturated; inside enlarged
        cores it becomes SATURATED, all other bits erased, from that resultant on.
    parameters : SnowballParameters
    """
    n = groupdq.shape[0]
    for k in range(1, n):
        jumps = find_ellipses((groupdq[k] & _JUMP_DET) != 0, parameters.min_jump_area)
        if not parameters.sat_required_snowball:
            snowballs = jumps
        else:
            cores = _new_cores(groupdq, k, parameters)
            later = _new_cores(groupdq, k + 1, parameters) if k < n - 1 else []
            snowballs = [
                jump
                for jump in jumps
                if _at_edge(jump, groupdq.shape[1], parameters.edge_size)
                or any(jump.holds(core) for core in (*cores, *later))
            ]
            for core in cores:
                if core.minor > parameters.min_sat_radius_extend:
                    growth = 2 * parameters.sat_expand
                    grown = core.grown(core.minor + growth, core.major + growth)
                    window, inside = ellipse_mask(grown, groupdq.shape[1:])
                    groupdq[k:, *window][:, inside] = _SATURATED
        for snowball in snowballs:
            growth = (parameters.expand_factor - 1) * snowball.minor
            grown = snowball.grown(snowball.minor * parameters.expand_factor, snowball.major + growth)
            window, inside = ellipse_mask(grown, groupdq.shape[1:])
            plane = groupdq[k, *window]
            plane[inside & ((plane & _SATURATED) == 0)] |= _JUMP_DET


def _new_cores(groupdq: NDArray[np.uint8], k: int, parameters: SnowballParameters) -> list[Ellipse]:
    fresh = ((groupdq[k] & _SATURATED) != 0) & ((groupdq[k - 1] & _SATURATED) == 0)
    return find_ellipses(fresh, parameters.min_sat_area)


def _at_edge(ellipse: Ellipse, rows: int, edge: float) -> bool:
    return min(ellipse.x, ellipse.y) < edge or max(ellipse.x, ellipse.y) > rows - edge
