"""Kron photometry, half-light radii and windowed centroids. Not the fixed apertures.

Definitions of SExtractor (Bertin & Arnouts 1996, A&AS 117, 393; Kron 1980, ApJS 43, 305) as in photutils
``SourceCatalog``: the whole image is used, without masked pixels and without the pixels of other segments; nothing is
scaled up for what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, exp, floor, isfinite, isnan, radians, sin, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from stages.rows import for_row_blocks
from stages.source_catalog.overlap import circle_pixel_overlap, ellipse_pixel_overlap, ellipse_reach

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.source_catalog.shapes import Segments, Shapes

__all__ = ["KRON_MINIMUM", "KRON_SCALE", "KronMeasures", "measure_kron"]

KRON_SCALE = 2.5
KRON_MINIMUM = 1.4
KRON_REACH = 6.0
LARGEST_BOX = 1_000_000
SCRATCH_PIXELS = 300 * 300
SMALLEST_RADIUS = 0.1
"""Lower end of the bracket for the half-light radius, pixels."""
WINDOW_STEPS = 16
WINDOW_TOLERANCE = 1e-4
FWHM_TO_SIGMA = 0.42466090014400953
BRENT_XTOL, BRENT_RTOL, BRENT_STEPS = 2e-12, 8.881784197001252e-16, 100


@dataclass(frozen=True, slots=True)
class KronMeasures:
    """Per source, f8, (n,): dimensionless Kron radius, its flux and error, half-light radius and windowed centroid."""

    radius: NDArray[np.float64]
    flux: NDArray[np.float64]
    flux_err: NDArray[np.float64]
    half_light: NDArray[np.float64]
    x_window: NDArray[np.float64]
    y_window: NDArray[np.float64]


@njit(nogil=True, cache=True, inline="always")
def _usable(value, is_masked, other, label):  # type: ignore[no-untyped-def]
    """Unmasked, finite, and not of another segment. Scalars only: arrays would be reference-counted at each call."""
    return (other == label or other == 0) and not is_masked and isfinite(value)  # noqa: PLR1714 - compiled


@njit(nogil=True, cache=True)
def _kron_radius(data, masked, segmentation, label, xc, yc, a, b, theta, cxx, cxy, cyy):  # type: ignore[no-untyped-def]
    if not (isfinite(xc) and isfinite(yc) and isfinite(a) and isfinite(b) and isfinite(theta)):
        return np.nan
    ny, nx = data.shape
    wide, high = ellipse_reach(KRON_REACH * a, KRON_REACH * b, cos(theta), sin(theta))
    x0, x1 = floor(xc - wide + 0.5), floor(xc + wide + 0.5) + 1
    y0, y1 = floor(yc - high + 0.5), floor(yc + high + 0.5) + 1
    if (x1 - x0) * (y1 - y0) > max(data.size, LARGEST_BOX):
        return np.nan
    x0, x1, y0, y1 = max(x0, 0), min(x1, nx), max(y0, 0), min(y1, ny)
    if x0 >= x1 or y0 >= y1:
        return np.nan
    numerator = denominator = 0.0
    for y in range(y0, y1):
        dy = y - yc
        for x in range(x0, x1):
            dx = x - xc
            r = sqrt(max(cxx * dx * dx + cxy * dx * dy + cyy * dy * dy, 0.0))
            if r <= KRON_REACH and _usable(data[y, x], masked[y, x], segmentation[y, x], label):
                numerator += r * np.float64(data[y, x])
                denominator += np.float64(data[y, x])
    if numerator <= 0.0 or denominator <= 0.0:
        return KRON_MINIMUM
    radius = numerator / denominator
    return np.nan if radius > KRON_REACH else max(radius, KRON_MINIMUM)


@njit(nogil=True, cache=True)
def _kron_flux(data, err, masked, segmentation, label, xc, yc, a, b, theta):  # type: ignore[no-untyped-def]
    if not (isfinite(xc) and isfinite(yc) and isfinite(a) and isfinite(b) and isfinite(theta)):
        return np.nan, np.nan
    ny, nx = data.shape
    cosine, sine = cos(theta), sin(theta)
    wide, high = ellipse_reach(a, b, cosine, sine)
    x0, x1 = floor(xc - wide + 0.5), floor(xc + wide + 1.5)
    y0, y1 = floor(yc - high + 0.5), floor(yc + high + 1.5)
    if (x1 - x0) * (y1 - y0) > max(data.size, LARGEST_BOX):
        return np.nan, np.nan
    flux = variance = 0.0
    used = False
    for y in range(max(y0, 0), min(y1, ny)):
        for x in range(max(x0, 0), min(x1, nx)):
            if not _usable(data[y, x], masked[y, x], segmentation[y, x], label):
                continue
            w = ellipse_pixel_overlap(x - xc, y - yc, a, b, cosine, sine)
            if w > 0.0:
                used = True
                flux += w * np.float64(data[y, x])
                variance += w * np.float64(err[y, x] * err[y, x])
    if not used:
        return np.nan, np.nan
    return flux, sqrt(variance)


@njit(nogil=True, cache=True)
def _missing_light(clean, x0, y0, xc, yc, radius, half):  # type: ignore[no-untyped-def]
    """1 - flux(radius)/half over a cutout in which unusable pixels are zero."""
    flux = 0.0
    ny, nx = clean.shape
    first_x, last_x = max(0, floor(xc - radius - 1) - x0), min(nx, ceil(xc + radius + 1) + 1 - x0)
    for y in range(max(0, floor(yc - radius - 1) - y0), min(ny, ceil(yc + radius + 1) + 1 - y0)):
        for x in range(first_x, last_x):
            flux += clean[y, x] * circle_pixel_overlap(x + x0 - xc, y + y0 - yc, radius)
    return 1.0 - flux / half


@njit(nogil=True, cache=True)
def _half_light_root(clean, x0, y0, xc, yc, low, high, f_low, f_high, half):  # type: ignore[no-untyped-def]
    """Brent's root (Brent 1973, ch. 4) between two radii where the function has opposite signs."""
    previous, current, f_previous, f_current = low, high, f_low, f_high
    if f_previous == 0.0:
        return previous
    if f_current == 0.0:
        return current
    before = f_before = step_previous = step_current = 0.0
    for _ in range(BRENT_STEPS):
        if f_previous != 0.0 and f_current != 0.0 and (f_previous < 0.0) != (f_current < 0.0):
            before, f_before = previous, f_previous
            step_previous = step_current = current - previous
        if abs(f_before) < abs(f_current):
            previous, current, before = current, before, current
            f_previous, f_current, f_before = f_current, f_before, f_current
        delta = 0.5 * (BRENT_XTOL + BRENT_RTOL * abs(current))
        bisect = 0.5 * (before - current)
        if f_current == 0.0 or abs(bisect) < delta:
            return current
        if abs(step_previous) > delta and abs(f_current) < abs(f_previous):
            if previous == before:  # secant
                step = -f_current * (current - previous) / (f_current - f_previous)
            else:  # inverse quadratic
                d_previous = (f_previous - f_current) / (previous - current)
                d_before = (f_before - f_current) / (before - current)
                step = -f_current * (f_before * d_before - f_previous * d_previous)
                step /= d_before * d_previous * (f_before - f_previous)
            if 2.0 * abs(step) < min(abs(step_previous), 3.0 * abs(bisect) - delta):
                step_previous, step_current = step_current, step
            else:
                step_previous = step_current = bisect
        else:
            step_previous = step_current = bisect
        previous, f_previous = current, f_current
        if abs(step_current) > delta:
            current += step_current
        else:
            current += delta if bisect > 0.0 else -delta
        f_current = _missing_light(clean, x0, y0, xc, yc, current, half)
    return current


