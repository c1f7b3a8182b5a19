"""Compiled kernels for the solid angle that convex polygons on the sky have in common, for one pair or very many.

Not the polygons themselves (`stages.tweakreg.hull`). All kernels are in this file, for numba's cache does not see that
a function of another file has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Index = NDArray[np.int64]

__all__ = ["Polygons", "common_solid_angle_of", "fan", "group_overlaps", "overlaps_with", "projected", "tangent_axes"]


class Polygons(NamedTuple):
    """Polygons of several groups one behind the other, as the kernels take them."""

    group: Index
    """Number of the first polygon of each group, and the number of all (groups + 1,)."""
    start: Index
    """Number of the first vertex of each polygon, and the number of all (polygons + 1,)."""
    vertices: Array
    """Unit vectors (vertices, 3), counter-clockwise about the centre."""
    normals: Array
    """Inward normals of the edges (vertices, 3)."""
    centers: Array
    """Unit vectors (polygons, 3)."""
    radii: Array
    """Radian (polygons,)."""
    areas: Array
    """Steradian (polygons,)."""


@numba.njit(nogil=True, cache=True)
def tangent_axes(center: Array) -> Array:
    """Rotation matrix whose rows are the direction of a vector and two axes of the plane tangent there."""
    x, y, z = center[0], center[1], center[2]
    length = np.sqrt(x * x + y * y + z * z)
    x, y, z = x / length, y / length, z / length
    # across the axis that is farthest from the direction
    if abs(x) <= abs(y) and abs(x) <= abs(z):
        a, b, c = 0.0, -z, y
    elif abs(y) <= abs(z):
        a, b, c = z, 0.0, -x
    else:
        a, b, c = -y, x, 0.0
    length = np.sqrt(a * a + b * b + c * c)
    a, b, c = a / length, b / length, c / length
    axes = np.empty((3, 3))
    axes[0, 0], axes[0, 1], axes[0, 2] = x, y, z
    axes[1, 0], axes[1, 1], axes[1, 2] = a, b, c
    axes[2, 0], axes[2, 1], axes[2, 2] = y * c - z * b, z * a - x * c, x * b - y * a
    return axes


@numba.njit(nogil=True, cache=True)
def _overlap(a: Array, b: Array, axes: Array) -> float:
    """Common solid angle of convex polygons (k, 3), clipped in the plane tangent to the first of the axes."""
    subject, clip = projected(a, axes), projected(b, axes)
    if len(subject) == 0 or len(clip) == 0:
        return 0.0
    size = len(subject) + len(clip) + 1
    common = _clip(subject, clip, np.empty((size, 2)), np.empty((size, 2)))
    return fan(common) if len(common) > 2 else 0.0


@numba.njit(nogil=True, cache=True)
def projected(vertices: Array, axes: Array) -> Array:
    """Gnomonic coordinates (k, 2) of vertices (k, 3), counter-clockwise; none when one is not in front of the plane."""
    k = len(vertices)
    flat = np.empty((k, 2))
    for i in range(k):
        depth = axes[0, 0] * vertices[i, 0] + axes[0, 1] * vertices[i, 1] + axes[0, 2] * vertices[i, 2]
        if depth <= 0:
            return np.empty((0, 2))
        for j in range(2):
            row = axes[j + 1]
            flat[i, j] = (row[0] * vertices[i, 0] + row[1] * vertices[i, 1] + row[2] * vertices[i, 2]) / depth
    area = 0.0
    for i in range(k):
        following = (i + 1) % k
        area += flat[i, 0] * flat[following, 1] - flat[i, 1] * flat[following, 0]
    return flat if area >= 0 else flat[::-1].copy()


@numba.njit(nogil=True, cache=True)
def _clip(subject: Array, clip: Array, current: Array, kept: Array) -> Array:
    """The part of one convex polygon to the left of every edge of another; both (k, 2), counter-clockwise.

    It lies in one of two buffers, each with room for the vertices of both and one more.
    """
    size = len(subject) + len(clip) + 1
    count = len(subject)
    current[:count] = subject
    for edge in range(len(clip)):
        if count == 0:
            break
        x0, y0 = clip[edge]
        x1, y1 = clip[(edge + 1) % len(clip)]
        following = 0
        for k in range(count):
            ax, ay = current[k]
            bx, by = current[(k + 1) % count]
            side_a = (x1 - x0) * (ay - y0) - (y1 - y0) * (ax - x0)
            side_b = (x1 - x0) * (by - y0) - (y1 - y0) * (bx - x0)
            if side_a >= 0:
                kept[following, 0], kept[following, 1] = ax, ay
                following += 1
            if (side_a > 0 and side_b < 0) or (side_a < 0 and side_b > 0):
                t = side_a / (side_a - side_b)
                kept[following, 0], kept[following, 1] = ax + (bx - ax) * t, ay + (by - ay) * t
                following += 1
            if following >= size - 1:
                # rounding made the polygon concave: no vertex may be lost, so take what there is
                break
        current, kept, count = kept, current, following
    return current[:count]


@numba.njit(nogil=True, cache=True)
def fan(flat: Array) -> float:
    """Solid angle of a polygon in the plane, by a fan of triangles.

    A. Van Oosterom and J. Strackee 1983, IEEE Trans. Biomed. Eng. 30, 125; differences of vectors keep the product of
    three nearly parallel ones accurate. Numbers instead of small arrays: this is where most of the time would go.
    """
    total = 0.0
    ax, ay, az = _unit(flat[0, 0], flat[0, 1])
    cx, cy, cz = _unit(flat[1, 0], flat[1, 1])
    for i in range(2, len(flat)):
        bx, by, bz = cx, cy, cz
        cx, cy, cz = _unit(flat[i, 0], flat[i, 1])
        px, py, pz = bx - ax, by - ay, bz - az
        qx, qy, qz = cx - ax, cy - ay, cz - az
        triple = (py * qz - pz * qy) * ax + (pz * qx - px * qz) * ay + (px * qy - py * qx) * az
        ab, ac = ax * bx + ay * by + az * bz, ax * cx + ay * cy + az * cz
        bc = bx * cx + by * cy + bz * cz
        total += 2 * np.arctan2(triple, 1 + ab + ac + bc)
    return abs(total)


@numba.njit(nogil=True, cache=True)
def _unit(x: float, y: float) -> tuple[float, float, float]:
    length = np.sqrt(1.0 + x * x + y * y)
    return 1.0 / length, x / length, y / length


@numba.njit(nogil=True, cache=True)
def _apart(a: Array, radius_a: float, b: Array, radius_b: float) -> bool:
    """Whether circles around unit vectors have nothing in common."""
    squared = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2
    reach = radius_a + radius_b
    # a chord is no longer than its arc: most pairs need no arc
    return bool(squared > reach * reach) or bool(2 * np.arcsin(min(1.0, np.sqrt(squared) / 2)) > reach)


@numba.njit(nogil=True, cache=True)
def _holds(normals: Array, vertices: Array) -> bool:
    """Whether all vertices (k, 3) are on the inner side of all edges."""
    for i in range(len(vertices)):
        x, y, z = vertices[i]
        for j in range(len(normals)):
            if normals[j, 0] * x + normals[j, 1] * y + normals[j, 2] * z < 0:
                return False
    return True


@numba.njit(nogil=True, cache=True)
def common_solid_angle_of(a: Polygons, i: int, b: Polygons, j: int) -> float:
    """Solid angle, steradian, common to polygon i of some and polygon j of others; exactly 0.0 where there is none.

    Great circles are straight in the gnomonic projection, so the polygons are clipped there (I. E. Sutherland and
    G. W. Hodgman 1974, Communications of the ACM 17, 32). Cost: the product of the numbers of vertices, some ns each.
    """
    if _apart(a.centers[i], a.radii[i], b.centers[j], b.radii[j]):
        return 0.0
    a_vertices, b_vertices = a.vertices[a.start[i] : a.start[i + 1]], b.vertices[b.start[j] : b.start[j + 1]]
    if _holds(b.normals[b.start[j] : b.start[j + 1]], a_vertices):
        return float(a.areas[i])
    if _holds(a.normals[a.start[i] : a.start[i + 1]], b_vertices):
        return float(b.areas[j])
    return _overlap(a_vertices, b_vertices, tangent_axes(a.centers[i] + b.centers[j]))


@numba.njit(nogil=True, cache=True)
def group_overlaps(polygons: Polygons, centers: Array, radii: Array) -> Array:
    """Matrix of the solid angles that groups have in common, summed over pairs of polygons; its diagonal is zero.

    ``centers`` (n, 3) and ``radii`` (n,) are of circles around the groups. Everything near a group is projected once,
    into the plane tangent at its centre: a pair of polygons then costs its clipping alone, a microsecond.
    """
    n = len(radii)
    overlaps = np.zeros((n, n))
    flat = np.empty((len(polygons.vertices), 2))
    size = 2 * np.max(np.diff(polygons.start)) + 1
    buffers = np.empty((2, size, 2))
    for g in range(n):
        axes = tangent_axes(centers[g])
        _project_group(polygons, g, axes, flat)
        for h in range(g + 1, n):
            if _apart(centers[g], radii[g], centers[h], radii[h]):
                continue
            _project_group(polygons, h, axes, flat)
            overlaps[g, h] = overlaps[h, g] = _overlap_of_groups(polygons, g, h, flat, buffers)
    return overlaps


@numba.njit(nogil=True, cache=True)
def _project_group(polygons: Polygons, group: int, axes: Array, flat: Array) -> None:
    """Gnomonic coordinates of a group's vertices; NaN, which has no overlap, behind the plane."""
    for k in range(polygons.start[polygons.group[group]], polygons.start[polygons.group[group + 1]]):
        x, y, z = polygons.vertices[k]
        depth = axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z
        for axis in range(2):
            along = axes[axis + 1, 0] * x + axes[axis + 1, 1] * y + axes[axis + 1, 2] * z
            flat[k, axis] = along / depth if depth > 0 else np.nan


