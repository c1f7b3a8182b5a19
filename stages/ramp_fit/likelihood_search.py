# mypy: disable-error-code="no-untyped-def"
"""Compiled jump search of the likelihood fit, and the loop over batches. Not the fit of one batch.

Source: Brandt (2024), PASP 136, 045005. The order of operations matters for parity, as in `likelihood_kernels`.
"""

from __future__ import annotations

import numpy as np

from stages.ramp_fit.batch_layout import (
    A1,
    A2,
    BAD,
    BATCH_ROWS,
    BE,
    CHI2,
    COUNT,
    DB,
    DC,
    DD,
    ERR,
    GAIN,
    GROUP_ROWS,
    GUESS,
    JUMP,
    M1,
    M2,
    PH,
    RATE,
    READ2,
    ROW,
    TH,
    TN,
    USE,
    VP,
    VR,
    WIDTH,
    X1,
    X2,
    A,
    B,
    C,
    D,
    Q,
    S,
    U,
    V,
    entry,
    kernel,
)
from stages.ramp_fit.likelihood_kernels import (
    chi_square,
    errors,
    load,
    median_guess,
    scaled_covariance,
    take_final_guess,
    weighted_fit,
)

__all__ = ["FIT", "REFIT", "SEARCH", "fit_rows"]

FIT, SEARCH, REFIT = 0, 1, 2
"""Modes of `fit_rows`: search and fit; search alone, to ``used`` and ``counts``; fit alone, from these."""


@kernel
def _omit_statistics(s, g, nd, averaged):
    """Gain in chi^2 when one difference (X1) or a pair (X2) is omitted, the rates then (A1, A2), and the maxima.

    ``averaged[i]`` is 1 where differences i and i+1 share a resultant of more than one read.
    """
    for i in range(nd):
        o = U(i) * ROW
        for p in range(WIDTH):
            s[o + DD + p] = s[o + TH + p] * s[o + ROW + PH + p] / g[TN + p] * s[o + USE + p]
        for p in range(WIDTH):
            dd = s[o + DD + p]
            dc = s[o + DC + p]
            db = s[o + DB + p]
            a, b, c = g[A + p], g[B + p], g[C + p]
            a1 = (dd * b - db * dc) / (c * dd - dc * dc)
            b1 = (db - a1 * dc) / dd
            chi = (a + a1 * a1 * c - 2.0 * a1 * b + b1 * b1 * dd - 2.0 * b1 * db + 2.0 * a1 * b1 * dc) / g[S + p]
            s[o + A1 + p] = a1
            s[o + X1 + p] = g[CHI2 + p] - chi
        for p in range(WIDTH):  # apart, or LLVM moves the arithmetic into a branch and does not vectorise
            masked = s[o + USE + p] == 0.0
            a1, rate = s[o + A1 + p], g[RATE + p]
            x1, none = s[o + X1 + p], g[CHI2 + p] - g[CHI2 + p]
            s[o + A1 + p] = rate if masked else a1
            s[o + X1 + p] = none if masked else x1
    for i in range(nd - 1):
        o = U(i) * ROW
        for p in range(WIDTH):
            s[o + V + p] = -s[o + BE + p] * s[o + TH + p] * s[o + ROW + ROW + PH + p] / g[TN + p]
        for p in range(WIDTH):
            dd = s[o + DD + p]
            dd1 = s[o + ROW + DD + p]
            oo = s[o + V + p]
            dc = s[o + DC + p]
            dc1 = s[o + ROW + DC + p]
            db = s[o + DB + p]
            db1 = s[o + ROW + DB + p]
            a, b, c = g[A + p], g[B + p], g[C + p]
            pp = dc * dc - c * dd
            qq = dc * dc1 - c * oo
            rr = b * dc - db * c
            cc = (rr / pp - (b * dc1 - db1 * c) / qq) / (qq / pp - (dc1 * dc1 - c * dd1) / qq)
            bb = (rr - cc * qq) / pp
            a2 = (b - bb * dc - cc * dc1) / c
            squares = a + a2 * a2 * c + bb * bb * dd + cc * cc * dd1
            linear = a2 * b + bb * db + cc * db1
            mixed = a2 * bb * dc + a2 * cc * dc1 + bb * cc * oo
            chi = (squares - 2.0 * linear + 2.0 * mixed) / g[S + p]
            s[o + X2 + p] = g[CHI2 + p] - chi
            s[o + A2 + p] = a2
        for p in range(WIDTH):
            first_out = s[o + USE + p] == 0.0
            second_out = s[o + ROW + USE + p] == 0.0
            x2, x1, x1_next = s[o + X2 + p], s[o + X1 + p], s[o + ROW + X1 + p]
            x2 = x1 if second_out else x2
            s[o + X2 + p] = x1_next if first_out else x2
        for p in range(WIDTH):
            first_out = s[o + USE + p] == 0.0
            second_out = s[o + ROW + USE + p] == 0.0
            a2, a1, a1_next = s[o + A2 + p], s[o + A1 + p], s[o + ROW + A1 + p]
            a2 = a1 if second_out else a2
            s[o + A2 + p] = a1_next if first_out else a2
    _maxima(s, g, nd, averaged)


