"""The dark decay equals romancal's, which takes full frames alone."""

from __future__ import annotations

import numpy as np
import pytest

from stages.dark_decay import subtract_dark_decay
from stages.read_times import frame_read_times

pytestmark = pytest.mark.oracle

PATTERN = [[1], [2, 3, 4], [5], [6, 7, 8, 9, 10, 11, 12, 13]]


def test_the_product_of_shares_equals_the_exponential_of_the_oracles_times() -> None:
    """The same check as below on few rows: the oracle's own times, exponentials and mean in one piece."""
    from romancal.lib.basic_utils import frame_read_times as oracle_times

    rows = 64
    # sca 3 is mirrored in columns, so that the first rows read are the first rows of the frame.
    times = oracle_times(3.04, 3, 0)[:rows]
    np.testing.assert_array_equal(frame_read_times(3.04, 3, 0, rows=rows), times)
    data = np.random.default_rng(0).normal(50, 9, (len(PATTERN), rows, 4096)).astype(np.float32)
    expected = data.copy()
    for i, reads in enumerate(PATTERN):
        expected[i] -= np.mean([0.7 * np.exp(-(times + (r - 1.5) * 3.04) / 23.0) for r in reads], axis=0)
    subtract_dark_decay(data, 0.7, 23.0, 3.04, PATTERN, 3)
    assert np.count_nonzero(data != expected) == 0


@pytest.mark.slow
@pytest.mark.parametrize("sca", [3, 7])
def test_a_full_frame_equals_the_oracles(sca: int) -> None:
    from romancal.dark_decay.dark_decay import subtract_dark_decay as oracle

    pattern = PATTERN[:2]
    data = np.random.default_rng(sca).normal(50, 9, (len(pattern), 4096, 4096)).astype(np.float32)
    expected = data.copy()
    result = oracle(expected, 0.7, 23.0, 3.04, pattern, sca)
    expected = expected if result is None else result
    subtract_dark_decay(data, 0.7, 23.0, 3.04, pattern, sca, threads=2)
    assert np.count_nonzero(data != expected) == 0
