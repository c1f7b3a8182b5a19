"""The ``_wcs`` product: a light file with the final WCS, for L2 and for L1 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stages.finalize.product_file import select_groups, write_product

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["WCS_GROUPS", "write_wcs"]

WCS_GROUPS = (
    "coordinates", "ephemeris", "exposure", "instrument", "observation", "pointing", "program", "velocity_aberration",
    "visit", "wcsinfo", "wcs_fit_results",
)  # fmt: skip
"""Groups of the image's metadata that the product repeats."""


def write_wcs(path: Path, wcs: Any, meta: Mapping[str, Any], source_tag: str) -> None:
    """Write the WCS product.

    Parameters
    ----------
    path : Path
        The file to write.
    wcs : gwcs.WCS or None
        The final WCS; None (no distortion reference) writes the metadata alone.
    meta : mapping
        The image's final metadata.
    source_tag : str
        Tag of the input.

    Notes
    -----
    ``meta.model_type`` says ImageModel, as in the mission's products: the metadata are the image's.
    """
    from stages.wcs import build_l1_wcs

    content: dict[str, Any] = {"meta": select_groups(meta, WCS_GROUPS, model_type="ImageModel")}
    if wcs is not None:
        content["wcs_l2"] = wcs
        content["wcs_l1"] = build_l1_wcs(wcs)
    write_product(path, "WfiWcsModel", "wfi_wcs", source_tag, content)
