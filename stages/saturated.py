"""The all-zero image of an exposure in which every pixel is saturated. Not a stage of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.dq import PixelDQ
from stages.exposure import StepStatus
from stages.ramp_fit import become_image
from stages.ramp_fit.image import BORDER, RateImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.exposure import Exposure
    from stream.stage import Slot

__all__ = ["SKIPPED_STEPS", "become_saturated_image", "saturated_image"]

SKIPPED_STEPS = (
    "refpix",
    "wfi18_transient",
    "dark_decay",
    "linearity",
    "dark",
    "ramp_fit",
    "assign_wcs",
    "flat_field",
    "photom",
    "source_catalog",
    "tweakreg",
)
"""Keys of ``meta.cal_step`` that such an exposure does not go through."""


def saturated_image(groupdq: NDArray[np.uint8], pixeldq: NDArray[np.uint32], slot: Slot) -> RateImage:
    """Image of zeros in which every pixel is SATURATED.

    Parameters
    ----------
    groupdq : (n, R, C) u1 array
    pixeldq : (R, C) u4 array
    slot : Slot

    Returns
    -------
    RateImage
        dq = pixeldq | groupdq of the first resultant | SATURATED, without the border; DO_NOT_USE is not added.
    """
    rows, columns = pixeldq.shape
    image = RateImage.in_buffers(slot, (rows, columns), with_var_rnoise=False)
    for plane in (image.data, image.err, image.var_poisson, image.chisq, image.dumo):
        plane[:] = 0
    inside = np.s_[BORDER:-BORDER, BORDER:-BORDER]
    np.bitwise_or(pixeldq[inside], groupdq[0][inside], out=image.dq)
    np.bitwise_or(image.dq, np.uint32(PixelDQ.SATURATED), out=image.dq)
    return image


def become_saturated_image(exposure: Exposure, slot: Slot) -> None:
    """Turn a fully saturated ramp into its image, in place; it has no WCS, and the steps left out are SKIPPED."""
    image = saturated_image(exposure.arrays["groupdq"], exposure.arrays["pixeldq"], slot)
    become_image(exposure, image, None)
    exposure.wcs = None
    for key in SKIPPED_STEPS:
        exposure.set_step(key, StepStatus.SKIPPED)
