"""Flag saturated and A/D-floor resultants, and averages that hide a saturation. Not the fit's use of the flags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from pydantic import Field

from stages.dq import GroupDQ, PixelDQ
from stages.exposure import Exposure, Level, StepStatus, is_fully_saturated
from stages.rows import buffer, for_row_blocks
from stages.step import SATURATED_BRANCH, CalibrationStage
from stream.failure import PermanentError
from stream.stage import Slot, StageParameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from stages.references import Reference

__all__ = ["SaturationParameters", "SaturationStage", "flag_saturation"]

NEVER = 65536.0
"""Threshold of pixels that are not checked: one more than a count can be."""

SATURATED = np.uint8(GroupDQ.SATURATED)
UNUSABLE = np.uint8(GroupDQ.DO_NOT_USE)
AT_FLOOR = np.uint8(GroupDQ.AD_FLOOR | GroupDQ.DO_NOT_USE)
NO_SAT_CHECK = np.uint32(PixelDQ.NO_SAT_CHECK)


class SaturationParameters(StageParameters):
    """Parameters of saturation."""

    n_pix_grow_sat: int = Field(
        default=0, ge=0, description="Pixels by which saturated regions grow on each side within a resultant."
    )
    backup: int = Field(
        default=0, ge=0, description="Resultants before the first saturated one to flag as well, if they average reads."
    )


class SaturationStage(CalibrationStage):
    """Flag saturation; an exposure that is saturated altogether leaves for its own branch."""

    name = "saturation"
    version = "1"
    cal_step = "saturation"
    parameters_type = SaturationParameters
    reference_types = ("saturation",)
    optional_references = frozenset({"saturation"})

    def process(
        self, exposure: Exposure, references: Mapping[str, Reference | None], parameters: Any, slot: Slot
    ) -> str | None:
        """Flag groupdq and pixeldq in place; SKIPPED without a reference; SATURATED_BRANCH when nothing is left."""
        groupdq, pixeldq = exposure.arrays["groupdq"], exposure.arrays["pixeldq"]
        reference = references.get("saturation")
        if reference is None:
            self.log.warning("No saturation reference: saturation is not flagged")
            exposure.set_step(self.cal_step, StepStatus.SKIPPED)
        else:
            threshold, threshold_dq = reference.array("data"), reference.array("dq")
            if threshold.shape != pixeldq.shape:
                raise PermanentError(
                    f"{reference.path}: data has shape {threshold.shape}, the frame of {exposure.id} {pixeldq.shape}"
                )
            flag_saturation(
                exposure.arrays["data"],
                groupdq,
                pixeldq,
                threshold,
                threshold_dq,
                exposure.read_pattern,
                n_pix_grow_sat=parameters.n_pix_grow_sat,
                backup=parameters.backup,
                slot=slot,
            )
            exposure.touch(("groupdq", "pixeldq"))
            exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        return self.branch_of(exposure)

    def branch_of(self, exposure: Exposure) -> str | None:
        """SATURATED_BRANCH when nothing is left of a ramp."""
        arrays = exposure.arrays
        if exposure.level is Level.RAMP and is_fully_saturated(arrays["groupdq"], arrays["pixeldq"]):
            self.log.warning("Every element is saturated: no further calibration")
            return SATURATED_BRANCH
        return None


def flag_saturation(
    data: NDArray[np.float32],
    groupdq: NDArray[np.uint8],
    pixeldq: NDArray[np.uint32],
    threshold: NDArray[np.float32],
    threshold_dq: NDArray[np.uint32],
    read_pattern: Sequence[Sequence[int]],
    *,
    n_pix_grow_sat: int = 0,
    backup: int = 0,
    slot: Slot | None = None,
) -> None:
    """Flag saturated elements.

    Parameters
    ----------
    data : ndarray, f4, (n, R, C)
        Resultants in DN.
    groupdq : ndarray, u1, (n, R, C)
        Changed in place: SATURATED from the first resultant at or over the threshold on; AD_FLOOR and DO_NOT_USE
        where the data are not positive; DO_NOT_USE where an average of reads hides the onset of saturation.
    pixeldq : ndarray, u4, (R, C)
        Changed in place: gets the reference's bits, and NO_SAT_CHECK where the threshold is NaN.
    threshold, threshold_dq : ndarray, f4 and u4, (R, C)
        Saturation level in DN and its flags; pixels with NO_SAT_CHECK or a NaN level are not checked.
    read_pattern : sequence of sequences of int
        Read numbers of each resultant.
    n_pix_grow_sat : int
        Half width of the square by which flags grow.
    backup : int
        Resultants to flag in addition before each saturated one.
    slot : Slot, optional
        Threads and buffers.

    Raises
    ------
    stream.failure.PermanentError
        The read pattern does not fit the data.

    Notes
    -----
    One pass over data and groupdq without growth. A resultant that averages reads up to number r_last crosses
    ``threshold * mean(r) / r_last`` when its last read saturates; that test counts where the next resultant is
    saturated. Comparisons with scaled thresholds are in f8, the test of the second resultant's step in f4.
    """
    slot = Slot() if slot is None else slot
    resultants, rows, _ = data.shape
    if len(read_pattern) != resultants:
        raise PermanentError(f"read_pattern has {len(read_pattern)} resultants, the data have {resultants}")
    dilution = np.array([np.mean(reads) / reads[-1] for reads in read_pattern])
    second = _second_resultant_numbers(read_pattern)
    if n_pix_grow_sat == 0:

        def work(first: int, last: int) -> None:
            _flag_rows(data, groupdq, pixeldq, threshold, threshold_dq, dilution, second, first, last)

        for_row_blocks(work, rows, threads=slot.threads)
    else:
        _flag_with_growth(
            data, groupdq, pixeldq, threshold, threshold_dq, dilution, second, grow=n_pix_grow_sat, slot=slot
        )
    averaged = [i for i in range(resultants - 1) if len(read_pattern[i]) > 1]
    for _ in range(backup):
        for i in averaged:
            groupdq[i] |= groupdq[i + 1] & SATURATED


def _second_resultant_numbers(read_pattern: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Mean read of the first resultant, last read of the third, reads in the second; empty for fewer than three."""
    if len(read_pattern) < 3:
        return np.empty(0)
    return np.array([np.mean(read_pattern[0]), read_pattern[2][-1], len(read_pattern[1])], np.float64)


