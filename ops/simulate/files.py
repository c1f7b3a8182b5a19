"""Writing files: ASDF with the data models' schemas, Parquet and JSON, each complete or not there."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["complete", "write_json", "write_model", "write_table", "write_tree"]

_INLINE_ELEMENTS = 512


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """Give a temporary path that becomes ``path`` at the end, so that nobody sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_tree(path: Path, tree: Mapping[str, Any], *, compression: str | None = None) -> None:
    """Write a tree as ASDF; what carries a tag of a data model is validated against its schema."""
    import asdf

    with asdf.config_context() as config, complete(path) as partial:
        config.array_inline_threshold = _INLINE_ELEMENTS
        file = asdf.AsdfFile()
        for key, value in tree.items():
            file[key] = value
        file.write_to(partial, all_array_compression=compression)


def write_model(path: Path, model: Any, *, compression: str | None = None) -> None:
    """Write a data model under its own name.

    Not with the model's ``save``, which stamps the time of writing into the file: equal options shall give equal bytes.
    """
    write_tree(path, {"roman": model._instance}, compression=compression)  # noqa: SLF001 - no public way to the node


def write_table(path: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns of equal length as Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    with complete(path) as partial:
        parquet.write_table(pa.table(dict(columns)), partial)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, indented by four."""
    with complete(path) as partial:
        partial.write_text(json.dumps(document, indent=4) + "\n", encoding="utf-8")