@kernel
def _maxima(s, g, nd, averaged):
    """M1 and M2: the largest X1 and X2 of each pixel, NaN if any is NaN."""
    for p in range(WIDTH):
        g[M1 + p] = s[X1 + p]
        g[M2 + p] = s[X2 + p] * averaged[0]
    for i in range(1, nd):
        o = U(i) * ROW
        for p in range(WIDTH):
            x, m = s[o + X1 + p], g[M1 + p]
            g[M1 + p] = m if (m >= x or m != m) else x  # noqa: PLR0124 - NaN
        if i < nd - 1:
            shared = averaged[i]
            for p in range(WIDTH):
                x, m = s[o + X2 + p] * shared, g[M2 + p]
                g[M2 + p] = m if (m >= x or m != m) else x  # noqa: PLR0124 - NaN


@kernel
def _screen(s, g, nd, limit):
    """Mark in BAD the pixels in which a jump cannot be excluded by chi^2 alone.

    Omitting differences lowers chi^2 by at most chi^2 itself, so below the threshold there is nothing to search. This
    holds where the covariance is positive definite, and rounding cannot spoil it where three differences are in use
    (with two, the statistic of the pair is 0/0) and the squared signal-to-noise ratio, A/S, is moderate.
    """
    for p in range(WIDTH):
        g[Q + p] = 0.0
    for i in range(nd):
        o = U(i) * ROW
        for p in range(WIDTH):
            g[Q + p] += s[o + USE + p]
    for p in range(WIDTH):
        a, b, c, scale = g[A + p], g[B + p], g[C + p], g[S + p]
        chi = a - b * b / c
        calm = (chi < limit * scale) & (chi > -limit * scale) & (a < 1e8 * scale)
        calm = calm & (g[Q + p] > 2.5) & (g[GAIN + p] > 0.0) & (c > 0.0)
        g[BAD + p] = 0.0 if calm else 1.0


@kernel
def _decide(g, t1, t2):
    """Mark in BAD what to omit: 1 the single difference with M1, 2 the pair with M2, 0 nothing."""
    for p in range(WIDTH):
        m1, m2 = g[M1 + p], g[M2 + p]
        one = m1 - t1 > m2 - t2
        single = 1.0 if m1 > t1 else 0.0
        pair = 2.0 if m2 > t2 else 0.0
        g[BAD + p] = single if one else pair


@kernel
def _drop(s, g, nd, p, groupdq, row, column):
    """Omit the marked differences of pixel ``p``, flag their later resultant, and return how many remain in use."""
    total = 0.0
    if g[BAD + p] == 1.0:
        best = g[M1 + p]
        for i in range(nd):
            o = U(i) * ROW + p
            if s[o + X1] == best:
                total += s[o + A1]
                if s[o + USE] != 0.0:
                    s[o + USE] = 0.0
                    groupdq[i + 1, row, column] |= JUMP
    else:
        best = g[M2 + p]
        for i in range(nd - 1):
            o = U(i) * ROW + p
            if s[o + X2] == best:
                total += s[o + A2]
                for j in range(2):
                    oj = o + U(j) * ROW
                    if s[oj + USE] != 0.0:
                        s[oj + USE] = 0.0
                        groupdq[i + 1 + j, row, column] |= JUMP
    g[COUNT + p] = total
    used = 0
    for i in range(nd):
        if s[U(i) * ROW + USE + p] != 0.0:
            used += 1
    return used


