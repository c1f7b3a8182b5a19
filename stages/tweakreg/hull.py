"""Polygons around sources and their common solid angle. Decides the order of the relative alignment, no position."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["SkyPolygon", "bounding_circle", "bounding_hull", "common_solid_angle", "convex_hull", "hull_of_stars"]

HUGE_BOX = 0.5
"""Half side, in units of the tangent plane (radian), of the box that the field's library puts around one or two
reference sources."""


def convex_hull(points: Array) -> Array:
    """Vertices (k, 2) of the convex hull, counter-clockwise from the lexicographically smallest; k < 3 if degenerate.

    Andrew's monotone chain (A. M. Andrew 1979, Information Processing Letters 9, 216).
    """
    unique = np.unique(_extreme_points(points), axis=0)
    if len(unique) < 3:
        return unique
    ordered: list[tuple[float, float]] = [(float(x), float(y)) for x, y in unique]

    def chain(sequence: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        hull: list[tuple[float, float]] = []
        for p in sequence:
            while len(hull) >= 2 and _cross(hull[-2], hull[-1], p) <= 0:
                hull.pop()
            hull.append(p)
        return hull

    return np.array(chain(ordered)[:-1] + chain(ordered[::-1])[:-1])


def _cross(o: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    return (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0])


def _extreme_points(points: Array) -> Array:
    """The points without those inside the octagon of extremes: sorting is slow, and the chain is pure Python."""
    if len(points) < 200:
        return points
    x, y = points[:, 0], points[:, 1]
    corners = [x.argmin(), (x + y).argmin(), y.argmin(), (x - y).argmax(), x.argmax(), (x + y).argmax(), y.argmax()]
    octagon = points[[*corners, (x - y).argmin()]]
    inside = np.ones(len(points), dtype=bool)
    for a, b in zip(octagon, np.roll(octagon, -1, axis=0), strict=True):
        inside &= (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) > 0
    return np.asarray(points[~inside])


def bounding_hull(pixels: Array, box: list[list[float]]) -> Array:
    """Polygon (k, 2), pixel, around the sources of a detector.

    The convex hull; for few or collinear sources the smallest rectangle half a pixel around them, or, where that leaves
    the detector, one along its axes; without sources the detector (centres of its outermost pixels).
    """
    (xmin, xmax), (ymin, ymax) = box
    if len(pixels) == 0:
        x0, x1, y0, y1 = xmin + 0.5, xmax - 0.5, ymin + 0.5, ymax - 0.5
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    hull = convex_hull(pixels)
    if len(pixels) > 3 and len(hull) > 2:
        return hull
    rectangle = _smallest_rectangle(hull)
    low, high = rectangle.min(axis=0), rectangle.max(axis=0)
    if low[0] < xmin or high[0] > xmax or low[1] < ymin or high[1] > ymax:
        low = np.clip(pixels.min(axis=0) - 0.5, [xmin, ymin], [xmax - 1, ymax - 1])
        high = np.clip(pixels.max(axis=0) + 0.5, low + 1, [xmax, ymax])
        return np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
    return rectangle


def _smallest_rectangle(hull: Array) -> Array:
    """Rectangle of least area along one of the edges, half a pixel around the points."""
    edges = np.diff(np.vstack([hull, hull[:1]]), axis=0) if len(hull) > 1 else np.array([[1.0, 0.0]])
    best, best_area = hull, np.inf
    for edge in edges:
        u = edge / np.hypot(*edge)
        axes = np.array([u, [-u[1], u[0]]])
        along = hull @ axes.T
        low, high = along.min(axis=0) - 0.5, along.max(axis=0) + 0.5
        area = float(np.prod(high - low))
        if area < best_area:
            best, best_area = np.array([low, [high[0], low[1]], high, [low[0], high[1]]]) @ axes, area
    return best


class SkyPolygon:
    """A convex polygon of great circles, smaller than a hemisphere.

    Parameters
    ----------
    vectors : ndarray (3, k)
        Vertices, of any length.
    """

    __slots__ = ("area", "center", "normals", "radius", "vectors")

    def __init__(self, vectors: Array) -> None:
        self.vectors: Array = vectors / np.linalg.norm(vectors, axis=0)
        mean = self.vectors.mean(axis=1)
        self.center: Array = mean / np.linalg.norm(mean)
        # the vertices of a convex polygon smaller than a hemisphere hold its farthest point
        self.radius = float(np.max(_angle(self.vectors, self.center)))
        self.area = float(_fan(_projected(self.vectors, _tangent_axes(self.center))))
        normals = np.cross(self.vectors.T, np.roll(self.vectors.T, -1, axis=0))
        self.normals: Array = normals * np.sign(normals @ self.center)[:, None]

    def holds(self, other: SkyPolygon) -> bool:
        """Whether the other polygon lies inside this one."""
        return bool(np.all(self.normals @ other.vectors >= 0))


def _angle(vectors: Array, center: Array) -> Array:
    return np.asarray(2 * np.arcsin(np.clip(np.linalg.norm(vectors - center[:, None], axis=0) / 2, 0, 1)))


def common_solid_angle(a: SkyPolygon, b: SkyPolygon) -> float:
    """Solid angle, steradian, of the intersection; exactly 0.0 where there is none.

    Great circles are straight in the gnomonic projection, so the polygons are clipped there (I. E. Sutherland and
    G. W. Hodgman 1974, Communications of the ACM 17, 32).
    """
    distance = 2 * math.asin(min(1.0, math.dist(a.center.tolist(), b.center.tolist()) / 2))
    if distance > a.radius + b.radius:
        return 0.0
    for inner, outer in ((a, b), (b, a)):
        if outer.holds(inner):
            return inner.area
    return float(_overlap(a.vectors, b.vectors, _tangent_axes(a.center + b.center)))


@numba.njit(nogil=True, cache=True)
def _tangent_axes(center: Array) -> Array:
    """Rotation matrix whose rows are the direction of a vector and two axes of the plane tangent there."""
    axes = np.empty((3, 3))
    normal = axes[0]
    normal[:] = center / np.sqrt(np.sum(center * center))
    smallest = np.argmin(np.abs(normal))
    helper = np.zeros(3)
    helper[smallest] = 1.0
    _cross_product(helper, normal, axes[1])
    axes[1] /= np.sqrt(np.sum(axes[1] * axes[1]))
    _cross_product(normal, axes[1], axes[2])
    return axes


@numba.njit(nogil=True, cache=True)
def _cross_product(a: Array, b: Array, out: Array) -> None:
    out[0] = a[1] * b[2] - a[2] * b[1]
    out[1] = a[2] * b[0] - a[0] * b[2]
    out[2] = a[0] * b[1] - a[1] * b[0]


@numba.njit(nogil=True, cache=True)
def _overlap(a: Array, b: Array, axes: Array) -> float:
    """Common solid angle of convex polygons (3, k), clipped in the plane tangent to the first of the axes."""
    subject, clip = _projected(a, axes), _projected(b, axes)
    if len(subject) == 0 or len(clip) == 0:
        return 0.0
    common = _clip(subject, clip)
    return _fan(common) if len(common) > 2 else 0.0


@numba.njit(nogil=True, cache=True)
def _projected(vectors: Array, axes: Array) -> Array:
    """Gnomonic coordinates (k, 2), counter-clockwise; none when a vertex is not in front of the plane."""
    k = vectors.shape[1]
    flat = np.empty((k, 2))
    for i in range(k):
        depth = axes[0, 0] * vectors[0, i] + axes[0, 1] * vectors[1, i] + axes[0, 2] * vectors[2, i]
        if depth <= 0:
            return np.empty((0, 2))
        for j in range(2):
            row = axes[j + 1]
            flat[i, j] = (row[0] * vectors[0, i] + row[1] * vectors[1, i] + row[2] * vectors[2, i]) / depth
    area = 0.0
    for i in range(k):
        following = (i + 1) % k
        area += flat[i, 0] * flat[following, 1] - flat[i, 1] * flat[following, 0]
    return flat if area >= 0 else flat[::-1].copy()


@numba.njit(nogil=True, cache=True)
def _clip(subject: Array, clip: Array) -> Array:
    """The part of one convex polygon to the left of every edge of another; both (k, 2), counter-clockwise."""
    size = len(subject) + len(clip) + 1
    current, kept = np.empty((size, 2)), np.empty((size, 2))
    count = len(subject)
    current[:count] = subject
    for edge in range(len(clip)):
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
    return current[:count].copy()


@numba.njit(nogil=True, cache=True)
def _fan(flat: Array) -> float:
    """Solid angle of a polygon in the plane, by a fan of triangles.

    A. Van Oosterom and J. Strackee 1983, IEEE Trans. Biomed. Eng. 30, 125; differences of vectors keep the product of
    three nearly parallel ones accurate.
    """
    units = np.empty((len(flat), 3))
    for i in range(len(flat)):
        units[i, 0], units[i, 1], units[i, 2] = 1.0, flat[i, 0], flat[i, 1]
        units[i] /= np.sqrt(np.sum(units[i] * units[i]))
    normal = np.empty(3)
    total = 0.0
    a = units[0]
    for i in range(1, len(flat) - 1):
        b, c = units[i], units[i + 1]
        _cross_product(b - a, c - a, normal)
        total += 2 * np.arctan2(np.sum(normal * a), 1 + np.sum(a * b) + np.sum(a * c) + np.sum(b * c))
    return abs(total)


def bounding_circle(polygons: Sequence[SkyPolygon]) -> tuple[Array, float]:
    """Centre (unit vector) and radius (radian) of a circle around several polygons."""
    center = np.mean([polygon.center for polygon in polygons], axis=0)
    center /= np.linalg.norm(center)
    return center, max(float(np.max(_angle(polygon.vectors, center))) for polygon in polygons)


def hull_of_stars(vectors: Array) -> SkyPolygon:
    """Convex hull on the sky of reference sources, unit vectors (3, n)."""
    axes = _tangent_axes(vectors.mean(axis=1))
    x, y, z = axes @ vectors
    hull = convex_hull(np.column_stack([y / x, z / x]))
    if len(hull) == 1:
        hull = hull + HUGE_BOX * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    elif len(hull) == 2:
        along = (hull[1] - hull[0]) / np.hypot(*(hull[1] - hull[0])) * HUGE_BOX
        across = np.array([-along[1], along[0]])
        hull = np.array(
            [hull[0] - along - across, hull[1] + along - across, hull[1] + along + across, hull[0] - along + across]
        )
    return SkyPolygon(axes.T @ np.vstack([np.ones(len(hull)), hull.T]))