def _flag_with_growth(
    data: NDArray[np.float32],
    groupdq: NDArray[np.uint8],
    pixeldq: NDArray[np.uint32],
    threshold: NDArray[np.float32],
    threshold_dq: NDArray[np.uint32],
    dilution: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    grow: int,
    slot: Slot,
) -> None:
    """Do the same pass by pass, since growth needs the neighbouring rows of the pass before."""
    resultants, rows, columns = data.shape
    marks = buffer(slot, "saturation.marks", (rows, columns), np.uint8)
    single = np.ones_like(dilution)
    none = np.empty(0)

    def onset(first: int, last: int) -> None:
        _flag_rows(data, groupdq, pixeldq, threshold, threshold_dq, single, none, first, last)

    for_row_blocks(onset, rows, threads=slot.threads)
    for g in range(resultants):
        np.bitwise_and(groupdq[g], SATURATED, out=marks)
        _grow_into(groupdq[g], marks, SATURATED, grow, slot)
    for g in range(resultants - 2, -1, -1):
        if dilution[g] == 1:
            continue

        def hidden(first: int, last: int, g: int = g) -> None:
            _mark_hidden(data[g], groupdq[g], groupdq[g + 1], threshold, threshold_dq, dilution[g], marks, first, last)

        for_row_blocks(hidden, rows, threads=slot.threads)
        _grow_into(groupdq[g], marks, UNUSABLE, grow, slot)
    if second.size:

        def step(first: int, last: int) -> None:
            _flag_second(data, groupdq, threshold, threshold_dq, second, first, last)

        for_row_blocks(step, rows, threads=slot.threads)


