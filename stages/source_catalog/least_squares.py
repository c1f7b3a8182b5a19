"""Trust-region least squares for a group of point sources, compiled. Not a general optimiser.

The method of Moré (1977, Lecture Notes in Mathematics 630, 105) with one SVD an iteration, as SciPy's
``least_squares(method="trf")`` does it without bounds: equal steps, forward differences and stopping rules, and all
sums in the same order, so that equal data stop at equal parameters to the last bit (where a blend has several minima,
that bit may decide for one). It is compiled because a field has thousands of groups, and SciPy's own loop costs
milliseconds for each.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numba import njit

from stages.source_catalog.psf_model import psf_values

__all__ = ["fit_group"]

XTOL, FTOL, GTOL = 1e-7, 1e-8, 1e-8
MAX_EVALUATIONS = 100
EPS = 2.220446049250313e-16
RELATIVE_STEP = 1.4901161193847656e-08
TRUST_REGION_TOLERANCE, TRUST_REGION_STEPS = 0.01, 10


@njit(nogil=True, cache=True)
def _residuals(psf, parameters, px, py, data, weights, models, scratch, out, changed):  # type: ignore[no-untyped-def]
    """(sum of models - data) * weights; only source ``changed`` is evaluated anew (-1: all, kept in ``models``)."""
    coefficients, knots_x, knots_y, grid_x, grid_y, oversample = psf
    n = models.shape[0]
    for s in range(n):
        if changed >= 0 and s != changed:
            continue
        target = models[s] if changed < 0 else scratch
        flux, x0, y0 = parameters[3 * s], parameters[3 * s + 1], parameters[3 * s + 2]
        psf_values(coefficients, knots_x, knots_y, grid_x, grid_y, oversample, flux, x0, y0, px, py, target)
    for p in range(px.size):
        total = 0.0
        for s in range(n):
            total += scratch[p] if s == changed else models[s, p]
        out[p] = (total - data[p]) * weights[p]


@njit(nogil=True, cache=True)
def _jacobian(psf, parameters, px, py, data, weights, models, scratch, f, f_step, transposed):  # type: ignore[no-untyped-def]
    """The Jacobian by forward differences, a row for each parameter."""
    for k in range(parameters.size):
        value = parameters[k]
        sign = 1.0 if value >= 0.0 else -1.0
        step = RELATIVE_STEP * sign * abs(value)
        if (value + step) - value == 0.0:
            step = RELATIVE_STEP * sign * max(1.0, abs(value))
        parameters[k] = value + step
        dx = parameters[k] - value
        _residuals(psf, parameters, px, py, data, weights, models, scratch, f_step, k // 3)
        parameters[k] = value
        for p in range(f.size):
            transposed[k, p] = (f_step[p] - f[p]) / dx


@njit(nogil=True, cache=True)
def _svd(matrix):  # type: ignore[no-untyped-def]
    """LAPACK's thin SVD, compiled once for all its callers."""
    return np.linalg.svd(matrix, full_matrices=False)


@njit(nogil=True, cache=True)
def _times(matrix, vector):  # type: ignore[no-untyped-def]
    return np.dot(matrix, vector)


@njit(nogil=True, cache=True)
def _transposed_times(matrix, vector):  # type: ignore[no-untyped-def]
    return np.dot(matrix.T, vector)


@njit(nogil=True, cache=True)
def _norm(v):  # type: ignore[no-untyped-def]
    return sqrt(np.dot(v, v))


@njit(nogil=True, cache=True)
def _sum(values):  # type: ignore[no-untyped-def]
    """Sum in the order of NumPy for up to 128 values: eight sums side by side, then what is left."""
    blocks = values.size - values.size % 8
    total = 0.0
    if blocks > 0:
        r = values[:8].copy()
        for first in range(8, blocks, 8):
            for k in range(8):
                r[k] += values[first + k]
        total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]))
    for i in range(blocks, values.size):
        total += values[i]
    return total


@njit(nogil=True, cache=True)
def _secular(alpha, suf, s, radius):  # type: ignore[no-untyped-def]
    """Length of the regularised step minus the trust radius, and its derivative by alpha."""
    lengths, slopes = np.empty(s.size), np.empty(s.size)
    for i in range(s.size):
        denominator = s[i] * s[i] + alpha
        lengths[i] = suf[i] / denominator
        slopes[i] = suf[i] * suf[i] / pow(denominator, 3.0)
    length = _norm(lengths)
    return length - radius, -_sum(slopes) / length


