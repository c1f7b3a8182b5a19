"""Divide the rate image by the flat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from stages.dq import PixelDQ
from stages.exposure import Exposure, StepStatus
from stages.rows import buffer, for_row_blocks
from stages.step import IMAGE_TYPES, CalibrationStage
from stream.failure import PermanentError
from stream.stage import Slot, StageParameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from stages.references import Reference

__all__ = ["FlatField", "FlatFieldParameters", "divide_by_flat"]

_NO_FLAT_FIELD = np.uint32(PixelDQ.NO_FLAT_FIELD)


def divide_by_flat(
    arrays: Mapping[str, NDArray[Any]],
    flat: NDArray[np.float32],
    flat_dq: NDArray[np.uint32],
    *,
    flat_err: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> None:
    """Divide by the flat, in place.

    Quotients are formed in f4 and rounded to the width of the array. Where the flat is NaN, 0 or flagged NO_FLAT_FIELD
    the pixel is left as it is; negative flats are used.

    Parameters
    ----------
    arrays : mapping
        ``data`` f4 (DN/s), ``dq`` u4, ``err``, ``var_poisson``, ``dumo`` f2, with or without ``var_rnoise`` f2, all of
        one shape; ``var_flat`` f2 (overwritten) if ``flat_err`` is given. dq receives all bits of ``flat_dq``, and
        NO_FLAT_FIELD where the flat is NaN or 0.
    flat : f4 array
    flat_dq : u4 array
    flat_err : f4 array or None
        Error of the flat: its contribution is stored in ``var_flat`` and added to ``err``. Both are rounded to f2, as
        the product requires.
    threads : int
    """
    variances = [arrays[name] for name in ("var_poisson", "var_rnoise") if name in arrays]

    def work(first: int, last: int) -> None:
        rows = slice(first, last)
        divisor = np.array(flat[rows], dtype=np.float32)
        flags = np.array(flat_dq[rows], dtype=np.uint32)
        flags[np.isnan(divisor) | (divisor == 0)] |= _NO_FLAT_FIELD
        divisor[(flags & _NO_FLAT_FIELD) != 0] = 1
        with np.errstate(all="ignore"):
            arrays["data"][rows] /= divisor
            for array in (arrays["dumo"], arrays["err"]):
                array[rows] = array[rows].astype(np.float32) / divisor
            squared = divisor * divisor
            for array in variances:
                array[rows] = array[rows].astype(np.float32) / squared
            if flat_err is not None:
                error = np.array(flat_err[rows], dtype=np.float32)
                data, err = arrays["data"][rows], arrays["err"][rows]
                var_flat = data * data / squared * (error * error)
                arrays["var_flat"][rows] = var_flat
                # The square is rounded to f2 (infinite above 256), as the mission's pipeline has it.
                err[:] = np.sqrt((err * err).astype(np.float32) + var_flat)
        arrays["dq"][rows] |= flags

    for_row_blocks(work, arrays["data"].shape[0], threads=threads, block=16)


class FlatFieldParameters(StageParameters):
    """Parameters of the flat field."""

    include_var_flat: bool = Field(default=False, description="Also store the variance that the flat contributes.")


class FlatField(CalibrationStage):
    """Divide by the flat (reference ``flat``); SKIPPED without one or if its shape is another."""

    name = "flat_field"
    version = "1"
    cal_step: ClassVar[str] = "flat_field"
    parameters_type = FlatFieldParameters
    reference_types = ("flat",)
    optional_references = frozenset({"flat"})
    libraries = ("numpy",)
    branches = IMAGE_TYPES

    def process(
        self, exposure: Exposure, references: Mapping[str, Reference | None], parameters: Any, slot: Slot
    ) -> str | None:
        """Divide in place."""
        reference = references.get("flat")
        shape = exposure.arrays["data"].shape
        flat = None if reference is None else reference.array("data")
        if reference is None or flat is None or flat.shape != shape:
            reason = "No flat reference" if flat is None else f"The flat has shape {flat.shape}, the image {shape}"
            self.log.warning("%s: flat_field is skipped", reason)
            exposure.set_step(self.cal_step, StepStatus.SKIPPED)
            return None
        flags = reference.array("dq")
        flat_err = reference.array("err") if parameters.include_var_flat else None
        for key, array in (("dq", flags), ("err", flat_err)):
            if array is not None and array.shape != shape:
                raise PermanentError(f"{reference.path}: {key} has shape {array.shape}; expected {shape}, as data has")
        changed = ["data", "dq", "err", "var_poisson", "dumo"]
        changed += ["var_rnoise"] if "var_rnoise" in exposure.arrays else []
        if flat_err is not None:
            exposure.set_array("var_flat", buffer(slot, "flat_field.var_flat", shape, "f2"))
        divide_by_flat(exposure.arrays, flat, flags, flat_err=flat_err, threads=slot.threads)
        exposure.touch(changed)
        exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        return None