def _grow_into(plane: NDArray[np.uint8], marks: NDArray[np.uint8], bit: np.uint8, grow: int, slot: Slot) -> None:
    def work(first: int, last: int) -> None:
        _grow_rows(plane, marks, bit, grow, first, last)

    for_row_blocks(work, plane.shape[0], threads=slot.threads)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _level(threshold, flags):  # type: ignore[no-untyped-def]
    """Threshold that counts for a pixel (f4): NEVER where it is not to be checked."""
    if (flags & NO_SAT_CHECK) != 0 or threshold != threshold:  # noqa: PLR0124 - NaN
        return np.float32(NEVER)
    return threshold


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _hides_saturation(value, flags, next_flags, level, unchecked, dilution):  # type: ignore[no-untyped-def]
    """Whether an average of reads holds saturated ones although it is below the level itself (f8)."""
    scaled = np.float64(level) * (1.0 if unchecked else dilution)
    return (
        (np.float64(value) >= scaled)
        & ((flags & np.uint8(SATURATED | UNUSABLE)) == 0)
        & ((next_flags & SATURATED) != 0)
    )


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def _steps_too_far(first, value, flags, next_flags, level, second):  # type: ignore[no-untyped-def]
    """Whether the second resultant hides a saturation that the first does not foretell (slope f8, step f4)."""
    foretold = np.float64(first) / second[0] * second[1]
    step = value - first
    room = (level - first) / np.float32(second[2])
    return (foretold < np.float64(level)) & (step > room) & ((next_flags & SATURATED) != 0) & ((flags & SATURATED) == 0)


@njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
def _flag_rows(data, groupdq, pixeldq, threshold, threshold_dq, dilution, second, first, last):  # type: ignore[no-untyped-def]
    resultants, _, columns = data.shape
    level = np.empty(columns, np.float32)
    unchecked = np.empty(columns, np.bool_)
    saturated = np.empty(columns, np.uint8)
    for y in range(first, last):
        for x in range(columns):
            flags = threshold_dq[y, x]
            missing = threshold[y, x] != threshold[y, x]
            if missing:
                flags |= NO_SAT_CHECK
            level[x] = _level(threshold[y, x], flags)
            unchecked[x] = (flags & NO_SAT_CHECK) != 0
            pixeldq[y, x] |= flags
            saturated[x] = 0
        found = np.uint8(0)
        for g in range(resultants):
            for x in range(columns):
                value = data[g, y, x]
                over = saturated[x] | (SATURATED if value >= level[x] else np.uint8(0))
                saturated[x] = over
                flags_now = groupdq[g, y, x] | over | (AT_FLOOR if value <= 0 else np.uint8(0))
                groupdq[g, y, x] = flags_now
                found |= flags_now
        if (found & SATURATED) == 0:
            continue
        for g in range(resultants - 2, -1, -1):
            if dilution[g] != 1:
                for x in range(columns):
                    if _hides_saturation(
                        data[g, y, x], groupdq[g, y, x], groupdq[g + 1, y, x], level[x], unchecked[x], dilution[g]
                    ):
                        groupdq[g, y, x] |= UNUSABLE
        if second.size > 0:
            for x in range(columns):
                if _steps_too_far(data[0, y, x], data[1, y, x], groupdq[1, y, x], groupdq[2, y, x], level[x], second):
                    groupdq[1, y, x] |= UNUSABLE


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _mark_hidden(plane, flags, next_flags, threshold, threshold_dq, dilution, marks, first, last):  # type: ignore[no-untyped-def]
    for y in range(first, last):
        for x in range(plane.shape[1]):
            level = _level(threshold[y, x], threshold_dq[y, x])
            unchecked = (threshold_dq[y, x] & NO_SAT_CHECK) != 0 or threshold[y, x] != threshold[y, x]
            hidden = _hides_saturation(plane[y, x], flags[y, x], next_flags[y, x], level, unchecked, dilution)
            marks[y, x] = np.uint8(hidden)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _flag_second(data, groupdq, threshold, threshold_dq, second, first, last):  # type: ignore[no-untyped-def]
    for y in range(first, last):
        for x in range(data.shape[2]):
            level = _level(threshold[y, x], threshold_dq[y, x])
            if _steps_too_far(data[0, y, x], data[1, y, x], groupdq[1, y, x], groupdq[2, y, x], level, second):
                groupdq[1, y, x] |= UNUSABLE


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _grow_rows(plane, marks, bit, grow, first, last):  # type: ignore[no-untyped-def]
    """Set ``bit`` in the (2 grow + 1)-wide square around each mark: rows first, then columns."""
    rows, columns = plane.shape
    merged = np.empty(columns, np.uint8)
    for y in range(first, last):
        merged[:] = 0
        for other in range(max(y - grow, 0), min(y + grow + 1, rows)):
            for x in range(columns):
                merged[x] |= marks[other, x]
        for x in range(columns):
            if merged[x] != 0:
                for neighbour in range(max(x - grow, 0), min(x + grow + 1, columns)):
                    plane[y, neighbour] |= bit
