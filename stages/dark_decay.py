"""Subtract the dark signal that decays after each reset. Not the dark current (see dark_current)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from stages.exposure import Exposure, StepStatus
from stages.read_times import CHANNELS, detector_number, mirrored_columns, read_cycles
from stages.rows import for_row_blocks
from stages.step import CalibrationStage
from stream.failure import PermanentError
from stream.stage import Slot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from stages.references import Reference

__all__ = ["DarkDecayStage", "subtract_dark_decay"]

FRAME_OFFSET = 1.5
"""Frames from the start of read 1's numbering back to the reset, as the reference file's amplitudes are defined."""


class DarkDecayStage(CalibrationStage):
    """Subtract the detector's exponential dark decay; there is no way to do without the reference."""

    name = "dark_decay"
    version = "1"
    cal_step = "dark_decay"
    reference_types = ("darkdecaysignal",)

    def process(
        self,
        exposure: Exposure,
        references: Mapping[str, Reference | None],
        parameters: Any,  # noqa: ARG002
        slot: Slot,
    ) -> str | None:
        """Subtract in place from every pixel, borders included; always COMPLETE."""
        reference = references.get("darkdecaysignal")
        if reference is None:
            raise PermanentError(
                f"{exposure.id}: dark_decay needs a darkdecaysignal reference, and none is selected (N/A)"
            )
        amplitude, time_constant = _decay(reference, exposure.detector)
        subtract_dark_decay(
            exposure.arrays["data"],
            amplitude,
            time_constant,
            exposure.frame_time,
            exposure.read_pattern,
            detector_number(exposure.detector),
            threads=slot.threads,
        )
        exposure.touch(("data",))
        self.log.info(
            "Dark decay of %s: amplitude %g DN, time constant %g s", exposure.detector, amplitude, time_constant
        )
        exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        return None


def subtract_dark_decay(
    data: NDArray[np.float32],
    amplitude: float,
    time_constant: float,
    frame_time: float,
    read_pattern: Sequence[Sequence[int]],
    sca: int,
    *,
    threads: int = 1,
) -> None:
    """Subtract ``amplitude * exp(-t / time_constant)``, averaged over the reads of each resultant.

    Parameters
    ----------
    data : ndarray, f4, (n, R, 4096)
        Resultants in DN, changed in place.
    amplitude, time_constant : float
        Signal at the reset in DN, and its decay time in s.
    frame_time : float
        Seconds per read.
    read_pattern : sequence of sequences of int
        Read numbers (from 1) of each resultant.
    sca : int
        Detector number, 1 to 18: decides the order in which pixels are read.
    threads : int
        Threads of the row-block kernel.

    Notes
    -----
    The time of a pixel is a sum of three shares (read, row, column within its channel), so the exponential is a
    product of three: one multiplication a pixel and resultant, f8, rounded once to f4. It differs by a few f8 ulp
    from the exponential of the sum. One pass over memory. No DQ flag is read or set.
    """
    rows, columns = data.shape[1:]
    row_cycles, column_cycles, frame_cycles = read_cycles(frame_time, rows=rows)
    seconds_per_cycle = frame_time / frame_cycles
    by_row = np.exp(row_cycles * seconds_per_cycle / -time_constant)
    channel = np.exp(column_cycles * seconds_per_cycle / -time_constant)
    by_column = np.tile(np.hstack([channel, channel[::-1]]), CHANNELS // 2)
    if by_column.size != columns:
        raise PermanentError(f"dark_decay needs {by_column.size} columns (32 channels), found {columns}")
    if mirrored_columns(sca):
        by_column = by_column[::-1].copy()
    else:
        by_row = by_row[::-1].copy()
    by_resultant = np.array(
        [
            amplitude * np.mean(np.exp((np.asarray(reads) - FRAME_OFFSET) * frame_time / -time_constant))
            for reads in read_pattern
        ]
    )
    if len(by_resultant) != len(data):
        raise PermanentError(f"read_pattern has {len(by_resultant)} resultants, the data have {len(data)}")

    def work(first: int, last: int) -> None:
        _subtract_rows(data, by_resultant, by_row, by_column, first, last)

    for_row_blocks(work, rows, threads=threads)


def _decay(reference: Reference, detector: str) -> tuple[float, float]:
    table = reference.value("decay_table")
    try:
        row = table[detector]
        return float(row["amplitude"]), float(row["time_constant"])
    except (KeyError, TypeError) as error:
        raise PermanentError(
            f"{reference.path}: decay_table.{detector} must hold the numbers amplitude and time_constant ({error!r})"
        ) from error


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _subtract_rows(data, by_resultant, by_row, by_column, first, last):  # type: ignore[no-untyped-def]
    resultants, _, columns = data.shape
    for y in range(first, last):
        for g in range(resultants):
            scale = by_resultant[g] * by_row[y]
            for x in range(columns):
                data[g, y, x] = np.float32(np.float64(data[g, y, x]) - scale * by_column[x])
