"""PSF photometry: sources near one another are fitted together. Not the model of the PSF, nor the optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from stages.rows import for_row_blocks
from stages.source_catalog.apertures import aperture_sums
from stages.source_catalog.least_squares import fit_group

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.source_catalog.psf_model import GriddedPSF

__all__ = ["PSFFits", "PSFFlag", "fit_psf_fluxes", "group_sources"]

FIT_SIZE = 5
"""Side of the square fit region, pixels; also the radius of the aperture for the start flux."""
GROUP_DISTANCE = 5.0
"""Sources linked by distances up to this (pixels) are fitted together."""
PARAMETERS = 3


class PSFFlag(IntFlag):
    """Bits of ``psf_flags`` (photutils ``PSFPhotometry``)."""

    FEWER_PIXELS = 1
    OUTSIDE_IMAGE = 2
    NEGATIVE_FLUX = 4
    NOT_CONVERGED = 8
    NO_COVARIANCE = 16
    NO_OVERLAP = 64
    FULLY_MASKED = 128
    TOO_FEW_PIXELS = 256
    NON_FINITE_POSITION = 512
    NON_FINITE_FLUX = 1024


@dataclass(frozen=True, slots=True)
class PSFFits:
    """Per source, f8, (n,): fitted flux (image unit), position (pixels), errors, reduced chi^2; flags are i4."""

    flux: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    flux_err: NDArray[np.float64]
    x_err: NDArray[np.float64]
    y_err: NDArray[np.float64]
    goodness: NDArray[np.float64]
    flags: NDArray[np.int32]


def group_sources(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Single-linkage groups of positions up to 5 pixels apart; non-finite ones are alone.

    Returns
    -------
    members : ndarray, i8, (n,)
        Source indices, group after group, rising within each.
    starts : ndarray, i8, (groups + 1,)
        Where each group begins in ``members``.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    n = x.size
    finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    pairs = np.empty((0, 2), dtype=np.int64)
    if finite.size > 1:
        positions = np.stack([x[finite], y[finite]], axis=1).astype(np.float64)
        pairs = finite[cKDTree(positions).query_pairs(GROUP_DISTANCE, output_type="ndarray")]
    links = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, group = connected_components(links, directed=False)
    members = np.argsort(group, kind="stable").astype(np.int64)
    starts = np.searchsorted(group[members], np.arange(group.max(initial=-1) + 2)).astype(np.int64)
    return members, starts


@njit(nogil=True, cache=True)
def _region(masked, x, y, px, py, n):  # type: ignore[no-untyped-def]
    """Append the unmasked pixels of the fit region around (x, y); returns the number of pixels appended and tried."""
    ny, nx = masked.shape
    half = FIT_SIZE // 2
    xc, yc = ceil(x - 0.5), ceil(y - 0.5)
    tried = added = 0
    for yi in range(max(yc - half, 0), min(yc + half + 1, ny)):
        for xi in range(max(xc - half, 0), min(xc + half + 1, nx)):
            tried += 1
            if not masked[yi, xi]:
                px[n + added], py[n + added] = xi, yi
                added += 1
    return added, tried


@njit(nogil=True, cache=True)
def _fit_groups(psf, data, err, masked, x, y, flux, members, starts, first, last, out, flags):  # type: ignore[no-untyped-def]
    """Fit some groups: flux, x, y, their errors and reduced chi^2 of each source into ``out``, bits into ``flags``."""
    for g in range(first, last):
        group = members[starts[g] : starts[g + 1]]
        size = group.size
        px = np.empty(size * FIT_SIZE * FIT_SIZE, dtype=np.int64)
        py = np.empty_like(px)
        counts = np.zeros(size, dtype=np.int64)
        m = 0
        valid = 0
        parameters = np.empty(PARAMETERS * size)
        for k in range(size):
            i = group[k]
            if not (np.isfinite(x[i]) and np.isfinite(y[i]) and np.isfinite(flux[i])):
                flags[i] |= 1
                continue
            added, tried = _region(masked, np.float64(x[i]), np.float64(y[i]), px, py, m)
            if added < FIT_SIZE * FIT_SIZE:
                flags[i] |= 1
            if added < PARAMETERS:
                flags[i] |= 64 if tried == 0 else (128 if added == 0 else 256)
                continue
            counts[k] = added
            m += added
            parameters[PARAMETERS * valid] = flux[i]
            parameters[PARAMETERS * valid + 1] = x[i]
            parameters[PARAMETERS * valid + 2] = y[i]
            valid += 1
        if valid == 0:
            continue
        values, weights = np.empty(m), np.empty(m)
        for p in range(m):
            values[p] = data[py[p], px[p]]
            weights[p] = np.float32(1.0) / err[py[p], px[p]]
        parameters = parameters[: PARAMETERS * valid].copy()
        status, residuals, covariance = fit_group(psf, parameters, px[:m], py[:m], values, weights)
        v = at = 0
        for k in range(size):
            if counts[k] == 0:
                continue
            i = group[k]
            chi2 = 0.0
            for p in range(at, at + counts[k]):
                chi2 += residuals[p] ** 2
            for j in range(PARAMETERS):
                out[j, i] = parameters[PARAMETERS * v + j]
                if m > PARAMETERS * valid:
                    out[PARAMETERS + j, i] = np.sqrt(covariance[PARAMETERS * v + j, PARAMETERS * v + j])
            freedom = counts[k] - PARAMETERS
            out[6, i] = chi2 / freedom if freedom > 0 else (np.inf if chi2 > 0.0 else np.nan)
            if status == 0:
                flags[i] |= 8
            at += counts[k]
            v += 1


def fit_psf_fluxes(
    psf: GriddedPSF,
    data: NDArray[np.float32],
    err: NDArray[np.float32],
    masked: NDArray[np.bool_],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    *,
    threads: int = 1,
) -> PSFFits:
    """Fit the PSF to 5 x 5 pixels around each centroid, neighbours together.

    Parameters
    ----------
    data, err : ndarray, f4, (ny, nx)
        Background-subtracted image and its errors (positive where not masked).
    masked : ndarray, bool, (ny, nx)
        Pixels to leave out.
    x, y : ndarray, f4, (n,)
        Centroids, pixels; a non-finite one is not fitted.

    Returns
    -------
    PSFFits
        NaN for what was not fitted; flags as in `PSFFlag`.
    """
    start_flux = aperture_sums(data, masked, x, y, float(FIT_SIZE))
    members, starts = group_sources(x, y)
    out = np.full((7, x.size), np.nan)
    flags = np.zeros(x.size, dtype=np.int32)
    fields = (psf.coefficients, psf.knots_x, psf.knots_y, psf.grid_x, psf.grid_y, psf.oversample)
    for_row_blocks(
        lambda first, last: _fit_groups(
            fields, data, err, masked, x, y, start_flux, members, starts, first, last, out, flags
        ),
        starts.size - 1,
        threads=threads,
    )
    flux, x_fit, y_fit, flux_err, x_err, y_err, goodness = out
    flags = _completed_flags(flags, out, data.shape)
    return PSFFits(flux, x_fit, y_fit, flux_err, x_err, y_err, goodness, flags)


def _completed_flags(flags: NDArray[np.int32], out: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Add the bits that follow from the fitted values."""
    flux, x, y, flux_err = out[:4]
    ny, nx = shape
    with np.errstate(invalid="ignore"):
        outside = (x < -0.5) | (y < -0.5) | (x > nx - 0.5) | (y > ny - 0.5)
        bits = (
            (outside, PSFFlag.OUTSIDE_IMAGE),
            (flux <= 0, PSFFlag.NEGATIVE_FLUX),
            (~np.isfinite(flux_err), PSFFlag.NO_COVARIANCE),
            (~(np.isfinite(x) & np.isfinite(y)), PSFFlag.NON_FINITE_POSITION),
            (~np.isfinite(flux), PSFFlag.NON_FINITE_FLUX),
        )
    for where, bit in bits:
        flags[where] |= int(bit)
    return flags