@njit(nogil=True, cache=True)
def _clean(data, masked, segmentation, label, x0, x1, y0, y1, scratch):  # type: ignore[no-untyped-def]
    """Cutout in f8 with zeros for unusable pixels, over ``scratch`` where it fits.

    Fresh memory for every cutout would cost more than all the sums over it.
    """
    size = (y1 - y0) * (x1 - x0)
    flat = scratch[:size] if size <= scratch.size else np.empty(size)
    clean = flat.reshape((y1 - y0, x1 - x0))
    for y in range(y0, y1):
        for x in range(x0, x1):
            usable = _usable(data[y, x], masked[y, x], segmentation[y, x], label)
            clean[y - y0, x - x0] = np.float64(data[y, x]) if usable else 0.0
    return clean


@njit(nogil=True, cache=True)
def _half_light(data, masked, segmentation, label, xc, yc, kron_flux, largest, scratch):  # type: ignore[no-untyped-def]
    if not (isfinite(xc) and isfinite(yc) and isfinite(kron_flux) and isfinite(largest)) or kron_flux == 0.0:
        return np.nan
    ny, nx = data.shape
    x0, x1 = floor(xc - largest + 0.5), ceil(xc + largest + 0.5)
    y0, y1 = floor(yc - largest + 0.5), ceil(yc + largest + 0.5)
    if (x1 - x0) * (y1 - y0) > max(data.size, LARGEST_BOX):
        return np.nan
    x0, x1, y0, y1 = max(x0, 0), min(x1, nx), max(y0, 0), min(y1, ny)
    if x0 >= x1 or y0 >= y1:
        return np.nan
    clean = _clean(data, masked, segmentation, label, x0, x1, y0, y1, scratch)
    half = 0.5 * kron_flux
    f_low = _missing_light(clean, x0, y0, xc, yc, SMALLEST_RADIUS, half)
    high = largest
    while high > SMALLEST_RADIUS:
        f_high = _missing_light(clean, x0, y0, xc, yc, high, half)
        if f_low * f_high <= 0.0:
            return _half_light_root(clean, x0, y0, xc, yc, SMALLEST_RADIUS, high, f_low, f_high, half)
        high -= 0.1 * largest
    return np.nan