@kernel
def _take_search(s, g, nd, groupdq, used, counts, row, start, count):
    """Rates and differences in use that a search left, without those that an expanded jump touches."""
    for k in range(count):
        p = U(k)
        g[COUNT + p] = counts[row, start + k]
        for i in range(nd):
            kept = used[i, row, start + k] != 0 and (groupdq[i + 1, row, start + k] & JUMP) == 0
            s[U(i) * ROW + USE + p] = 1.0 if kept else 0.0


QUEUED = 4  # per-pixel values that go through the queue, before the differences and use flags


@kernel
def _push(s, g, nd, p, values, places, queued, row, column):
    """Put pixel ``p`` at the end of the queue, for another round of the search."""
    v = values[queued]
    v[0] = g[GUESS + p]
    v[1] = g[GAIN + p]
    v[2] = g[READ2 + p]
    v[3] = g[COUNT + p]
    for i in range(nd):
        v[QUEUED + 2 * i] = s[U(i) * ROW + D + p]
        v[QUEUED + 2 * i + 1] = s[U(i) * ROW + USE + p]
    places[queued, 0] = row
    places[queued, 1] = column


@kernel
def _pop(s, g, nd, values, places, queued, batch):
    """Move up to a batch from the end of the queue into ``s`` and ``g``; return how many."""
    count = min(queued, np.int64(WIDTH))
    for k in range(np.int64(WIDTH)):
        p = U(k)
        if k >= count:
            g[GUESS + p] = 0.0
            g[GAIN + p] = 1.0
            g[READ2 + p] = 1.0
            for i in range(nd):
                s[U(i) * ROW + D + p] = 0.0
                s[U(i) * ROW + USE + p] = 0.0
            continue
        v = values[queued - count + k]
        g[GUESS + p] = v[0]
        g[GAIN + p] = v[1]
        g[READ2 + p] = v[2]
        g[COUNT + p] = v[3]
        for i in range(nd):
            s[U(i) * ROW + D + p] = v[QUEUED + 2 * i]
            s[U(i) * ROW + USE + p] = v[QUEUED + 2 * i + 1]
        batch[k, 0] = places[queued - count + k, 0]
        batch[k, 1] = places[queued - count + k, 1]
    return count


@kernel
def _store(g, p, out, row, column):
    """Write the results of pixel ``p`` into the five planes of ``out``."""
    out[0, row, column] = g[RATE + p]
    out[1, row, column] = g[ERR + p]
    out[2, row, column] = g[VP + p]
    out[3, row, column] = g[VR + p]
    out[4, row, column] = g[CHI2 + p]


@kernel
def _store_stretch(g, out, row, start, stop):
    """Write the results of consecutive pixels into the five planes of ``out``."""
    rate, err, var_poisson = out[0, row, start:stop], out[1, row, start:stop], out[2, row, start:stop]
    var_rnoise, chi2 = out[3, row, start:stop], out[4, row, start:stop]
    for p in range(U(stop - start)):
        rate[p] = g[RATE + p]
    for p in range(U(stop - start)):
        err[p] = g[ERR + p]
    for p in range(U(stop - start)):
        var_poisson[p] = g[VP + p]
    for p in range(U(stop - start)):
        var_rnoise[p] = g[VR + p]
    for p in range(U(stop - start)):
        chi2[p] = g[CHI2 + p]


