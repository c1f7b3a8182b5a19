"""Linearity at the level of reads: undo the averaging, correct each read, average again. Not the compiled kernels."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.exposure import Exposure, StepStatus
from stages.linearity_kernels import CHANNEL_COLUMNS, linearity_kernel
from stages.rows import for_row_blocks
from stages.step import CalibrationStage
from stream.failure import PermanentError
from stream.stage import Slot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from stages.references import Reference

__all__ = ["IntegralNonlinearity", "LinearityStage", "correct_linearity"]

IntegralNonlinearity = tuple["NDArray[np.float64]", "NDArray[np.float64]"]
"""Grid in DN, (m,), shared by the channels, and the correction in DN on it for each channel, (channels, m)."""


class LinearityStage(CalibrationStage):
    """Correct classic and, where a reference exists, integral non-linearity."""

    name = "linearity"
    version = "1"
    cal_step = "linearity"
    reference_types = ("linearity", "inverselinearity", "integralnonlinearity")
    optional_references = frozenset({"linearity", "inverselinearity", "integralnonlinearity"})

    def process(
        self,
        exposure: Exposure,
        references: Mapping[str, Reference | None],
        parameters: Any,  # noqa: ARG002
        slot: Slot,
    ) -> str | None:
        """Correct data in place and flag; SKIPPED where either polynomial is missing."""
        linear, inverse = references.get("linearity"), references.get("inverselinearity")
        if linear is None or inverse is None:
            missing = "linearity" if linear is None else "inverselinearity"
            self.log.warning("No %s reference: non-linearity is not corrected", missing)
            exposure.set_step(self.cal_step, StepStatus.SKIPPED)
            return None
        frame = exposure.arrays["pixeldq"].shape
        for reference in (linear, inverse):
            shape = reference.array("coeffs").shape
            if len(shape) != 3 or shape[1:] != frame or shape[0] < 2:
                raise PermanentError(
                    f"{reference.path}: coeffs has shape {shape}, expected (at least 2, {frame[0]}, {frame[1]}) "
                    f"for {exposure.id}"
                )
        channels = frame[1] // CHANNEL_COLUMNS
        correction = references.get("integralnonlinearity")
        correct_linearity(
            exposure.arrays["data"],
            exposure.arrays["groupdq"],
            exposure.arrays["pixeldq"],
            linear.array("coeffs"),
            linear.array("dq"),
            inverse.array("coeffs"),
            exposure.read_pattern,
            integral=None if correction is None else _integral_nonlinearity(correction, channels),
            threads=slot.threads,
        )
        exposure.touch(("data", "groupdq", "pixeldq"))
        exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        return None


def correct_linearity(
    data: NDArray[np.float32],
    groupdq: NDArray[np.uint8],
    pixeldq: NDArray[np.uint32],
    linear: NDArray[np.float32],
    linear_dq: NDArray[np.uint32],
    inverse: NDArray[np.float32],
    read_pattern: Sequence[Sequence[int]],
    *,
    integral: IntegralNonlinearity | None = None,
    threads: int = 1,
) -> None:
    """Correct averaged resultants for the non-linearity of their reads.

    Parameters
    ----------
    data : ndarray, f4, (n, R, C)
        Resultants in DN, changed in place; saturated ones stay, and values beyond 1e6 DN are cut.
    groupdq : ndarray, u1, (n, R, C)
        SATURATED is read; DO_NOT_USE is set where a value was cut.
    pixeldq : ndarray, u4, (R, C)
        Gets the bits of ``linear_dq``, and NO_LIN_CORR where coefficients are NaN or the linear one is 0.
    linear, inverse : ndarray, f4, (nc, R, C) and (ni, R, C)
        Coefficients, by rising power, from counts to linear counts and back.
    linear_dq : ndarray, u4, (R, C)
        Flags of the reference; pixels with NO_LIN_CORR are left as they are.
    read_pattern : sequence of sequences of int
        Read numbers of each resultant.
    integral : IntegralNonlinearity, optional
        Grid and correction of each channel of 128 columns, added to each read before the polynomial.
    threads : int
        Threads of the row-block kernel.

    Raises
    ------
    stream.failure.PermanentError
        Fewer than two resultants, or a read pattern that does not fit.

    Notes
    -----
    A straight ramp through the corrected first and next-to-last good resultant gives each read's expected linear
    counts; the inverse polynomial makes them raw counts, shifted so that their mean is the measured resultant; each is
    corrected, and their mean is the result.
    """
    resultants, rows, _ = data.shape
    if resultants < 2:
        raise PermanentError(f"linearity needs at least 2 resultants, found {resultants}")
    if len(read_pattern) != resultants:
        raise PermanentError(f"read_pattern has {len(read_pattern)} resultants, the data have {resultants}")
    mean_reads = np.array([np.mean(reads) for reads in read_pattern])
    starts = np.array([0, *accumulate(len(reads) for reads in read_pattern)], np.int64)
    elapsed = np.array([read - mean_reads[0] for reads in read_pattern for read in reads])
    grid, correction = (np.empty(0), np.empty((0, 0))) if integral is None else integral
    direct = bool(np.array_equal(grid, np.arange(grid.size)))
    kernel = linearity_kernel(len(linear), len(inverse))
    # The kernel is compiled anew for each mixture of writable and mapped arrays: one mixture is enough.
    linear, linear_dq, inverse = (_read_only(array) for array in (linear, linear_dq, inverse))

    def work(first: int, last: int) -> None:
        kernel(
            data,
            groupdq,
            pixeldq,
            linear,
            linear_dq,
            inverse,
            starts,
            elapsed,
            mean_reads,
            correction,
            grid,
            direct,
            first,
            last,
        )

    for_row_blocks(work, rows, threads=threads)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _integral_nonlinearity(reference: Reference, channels: int) -> IntegralNonlinearity:
    grid = np.asarray(reference.array("value"), np.float32).astype(np.float64)
    correction = np.empty((channels, grid.size))
    for channel in range(channels):
        name = f"science_channel_{channel + 1:02d}"
        try:
            correction[channel] = reference.array("inl_table", name, "correction")
        except (KeyError, TypeError, ValueError) as error:
            raise PermanentError(
                f"{reference.path}: inl_table.{name}.correction must hold {grid.size} numbers ({error!r})"
            ) from error
    return grid, correction
