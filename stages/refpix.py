"""Reference-pixel correction: remove read noise that border columns and the 33rd amplifier see too. Not the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from scipy import fft

from stages.exposure import Exposure, StepStatus
from stages.refpix_kernels import (
    AMP33_CHANNEL,
    CHANNEL_WIDTH,
    DETECTOR_CHANNELS,
    DETECTOR_COLUMNS,
    PADDED_WIDTH,
    NoiseTransform,
    apply_rows,
    offset_rows,
    residual_channel,
)
from stages.rows import buffer, for_row_blocks
from stages.step import CalibrationStage
from stream.failure import PermanentError
from stream.stage import Slot, StageParameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from stages.references import Reference

__all__ = ["RefpixParameters", "RefpixStage", "RefpixSwitches", "correct_reference_pixels"]

REFERENCE_COLUMNS = 4
"""Reference pixels at each end of a row, and rows of them at each end of the frame."""

FFT_ITERATIONS = 3
"""Rounds of filling the samples between rows of the 33rd amplifier."""

HAT_NAMES = ("left", "right", "amp33")


class RefpixParameters(StageParameters):
    """Parameters of refpix, under the mission's names and with its slip.

    The mission's pipeline hands its four switches to a function that has one more in front, so that each acts on the
    step before the one it names, and nothing switches the last step off. Kept, so that equal settings give equal data.
    """

    remove_offset: bool = Field(default=True, description="In fact: set bad reference pixels to zero.")
    remove_trends: bool = Field(default=True, description="In fact: remove each pixel's offset while correcting.")
    cosine_interpolate: bool = Field(default=True, description="In fact: remove each frame's linear trend.")
    fft_interpolate: bool = Field(
        default=True, description="In fact: fill gaps of the 33rd amplifier by cosine interpolation."
    )


@dataclass(frozen=True, slots=True)
class RefpixSwitches:
    """Steps that may be left out; the interpolation by Fourier transform always runs."""

    zero_bad: bool = True
    remove_offset: bool = True
    remove_trends: bool = True
    cosine_interpolate: bool = True


class RefpixStage(CalibrationStage):
    """Remove correlated read noise from data and amp33, and refresh the left and right border copies."""

    name = "refpix"
    version = "1"
    cal_step = "refpix"
    parameters_type = RefpixParameters
    reference_types = ("refpix",)
    optional_references = frozenset({"refpix"})
    libraries = ("numpy", "numba", "scipy")

    def process(
        self, exposure: Exposure, references: Mapping[str, Reference | None], parameters: Any, slot: Slot
    ) -> str | None:
        """Correct in place; SKIPPED without a reference."""
        reference = references.get("refpix")
        if reference is None:
            self.log.warning("No refpix reference: correlated noise stays")
            exposure.set_step(self.cal_step, StepStatus.SKIPPED)
            return None
        data = exposure.arrays["data"]
        expected = (DETECTOR_CHANNELS, data.shape[1] * PADDED_WIDTH // 2 + 1)
        coefficients = tuple(reference.array(name) for name in ("gamma", "zeta", "alpha"))
        for name, array in zip(("gamma", "zeta", "alpha"), coefficients, strict=True):
            if array.shape != expected:
                raise PermanentError(
                    f"{reference.path}: {name} has shape {array.shape}, expected {expected} for {exposure.id}"
                )
        amp33 = correct_reference_pixels(
            data,
            exposure.arrays["amp33"],
            exposure.arrays["pixeldq"],
            coefficients,
            switches=RefpixSwitches(
                zero_bad=parameters.remove_offset,
                remove_offset=parameters.remove_trends,
                remove_trends=parameters.cosine_interpolate,
                cosine_interpolate=parameters.fft_interpolate,
            ),
            slot=slot,
        )
        exposure.touch(("data",))
        exposure.set_array("amp33", amp33)
        exposure.set_array("border_ref_pix_left", data[:, :, :REFERENCE_COLUMNS].copy())
        exposure.set_array("border_ref_pix_right", data[:, :, -REFERENCE_COLUMNS:].copy())
        exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        return None


def correct_reference_pixels(
    data: NDArray[np.float32],
    amp33: NDArray[np.uint16],
    pixeldq: NDArray[np.uint32],
    coefficients: tuple[NDArray[np.complex128], ...],
    *,
    switches: RefpixSwitches = RefpixSwitches(),
    slot: Slot | None = None,
) -> NDArray[np.uint16]:
    """Remove correlated read noise with frequency-dependent weights of three reference signals.

    Parameters
    ----------
    data : ndarray, f4, (n, R, 4096)
        Resultants in DN, changed in place.
    amp33 : ndarray, u2, (n, R, 128)
        The 33rd amplifier in DN.
    pixeldq : ndarray, u4, (R, 4096)
        BAD_REF_PIXEL is read: the data of such pixels are set to zero first. No flag is set.
    coefficients : tuple of three ndarrays, c16, (32, 70 R + 1)
        gamma, zeta, alpha: weights of the left columns, the right columns and amp33 for each channel and frequency.
    switches : RefpixSwitches
        Steps to leave out.
    slot : Slot, optional
        Threads and buffers.

    Returns
    -------
    ndarray, u2, (n, R, 128)
        amp33 without trend and with gaps filled, absolute values cut to integers.

    Raises
    ------
    stream.failure.PermanentError
        The frame has not 4096 columns, or fewer than 8 rows.

    Notes
    -----
    Improved Roman Reference Correction (Rauscher et al. 2022, PASP). A frame of a channel is a time series of 140
    samples a row (12 of them between rows). Signals are f4 and transformed in single precision, weights and the
    inverse transform in f8. Costs two passes over data and 32 n + 3 n inverse and 6 n forward transforms of 140 R
    samples; frames are worked on one by one, so that memory stays small.
    """
    slot = Slot() if slot is None else slot
    n, rows, columns = data.shape
    if columns != DETECTOR_COLUMNS or rows < 2 * REFERENCE_COLUMNS:
        raise PermanentError(
            f"refpix needs frames of {DETECTOR_COLUMNS} columns and at least 8 rows, found {rows} x {columns}"
        )
    offset = buffer(slot, "refpix.offset", (rows, columns + CHANNEL_WIDTH), np.float32)

    def fit_offsets(first: int, last: int) -> None:
        offset_rows(data, amp33, pixeldq, switches.zero_bad, switches.remove_offset, offset, first, last)

    for_row_blocks(fit_offsets, rows, threads=slot.threads)
    trends = np.zeros((n, AMP33_CHANNEL + 1, 2))
    if switches.remove_trends:
        for i in range(n):
            trends[i] = _frame_trends(data[i], amp33[i], offset)

    samples = rows * PADDED_WIDTH
    hats = {name: buffer(slot, f"refpix.{name}", (n, samples // 2 + 1), np.complex64) for name in HAT_NAMES}
    cleaned = np.empty_like(amp33, subok=False)

    def transform(first: int, last: int) -> None:
        for i in range(first, last):
            _reference_spectra(data[i], amp33[i], offset, trends[i], hats, i, cleaned, switches)

    for_row_blocks(transform, n, threads=slot.threads, block=1)

    transformer = NoiseTransform(samples)

    def correct(first: int, last: int) -> None:
        for channel in range(first, last):
            _correct_channel(data, offset, trends, hats, coefficients, transformer, channel)

    for_row_blocks(correct, DETECTOR_CHANNELS, threads=slot.threads, block=1)
    return cleaned


def _frame_trends(
    frame: NDArray[np.float32], amp33: NDArray[np.uint16], offset: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Slope and intercept over time of each of the 33 channels, from the first and last four rows, f8, (33, 2)."""
    rows = frame.shape[0]
    edge = np.r_[0:REFERENCE_COLUMNS, rows - REFERENCE_COLUMNS : rows]
    values = np.concatenate([frame[edge], amp33[edge].astype(np.float32)], axis=1) - offset[edge]
    channels = values.reshape(edge.size, AMP33_CHANNEL + 1, CHANNEL_WIDTH)
    times = edge[:, np.newaxis] * PADDED_WIDTH + np.arange(CHANNEL_WIDTH) - (rows * PADDED_WIDTH - 1) / 2
    trends = np.zeros((AMP33_CHANNEL + 1, 2))
    for channel in range(AMP33_CHANNEL + 1):
        y = channels[:, channel, :: -1 if channel % 2 else 1]
        present = y != 0
        count = int(np.count_nonzero(present))
        if count == 0:
            continue
        y, t = y[present].astype(np.float64), times[present]
        sum_t, sum_y = t.sum(), y.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = (count * (t * y).sum() - sum_t * sum_y) / (count * (t * t).sum() - sum_t**2)
            trends[channel] = slope, (sum_y - slope * sum_t) / count
    return trends


