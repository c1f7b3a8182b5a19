"""The times of pixels equal romancal's, bit for bit."""

from __future__ import annotations

import pytest

from stages.read_times import frame_read_times
from tests.parity.record import EQUAL, compare

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(("sca", "frame_number"), [(1, 0), (18, -0.5), (3, 7.5)])
def test_times_equal_the_oracles(sca: int, frame_number: float) -> None:
    from romancal.lib.basic_utils import frame_read_times as oracle

    ours, theirs = frame_read_times(3.16247, sca, frame_number), oracle(3.16247, sca, frame_number)
    compare("read times", "seconds", ours, theirs, bar=EQUAL)
