"""Fit and remove the transient anomaly in the first read of detector WFI18. Does nothing for the other detectors."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.stats import sigma_clipped_stats
from astropy.utils.exceptions import AstropyUserWarning
from pydantic import Field
from scipy import optimize

from stages.dq import GroupDQ
from stages.exposure import Exposure, StepStatus
from stages.read_times import frame_read_times
from stages.rows import for_row_blocks
from stages.step import CalibrationStage
from stream.stage import Slot, StageParameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from stages.references import Reference

__all__ = [
    "Wfi18TransientParameters",
    "Wfi18TransientStage",
    "double_exponential",
    "flag_first_rows",
    "remove_transient",
]

DETECTOR = "WFI18"
BORDER = 4
FLAGGED_ROWS = 1000
"""Rows of the first resultant that are given up when the transient cannot be fitted."""

START_ROWS = (300, 1000)
"""Science rows whose read times start the two decay times of the fit."""

BLOCK_ROWS = 64
"""Rows handled at once: their f8 residuals (2 MB) stay close to the cache."""


class Wfi18TransientParameters(StageParameters):
    """Parameters of wfi18_transient."""

    mask_rows: bool = Field(default=False, description="Flag the affected rows instead of fitting the transient.")


class Wfi18TransientStage(CalibrationStage):
    """Remove the transient of WFI18, or flag the rows it spoils; N/A for the other detectors."""

    name = "wfi18_transient"
    version = "1"
    cal_step = "wfi18_transient"
    parameters_type = Wfi18TransientParameters
    libraries = ("numpy", "scipy", "astropy")

    def process(
        self,
        exposure: Exposure,
        references: Mapping[str, Reference | None],  # noqa: ARG002
        parameters: Any,
        slot: Slot,
    ) -> str | None:
        """Change the first resultant in place, or flag 1000 rows of it."""
        if exposure.detector != DETECTOR:
            exposure.set_step(self.cal_step, StepStatus.NOT_APPLICABLE)
            return None
        removed = not parameters.mask_rows and remove_transient(
            exposure.arrays["data"], exposure.frame_time, exposure.read_pattern, threads=slot.threads
        )
        if removed:
            exposure.touch(("data",))
        else:
            self.log.warning("Transient not fitted: first %d rows of the first resultant flagged", FLAGGED_ROWS)
            flag_first_rows(exposure.arrays["groupdq"])
            exposure.touch(("groupdq",))
        exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        return None


def flag_first_rows(groupdq: NDArray[np.uint8]) -> None:
    """Set DO_NOT_USE and WFI18_TRANSIENT in the first 1000 rows of the first resultant of groupdq, u1, (n, R, C)."""
    groupdq[0, :FLAGGED_ROWS] |= np.uint8(GroupDQ.DO_NOT_USE | GroupDQ.WFI18_TRANSIENT)


def remove_transient(
    data: NDArray[np.float32], frame_time: float, read_pattern: Sequence[Sequence[int]], *, threads: int = 1
) -> bool:
    """Fit two decaying exponentials to the first resultant's excess over the ramp, row by row, and subtract them.

    Parameters
    ----------
    data : ndarray, f4, (n, 4096, 4096)
        Resultants in DN. The science pixels of resultant 0 change in place; borders stay.
    frame_time : float
        Seconds per read.
    read_pattern : sequence of sequences of int
        Read numbers (from 1) of each resultant.
    threads : int
        Threads over blocks of rows.

    Returns
    -------
    bool
        False, with the data untouched, where there are fewer than 5 resultants, the frame is not a full square (small
        test frames), the excess is not finite, or the fit does not converge.

    Notes
    -----
    The excess is the first resultant minus the line through the next two; each row counts by its sigma-clipped mean
    over weakly lit pixels. "Weakly lit" compares the pixel of column j with the median of row *j*: an axis slip of
    the mission's pipeline, kept for equal numbers. Fit by Levenberg and Marquardt's method (MINPACK).
    """
    science = data[:, BORDER:-BORDER, BORDER:-BORDER]
    rows, columns = science.shape[1:]
    if len(science) < 5 or rows != columns or rows <= max(START_ROWS):
        return False
    pixel_times = frame_read_times(frame_time, int(DETECTOR[3:]), 0, rows=data.shape[1])[BORDER:-BORDER, BORDER:-BORDER]
    row_values = _row_excess(science, frame_time, read_pattern, threads)
    model = _fit(pixel_times.mean(axis=1), row_values)
    if model is None:
        return False

    def subtract(first: int, last: int) -> None:
        science[0, first:last] -= double_exponential(pixel_times[first:last], *model)

    for_row_blocks(subtract, rows, threads=threads, block=BLOCK_ROWS)
    return True


def double_exponential(t: NDArray[np.float64], a: float, b: float, tau_a: float, tau_b: float) -> NDArray[np.float64]:
    """``a exp(-t / tau_a) + b exp(-t / tau_b)``: times in s, amplitudes in DN."""
    value: NDArray[np.float64] = a * np.exp(-t / tau_a) + b * np.exp(-t / tau_b)
    return value


def _row_excess(
    science: NDArray[np.float32], frame_time: float, read_pattern: Sequence[Sequence[int]], threads: int
) -> NDArray[np.float64]:
    """Mean excess of the first resultant over the ramp for each science row, f8."""
    rows = science.shape[1]
    times = [np.mean(np.asarray(reads) * frame_time) for reads in read_pattern[:3]]
    medians = np.empty(rows, np.float32)
    values = np.empty(rows, np.float64)

    def row_medians(first: int, last: int) -> None:
        medians[first:last] = np.median(science[4, first:last] - science[3, first:last], axis=1)

    def row_means(first: int, last: int) -> None:
        d0, d1, d2, d3, d4 = science[:5, first:last]
        rate = (d2 - d1) / (times[2] - times[1])
        excess = d0 - (d1 - rate * (times[1] - times[0]))
        too_bright = d4 - d3 > medians
        values[first:last] = sigma_clipped_stats(excess, mask=too_bright, sigma=3.0, maxiters=5, axis=1)[0]

    with warnings.catch_warnings():
        # Pixels that are not finite are clipped, which is what is wanted; a row of nothing else stops the fit.
        warnings.simplefilter("ignore", AstropyUserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        for_row_blocks(row_medians, rows, threads=threads, block=BLOCK_ROWS)
        for_row_blocks(row_means, rows, threads=threads, block=BLOCK_ROWS)
    return values


def _fit(times: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float, float, float] | None:
    start = [1.1 * values[0], -0.1 * values[0], times[START_ROWS[0]], times[START_ROWS[1]]]
    with warnings.catch_warnings():
        # Trial steps may overflow, and a covariance that cannot be estimated is no failure.
        warnings.simplefilter("ignore", optimize.OptimizeWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            a, b, tau_a, tau_b = optimize.curve_fit(double_exponential, times, values, p0=start)[0]
        except (ValueError, RuntimeError):
            return None
    return float(a), float(b), float(tau_a), float(tau_b)
