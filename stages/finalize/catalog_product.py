"""The ``_cat`` product: the source catalog in Parquet, with its metadata in the file's schema.

Written here rather than by the data models, whose general validation of a table's schema costs more than a second: the
same check (each required column is there, in its dtype) is made against the same schema's columns, and the file is the
same, key by key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.finalize.catalog_columns import missing_columns
from stages.finalize.product_file import plain_metadata, required_metadata
from stages.finalize.schema_tags import product_tag
from stream.failure import PermanentError

if TYPE_CHECKING:
    from pathlib import Path

    from astropy.table import Table
    from numpy.typing import NDArray

__all__ = ["write_catalog"]


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
    import pyarrow as pa
    import pyarrow.parquet as pq
    from astropy.table.meta import get_yaml_from_table
    from astropy.time import Time

    forced = any(name.startswith("forced_") for name in catalog.colnames)
    model = "ForcedImageSourceCatalogModel" if forced else "ImageSourceCatalogModel"
    _check_columns(path, catalog, model, source_tag)
    schema = "forced_image_source_catalog" if forced else "image_source_catalog"
    selected = required_metadata(meta, model, schema, source_tag)
    selected["image"] = {
        **plain_metadata(meta.get("image", {})),
        "filename": meta["filename"],
        "file_date": meta["file_date"],
    }
    selected |= {"filename": path.name, "file_date": Time.now()}
    metadata = {f"roman.meta.{key}": str(value) for key, value in _leaves(selected)}
    metadata |= {f"source_catalog.{key}": str(value) for key, value in _leaves(catalog.meta)}
    metadata["table_meta_yaml"] = "\n".join(get_yaml_from_table(catalog))
    arrays = [_arrow_array(np.asarray(catalog[name])) for name in catalog.colnames]
    fields = [
        pa.field(name, array.type, metadata={"unit": str(catalog[name].unit)})
        for name, array in zip(catalog.colnames, arrays, strict=True)
    ]
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata)), path, compression=None)


def _arrow_array(values: NDArray[Any]) -> Any:
    """An Arrow array of the same dtype, from its buffer: ``pyarrow.array`` imports pandas wherever there is one."""
    import pyarrow as pa

    bits = np.packbits(values, bitorder="little") if values.dtype == bool else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(bits)])


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything that is not None; lists and tuples by index, arrays whole."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        if value is not None:
            yield path, value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _check_columns(path: Path, catalog: Table, model: str, source_tag: str) -> None:
    schema = "forced_image_source_catalog" if model.startswith("Forced") else "image_source_catalog"
    tag = product_tag(source_tag, schema)
    if tag is None:
        from roman_datamodels import datamodels

        tag = getattr(datamodels, model).create_minimal().tag
    missing = missing_columns(catalog, tag)
    if missing:
        raise PermanentError(f"{path.name}: the catalog does not follow the schema of {model}: {', '.join(missing)}")