@njit(nogil=True, cache=True)
def _trust_region_step(m, uf, s, vt, radius, alpha):  # type: ignore[no-untyped-def]
    """Step of at most ``radius`` that minimises the linear model, and the Levenberg-Marquardt parameter."""
    n = s.size
    suf = s * uf
    full_rank = m >= n and s[-1] > EPS * m * s[0]
    if full_rank:
        step = -_transposed_times(vt, uf / s)
        if _norm(step) <= radius:
            return step, 0.0
    upper = _norm(suf) / radius
    lower = 0.0
    if full_rank:
        phi, slope = _secular(0.0, suf, s, radius)
        lower = -phi / slope
    if not full_rank and alpha == 0.0:
        alpha = max(0.001 * upper, sqrt(lower * upper))
    for _ in range(TRUST_REGION_STEPS):
        if alpha < lower or alpha > upper:
            alpha = max(0.001 * upper, sqrt(lower * upper))
        phi, slope = _secular(alpha, suf, s, radius)
        if phi < 0.0:
            upper = alpha
        ratio = phi / slope
        lower = max(lower, alpha - ratio)
        alpha -= (phi + radius) * ratio / radius
        if abs(phi) < TRUST_REGION_TOLERANCE * radius:
            break
    step = -_transposed_times(vt, suf / (s * s + alpha))
    return step * (radius / _norm(step)), alpha


@njit(nogil=True, cache=True)
def _stop(reduction, cost, step_length, length, ratio):  # type: ignore[no-untyped-def]
    """SciPy's status: 2 cost, 3 step, 4 both; 0 to go on."""
    small_cost = reduction < FTOL * cost and ratio > 0.25
    small_step = step_length < XTOL * (XTOL + length)
    if small_cost and small_step:
        return 4
    if small_cost:
        return 2
    return 3 if small_step else 0


@njit(nogil=True, cache=True)
def _pseudo_inverse(s, vt, smallest):  # type: ignore[no-untyped-def]
    """Of J'J, from the SVD of J; singular values up to ``smallest`` are dropped."""
    rank = np.sum(s > smallest)
    directions = np.ascontiguousarray(vt.T[:, :rank])
    return np.dot(directions / (s[:rank] * s[:rank]), directions.T)


@njit(nogil=True, cache=True)
def fit_group(psf, parameters, px, py, data, weights):  # type: ignore[no-untyped-def]
    """Fit flux, x and y of all sources of a group.

    Parameters
    ----------
    psf : tuple
        Fields of a `GriddedPSF` in their order.
    parameters : ndarray, f8, (3 sources,)
        flux, x, y of each source; start values, replaced by the solution.
    px, py : ndarray, i8, (m,)
        Pixels; one that belongs to two sources appears twice.
    data, weights : ndarray, f8, (m,)
        Image and 1/error there.

    Returns
    -------
    status : int
        1 gradient, 2 cost, 3 step, 4 both; 0 when 100 evaluations were used.
    residuals : ndarray, f8, (m,)
        At the solution.
    covariance : ndarray, f8, (3 sources, 3 sources)
        Pseudo-inverse of J'J.
    """
    m, n = px.size, parameters.size
    models, scratch = np.empty((n // 3, m)), np.empty(m)
    f, f_new = np.empty(m), np.empty(m)
    # SciPy's Jacobian is the transpose of an array that is filled row by row: BLAS sums in another order otherwise.
    transposed = np.empty((n, m))
    jacobian = transposed.T
    _residuals(psf, parameters, px, py, data, weights, models, scratch, f, -1)
    evaluations = 1
    _jacobian(psf, parameters, px, py, data, weights, models, scratch, f, f_new, transposed)
    cost = 0.5 * np.dot(f, f)
    gradient = _times(transposed, f)
    radius = _norm(parameters)
    if radius == 0.0:
        radius = 1.0
    alpha = 0.0
    status = 0
    while True:
        if np.max(np.abs(gradient)) < GTOL:
            status = 1
        if status != 0 or evaluations == MAX_EVALUATIONS:
            break
        u, s, vt = _svd(jacobian)
        uf = _transposed_times(u, f)
        reduction = -1.0
        new = parameters
        new_cost = cost
        while reduction <= 0.0 and evaluations < MAX_EVALUATIONS:
            step, alpha = _trust_region_step(m, uf, s, vt, radius, alpha)
            linear = _transposed_times(transposed, step)
            predicted = -(0.5 * np.dot(linear, linear) + np.dot(step, gradient))
            new = parameters + step
            _residuals(psf, new, px, py, data, weights, models, scratch, f_new, -1)
            evaluations += 1
            length = _norm(step)
            if not np.isfinite(np.dot(f_new, f_new)):
                radius = 0.25 * length
                continue
            new_cost = 0.5 * np.dot(f_new, f_new)
            reduction = cost - new_cost
            ratio = 0.0
            if predicted > 0.0:
                ratio = reduction / predicted
            elif predicted == reduction and reduction == 0.0:
                ratio = 1.0
            new_radius = radius
            if ratio < 0.25:
                new_radius = 0.25 * length
            elif ratio > 0.75 and length > 0.95 * radius:
                new_radius = 2.0 * radius
            status = _stop(reduction, cost, length, _norm(parameters), ratio)
            if status != 0:
                break
            alpha *= radius / new_radius
            radius = new_radius
        if reduction > 0.0:
            parameters[:] = new
            f[:] = f_new
            cost = new_cost
            _jacobian(psf, parameters, px, py, data, weights, models, scratch, f, f_new, transposed)
            gradient = _times(transposed, f)
    _, s, vt = _svd(jacobian)
    return status, f, _pseudo_inverse(s, vt, EPS * max(m, n) * s[0])
