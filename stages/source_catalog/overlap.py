"""Exact overlap of a pixel with a circle or an ellipse. Nothing else."""

from __future__ import annotations

from math import atan2, sqrt

from numba import njit

__all__ = ["ellipse_pixel_overlap", "ellipse_reach"]


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
    # The corners' distances are |c ± u ± v|; the far ones decide "inside", a bounding circle decides "outside".
    px, py, mx, my = ux + vx, uy + vy, ux - vx, uy - vy
    reach = max(px * px + py * py, mx * mx + my * my)
    distance = cx * cx + cy * cy
    if distance >= (1.0 + sqrt(reach)) ** 2:
        return 0.0
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
    return area * a * b if area > 1e-15 else 0.0
