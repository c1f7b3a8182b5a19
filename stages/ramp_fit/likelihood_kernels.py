# mypy: disable-error-code="no-untyped-def"
"""Compiled kernels of one likelihood fit, vectorised across a batch of pixels (see `stages.ramp_fit.batch_layout`).

Every operation is a plain IEEE f8 operation in the order in which the mission's pipeline does it (no fastmath, no
contraction): the outputs are equal to the bit. Symbols are those of Brandt (2024), PASP 136, 045004.
"""

from __future__ import annotations

import math

import numpy as np

from stages.ramp_fit.batch_layout import (
    A1,
    AL,
    BAD,
    BE,
    CG,
    CHI2,
    COUNT,
    DB,
    DC,
    ERR,
    GAIN,
    GUESS,
    ITH,
    LAST,
    PH,
    RATE,
    READ2,
    ROW,
    T1,
    T2,
    TH,
    TN,
    U0,
    USE,
    VP,
    VR,
    WIDTH,
    A,
    B,
    C,
    D,
    P,
    Q,
    S,
    U,
    V,
    kernel,
)

__all__ = ["chi_square", "errors", "load", "median_guess", "scaled_covariance", "take_final_guess", "weighted_fit"]

SQRT2 = math.sqrt(2.0)


@kernel
def load(s, g, data, groupdq, gains, noises, steps, row, start, stop):
    """Differences, use flags, gain and read variance of one stretch of a row; the rest of the batch is harmless."""
    nd = steps.size
    count = stop - start
    for p in range(WIDTH):
        g[GAIN + p] = 1.0
        g[READ2 + p] = 1.0
    for p in range(U(count)):
        sigma = np.float64(noises[p]) * SQRT2 / SQRT2
        g[GAIN + p] = gains[p]
        g[READ2 + p] = sigma * sigma
    for i in range(nd):
        o = U(i) * ROW
        if U(count) < WIDTH:
            for p in range(WIDTH):
                s[o + D + p] = 0.0
                s[o + USE + p] = 0.0
        step = steps[i]
        before, after = data[i, row, start:stop], data[i + 1, row, start:stop]
        for p in range(U(count)):
            s[o + D + p] = np.float64(after[p] - before[p]) / step
        flags, flags_next = groupdq[i, row, start:stop], groupdq[i + 1, row, start:stop]
        for p in range(U(count)):
            s[o + USE + p] = 1.0 if (flags[p] | flags_next[p]) == 0 else 0.0


