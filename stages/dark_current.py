"""Subtract the dark rate from the rate image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stages.exposure import Exposure, StepStatus
from stages.rows import for_row_blocks
from stages.step import ALL_TYPES, CalibrationStage
from stream.failure import PermanentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from stages.references import Reference
    from stream.stage import Slot

__all__ = ["DarkCurrent", "subtract_dark"]

_BORDER = 4


def subtract_dark(
    data: NDArray[np.float32],
    dq: NDArray[np.uint32],
    dark_slope: NDArray[np.float32],
    dark_dq: NDArray[np.uint32],
    *,
    threads: int = 1,
) -> None:
    """Subtract the dark rate and add its flags, in place. The error of the dark is not propagated.

    A NaN in the dark makes the pixel NaN without a flag.

    Parameters
    ----------
    data : (R - 8, C - 8) f4 array, DN/s
    dq : (R - 8, C - 8) u4 array
        Receives all bits of ``dark_dq``.
    dark_slope : (R, C) f4 array, DN/s
    dark_dq : (R, C) u4 array
    threads : int
    """
    columns = slice(_BORDER, dark_slope.shape[1] - _BORDER)

    def work(first: int, last: int) -> None:
        rows = slice(first + _BORDER, last + _BORDER)
        # Copied first: arrays mapped from a file may be unaligned, on which arithmetic is slow.
        data[first:last] -= dark_slope[rows, columns].astype(np.float32)
        dq[first:last] |= dark_dq[rows, columns].astype(np.uint32)

    for_row_blocks(work, data.shape[0], threads=threads)


class DarkCurrent(CalibrationStage):
    """Subtract the dark rate (reference ``dark``); SKIPPED without one."""

    name = "dark_current"
    version = "1"
    cal_step: ClassVar[str] = "dark"
    reference_types = ("dark",)
    optional_references = frozenset({"dark"})
    libraries = ("numpy",)
    branches = ALL_TYPES

    def process(
        self,
        exposure: Exposure,
        references: Mapping[str, Reference | None],
        parameters: Any,  # noqa: ARG002
        slot: Slot,
    ) -> str | None:
        """Subtract in place."""
        reference = references.get("dark")
        if reference is None:
            self.log.warning("No dark reference: dark_current is skipped")
            exposure.set_step(self.cal_step, StepStatus.SKIPPED)
            return None
        data = exposure.arrays["data"]
        expected = (data.shape[0] + 2 * _BORDER, data.shape[1] + 2 * _BORDER)
        slope, flags = reference.array("dark_slope"), reference.array("dq")
        for key, array in (("dark_slope", slope), ("dq", flags)):
            if array.shape != expected:
                raise PermanentError(
                    f"{reference.path}: {key} has shape {array.shape}; expected {expected}, as {exposure.id} has"
                )
        subtract_dark(data, exposure.arrays["dq"], slope, flags, threads=slot.threads)
        exposure.touch(("data", "dq"))
        exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        return None
