"""Polygons around sources and their common solid angle. Decides the order of the relative alignment, no position.

The kernels that clip polygons and measure what is left are `stages.tweakreg.solid_angle`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.tweakreg.solid_angle import Polygons, common_solid_angle_of, fan, projected, tangent_axes
from stages.tweakreg.tangent_plane import lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = [
    "SkyPolygon",
    "bounding_circle",
    "bounding_hull",
    "common_solid_angle",
    "convex_hull",
    "flat_hull",
    "hull_of_stars",
    "packed",
    "polygon_around",
]

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

    __slots__ = ("area", "center", "normals", "radius", "vectors", "vertices")

    def __init__(self, vectors: Array) -> None:
        self.vectors: Array = vectors / lengths(vectors)
        mean = self.vectors.mean(axis=1)
        self.center: Array = mean / np.linalg.norm(mean)
        # the vertices of a convex polygon smaller than a hemisphere hold its farthest point
        self.radius = float(np.max(_angle(self.vectors, self.center)))
        self.vertices: Array = np.ascontiguousarray(self.vectors.T)
        normals = _normals(self.vertices)
        if np.sum(normals @ self.center) < 0:  # clockwise
            self.vertices = np.ascontiguousarray(self.vertices[::-1])
            normals = _normals(self.vertices)
        self.area = float(fan(projected(self.vertices, tangent_axes(self.center))))
        self.normals: Array = normals * np.sign(normals @ self.center)[:, None]

    def holds(self, vectors: Array) -> NDArray[np.bool_]:
        """Which of some vectors (3, n) lie inside."""
        return np.asarray(np.all(self.normals @ vectors >= 0, axis=0))


def _normals(vertices: Array) -> Array:
    """Of the edges; np.cross would take most of the time that polygons take."""
    x, y, z = vertices.T
    u, v, w = np.concatenate([vertices[1:], vertices[:1]]).T
    return np.column_stack([y * w - z * v, z * u - x * w, x * v - y * u])


def _angle(vectors: Array, center: Array) -> Array:
    return np.asarray(2 * np.arcsin(np.clip(lengths(vectors - center[:, None]) / 2, 0, 1)))


def packed(groups: Sequence[Sequence[SkyPolygon]]) -> Polygons:
    """Polygons of several groups as the kernels take them."""
    polygons = [polygon for group in groups for polygon in group]
    return Polygons(
        group=np.cumsum([0, *(len(group) for group in groups)]),
        start=np.cumsum([0, *(len(polygon.vertices) for polygon in polygons)]),
        vertices=np.concatenate([polygon.vertices for polygon in polygons]),
        normals=np.concatenate([polygon.normals for polygon in polygons]),
        centers=np.array([polygon.center for polygon in polygons]),
        radii=np.array([polygon.radius for polygon in polygons]),
        areas=np.array([polygon.area for polygon in polygons]),
    )


def common_solid_angle(a: SkyPolygon, b: SkyPolygon) -> float:
    """Solid angle, steradian, of the intersection; exactly 0.0 where there is none."""
    return float(common_solid_angle_of(packed([[a]]), 0, packed([[b]]), 0))


def bounding_circle(polygons: Sequence[SkyPolygon]) -> tuple[Array, float]:
    """Centre (unit vector) and radius (radian) of a circle around several polygons."""
    center = np.mean([polygon.center for polygon in polygons], axis=0)
    center /= np.linalg.norm(center)
    return center, max(float(np.max(_angle(polygon.vectors, center))) for polygon in polygons)


def flat_hull(vectors: Array) -> tuple[Array, Array]:
    """Axes of a plane tangent amid unit vectors (3, n), and the vertices (k, 2) of their convex hull in it."""
    axes = tangent_axes(vectors.mean(axis=1))
    x, y, z = axes @ vectors
    return axes, convex_hull(np.column_stack([y / x, z / x]))


def polygon_around(axes: Array, hull: Array) -> SkyPolygon:
    """The polygon on the sky of a `flat_hull`; a huge one where the hull is a point or a line."""
    if len(hull) == 1:
        hull = hull + HUGE_BOX * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    elif len(hull) == 2:
        along = (hull[1] - hull[0]) / np.hypot(*(hull[1] - hull[0])) * HUGE_BOX
        across = np.array([-along[1], along[0]])
        hull = np.array(
            [hull[0] - along - across, hull[1] + along - across, hull[1] + along + across, hull[0] - along + across]
        )
    return SkyPolygon(axes.T @ np.vstack([np.ones(len(hull)), hull.T]))


def hull_of_stars(vectors: Array) -> SkyPolygon:
    """Convex hull on the sky of reference sources, unit vectors (3, n)."""
    return polygon_around(*flat_hull(vectors))