@njit(nogil=True, cache=True)
def _window_step(clean, xc, yc, radius, sigma):  # type: ignore[no-untyped-def]
    """Mean offset from (xc, yc) in a cutout under a Gaussian window cut at ``radius``; NaN when it sums to zero.

    The window is separable but for its edge, a chord in each row, so rows add up into columns without branches.
    """
    ny, nx = clean.shape
    column, column_y = np.zeros(nx), np.zeros(nx)
    for y in range(ny):
        dy = y - yc
        if dy * dy > radius * radius:
            continue
        reach = sqrt(radius * radius - dy * dy)
        first, last = max(floor(xc - reach) - 1, 0), min(ceil(xc + reach) + 1, nx - 1)
        while first <= last and (first - xc) ** 2 + dy * dy > radius * radius:
            first += 1
        while last >= first and (last - xc) ** 2 + dy * dy > radius * radius:
            last -= 1
        along = exp(-dy * dy / (2.0 * sigma * sigma))
        along_y = along * dy
        for x in range(first, last + 1):
            column[x] += along * clean[y, x]
            column_y[x] += along_y * clean[y, x]
    total = total_x = total_y = 0.0
    for x in range(nx):
        dx = x - xc
        across = exp(-dx * dx / (2.0 * sigma * sigma))
        total += across * column[x]
        total_x += across * dx * column[x]
        total_y += across * column_y[x]
    if total == 0.0:
        return np.nan, np.nan
    return total_x / total, total_y / total


