"""Start of a ramp: counts to f4, data-quality arrays, guide window, mask, border copies. Not a reader of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from pydantic import Field

from stages.dq import PixelDQ
from stages.exposure import CAL_STEP_KEYS, Exposure, Level, StepStatus
from stages.rows import buffer, for_row_blocks
from stages.step import CalibrationStage
from stream.failure import PermanentError
from stream.stage import Slot, StageParameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from stages.references import Reference

__all__ = ["DQInitParameters", "DQInitStage", "border_copies", "counts_to_ramp", "flag_guide_window"]

BORDER = 4
"""Width of the frame of reference pixels."""

GROUND_TEST_KEYS = frozenset({"tvac", "fps"})
"""Extra keys of ground-test exposures, whose reference reads are never added back."""


class DQInitParameters(StageParameters):
    """Parameters of dq_init."""

    expand_gw_flagging: int = Field(
        default=0, description="Pixels by which the DO_NOT_USE rectangle of the guide window grows on each side."
    )


class DQInitStage(CalibrationStage):
    """Make the ramp from the raw counts and start its data-quality arrays."""

    name = "dq_init"
    version = "1"
    cal_step = "dq_init"
    parameters_type = DQInitParameters
    reference_types = ("mask",)
    optional_references = frozenset({"mask"})

    def process(
        self, exposure: Exposure, references: Mapping[str, Reference | None], parameters: Any, slot: Slot
    ) -> str | None:
        """Fill data, groupdq, pixeldq, amp33 and the eight border arrays; SKIPPED when no mask fits."""
        arrays = exposure.arrays
        counts = _cube(exposure)
        offset = _encoding_offset(exposure)
        reference_read, reference_amp33 = arrays.get("reference_read"), arrays.get("reference_amp33")
        if GROUND_TEST_KEYS & exposure.extras.keys():
            reference_read = reference_amp33 = None
        for name, pedestal, like in (
            ("reference_read", reference_read, counts),
            ("reference_amp33", reference_amp33, arrays["amp33"]),
        ):
            if pedestal is not None and pedestal.shape != like.shape[1:]:
                raise PermanentError(
                    f"{exposure.id}: {name} has shape {pedestal.shape}, expected one resultant's, {like.shape[1:]}"
                )

        groupdq = buffer(slot, "exposure.groupdq", counts.shape, np.uint8)
        _fill(groupdq, arrays.get("resultantdq", arrays.get("groupdq")))
        pixeldq = buffer(slot, "exposure.pixeldq", counts.shape[1:], np.uint32)
        _fill(pixeldq, arrays.get("pixeldq"))
        flagged = flag_guide_window(pixeldq, _guide_window(exposure), expand=parameters.expand_gw_flagging)
        if not flagged:
            self.log.info("Guide window starts outside the frame: no pixels flagged for it")

        data = buffer(slot, "exposure.data", counts.shape, np.float32)
        counts_to_ramp(counts, data, reference_read=reference_read, offset=offset, threads=slot.threads)
        exposure.set_array("amp33", _restored_amp33(arrays["amp33"], reference_amp33, offset))
        status = self._apply_mask(pixeldq, references.get("mask"))

        exposure.drop_arrays(("resultantdq", "reference_read", "reference_amp33"))
        for name, array in (("data", data), ("groupdq", groupdq), ("pixeldq", pixeldq)):
            exposure.set_array(name, array)
        for name, array in border_copies(data, pixeldq).items():
            exposure.set_array(name, array)
        exposure.level = Level.RAMP
        _start_ramp_metadata(exposure.meta)
        exposure.set_step(self.cal_step, status)
        return None

    def _apply_mask(self, pixeldq: NDArray[np.uint32], mask: Reference | None) -> StepStatus:
        if mask is None:
            self.log.warning("No mask reference: pixeldq gets no bad-pixel flags")
            return StepStatus.SKIPPED
        flags = mask.array("dq")
        if flags.shape != pixeldq.shape:
            self.log.warning("Mask %s has shape %s, not %s: not applied", mask.path, flags.shape, pixeldq.shape)
            return StepStatus.SKIPPED
        np.bitwise_or(pixeldq, flags, out=pixeldq)
        return StepStatus.COMPLETE


def counts_to_ramp(
    counts: NDArray[Any],
    data: NDArray[np.float32],
    *,
    reference_read: NDArray[np.uint16] | None = None,
    offset: int = 0,
    threads: int = 1,
) -> None:
    """Undo the on-board encodings: add the reference read back and take the encoding offset off.

    Parameters
    ----------
    counts : ndarray, u2 or f4, (n, R, C)
        Raw counts in DN, or the data of a ramp that already exists.
    data : ndarray, f4, (n, R, C)
        Receives ``counts + reference_read - offset`` in DN; may be ``counts`` itself.
    reference_read : ndarray, u2, (R, C), optional
        The read that was subtracted before downlink; leave it out for ground-test data, which keep it.
    offset : int
        ``meta.instrument.data_encoding_offset`` in DN.
    threads : int
        Threads of the row-block kernel.

    Notes
    -----
    One pass over memory, arithmetic in f4, exact for integer counts.
    """
    reference = np.zeros((0, 0), np.uint16) if reference_read is None else reference_read

    def work(first: int, last: int) -> None:
        _restore_rows(counts, reference, np.float32(offset), data, first, last)

    for_row_blocks(work, counts.shape[1], threads=threads)


def flag_guide_window(pixeldq: NDArray[np.uint32], window: tuple[int, int, int, int], *, expand: int = 0) -> bool:
    """Flag the pixels that reading the guide window disturbs.

    Parameters
    ----------
    pixeldq : ndarray, u4, (R, C)
        Changed in place. All rows of the window's columns are *set to* GW_AFFECTED_DATA (former bits are lost), then
        the rectangle gets DO_NOT_USE and GW_AFFECTED_DATA.
    window : tuple of int
        Column start, column stop, row start, row stop; stops are exclusive and, as array slices do, count from the
        end where negative.
    expand : int
        Pixels by which the rectangle (not the columns) grows on each side, cut at the frame.

    Returns
    -------
    bool
        False, and nothing flagged, where the window starts outside the frame.
    """
    rows = pixeldq.shape[0]
    column_start, column_stop, row_start, row_stop = window
    if not (0 <= column_start < rows and 0 <= row_start < rows):
        return False
    pixeldq[:, column_start:column_stop] = PixelDQ.GW_AFFECTED_DATA
    if expand > 0:
        column_start, row_start = max(column_start - expand, 0), max(row_start - expand, 0)
        column_stop = min(max(column_stop + expand, 0), rows)
        row_stop = min(max(row_stop + expand, 0), rows)
    pixeldq[row_start:row_stop, column_start:column_stop] |= np.uint32(PixelDQ.DO_NOT_USE | PixelDQ.GW_AFFECTED_DATA)
    return True


def border_copies(data: NDArray[np.float32], pixeldq: NDArray[np.uint32]) -> dict[str, NDArray[Any]]:
    """Copy the four edges of reference pixels, corners included in both directions.

    Parameters
    ----------
    data : ndarray, f4, (n, R, C)
        Ramp in DN.
    pixeldq : ndarray, u4, (R, C)
        Pixel flags after the mask.

    Returns
    -------
    dict of ndarray
        ``border_ref_pix_{left,right}`` f4 (n, R, 4), ``border_ref_pix_{top,bottom}`` f4 (n, 4, C) and the same with
        ``dq_`` in front, u4. "top" is rows 0 to 3: the mission's products have it so, against the schema's text.
    """
    edges = {
        "right": np.s_[..., -BORDER:],
        "left": np.s_[..., :BORDER],
        "top": np.s_[..., :BORDER, :],
        "bottom": np.s_[..., -BORDER:, :],
    }
    copies: dict[str, NDArray[Any]] = {}
    for side, edge in edges.items():
        copies[f"border_ref_pix_{side}"] = data[edge].copy()
        copies[f"dq_border_ref_pix_{side}"] = pixeldq[edge].copy()
    return copies


def _cube(exposure: Exposure) -> NDArray[Any]:
    expected = np.float32 if exposure.level is Level.RAMP else np.uint16
    for name, dtype in (("data", expected), ("amp33", np.uint16)):
        array = exposure.arrays.get(name)
        if array is None or array.ndim != 3 or array.dtype != dtype:
            found = "nothing" if array is None else f"{array.dtype} with shape {array.shape}"
            raise PermanentError(f"{exposure.id}: {name} must be a 3-D {np.dtype(dtype)} array, found {found}")
    return exposure.arrays["data"]


def _encoding_offset(exposure: Exposure) -> int:
    offset = exposure.meta.get("instrument", {}).get("data_encoding_offset", 0)
    if not isinstance(offset, int) or not 0 <= offset <= 65535:
        raise PermanentError(
            f"{exposure.id}: meta.instrument.data_encoding_offset must be an integer from 0 to 65535, found {offset!r}"
        )
    return offset


def _guide_window(exposure: Exposure) -> tuple[int, int, int, int]:
    guide_star = exposure.meta.get("guide_star", {})
    try:
        x_start, x_stop, y_start, y_stop = (
            int(guide_star[f"window_{edge}"]) for edge in ("xstart", "xstop", "ystart", "ystop")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PermanentError(
            f"{exposure.id}: meta.guide_star.window_xstart, _xstop, _ystart and _ystop must be integers ({error!r})"
        ) from error
    return x_start, x_stop, y_start, y_stop


def _fill(target: NDArray[Any], source: NDArray[Any] | None) -> None:
    if source is None:
        target.fill(0)
    elif source is not target:
        np.copyto(target, source)


def _restored_amp33(
    amp33: NDArray[np.uint16], reference_amp33: NDArray[np.uint16] | None, offset: int
) -> NDArray[np.uint16]:
    # Unsigned arithmetic wraps around on purpose: 20 + 30 - 100 is 65486 in the mission's products.
    restored: NDArray[np.uint16] = amp33.copy() if reference_amp33 is None else amp33 + reference_amp33
    restored -= np.uint16(offset)
    return restored


def _start_ramp_metadata(meta: dict[str, Any]) -> None:
    meta["model_type"] = "RampModel"
    known = meta.get("cal_step", {})
    meta["cal_step"] = {**known, **{key: known.get(key, str(StepStatus.INCOMPLETE)) for key in CAL_STEP_KEYS}}
    problem = meta.get("exposure", {}).get("data_problem")
    if isinstance(problem, bool):
        meta["exposure"]["data_problem"] = "True" if problem else None


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _restore_rows(counts, reference, offset, data, first, last):  # type: ignore[no-untyped-def]
    resultants, _, columns = counts.shape
    for y in range(first, last):
        for g in range(resultants):
            if reference.shape[0] > 0:
                for x in range(columns):
                    data[g, y, x] = np.float32(counts[g, y, x]) + np.float32(reference[y, x]) - offset
            else:
                for x in range(columns):
                    data[g, y, x] = np.float32(counts[g, y, x]) - offset
