"""Segments: bounding boxes, isophotal moments and fluxes. Not apertures.

Moments follow SExtractor (Bertin & Arnouts 1996, A&AS 117, 393) as photutils ``SourceCatalog`` defines them: from the
convolved image with negative values as zero; fluxes are sums over the background-subtracted image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from stages.rows import for_row_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Segments", "Shapes", "find_segments", "measure_shapes"]

THIN = 1.0 / 12.0
"""Variance of a uniform pixel; what "infinitely thin" detections are widened by."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the segments are.

    Attributes
    ----------
    labels : ndarray, i8, (n,)
        Labels, rising; gaps are allowed.
    box : ndarray, i8, (n, 4)
        First and last column, first and last row (inclusive).
    """

    labels: NDArray[np.int64]
    box: NDArray[np.int64]

    def __len__(self) -> int:
        return self.labels.size


@dataclass(frozen=True, slots=True)
class Shapes:
    """Isophotal measurements of each segment; all f8, (n,), pixels or the image's flux unit; NaN where undefined.

    ``covariance`` is (n, 3): xx, xy, yy. ``area`` counts unmasked pixels. ``orientation`` is in degrees.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    area: NDArray[np.float64]
    flux: NDArray[np.float64]
    flux_err: NDArray[np.floating[Any]]
    semimajor: NDArray[np.float64]
    semiminor: NDArray[np.float64]
    orientation: NDArray[np.float64]
    fwhm: NDArray[np.float64]
    ellipticity: NDArray[np.float64]
    cxx: NDArray[np.float64]
    cxy: NDArray[np.float64]
    cyy: NDArray[np.float64]


@njit(nogil=True, cache=True)
def _boxes(segmentation, highest):  # type: ignore[no-untyped-def]
    ny, nx = segmentation.shape
    box = np.empty((highest + 1, 4), dtype=np.int64)
    box[:, 0] = nx
    box[:, 1] = -1
    box[:, 2] = ny
    box[:, 3] = -1
    for y in range(ny):
        for x in range(nx):
            label = segmentation[y, x]
            if label != 0:
                box[label, 0] = min(box[label, 0], x)
                box[label, 1] = max(box[label, 1], x)
                box[label, 2] = min(box[label, 2], y)
                box[label, 3] = y
    return box


def find_segments(segmentation: NDArray[np.uint32]) -> Segments:
    """Labels present in a segmentation map (u4, 0 is background) and their bounding boxes."""
    box = _boxes(segmentation, int(segmentation.max()))
    labels = np.flatnonzero(box[:, 1] >= 0)
    return Segments(labels, box[labels])


@njit(nogil=True, cache=True)
def _measure(convolved, data, masked, segmentation, labels, box, first, last, out):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        label = labels[i]
        x0, y0 = box[i, 0], box[i, 2]
        m00 = m10 = m01 = 0.0
        area = flux = 0.0
        for y in range(y0, box[i, 3] + 1):
            for x in range(x0, box[i, 1] + 1):
                if segmentation[y, x] != label or masked[y, x]:
                    continue
                area += 1.0
                flux += np.float64(data[y, x])
                value = np.float64(convolved[y, x])
                if value > 0.0 and value < np.inf:
                    m00 += value
                    m10 += value * (x - x0)
                    m01 += value * (y - y0)
        out[i, 2], out[i, 3] = area, flux if area > 0.0 else np.nan
        if m00 <= 0.0:
            out[i, 0] = out[i, 1] = out[i, 4] = out[i, 5] = out[i, 6] = np.nan
            continue
        cx, cy = m10 / m00, m01 / m00
        out[i, 0], out[i, 1] = x0 + cx, y0 + cy
        m20 = m11 = m02 = 0.0
        for y in range(y0, box[i, 3] + 1):
            dy = y - y0 - cy
            for x in range(x0, box[i, 1] + 1):
                if segmentation[y, x] != label or masked[y, x]:
                    continue
                value = np.float64(convolved[y, x])
                if value > 0.0 and value < np.inf:
                    dx = x - x0 - cx
                    m20 += value * dx * dx
                    m11 += value * dx * dy
                    m02 += value * dy * dy
        out[i, 4], out[i, 5], out[i, 6] = m20 / m00, m11 / m00, m02 / m00