@entry
def fit_rows(mode, data, groupdq, gain, readnoise, constants, thresholds, first, last, left, right, out, used, counts):
    """Fit the pixels of rows ``first:last`` and columns ``left:right``; set JUMP_DET in ``groupdq``.

    Pixels in which a jump cannot be excluded wait in a queue until a whole batch of them can be searched, and again
    after each jump found: the vectors stay full although few pixels need it.

    Parameters
    ----------
    mode : int
        FIT, SEARCH or REFIT.
    data : (n, R, C) f4 array, DN
    groupdq : (n, R, C) u1 array
        JUMP_DET (4) is set in place.
    gain, readnoise : (last - first, C) f4 arrays, electrons/DN and DN
    constants : tuple
        (steps, photon, photon_next, read, read_next, averaged), see `stages.ramp_fit.likelihood.CovarianceConstants`.
    thresholds : tuple of three floats
        Least gain in chi^2 for omitting one difference and a pair, and chi^2 below which no search is needed.
    first, last, left, right : int
    out : (5, last - first, right - left) f4 array
        Rate, error, Poisson variance, read variance, chi^2. Not written by SEARCH.
    used : (nd, R, C) u1 array
        Differences in use; REFIT leaves out those with JUMP_DET in their later resultant. Not looked at by FIT.
    counts : (R, C) f8 array
        Rates for the final covariance. Not looked at by FIT.
    """
    steps, photon, photon_next, read, read_next, averaged = constants
    nd = steps.size
    width = np.int64(WIDTH)
    s = np.zeros((nd + 1) * BATCH_ROWS * width)
    g = np.zeros(GROUP_ROWS * width)
    values = np.zeros((2 * width, QUEUED + 2 * nd))
    places = np.zeros((2 * width, 2), dtype=np.int64)
    batch = np.zeros((width, 2), dtype=np.int64)
    queued = 0
    stretches = (right - left + width - 1) // width
    work = (last - first) * stretches
    done = 0
    while done < work or queued > 0:
        fresh = done < work and queued < width
        row, start, count = 0, 0, 0
        if fresh:
            row = first + done // stretches
            start = left + (done % stretches) * width
            done += 1
            count = min(width, right - start)
            gains, noises = gain[row - first, start : start + count], readnoise[row - first, start : start + count]
            load(s, g, data, groupdq, gains, noises, steps, row, start, start + count)
            if mode == REFIT:
                _take_search(s, g, nd, groupdq, used, counts, row, start, count)
            else:
                median_guess(s, g, nd)
        else:
            count = _pop(s, g, nd, values, places, queued, batch)
            queued -= count
        for final in (False, True):
            if mode == REFIT and not final:
                continue
            if final:
                take_final_guess(g)
            scaled_covariance(s, g, nd, photon, photon_next, read, read_next)
            weighted_fit(s, g, nd)
            if final:
                break
            if fresh:
                for p in range(WIDTH):
                    g[COUNT + p] = g[RATE + p]
                _screen(s, g, nd, thresholds[2])
            else:
                chi_square(s, g, nd)
                _omit_statistics(s, g, nd, averaged)
                _decide(g, thresholds[0], thresholds[1])
            for k in range(count):
                if g[BAD + U(k)] != 0.0:
                    y, x = (row, start + k) if fresh else (batch[k, 0], batch[k, 1])
                    if fresh or _drop(s, g, nd, U(k), groupdq, y, x) > 3:
                        _push(s, g, nd, U(k), values, places, queued, y, x)
                        queued += 1
                    else:
                        g[BAD + U(k)] = 0.0
            if mode == SEARCH:
                for k in range(count):
                    y, x = (row, start + k) if fresh else (batch[k, 0], batch[k, 1])
                    counts[y, x] = g[COUNT + U(k)]
                    for i in range(nd):
                        used[i, y, x] = np.uint8(s[U(i) * ROW + USE + U(k)])
                break
        if mode == SEARCH:
            continue
        chi_square(s, g, nd)
        errors(s, g, nd, photon, photon_next, read, read_next)
        if fresh:
            _store_stretch(g, out, row - first, start - left, start - left + count)
        else:
            for k in range(count):
                if g[BAD + U(k)] == 0.0:
                    _store(g, U(k), out, batch[k, 0] - first, batch[k, 1] - left)
