"""The image of a fully saturated exposure: all zero, every pixel flagged. It leaves the pipeline after saturation."""

from __future__ import annotations

import numpy as np

from stages.dq import PixelDQ
from stages.exposure import Exposure, Level, StepStatus

__all__ = ["PLACEHOLDER", "make_saturated_image"]

BORDER = 4
PLACEHOLDER = -999999
"""What numbers say that no step has filled, as the data models have it."""

_SKIPPED = (
    "refpix", "dark_decay", "wfi18_transient", "linearity", "dark", "ramp_fit", "assign_wcs", "flat_field", "photom",
    "source_catalog", "tweakreg",
)  # fmt: skip


def make_saturated_image(exposure: Exposure) -> None:
    """Turn a fully saturated ramp into its image, in place.

    data (f4), err, var_poisson, chisq and dumo (f2) are zero; dq is pixeldq, the flags of the first resultant and
    SATURATED, without the border of reference pixels. All steps after saturation are SKIPPED, and there is no WCS.
    """
    inner = (slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    arrays = exposure.arrays
    flags = arrays["pixeldq"][inner] | arrays["groupdq"][0][inner] | np.uint32(PixelDQ.SATURATED)
    exposure.drop_arrays(("data", "groupdq", "pixeldq"))
    exposure.set_array("data", np.zeros(flags.shape, np.float32))
    exposure.set_array("dq", flags.astype(np.uint32, copy=False))
    for name in ("err", "var_poisson", "chisq", "dumo"):
        exposure.set_array(name, np.zeros(flags.shape, np.float16))
    exposure.meta["photometry"] = {
        "conversion_megajanskys": PLACEHOLDER,
        "conversion_megajanskys_uncertainty": PLACEHOLDER,
        "pixel_area": PLACEHOLDER,
    }
    exposure.level = Level.IMAGE
    exposure.wcs = None
    exposure.catalog = None
    for key in _SKIPPED:
        exposure.set_step(key, StepStatus.SKIPPED)