@kernel
def median_guess(s, g, nd):
    """Median over all differences of each pixel, 0 if not positive, NaN kept, into GUESS (Batcher's merge exchange)."""
    for p in range(WIDTH):
        g[BAD + p] = 0.0
    for i in range(nd):
        o = U(i) * ROW
        for p in range(WIDTH):
            d = s[o + D + p]
            s[o + A1 + p] = d
            g[BAD + p] += 0.0 * d  # NaN, and infinity, leave NaN behind
    top = 1
    while top * 2 < nd:
        top *= 2
    step = top
    while step > 0:
        other, offset, distance = top, 0, step
        while True:
            for i in range(nd - distance):
                if (i & step) == offset:
                    low = U(i) * ROW + A1
                    high = U(i + distance) * ROW + A1
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
    upper = U(nd // 2) * ROW + A1
    lower = U((nd - 1) // 2) * ROW + A1
    odd = nd % 2 == 1
    for p in range(WIDTH):
        a = s[lower + p]
        b = s[upper + p]
        mean = a if odd else (a + b) / 2.0
        g[GUESS + p] = mean if mean > 0.0 else 0.0  # noqa: FURB136 - NaN
    for p in range(WIDTH):
        if g[BAD + p] != 0.0:
            for i in range(nd):
                d = s[U(i) * ROW + D + p]
                if d != d:  # noqa: PLR0124 - NaN
                    g[GUESS + p] = math.nan


@kernel
def scaled_covariance(s, g, nd, photon, photon_next, read, read_next):
    """Covariance rows AL and BE for the rate in GUESS, divided by the scale S that keeps determinants near 1."""
    for p in range(WIDTH):
        g[CG + p] = g[GUESS + p] / g[GAIN + p]
        g[S + p] = 1.0
    for i in range(nd):
        o = U(i) * ROW
        ap, ar = photon[i], read[i]
        for p in range(WIDTH):
            s[o + AL + p] = g[CG + p] * ap + g[READ2 + p] * ar
        if i < nd - 1:
            bp, br = photon_next[i], read_next[i]
            for p in range(WIDTH):
                s[o + BE + p] = g[CG + p] * bp + g[READ2 + p] * br
    for p in range(WIDTH):
        g[T2 + p] = 1.0
        g[T1 + p] = s[AL + p]
    for i in range(2, nd + 1):
        o = U(i) * ROW
        if i <= 10:
            for p in range(WIDTH):  # S is still 1: dividing by it would change nothing
                beta = s[o - ROW - ROW + BE + p]
                t1 = g[T1 + p]
                t = s[o - ROW + AL + p] * t1 - beta * beta * g[T2 + p]
                g[T2 + p] = t1
                g[T1 + p] = t
        else:
            for p in range(WIDTH):
                beta = s[o - ROW - ROW + BE + p]
                t1 = g[T1 + p]
                scale = g[S + p]
                t = s[o - ROW + AL + p] / scale * t1 - beta * beta / (scale * scale) * g[T2 + p]
                g[T2 + p] = t1
                g[T1 + p] = t
        if i % 10 == 0 or i == nd:
            power = 1.0 / i
            for p in range(WIDTH):
                g[LAST + p] = g[T1 + p] ** power
            for p in range(WIDTH):
                f = g[LAST + p]
                q = g[T1 + p] / f
                g[S + p] *= f
                g[T2 + p] /= q
                g[T1 + p] = 1.0
    for i in range(nd):
        o = U(i) * ROW
        for p in range(WIDTH):
            s[o + AL + p] /= g[S + p]
        if i < nd - 1:
            for p in range(WIDTH):
                s[o + BE + p] = s[o + BE + p] / g[S + p] * (s[o + ROW + USE + p] * s[o + USE + p])


@kernel
def weighted_fit(s, g, nd):
    """Recursions of the fit: rows TH, PH, V, DC, DB the sums A, B, C, and RATE."""
    for p in range(WIDTH):
        s[TH + p] = 1.0
        s[ROW + TH + p] = s[AL + p]
    for i in range(2, nd + 1):
        o = U(i) * ROW
        for p in range(WIDTH):
            beta = s[o - ROW - ROW + BE + p]
            s[o + TH + p] = s[o - ROW + AL + p] * s[o - ROW + TH + p] - beta * beta * s[o - ROW - ROW + TH + p]
    end = U(nd) * ROW
    for p in range(WIDTH):
        s[end + PH + p] = 1.0
        s[end - ROW + PH + p] = s[end - ROW + AL + p]
        s[end - ROW + DC + p] = 0.0
        s[end - ROW + DB + p] = 0.0
    for i in range(nd - 2, -1, -1):
        o = U(i) * ROW
        sign = 1.0 if i % 2 == 0 else -1.0  # of i + 1
        for p in range(WIDTH):
            beta = s[o + BE + p]
            ph2 = s[o + ROW + ROW + PH + p]
            dm = s[o + ROW + D + p] * s[o + ROW + USE + p]
            s[o + PH + p] = s[o + AL + p] * s[o + ROW + PH + p] - beta * beta * ph2
            s[o + DC + p] = s[o + ROW + DC + p] * beta + sign * beta * ph2
            s[o + DB + p] = (s[o + ROW + DB + p] + sign * dm * ph2) * beta
    for p in range(WIDTH):
        g[TN + p] = s[end + TH + p]
    for p in range(WIDTH):
        g[ITH + p] = 1.0 / g[TN + p]
    _forward(s, g, nd)
    for p in range(WIDTH):
        g[RATE + p] = g[B + p] * (1.0 / g[C + p])


@kernel
def _forward(s, g, nd):
    """Forward half of the recursions: V, DC, DB, and the sums A, B, C."""
    for p in range(WIDTH):
        ith = g[ITH + p]
        dm = s[D + p] * s[USE + p]
        u = -s[TH + p]
        v1 = -dm * s[TH + p]
        s[V + p] = 0.0
        s[ROW + V + p] = v1
        dc = -ith * (s[ROW + PH + p] * u + s[TH + p] * s[DC + p]) * s[USE + p]
        db = -ith * (s[ROW + PH + p] * v1 + s[TH + p] * s[DB + p])
        s[DC + p] = dc
        s[DB + p] = db
        g[U0 + p] = u
        g[A + p] = dm * db
        g[B + p] = dm * dc
        g[C + p] = dc
    for i in range(1, nd):
        o = U(i) * ROW
        sign = -1.0 if i % 2 == 0 else 1.0
        for p in range(WIDTH):
            ith = g[ITH + p]
            use = s[o + USE + p]
            dm = s[o + D + p] * use
            beta = s[o - ROW + BE + p]
            thi = s[o + TH + p]
            ph1 = s[o + ROW + PH + p]
            v = s[o + V + p]
            u = g[U0 + p] * beta + sign * thi
            v1 = beta * v + sign * dm * thi
            dc = sign * ith * (ph1 * u + thi * s[o + DC + p]) * use
            db = sign * ith * (ph1 * v1 + thi * s[o + DB + p])
            s[o + ROW + V + p] = v1
            s[o + DC + p] = dc
            s[o + DB + p] = db
            g[U0 + p] = u
            g[A + p] += dm * db
            g[B + p] += dm * dc
            g[C + p] += dc


@kernel
def chi_square(s, g, nd):
    """A, summed in the order that parity asks for, and CHI2; `weighted_fit` leaves an A that differs by rounding."""
    for p in range(WIDTH):
        dm = s[D + p] * s[USE + p]
        ph1 = s[ROW + PH + p]
        g[P + p] = -dm / g[TN + p] * ph1 * s[V + p]
        g[A + p] = dm * dm * s[TH + p] * ph1 / g[TN + p]
    for i in range(1, nd):
        o = U(i) * ROW
        sign = -1.0 if i % 2 == 0 else 1.0
        for p in range(WIDTH):
            th = g[TN + p]
            dm = s[o + D + p] * s[o + USE + p]
            ph1 = s[o + ROW + PH + p]
            g[P + p] += sign * dm / th * s[o - ROW + BE + p] * ph1 * s[o + V + p]
            g[A + p] += dm * dm * s[o + TH + p] * ph1 / th
    for p in range(WIDTH):
        a = 2.0 * g[P + p] + g[A + p]
        b, c = g[B + p], g[C + p]
        g[A + p] = a
        g[CHI2 + p] = (a - b * b / c) / g[S + p]


@kernel
def errors(s, g, nd, photon, photon_next, read, read_next):
    """ERR and the two variances of the fitted rate."""
    for p in range(WIDTH):
        w = s[DC + p] / g[C + p]
        g[LAST + p] = w
        g[ERR + p] = math.sqrt(g[S + p] / g[C + p])
        g[VP + p] = w * w * (g[CG + p] * photon[0])
        g[VR + p] = w * w * (g[READ2 + p] * read[0])
        g[P + p] = 0.0
        g[Q + p] = 0.0
    for i in range(1, nd):
        o = U(i) * ROW
        ap, ar, bp, br = photon[i], read[i], photon_next[i - 1], read_next[i - 1]
        for p in range(WIDTH):
            before = g[LAST + p]
            w = s[o + DC + p] / g[C + p]
            g[LAST + p] = w
            g[VP + p] += w * w * (g[CG + p] * ap)
            g[VR + p] += w * w * (g[READ2 + p] * ar)
            g[P + p] += w * before * (g[CG + p] * bp)
            g[Q + p] += w * before * (g[READ2 + p] * br)
    for p in range(WIDTH):
        g[VP + p] += 2.0 * g[P + p]
        g[VR + p] += 2.0 * g[Q + p]


@kernel
def take_final_guess(g):
    """The rate for the last covariance: COUNT, 0 if not positive, NaN kept."""
    for p in range(WIDTH):
        rate = g[COUNT + p]
        g[GUESS + p] = 0.0 if rate <= 0.0 else rate  # noqa: FURB136 - NaN
