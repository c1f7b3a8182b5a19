"""Compiled kernels of the likelihood ramp fit: batches of pixels, vectorised across the batch. Not the driver.

A *batch* is `WIDTH` pixels. All per-difference quantities of a batch lie in one flat f8 array ``s`` (row ``i``, quantity
``k``, pixel ``p`` at ``(i*KINDS + k)*WIDTH + p``) and all per-pixel quantities in a second one, ``g``. Distances between
rows are compile-time constants, so that LLVM proves the inner loops (over pixels) free of aliasing and vectorises
them; indices are unsigned because numba then leaves out the test for negative ones, which would prevent that.

Every operation is a plain IEEE f8 operation in the order in which the mission's pipeline does it (no fastmath, no
contraction): the outputs are equal to the bit.
"""

from __future__ import annotations

import math

import numba
import numpy as np

__all__ = ["fit_rows", "refit_rows"]

_U = np.uint64
WIDTH = _U(128)

# Rows of ``s`` for each difference (or, for TH and PH, for each node 0..nd).
_D, _USE, _AL, _BE, _TH, _PH, _V, _DC, _DB, _A1, _X1, _A2, _X2, _DD = (_U(k) * WIDTH for k in range(14))
BATCH_ROWS = 14
_ROW = _U(BATCH_ROWS) * WIDTH

# Rows of ``g``, for each pixel.
(
    _GUESS, _GAIN, _READ2, _CG, _S, _ITH, _A, _B, _C, _U0, _RATE, _CHI2, _M1, _M2, _COUNT, _ERR, _VP, _VR, _T1, _T2,
    _LAST, _BAD, _P, _Q, _TN,
) = (_U(k) * WIDTH for k in range(25))  # fmt: skip
GROUP_ROWS = 25

_SQRT2 = math.sqrt(2.0)
_JUMP = np.uint8(4)
_CALM = 0.9  # fraction of the threshold below which chi^2 alone excludes a jump; the rest is room for rounding

_kernel = numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True)
_entry = numba.njit(nogil=True, cache=True, error_model="numpy")


