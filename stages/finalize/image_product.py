"""The ``_cal`` product: the calibrated rate image with everything known about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stages.exposure import CAL_STEP_KEYS, Exposure, StepStatus
from stages.finalize.product_file import plain_metadata, write_product
from stages.finalize.schema_tags import product_tag
from stages.ground_test import with_own_nodes

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["IMAGE_ARRAYS", "write_image"]

IMAGE_ARRAYS = (
    "data", "dq", "err", "var_poisson", "var_rnoise", "var_flat", "chisq", "dumo", "amp33",
    "border_ref_pix_left", "border_ref_pix_right", "border_ref_pix_top", "border_ref_pix_bottom",
    "dq_border_ref_pix_left", "dq_border_ref_pix_right", "dq_border_ref_pix_top", "dq_border_ref_pix_bottom",
    "jump_indices",
)  # fmt: skip
"""Arrays of the product, as far as the exposure has them."""

_SECOND_DQ = (2, 2)
"""First version of the image's schema that requires ``dq2``."""

_PLACEHOLDER = -999999
"""What numbers say that no step has filled, as the data models have it."""


def write_image(path: Path, exposure: Exposure, wcs: Any) -> None:
    """Write the image.

    Parameters
    ----------
    path : Path
        The file to write.
    exposure : Exposure
        At level IMAGE, its metadata final.
    wcs : gwcs.WCS or None
        For ``meta.wcs``.

    Raises
    ------
    PermanentError
        The content does not follow the schema.
    """
    meta = plain_metadata(exposure.meta)
    meta.pop("image", None)  # whose segments the catalog measured is in the catalog alone
    steps = meta.get("cal_step", {})
    meta["model_type"] = "ImageModel"
    meta["cal_step"] = {key: steps.get(key, str(StepStatus.INCOMPLETE)) for key in CAL_STEP_KEYS}
    photometry = meta.setdefault("photometry", {})
    for key in ("conversion_megajanskys", "conversion_megajanskys_uncertainty", "pixel_area"):
        photometry.setdefault(key, _PLACEHOLDER)
    meta["cal_logs"] = list(exposure.logs)
    meta["wcs"] = wcs
    with_own_nodes(meta, exposure.source_tag)
    arrays = {name: exposure.arrays[name] for name in IMAGE_ARRAYS if name in exposure.arrays}
    if _has_second_dq(product_tag(exposure.source_tag, "wfi_image")):
        arrays.setdefault("dq2", np.zeros_like(exposure.arrays["dq"]))
    write_product(path, "ImageModel", "wfi_image", exposure.source_tag, {"meta": meta, **arrays})


def _has_second_dq(tag: str | None) -> bool:
    """Whether the generation has ``dq2``, flags of references' ``dq2`` arrays: no stage's references have any."""
    if tag is None:
        return False
    major, minor, _ = (int(part) for part in tag.rpartition("-")[2].split("."))
    return (major, minor) >= _SECOND_DQ