@njit(nogil=True, cache=True)
def _window_centroid(data, masked, segmentation, label, xc, yc, half_light, cxx, cxy, cyy, scratch):  # type: ignore[no-untyped-def]
    if isnan(half_light) or isnan(xc) or isnan(yc):
        return np.nan, np.nan
    sigma = 2.0 * max(half_light, 0.5) * FWHM_TO_SIGMA
    radius = 4.0 * sigma
    half = int(radius + 1.5)
    if (2 * half + 1) ** 2 > max(data.size, LARGEST_BOX):
        return xc, yc
    ny, nx = data.shape
    x, y = xc, yc
    x0 = y0 = 0
    clean = scratch[:0].reshape((0, 0))
    for step in range(WINDOW_STEPS):
        # The cutout follows the position pixel by pixel.
        left, bottom = int(x + 0.5) - half, int(y + 0.5) - half
        right, top = min(nx, left + 2 * half + 1), min(ny, bottom + 2 * half + 1)
        left, bottom = max(0, left), max(0, bottom)
        if left >= right or bottom >= top:
            return xc, yc
        if step == 0 or left != x0 or bottom != y0 or clean.shape != (top - bottom, right - left):
            x0, y0 = left, bottom
            clean = _clean(data, masked, segmentation, label, left, right, bottom, top, scratch)
        dx, dy = _window_step(clean, x - x0, y - y0, radius, sigma)
        x += 2.0 * dx
        y += 2.0 * dy
        if not sqrt(dx * dx + dy * dy) > WINDOW_TOLERANCE:
            break
    dx, dy = xc - x, yc - y
    if not cxx * dx * dx + cxy * dx * dy + cyy * dy * dy <= 1.0:
        return xc, yc
    return x, y


@njit(nogil=True, cache=True)
def _measure(data, err, masked, segmentation, labels, shape, first, last, out):  # type: ignore[no-untyped-def]
    scratch = np.empty(SCRATCH_PIXELS)
    for i in range(first, last):
        label = labels[i]
        xc, yc, a, b = shape[0, i], shape[1, i], shape[2, i], shape[3, i]
        theta = radians(shape[4, i])
        cxx, cxy, cyy = shape[5, i], shape[6, i], shape[7, i]
        k = _kron_radius(data, masked, segmentation, label, xc, yc, a, b, theta, cxx, cxy, cyy)
        scale = KRON_SCALE * k
        flux, flux_err = _kron_flux(data, err, masked, segmentation, label, xc, yc, scale * a, scale * b, theta)
        half_light = _half_light(data, masked, segmentation, label, xc, yc, flux, a * k * KRON_SCALE, scratch)
        x, y = _window_centroid(data, masked, segmentation, label, xc, yc, half_light, cxx, cxy, cyy, scratch)
        out[0, i], out[1, i], out[2, i], out[3, i], out[4, i], out[5, i] = k, flux, flux_err, half_light, x, y


def measure_kron(
    data: NDArray[np.float32],
    err: NDArray[np.float32],
    masked: NDArray[np.bool_],
    segmentation: NDArray[np.uint32],
    segments: Segments,
    shapes: Shapes,
    *,
    threads: int = 1,
) -> KronMeasures:
    """Kron radius and flux, half-light radius and windowed centroid of each source.

    Parameters
    ----------
    data, err : ndarray, f4, (ny, nx)
        Background-subtracted image and its errors.
    masked : ndarray, bool, (ny, nx)
        Pixels to leave out.
    segmentation : ndarray, u4, (ny, nx)
        Pixels of other segments are left out.
    """
    shape = np.stack(
        [
            shapes.x,
            shapes.y,
            shapes.semimajor,
            shapes.semiminor,
            shapes.orientation,
            shapes.cxx,
            shapes.cxy,
            shapes.cyy,
        ]
    )
    out = np.empty((6, len(segments)))
    for_row_blocks(
        lambda first, last: _measure(data, err, masked, segmentation, segments.labels, shape, first, last, out),
        len(segments),
        threads=threads,
        block=256,
    )
    return KronMeasures(*out)