@numba.njit(nogil=True, cache=True)
def _overlap_of_groups(polygons: Polygons, g: int, h: int, flat: Array, buffers: Array) -> float:
    start, total = polygons.start, 0.0
    for i in range(polygons.group[g], polygons.group[g + 1]):
        for j in range(polygons.group[h], polygons.group[h + 1]):
            if not _apart(polygons.centers[i], polygons.radii[i], polygons.centers[j], polygons.radii[j]):
                one, other = flat[start[i] : start[i + 1]], flat[start[j] : start[j + 1]]
                common = _clip(one, other, buffers[0], buffers[1])
                if len(common) > 2:
                    total += fan(common)
    return total


@numba.njit(nogil=True, cache=True)
def overlaps_with(polygons: Polygons, groups: Index, other: Polygons, inside: NDArray[np.bool_]) -> Array:
    """Solid angle that each of some groups has in common with one polygon, summed over the group's.

    ``inside`` (polygons,) tells of polygons that are known to lie in the other one, and is brought up to date.
    """
    overlaps = np.zeros(len(groups))
    for k in range(len(groups)):
        for i in range(polygons.group[groups[k]], polygons.group[groups[k] + 1]):
            if not inside[i]:
                vertices = polygons.vertices[polygons.start[i] : polygons.start[i + 1]]
                inside[i] = _holds(other.normals, vertices)
            overlaps[k] += polygons.areas[i] if inside[i] else common_solid_angle_of(polygons, i, other, 0)
    return overlaps
