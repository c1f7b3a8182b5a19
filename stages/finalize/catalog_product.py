"""The ``_cat`` product: the source catalog in Parquet, with its metadata in the file's schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stages.finalize.product_file import plain_metadata, select_groups, write_product

if TYPE_CHECKING:
    from pathlib import Path

    from astropy.table import Table

__all__ = ["CATALOG_GROUPS", "write_catalog"]

CATALOG_GROUPS = (
    "coordinates", "exposure", "instrument", "observation", "photometry", "pointing", "program", "ref_file", "visit",
    "wcsinfo",
)  # fmt: skip
"""Groups of the image's metadata that its catalog and segmentation map repeat."""


def write_catalog(path: Path, catalog: Table, meta: Mapping[str, Any], source_tag: str) -> None:
    """Write the catalog.

    Parameters
    ----------
    path : Path
        The file to write, ``.parquet``.
    catalog : Table
        Columns in the product's order, dtypes and units.
    meta : mapping
        The image's metadata as they were when the catalog was made (before the alignment changed s_region).
    source_tag : str
        Tag of the input.

    Raises
    ------
    PermanentError
        A column is missing or has another dtype than the schema wants.
    """
    forced = any(name.startswith("forced_") for name in catalog.colnames)
    model = "ForcedImageSourceCatalogModel" if forced else "ImageSourceCatalogModel"
    schema = "forced_image_source_catalog" if forced else "image_source_catalog"
    selected = select_groups(meta, CATALOG_GROUPS, model_type=model)
    selected["image"] = {
        **plain_metadata(meta.get("image", {})),
        "filename": meta["filename"],
        "file_date": meta["file_date"],
    }
    write_product(path, model, schema, source_tag, {"meta": selected, "source_catalog": catalog})