def measure_shapes(
    convolved: NDArray[np.float32],
    data: NDArray[np.float32],
    err: NDArray[np.float32],
    masked: NDArray[np.bool_],
    segmentation: NDArray[np.uint32],
    segments: Segments,
    *,
    threads: int = 1,
) -> Shapes:
    """Moments from ``convolved``, fluxes from ``data`` and ``err``, over the unmasked pixels of each segment.

    Sums are f8 over f4 pixels, but the errors' squares and their sum are f4.
    """
    out = np.empty((len(segments), 7))
    for_row_blocks(
        lambda first, last: _measure(
            convolved, data, masked, segmentation, segments.labels, segments.box, first, last, out
        ),
        len(segments),
        threads=threads,
    )
    x, y, area, flux, xx, xy, yy = out.T
    flux_err = _flux_errors(err, masked, segmentation, segments, area)
    return Shapes(x, y, area, flux, flux_err, **_ellipse(xx.copy(), xy.copy(), yy.copy()))


@njit(nogil=True, cache=True)
def _gather(err, masked, segmentation, labels, box, out):  # type: ignore[no-untyped-def]
    n = 0
    for i in range(labels.size):
        for y in range(box[i, 2], box[i, 3] + 1):
            for x in range(box[i, 0], box[i, 1] + 1):
                if segmentation[y, x] == labels[i] and not masked[y, x]:
                    out[n] = err[y, x]
                    n += 1


def _flux_errors(
    err: NDArray[np.float32],
    masked: NDArray[np.bool_],
    segmentation: NDArray[np.uint32],
    segments: Segments,
    area: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Root of the summed squares in each segment; NaN without unmasked pixels."""
    size = area.astype(np.int64)
    values = np.empty(int(size.sum()), dtype=np.float32)
    _gather(err, masked, segmentation, segments.labels, segments.box, values)
    result = np.full(len(segments), np.nan, dtype=np.float32)
    used = size > 0
    starts = (np.cumsum(size) - size)[used]
    if starts.size:
        # NumPy's own f4 sum: its order of summation decides the last bits.
        result[used] = np.sqrt(np.add.reduceat(np.square(values), starts))
    return result


def _ellipse(xx: NDArray[np.float64], xy: NDArray[np.float64], yy: NDArray[np.float64]) -> dict[str, Any]:
    """Ellipse parameters from central second moments, thin detections widened."""
    determinant = xx * yy - xy * xy
    for moment in (xx, xy, yy):
        moment[determinant < 0] = np.nan
    while (thin := xx * yy - xy * xy < THIN**2).any():
        xx[thin] += THIN
        yy[thin] += THIN
    mean, half = 0.5 * (xx + yy), np.hypot(0.5 * (xx - yy), xy)
    with np.errstate(invalid="ignore"):
        a = np.sqrt(mean + half)
        # The product of the eigenvalues is the determinant: the smaller one without cancellation.
        b = np.sqrt((xx * yy - xy * xy) / (mean + half))
    orientation = np.rad2deg(0.5 * np.arctan2(2.0 * xy, xx - yy)) % 360.0
    cosine, sine = np.cos(np.deg2rad(orientation)), np.sin(np.deg2rad(orientation))
    return {
        "semimajor": a,
        "semiminor": b,
        "orientation": orientation,
        "fwhm": 2.0 * np.sqrt(np.log(2.0) * (a**2 + b**2)),
        "ellipticity": 1.0 - b / a,
        "cxx": (cosine / a) ** 2 + (sine / b) ** 2,
        "cxy": 2.0 * cosine * sine * (1.0 / a**2 - 1.0 / b**2),
        "cyy": (sine / a) ** 2 + (cosine / b) ** 2,
    }
