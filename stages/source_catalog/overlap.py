"""Exact overlap of a pixel with a circle or an ellipse. Nothing else."""

from __future__ import annotations

from math import atan2, sqrt

from numba import njit

__all__ = ["circle_pixel_overlap", "ellipse_pixel_overlap", "ellipse_reach"]


HALF_DIAGONAL = 0.7071067811865476


@njit(nogil=True, cache=True, inline="always")
def _sector(x0, y0, x1, y1):  # type: ignore[no-untyped-def]
    """Signed area of the unit circle's sector between two directions."""
    return 0.5 * atan2(x0 * y1 - y0 * x1, x0 * x1 + y0 * y1)


@njit(nogil=True, cache=True)
def _edge(x0, y0, x1, y1):  # type: ignore[no-untyped-def]
    """Signed area of the unit circle within the triangle from its centre to an edge (Green's theorem)."""
    dx, dy = x1 - x0, y1 - y0
    a = dx * dx + dy * dy
    b = x0 * dx + y0 * dy
    discriminant = b * b - a * (x0 * x0 + y0 * y0 - 1.0)
    if discriminant <= 0.0:
        return _sector(x0, y0, x1, y1)
    root = sqrt(discriminant)
    enter, leave = (-b - root) / a, (-b + root) / a
    if leave <= 0.0 or enter >= 1.0:
        return _sector(x0, y0, x1, y1)
    area = 0.0
    xa, ya, xb, yb = x0, y0, x1, y1
    if enter > 0.0:
        xa, ya = x0 + enter * dx, y0 + enter * dy
        area += _sector(x0, y0, xa, ya)
    if leave < 1.0:
        xb, yb = x0 + leave * dx, y0 + leave * dy
        area += _sector(xb, yb, x1, y1)
    return area + 0.5 * (xa * yb - ya * xb)


@njit(nogil=True, cache=True)
def ellipse_reach(a, b, cosine, sine):  # type: ignore[no-untyped-def]
    """Half width and half height of the ellipse's bounding box."""
    return sqrt((a * cosine) ** 2 + (b * sine) ** 2), sqrt((a * sine) ** 2 + (b * cosine) ** 2)


@njit(nogil=True, cache=True)
def ellipse_pixel_overlap(dx, dy, a, b, cosine, sine):  # type: ignore[no-untyped-def]
    """Area of the unit pixel centred at (dx, dy) from the ellipse's centre that lies within the ellipse.

    The pixel becomes a parallelogram in coordinates in which the ellipse is the unit circle.

    Parameters
    ----------
    dx, dy : float
        Pixel centre minus ellipse centre.
    a, b : float
        Semi-axes, pixels.
    cosine, sine : float
        Of the angle from the x axis to the axis ``a``.
    """
    ux, uy = 0.5 * cosine / a, -0.5 * sine / b
    vx, vy = 0.5 * sine / a, 0.5 * cosine / b
    cx, cy = (dx * cosine + dy * sine) / a, (dy * cosine - dx * sine) / b
    # The corners' distances are |c ± u ± v|; bounding circles decide most pixels.
    px, py, mx, my = ux + vx, uy + vy, ux - vx, uy - vy
    reach = sqrt(max(px * px + py * py, mx * mx + my * my))
    distance = sqrt(cx * cx + cy * cy)
    if distance >= 1.0 + reach:
        return 0.0
    if distance <= 1.0 - reach:
        return 1.0
    inside = (
        (cx + px) ** 2 + (cy + py) ** 2 <= 1.0
        and (cx - px) ** 2 + (cy - py) ** 2 <= 1.0
        and (cx + mx) ** 2 + (cy + my) ** 2 <= 1.0
        and (cx - mx) ** 2 + (cy - my) ** 2 <= 1.0
    )
    if inside:
        return 1.0
    x0, y0 = cx - px, cy - py
    x1, y1 = cx + mx, cy + my
    x2, y2 = cx + px, cy + py
    x3, y3 = cx - mx, cy - my
    area = _edge(x0, y0, x1, y1) + _edge(x1, y1, x2, y2) + _edge(x2, y2, x3, y3) + _edge(x3, y3, x0, y0)
    # A tiny positive area that is rounding alone would let an untouched pixel count as used.
    return area * a * b if area * a * b > 1e-12 else 0.0


@njit(nogil=True, cache=True)
def circle_pixel_overlap(dx, dy, radius):  # type: ignore[no-untyped-def]
    """`ellipse_pixel_overlap` of a circle: pixels that the edge cannot reach are decided by their distance alone."""
    distance = dx * dx + dy * dy
    if radius > HALF_DIAGONAL and distance <= (radius - HALF_DIAGONAL) ** 2:
        return 1.0
    near_x, near_y = max(abs(dx) - 0.5, 0.0), max(abs(dy) - 0.5, 0.0)
    if near_x * near_x + near_y * near_y >= radius * radius:
        return 0.0
    return _circle_edge_overlap(dx, dy, radius)


@njit(nogil=True, cache=True)
def _circle_edge_overlap(dx, dy, radius):  # type: ignore[no-untyped-def]
    """Overlap from areas between the axes and the pixel's sides."""
    # By symmetry the pixel's centre may lie in the first quadrant.
    x0, x1 = abs(dx) - 0.5, abs(dx) + 0.5
    y0, y1 = abs(dy) - 0.5, abs(dy) + 0.5
    area = _quadrant(x1, y1, radius) - _quadrant(x0, y1, radius) - _quadrant(x1, y0, radius) + _quadrant(x0, y0, radius)
    return max(area, 0.0)


@njit(nogil=True, cache=True)
def _quadrant(x, y, radius):  # type: ignore[no-untyped-def]
    """Signed area of the circle's part between the axes and the lines at x and y (odd in both)."""
    sign = 1.0
    if x < 0.0:
        x, sign = -x, -sign
    if y < 0.0:
        y, sign = -y, -sign
    x, y = min(x, radius), min(y, radius)
    if x * x + y * y <= radius * radius:
        return sign * x * y
    # Rectangle up to where the arc leaves y, then under the arc to x.
    xa = sqrt(radius * radius - y * y)
    yb = sqrt(radius * radius - x * x)
    angle = atan2(x * y - xa * yb, xa * x + y * yb)  # from (x, yb) to (xa, y)
    return sign * 0.5 * (xa * y + x * yb + radius * radius * angle)
