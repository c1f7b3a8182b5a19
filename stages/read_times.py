"""When each pixel of a detector is read within a frame. Not the times of resultants (see the read pattern)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["detector_number", "frame_read_times", "read_cycles"]

FRAME_ROWS = 4096
"""Rows of a full frame."""

CHANNEL_COLUMNS = 128
"""Columns of one read-out channel."""

IDLE_CYCLES = 14
"""Clock cycles between two rows of a channel, in which nothing is digitised."""

CHANNELS = 32
"""Science channels, read side by side."""

CLOCK_PERIOD = 4.915263e-6
"""Seconds per clock cycle."""

GUIDE_WINDOW_ROWS = 256
"""Rows between two excursions to the guide window: 16 blocks, thus 16 excursions, a frame."""

GUIDE_WINDOW_SHARE = 1.5
"""What the cycles left over by the pixels, shared evenly among the 16 excursions, are multiplied with."""


def detector_number(detector: str) -> int:
    """Return 7 for ``WFI07``.

    Raises
    ------
    ValueError
        The name is not WFI01 to WFI18.
    """
    number = int(detector[3:]) if detector.startswith("WFI") and detector[3:].isdecimal() else 0
    if not 1 <= number <= 18:
        raise ValueError(f"{detector!r} is not a detector name from WFI01 to WFI18")
    return number


def read_cycles(frame_time: float, *, rows: int = FRAME_ROWS) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Clock cycles at which a channel reads its rows, as a sum of a row's and a column's share.

    Parameters
    ----------
    frame_time : float
        Seconds per read.
    rows : int
        Rows of the frame; one of fewer than 4096 is timed as the first rows of a full one.

    Returns
    -------
    row_cycles : ndarray, f8, (rows,)
        Cycles before the first column of each row, in the order of reading, excursions to the guide window included.
    column_cycles : ndarray, f8, (128,)
        Cycles within a row.
    frame_cycles : float
        Cycles of a full frame, the last excursion included.
    """
    row_length = CHANNEL_COLUMNS + IDLE_CYCLES
    last = (FRAME_ROWS - 1) * row_length + CHANNEL_COLUMNS - 1
    excursion = _excursion_cycles(frame_time)
    row_cycles = np.arange(rows, dtype=np.float64) * row_length
    for start in range(GUIDE_WINDOW_ROWS, rows, GUIDE_WINDOW_ROWS):
        row_cycles[start:] += excursion
    frame_cycles = float(last)
    for _ in range(FRAME_ROWS // GUIDE_WINDOW_ROWS):
        frame_cycles += excursion
    return row_cycles, np.arange(CHANNEL_COLUMNS, dtype=np.float64), frame_cycles


def frame_read_times(
    frame_time: float, sca: int, frame_number: float, *, rows: int = FRAME_ROWS
) -> NDArray[np.float64]:
    """Times at which the pixels of a frame are read.

    Parameters
    ----------
    frame_time : float
        Seconds per read.
    sca : int
        Detector number, 1 to 18.
    frame_number : float
        Frames (of ``frame_time`` each) before this one; may be fractional.
    rows : int
        Rows of the frame; one of fewer than 4096 is timed as the first rows read of a full one.

    Returns
    -------
    ndarray, f8, (rows, 4096)
        Seconds, in the detector's orientation.

    Notes
    -----
    32 channels are read at once, every second one from its other end, 142 clock cycles a row; after each 256 rows the
    guide window is read. Every third detector is mounted the other way round.
    """
    row_length = CHANNEL_COLUMNS + IDLE_CYCLES
    channel = np.arange(rows, dtype=np.float64)[:, np.newaxis] * row_length + np.arange(CHANNEL_COLUMNS)
    excursion = _excursion_cycles(frame_time)
    # One at a time, as sums and not as a product: the same bits as the mission's.
    for start in range(GUIDE_WINDOW_ROWS, rows, GUIDE_WINDOW_ROWS):
        channel[start:] += excursion
    frame_cycles = read_cycles(frame_time, rows=1)[2]
    channel *= frame_time
    channel /= frame_cycles
    times = np.tile(np.hstack([channel, channel[:, ::-1]]), (1, CHANNELS // 2))
    times += frame_number * frame_time
    return times[:, ::-1] if mirrored_columns(sca) else times[::-1]


def mirrored_columns(sca: int) -> bool:
    """Whether the detector is read from its last column (else from its last row)."""
    return sca % 3 == 0


def _excursion_cycles(frame_time: float) -> float:
    last = (FRAME_ROWS - 1) * (CHANNEL_COLUMNS + IDLE_CYCLES) + CHANNEL_COLUMNS - 1
    return (frame_time / CLOCK_PERIOD - last) / (FRAME_ROWS // GUIDE_WINDOW_ROWS) * GUIDE_WINDOW_SHARE