def _reference_spectra(
    frame: NDArray[np.float32],
    amp33: NDArray[np.uint16],
    offset: NDArray[np.float32],
    trends: NDArray[np.float64],
    hats: dict[str, NDArray[np.complex64]],
    i: int,
    cleaned: NDArray[np.uint16],
    switches: RefpixSwitches,
) -> None:
    """Transform the three reference signals of one frame into ``hats``; write its amp33 into ``cleaned``."""
    rows = frame.shape[0]
    length = rows * PADDED_WIDTH
    signal = np.empty((rows, PADDED_WIDTH), np.float32)
    scale = PADDED_WIDTH // REFERENCE_COLUMNS
    last = DETECTOR_CHANNELS - 1
    first_right = DETECTOR_COLUMNS - REFERENCE_COLUMNS
    left, right = frame[:, :REFERENCE_COLUMNS], frame[:, first_right:]
    residual_channel(left, offset, 0, REFERENCE_COLUMNS, False, *trends[0], signal)  # noqa: FBT003 - a kernel
    hats["left"][i] = fft.rfft(signal.reshape(-1) / length) * scale
    residual_channel(right, offset, first_right, REFERENCE_COLUMNS, True, *trends[last], signal)  # noqa: FBT003
    hats["right"][i] = fft.rfft(signal.reshape(-1) / length) * scale
    residual_channel(amp33, offset, DETECTOR_COLUMNS, CHANNEL_WIDTH, False, *trends[AMP33_CHANNEL], signal)  # noqa: FBT003
    if switches.cosine_interpolate:
        _fill_by_cosine(signal.reshape(-1))
    _fill_between_rows(signal)
    hats["amp33"][i] = fft.rfft(signal.reshape(-1) / length)
    with np.errstate(invalid="ignore"):
        cleaned[i] = np.abs(signal[:, :CHANNEL_WIDTH] + offset[:, DETECTOR_COLUMNS:]).astype(np.uint16)


