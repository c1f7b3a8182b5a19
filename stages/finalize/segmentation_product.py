"""The ``_segm`` product: which pixel belongs to which source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stages.finalize.product_file import required_metadata, write_product

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["SEGMENTATION_ARRAYS", "write_segmentation"]

SEGMENTATION_ARRAYS = {"data": "segmentation", "detection_image": "detection_image"}
"""Name in the product, and in the exposure."""


def write_segmentation(
    path: Path, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], source_tag: str
) -> None:
    """Write the segmentation map.

    Parameters
    ----------
    path : Path
        The file to write.
    arrays : mapping
        ``segmentation`` (u4, labels, 0 is background) and, where there is one, ``detection_image`` (f4).
    meta : mapping
        The image's metadata as they were when the map was made.
    source_tag : str
        Tag of the input.
    """
    selected = required_metadata(meta, "SegmentationMapModel", "segmentation_map", source_tag)
    content = {name: arrays[key] for name, key in SEGMENTATION_ARRAYS.items() if key in arrays}
    write_product(path, "SegmentationMapModel", "segmentation_map", source_tag, {"meta": selected, **content})
