"""Where the quantities of a batch of pixels lie in memory, for the kernels of the likelihood fit.

A *batch* is `WIDTH` pixels. All per-difference quantities of a batch lie in one flat f8 array ``s`` (difference ``i``,
quantity ``X``, pixel ``p`` at ``i*ROW + X + p``) and all per-pixel quantities in a second one, ``g`` (``X + p``).
Distances between rows are compile-time constants, so that LLVM proves the inner loops (over pixels) free of aliasing
and vectorises them. Indices are unsigned because numba then leaves out the test for negative ones, which would prevent
that.
"""

from __future__ import annotations

import numba
import numpy as np

U = np.uint64
WIDTH = U(128)

# Rows of ``s`` for each difference (for TH, PH and V, for each node 0..nd). D, USE: scaled difference, and 1 or 0 as it
# is used. AL, BE: covariance. TH, PH, V: recursions. DC, DB: inverse covariance times ones and times the differences.
# A1, X1, A2, X2: rate and gain in chi^2 on omitting the difference, and it with its successor. DD: diagonal of the
# inverse.
D, USE, AL, BE, TH, PH, V, DC, DB, A1, X1, A2, X2, DD = (U(k) * WIDTH for k in range(14))
BATCH_ROWS = 14
ROW = U(BATCH_ROWS) * WIDTH

# Rows of ``g``. GUESS, GAIN, READ2: rate for the covariance, gain, read variance. CG: GUESS/GAIN. S: scale of the
# covariance. TN, ITH: determinant and its inverse. A, B, C: the three sums. U0, T1, T2, LAST, P, Q: running values.
# RATE, CHI2, ERR, VP, VR: results. M1, M2: largest X1 and X2. COUNT: rate for the last covariance. BAD: marks.
(
    GUESS, GAIN, READ2, CG, S, ITH, A, B, C, U0, RATE, CHI2, M1, M2, COUNT, ERR, VP, VR, T1, T2, LAST, BAD, P, Q, TN,
) = (U(k) * WIDTH for k in range(25))  # fmt: skip
GROUP_ROWS = 25

JUMP = np.uint8(4)

kernel = numba.njit(nogil=True, error_model="numpy", no_cpython_wrapper=True)
"""Compiled into its caller; not callable from Python."""
entry = numba.njit(nogil=True, cache=True, error_model="numpy")
"""Callable from Python, and cached on disk: touch its file after a change in a kernel of another file that it calls."""