def _fill_by_cosine(signal: NDArray[np.float32]) -> None:
    """Fill samples that are exactly zero with a weighted mean of their neighbours, in place."""
    kernel = np.sin(np.arange(1, 33, dtype=np.float32) * np.float32(np.pi) / np.float32(32))
    # Sums of values in f4 and of weights in f8, as in the mission's pipeline.
    present = (signal != 0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        weighted = np.convolve(signal, kernel, "same") / np.convolve(present, kernel, "same")
        signal += weighted * (1 - present)
    np.nan_to_num(signal, copy=False)


def _fill_between_rows(signal: NDArray[np.float32]) -> None:
    """Fill the 12 samples after each row with a smooth signal, by iterated low-pass filtering, in place."""
    flat = signal.reshape(-1)
    low_pass = (1 + np.cos(2 * np.pi * np.arange(flat.size // 2 + 1) / flat.size)) / 2
    for _ in range(FFT_ITERATIONS):
        filtered = np.fft.irfft(fft.rfft(flat) * low_pass, n=flat.size)
        signal[:, CHANNEL_WIDTH:] = filtered.reshape(signal.shape)[:, CHANNEL_WIDTH:]


def _correct_channel(
    data: NDArray[np.float32],
    offset: NDArray[np.float32],
    trends: NDArray[np.float64],
    hats: dict[str, NDArray[np.complex64]],
    coefficients: tuple[NDArray[np.complex128], ...],
    transformer: NoiseTransform,
    channel: int,
) -> None:
    """Predict one channel's noise in every frame, and take it off."""
    n, rows, _ = data.shape
    # Mapped files may lie unaligned: copied once a channel, used for every frame.
    weights = [np.require(array[channel], np.complex128, ["C", "A"]) for array in coefficients]
    workspace = transformer.workspace()
    # Twice the number of frequencies, which is 2 more than the samples: the mission's normalisation.
    factor = float(2 * weights[0].size)
    for i in range(n):
        noise = transformer.noise([hats[name][i] for name in HAT_NAMES], weights, factor, workspace)
        apply_rows(data[i], offset, noise.reshape(rows, PADDED_WIDTH), channel, *trends[i, channel])