@_kernel
def _median_guess(s, g, nd):
    """Median over all differences of each pixel, 0 if not positive, NaN kept, into GUESS (Batcher's merge exchange)."""
    for p in range(WIDTH):
        g[_BAD + p] = 0.0
    for i in range(nd):
        o = _U(i) * _ROW
        for p in range(WIDTH):
            d = s[o + _D + p]
            s[o + _A1 + p] = d
            g[_BAD + p] += 0.0 * d  # NaN, and infinity, leave NaN behind
    top = 1
    while top * 2 < nd:
        top *= 2
    step = top
    while step > 0:
        other, offset, distance = top, 0, step
        while True:
            for i in range(nd - distance):
                if (i & step) == offset:
                    low = _U(i) * _ROW + _A1
                    high = _U(i + distance) * _ROW + _A1
                    for p in range(WIDTH):
                        a = s[low + p]
                        b = s[high + p]
                        swap = b < a
                        s[low + p] = b if swap else a
                        s[high + p] = a if swap else b
            if other == step:
                break
            distance, other, offset = other - step, other >> 1, step
        step >>= 1
    upper = _U(nd // 2) * _ROW + _A1
    lower = _U((nd - 1) // 2) * _ROW + _A1
    odd = nd % 2 == 1
    for p in range(WIDTH):
        a = s[lower + p]
        b = s[upper + p]
        mean = a if odd else (a + b) / 2.0
        g[_GUESS + p] = mean if mean > 0.0 else 0.0
    for p in range(WIDTH):
        if g[_BAD + p] != 0.0:
            for i in range(nd):
                d = s[_U(i) * _ROW + _D + p]
                if d != d:
                    g[_GUESS + p] = math.nan


@_kernel
def _scaled_covariance(s, g, nd, photon, photon_next, read, read_next):
    """Covariance rows AL and BE for the rate in GUESS, divided by the scale S that keeps determinants near 1."""
    for p in range(WIDTH):
        g[_CG + p] = g[_GUESS + p] / g[_GAIN + p]
        g[_S + p] = 1.0
    for i in range(nd):
        o = _U(i) * _ROW
        ap, ar = photon[i], read[i]
        for p in range(WIDTH):
            s[o + _AL + p] = g[_CG + p] * ap + g[_READ2 + p] * ar
        if i < nd - 1:
            bp, br = photon_next[i], read_next[i]
            for p in range(WIDTH):
                s[o + _BE + p] = g[_CG + p] * bp + g[_READ2 + p] * br
    for p in range(WIDTH):
        g[_T2 + p] = 1.0
        g[_T1 + p] = s[_AL + p]
    for i in range(2, nd + 1):
        o = _U(i) * _ROW
        if i <= 10:
            for p in range(WIDTH):  # S is still 1: dividing by it would change nothing
                beta = s[o - _ROW - _ROW + _BE + p]
                t1 = g[_T1 + p]
                t = s[o - _ROW + _AL + p] * t1 - beta * beta * g[_T2 + p]
                g[_T2 + p] = t1
                g[_T1 + p] = t
        else:
            for p in range(WIDTH):
                beta = s[o - _ROW - _ROW + _BE + p]
                t1 = g[_T1 + p]
                scale = g[_S + p]
                t = s[o - _ROW + _AL + p] / scale * t1 - beta * beta / (scale * scale) * g[_T2 + p]
                g[_T2 + p] = t1
                g[_T1 + p] = t
        if i % 10 == 0 or i == nd:
            power = 1.0 / i
            for p in range(WIDTH):
                g[_LAST + p] = g[_T1 + p] ** power
            for p in range(WIDTH):
                f = g[_LAST + p]
                q = g[_T1 + p] / f
                g[_S + p] *= f
                g[_T2 + p] /= q
                g[_T1 + p] = 1.0
    for i in range(nd):
        o = _U(i) * _ROW
        for p in range(WIDTH):
            s[o + _AL + p] /= g[_S + p]
        if i < nd - 1:
            for p in range(WIDTH):
                s[o + _BE + p] = s[o + _BE + p] / g[_S + p] * (s[o + _ROW + _USE + p] * s[o + _USE + p])


@_kernel
def _weighted_fit(s, g, nd):
    """Recursions of the fit: rows TH, PH, V, DC, DB the sums A, B, C, and RATE."""
    for p in range(WIDTH):
        s[_TH + p] = 1.0
        s[_ROW + _TH + p] = s[_AL + p]
    for i in range(2, nd + 1):
        o = _U(i) * _ROW
        for p in range(WIDTH):
            beta = s[o - _ROW - _ROW + _BE + p]
            s[o + _TH + p] = (
                s[o - _ROW + _AL + p] * s[o - _ROW + _TH + p] - beta * beta * s[o - _ROW - _ROW + _TH + p]
            )
    end = _U(nd) * _ROW
    for p in range(WIDTH):
        s[end + _PH + p] = 1.0
        s[end - _ROW + _PH + p] = s[end - _ROW + _AL + p]
        s[end - _ROW + _DC + p] = 0.0
        s[end - _ROW + _DB + p] = 0.0
    for i in range(nd - 2, -1, -1):
        o = _U(i) * _ROW
        sign = 1.0 if i % 2 == 0 else -1.0  # of i + 1
        for p in range(WIDTH):
            beta = s[o + _BE + p]
            ph2 = s[o + _ROW + _ROW + _PH + p]
            dm = s[o + _ROW + _D + p] * s[o + _ROW + _USE + p]
            s[o + _PH + p] = s[o + _AL + p] * s[o + _ROW + _PH + p] - beta * beta * ph2
            s[o + _DC + p] = s[o + _ROW + _DC + p] * beta + sign * beta * ph2
            s[o + _DB + p] = (s[o + _ROW + _DB + p] + sign * dm * ph2) * beta
    for p in range(WIDTH):
        g[_TN + p] = s[end + _TH + p]
    for p in range(WIDTH):
        g[_ITH + p] = 1.0 / g[_TN + p]
    _forward(s, g, nd)
    for p in range(WIDTH):
        g[_RATE + p] = g[_B + p] * (1.0 / g[_C + p])


@_kernel
def _forward(s, g, nd):
    """Forward half of the recursions: V, DC, DB, and the sums A, B, C."""
    for p in range(WIDTH):
        ith = g[_ITH + p]
        dm = s[_D + p] * s[_USE + p]
        u = -s[_TH + p]
        v1 = -dm * s[_TH + p]
        s[_V + p] = 0.0
        s[_ROW + _V + p] = v1
        dc = -ith * (s[_ROW + _PH + p] * u + s[_TH + p] * s[_DC + p]) * s[_USE + p]
        db = -ith * (s[_ROW + _PH + p] * v1 + s[_TH + p] * s[_DB + p])
        s[_DC + p] = dc
        s[_DB + p] = db
        g[_U0 + p] = u
        g[_A + p] = dm * db
        g[_B + p] = dm * dc
        g[_C + p] = dc
    for i in range(1, nd):
        o = _U(i) * _ROW
        sign = -1.0 if i % 2 == 0 else 1.0
        for p in range(WIDTH):
            ith = g[_ITH + p]
            use = s[o + _USE + p]
            dm = s[o + _D + p] * use
            beta = s[o - _ROW + _BE + p]
            thi = s[o + _TH + p]
            ph1 = s[o + _ROW + _PH + p]
            v = s[o + _V + p]
            u = g[_U0 + p] * beta + sign * thi
            v1 = beta * v + sign * dm * thi
            dc = sign * ith * (ph1 * u + thi * s[o + _DC + p]) * use
            db = sign * ith * (ph1 * v1 + thi * s[o + _DB + p])
            s[o + _ROW + _V + p] = v1
            s[o + _DC + p] = dc
            s[o + _DB + p] = db
            g[_U0 + p] = u
            g[_A + p] += dm * db
            g[_B + p] += dm * dc
            g[_C + p] += dc


@_kernel
def _chi_square(s, g, nd):
    """A summed in the order that parity asks for, and CHI2 (after `_weighted_fit`, which leaves an equal A but for rounding)."""
    for p in range(WIDTH):
        dm = s[_D + p] * s[_USE + p]
        ph1 = s[_ROW + _PH + p]
        g[_P + p] = -dm / g[_TN + p] * ph1 * s[_V + p]
        g[_A + p] = dm * dm * s[_TH + p] * ph1 / g[_TN + p]
    for i in range(1, nd):
        o = _U(i) * _ROW
        sign = -1.0 if i % 2 == 0 else 1.0
        for p in range(WIDTH):
            th = g[_TN + p]
            dm = s[o + _D + p] * s[o + _USE + p]
            ph1 = s[o + _ROW + _PH + p]
            g[_P + p] += sign * dm / th * s[o - _ROW + _BE + p] * ph1 * s[o + _V + p]
            g[_A + p] += dm * dm * s[o + _TH + p] * ph1 / th
    for p in range(WIDTH):
        a = 2.0 * g[_P + p] + g[_A + p]
        b, c = g[_B + p], g[_C + p]
        g[_A + p] = a
        g[_CHI2 + p] = (a - b * b / c) / g[_S + p]


@_kernel
def _errors(s, g, nd, photon, photon_next, read, read_next):
    """ERR and the two variances of the fitted rate."""
    for p in range(WIDTH):
        w = s[_DC + p] / g[_C + p]
        g[_LAST + p] = w
        g[_ERR + p] = math.sqrt(g[_S + p] / g[_C + p])
        g[_VP + p] = w * w * (g[_CG + p] * photon[0])
        g[_VR + p] = w * w * (g[_READ2 + p] * read[0])
        g[_P + p] = 0.0
        g[_Q + p] = 0.0
    for i in range(1, nd):
        o = _U(i) * _ROW
        ap, ar, bp, br = photon[i], read[i], photon_next[i - 1], read_next[i - 1]
        for p in range(WIDTH):
            before = g[_LAST + p]
            w = s[o + _DC + p] / g[_C + p]
            g[_LAST + p] = w
            g[_VP + p] += w * w * (g[_CG + p] * ap)
            g[_VR + p] += w * w * (g[_READ2 + p] * ar)
            g[_P + p] += w * before * (g[_CG + p] * bp)
            g[_Q + p] += w * before * (g[_READ2 + p] * br)
    for p in range(WIDTH):
        g[_VP + p] += 2.0 * g[_P + p]
        g[_VR + p] += 2.0 * g[_Q + p]


@_kernel
def _omit_statistics(s, g, nd, averaged):
    """Gain in chi^2 when one difference (X1) or a pair (X2) is omitted, the rates then (A1, A2), and the maxima.

    ``averaged[i]`` is 1 where differences i and i+1 share a resultant of more than one read.
    """
    for i in range(nd):
        o = _U(i) * _ROW
        for p in range(WIDTH):
            s[o + _DD + p] = s[o + _TH + p] * s[o + _ROW + _PH + p] / g[_TN + p] * s[o + _USE + p]
        for p in range(WIDTH):
            dd = s[o + _DD + p]
            dc = s[o + _DC + p]
            db = s[o + _DB + p]
            a, b, c = g[_A + p], g[_B + p], g[_C + p]
            a1 = (dd * b - db * dc) / (c * dd - dc * dc)
            b1 = (db - a1 * dc) / dd
            chi = (a + a1 * a1 * c - 2.0 * a1 * b + b1 * b1 * dd - 2.0 * b1 * db + 2.0 * a1 * b1 * dc) / g[_S + p]
            s[o + _A1 + p] = a1
            s[o + _X1 + p] = g[_CHI2 + p] - chi
        for p in range(WIDTH):  # apart, or LLVM moves the arithmetic into a branch and does not vectorise
            masked = s[o + _USE + p] == 0.0
            a1, rate = s[o + _A1 + p], g[_RATE + p]
            x1, none = s[o + _X1 + p], g[_CHI2 + p] - g[_CHI2 + p]
            s[o + _A1 + p] = rate if masked else a1
            s[o + _X1 + p] = none if masked else x1
    for i in range(nd - 1):
        o = _U(i) * _ROW
        for p in range(WIDTH):
            s[o + _V + p] = -s[o + _BE + p] * s[o + _TH + p] * s[o + _ROW + _ROW + _PH + p] / g[_TN + p]
        for p in range(WIDTH):
            dd = s[o + _DD + p]
            dd1 = s[o + _ROW + _DD + p]
            oo = s[o + _V + p]
            dc = s[o + _DC + p]
            dc1 = s[o + _ROW + _DC + p]
            db = s[o + _DB + p]
            db1 = s[o + _ROW + _DB + p]
            a, b, c = g[_A + p], g[_B + p], g[_C + p]
            pp = dc * dc - c * dd
            qq = dc * dc1 - c * oo
            rr = b * dc - db * c
            cc = (rr / pp - (b * dc1 - db1 * c) / qq) / (qq / pp - (dc1 * dc1 - c * dd1) / qq)
            bb = (rr - cc * qq) / pp
            a2 = (b - bb * dc - cc * dc1) / c
            squares = a + a2 * a2 * c + bb * bb * dd + cc * cc * dd1
            linear = a2 * b + bb * db + cc * db1
            mixed = a2 * bb * dc + a2 * cc * dc1 + bb * cc * oo
            chi = (squares - 2.0 * linear + 2.0 * mixed) / g[_S + p]
            s[o + _X2 + p] = g[_CHI2 + p] - chi
            s[o + _A2 + p] = a2
        for p in range(WIDTH):
            first_out = s[o + _USE + p] == 0.0
            second_out = s[o + _ROW + _USE + p] == 0.0
            x2, x1, x1_next = s[o + _X2 + p], s[o + _X1 + p], s[o + _ROW + _X1 + p]
            x2 = x1 if second_out else x2
            s[o + _X2 + p] = x1_next if first_out else x2
        for p in range(WIDTH):
            first_out = s[o + _USE + p] == 0.0
            second_out = s[o + _ROW + _USE + p] == 0.0
            a2, a1, a1_next = s[o + _A2 + p], s[o + _A1 + p], s[o + _ROW + _A1 + p]
            a2 = a1 if second_out else a2
            s[o + _A2 + p] = a1_next if first_out else a2
    _maxima(s, g, nd, averaged)


@_kernel
def _maxima(s, g, nd, averaged):
    """M1 and M2: the largest X1 and X2 of each pixel, NaN if any is NaN."""
    for p in range(WIDTH):
        g[_M1 + p] = s[_X1 + p]
        g[_M2 + p] = s[_X2 + p] * averaged[0]
    for i in range(1, nd):
        o = _U(i) * _ROW
        for p in range(WIDTH):
            x, m = s[o + _X1 + p], g[_M1 + p]
            g[_M1 + p] = m if (m >= x or m != m) else x
        if i < nd - 1:
            shared = averaged[i]
            for p in range(WIDTH):
                x, m = s[o + _X2 + p] * shared, g[_M2 + p]
                g[_M2 + p] = m if (m >= x or m != m) else x


@_kernel
def _load(s, g, data, groupdq, gains, noises, steps, row, start, stop):
    """Differences, use flags, gain and read variance of one stretch of a row; the rest of the batch is harmless."""
    nd = steps.size
    count = stop - start
    for p in range(WIDTH):
        g[_GAIN + p] = 1.0
        g[_READ2 + p] = 1.0
    for p in range(_U(count)):
        sigma = np.float64(noises[p]) * _SQRT2 / _SQRT2
        g[_GAIN + p] = gains[p]
        g[_READ2 + p] = sigma * sigma
    for i in range(nd):
        o = _U(i) * _ROW
        if _U(count) < WIDTH:
            for p in range(WIDTH):
                s[o + _D + p] = 0.0
                s[o + _USE + p] = 0.0
        step = steps[i]
        before, after = data[i, row, start:stop], data[i + 1, row, start:stop]
        for p in range(_U(count)):
            s[o + _D + p] = np.float64(after[p] - before[p]) / step
        flags, flags_next = groupdq[i, row, start:stop], groupdq[i + 1, row, start:stop]
        for p in range(_U(count)):
            s[o + _USE + p] = 1.0 if (flags[p] | flags_next[p]) == 0 else 0.0


@_kernel
def _screen(s, g, nd, limit):
    """Mark in BAD the pixels in which a jump cannot be excluded by chi^2 alone.

    Omitting differences lowers chi^2 by at most chi^2 itself, so below the threshold there is nothing to search. This
    holds where the covariance is positive definite, and rounding cannot spoil it where three differences are in use
    (with two, the statistic of the pair is 0/0) and the squared signal-to-noise ratio, A/S, is moderate.
    """
    for p in range(WIDTH):
        g[_Q + p] = 0.0
    for i in range(nd):
        o = _U(i) * _ROW
        for p in range(WIDTH):
            g[_Q + p] += s[o + _USE + p]
    for p in range(WIDTH):
        a, b, c, scale = g[_A + p], g[_B + p], g[_C + p], g[_S + p]
        chi = a - b * b / c
        calm = (chi < limit * scale) & (chi > -limit * scale) & (a < 1e8 * scale)
        calm = calm & (g[_Q + p] > 2.5) & (g[_GAIN + p] > 0.0) & (c > 0.0)
        g[_BAD + p] = 0.0 if calm else 1.0


@_kernel
def _decide(g, t1, t2):
    """Mark in BAD what to omit: 1 the single difference with M1, 2 the pair with M2, 0 nothing."""
    for p in range(WIDTH):
        m1, m2 = g[_M1 + p], g[_M2 + p]
        one = m1 - t1 > m2 - t2
        single = 1.0 if m1 > t1 else 0.0
        pair = 2.0 if m2 > t2 else 0.0
        g[_BAD + p] = single if one else pair


@_kernel
def _drop(s, g, nd, p, groupdq, row, column):
    """Omit the marked differences of pixel ``p``, flag their later resultant, and return how many remain in use."""
    total = 0.0
    if g[_BAD + p] == 1.0:
        best = g[_M1 + p]
        for i in range(nd):
            o = _U(i) * _ROW + p
            if s[o + _X1] == best:
                total += s[o + _A1]
                if s[o + _USE] != 0.0:
                    s[o + _USE] = 0.0
                    groupdq[i + 1, row, column] |= _JUMP
    else:
        best = g[_M2 + p]
        for i in range(nd - 1):
            o = _U(i) * _ROW + p
            if s[o + _X2] == best:
                total += s[o + _A2]
                for j in range(2):
                    oj = o + _U(j) * _ROW
                    if s[oj + _USE] != 0.0:
                        s[oj + _USE] = 0.0
                        groupdq[i + 1 + j, row, column] |= _JUMP
    g[_COUNT + p] = total
    used = 0
    for i in range(nd):
        if s[_U(i) * _ROW + _USE + p] != 0.0:
            used += 1
    return used


_QUEUED = 5  # per-pixel values that go through the queue, before the differences and use flags


@_kernel
def _push(s, g, nd, p, values, places, queued, row, column):
    """Put pixel ``p`` at the end of the queue, for another round of the search."""
    v = values[queued]
    v[0] = g[_GUESS + p]
    v[1] = g[_GAIN + p]
    v[2] = g[_READ2 + p]
    v[3] = g[_COUNT + p]
    for i in range(nd):
        v[_QUEUED + 2 * i] = s[_U(i) * _ROW + _D + p]
        v[_QUEUED + 2 * i + 1] = s[_U(i) * _ROW + _USE + p]
    places[queued, 0] = row
    places[queued, 1] = column


@_kernel
def _pop(s, g, nd, values, places, queued, batch):
    """Move up to a batch from the end of the queue into ``s`` and ``g``; return how many."""
    count = min(queued, np.int64(WIDTH))
    for k in range(np.int64(WIDTH)):
        p = _U(k)
        if k >= count:
            g[_GUESS + p] = 0.0
            g[_GAIN + p] = 1.0
            g[_READ2 + p] = 1.0
            for i in range(nd):
                s[_U(i) * _ROW + _D + p] = 0.0
                s[_U(i) * _ROW + _USE + p] = 0.0
            continue
        v = values[queued - count + k]
        g[_GUESS + p] = v[0]
        g[_GAIN + p] = v[1]
        g[_READ2 + p] = v[2]
        g[_COUNT + p] = v[3]
        for i in range(nd):
            s[_U(i) * _ROW + _D + p] = v[_QUEUED + 2 * i]
            s[_U(i) * _ROW + _USE + p] = v[_QUEUED + 2 * i + 1]
        batch[k, 0] = places[queued - count + k, 0]
        batch[k, 1] = places[queued - count + k, 1]
    return count


@_kernel
def _take_final_guess(g):
    """The rate for the last covariance: COUNT, 0 if not positive, NaN kept."""
    for p in range(WIDTH):
        rate = g[_COUNT + p]
        g[_GUESS + p] = 0.0 if rate <= 0.0 else rate


@_kernel
def _store(g, p, out, row, column):
    """Write the results of pixel ``p`` into the five planes of ``out``."""
    out[0, row, column] = g[_RATE + p]
    out[1, row, column] = g[_ERR + p]
    out[2, row, column] = g[_VP + p]
    out[3, row, column] = g[_VR + p]
    out[4, row, column] = g[_CHI2 + p]


@_kernel
def _store_stretch(g, out, row, start, stop):
    """Write the results of consecutive pixels into the five planes of ``out``."""
    rate, err, var_poisson = out[0, row, start:stop], out[1, row, start:stop], out[2, row, start:stop]
    var_rnoise, chi2 = out[3, row, start:stop], out[4, row, start:stop]
    for p in range(_U(stop - start)):
        rate[p] = g[_RATE + p]
    for p in range(_U(stop - start)):
        err[p] = g[_ERR + p]
    for p in range(_U(stop - start)):
        var_poisson[p] = g[_VP + p]
    for p in range(_U(stop - start)):
        var_rnoise[p] = g[_VR + p]
    for p in range(_U(stop - start)):
        chi2[p] = g[_CHI2 + p]


@_entry
def fit_rows(data, groupdq, gain, readnoise, constants, thresholds, first, last, left, right, out, used, counts):
    """Fit the pixels of rows ``first:last`` and columns ``left:right``; set JUMP_DET in ``groupdq``.

    Pixels in which a jump was found wait in a queue until a whole batch of them can search on: the vectors stay full
    although few pixels need more than one round.

    Parameters
    ----------
    data : (n, R, C) f4 array, DN
    groupdq : (n, R, C) u1 array
        JUMP_DET (4) is set in place.
    gain, readnoise : (last - first, C) f4 arrays, electrons/DN and DN
    constants : tuple
        (steps, photon, photon_next, read, read_next, averaged), see `stages.ramp_fit.likelihood.CovarianceConstants`.
    thresholds : tuple of two floats
        Least gain in chi^2 for omitting one difference and a pair.
    first, last, left, right : int
    out : (5, last - first, right - left) f4 array
        Rate, error, Poisson variance, read variance, chi^2. Nothing is written if ``used`` has a size.
    used : (nd, R, C) u1 array, or of size 0
        Receives the differences still in use (for `refit_rows`).
    counts : (R, C) f8 array, or of size 0
        Receives the rates for the final covariance.
    """
    steps, photon, photon_next, read, read_next, averaged = constants
    nd = steps.size
    width = np.int64(WIDTH)
    finish = used.size == 0
    s = np.zeros((nd + 1) * BATCH_ROWS * width)
    g = np.zeros(GROUP_ROWS * width)
    values = np.zeros((2 * width, _QUEUED + 2 * nd))
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
            _load(s, g, data, groupdq, gains, noises, steps, row, start, start + count)
            _median_guess(s, g, nd)
        else:
            count = _pop(s, g, nd, values, places, queued, batch)
            queued -= count
        for final in (False, True):
            if final:
                _take_final_guess(g)
            _scaled_covariance(s, g, nd, photon, photon_next, read, read_next)
            _weighted_fit(s, g, nd)
            if final:
                break
            if fresh:
                for p in range(WIDTH):
                    g[_COUNT + p] = g[_RATE + p]
                _screen(s, g, nd, _CALM * thresholds[0])
            else:
                _chi_square(s, g, nd)
                _omit_statistics(s, g, nd, averaged)
                _decide(g, thresholds[0], thresholds[1])
            for k in range(count):
                p = _U(k)
                if g[_BAD + p] != 0.0:
                    y, x = (row, start + k) if fresh else (batch[k, 0], batch[k, 1])
                    if fresh or _drop(s, g, nd, p, groupdq, y, x) > 3:
                        _push(s, g, nd, p, values, places, queued, y, x)
                        queued += 1
                    else:
                        g[_BAD + p] = 0.0
            if not finish:
                for k in range(count):
                    y, x = (row, start + k) if fresh else (batch[k, 0], batch[k, 1])
                    counts[y, x] = g[_COUNT + _U(k)]
                    for i in range(nd):
                        used[i, y, x] = np.uint8(s[_U(i) * _ROW + _USE + _U(k)])
                break
        if not finish:
            continue
        _chi_square(s, g, nd)
        _errors(s, g, nd, photon, photon_next, read, read_next)
        if fresh:
            _store_stretch(g, out, row - first, start - left, start - left + count)
        else:
            for k in range(count):
                if g[_BAD + _U(k)] == 0.0:
                    _store(g, _U(k), out, batch[k, 0] - first, batch[k, 1] - left)


@_entry
def refit_rows(data, groupdq, gain, readnoise, constants, first, last, left, right, out, used, counts):
    """Final fit alone, with the rates in ``counts`` and the differences in ``used`` whose later resultant has no JUMP_DET.

    The rest is as in `fit_rows`.
    """
    steps, photon, photon_next, read, read_next, _ = constants
    nd = steps.size
    width = np.int64(WIDTH)
    s = np.zeros((nd + 1) * BATCH_ROWS * width)
    g = np.zeros(GROUP_ROWS * width)
    for row in range(first, last):
        for start in range(left, right, width):
            stop = min(start + width, right)
            gains, noises = gain[row - first, start:stop], readnoise[row - first, start:stop]
            _load(s, g, data, groupdq, gains, noises, steps, row, start, stop)
            for k in range(stop - start):
                g[_COUNT + _U(k)] = counts[row, start + k]
                for i in range(nd):
                    kept = used[i, row, start + k] != 0 and (groupdq[i + 1, row, start + k] & _JUMP) == 0
                    s[_U(i) * _ROW + _USE + _U(k)] = 1.0 if kept else 0.0
            _take_final_guess(g)
            _scaled_covariance(s, g, nd, photon, photon_next, read, read_next)
            _weighted_fit(s, g, nd)
            _chi_square(s, g, nd)
            _errors(s, g, nd, photon, photon_next, read, read_next)
            _store_stretch(g, out, row - first, start - left, stop - left)
