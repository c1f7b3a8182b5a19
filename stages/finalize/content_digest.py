"""Digest of what a product says, whenever and wherever it was made: the measure of "identical products".

Arrays, tables and metadata count; left out are file dates, log lines, the writing library's notes, and the folders of
reference files (or the store they lie in), which count by the digest of their content, or by name where that is not
given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.asdf_container import ArrayNode, AsdfContainer, open_container, plain

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["array_digest", "array_digests", "content_digest"]

_LEFT_OUT = frozenset({"file_date", "cal_logs"})
_LEFT_OUT_OF_TABLES = frozenset({"source_catalog.date", "table_meta_yaml"})
"""The date of the measurement; and a second copy of names, units and metadata, with that date inside."""

_PLACES = ("/", "s3://", "gs://", "az://", "crds://")

_ALGORITHM = "sha256"
_ARROW_FLOATS = {"halffloat": "f2", "float": "f4", "double": "f8"}


def content_digest(
    path: Path,
    *,
    reference_digests: Mapping[str, str] | None = None,
    known_arrays: Mapping[str, str] | None = None,
) -> str:
    """Digest of a product's content.

    Parameters
    ----------
    path : Path
        An ASDF or Parquet product.
    reference_digests : mapping, optional
        Digest of each reference file by the name recorded in ``meta.ref_file``.
    known_arrays : mapping, optional
        `array_digest` of arrays under ``roman``, by key, for who still has them in memory: they are not read again.

    Returns
    -------
    str
        ``sha256:…``
    """
    references = reference_digests or {}
    if path.suffix == ".parquet":
        return _parquet_digest(path, references)
    container = open_container(path)
    hasher = hashlib.new(_ALGORITHM)
    _Walker(container, hasher.update, references, known_arrays or {}).product()
    return f"{_ALGORITHM}:{hasher.hexdigest()}"


def array_digest(array: NDArray[Any]) -> str:
    """Digest of an array's dtype, shape and values (in C order, little endian)."""
    array = np.asarray(array)
    values = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    hasher = hashlib.new(_ALGORITHM, f"{values.dtype.str}{array.shape}".encode())
    if values.size:
        hasher.update(values.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def array_digests(arrays: Mapping[str, NDArray[Any]], *, threads: int = 1) -> dict[str, str]:
    """`array_digest` of several arrays, on several threads (hashing leaves the GIL)."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return dict(zip(arrays, pool.map(array_digest, arrays.values()), strict=True))


class _Walker:
    """Feeds a raw ASDF tree to a hash: every value with its kind, mappings in the order of their keys."""

    def __init__(
        self,
        container: AsdfContainer,
        update: Callable[[bytes], None],
        references: Mapping[str, str],
        known: Mapping[str, str],
    ) -> None:
        self._container = container
        self._update = update
        self._references = references
        self._known = known

    def product(self) -> None:
        roman = self._container.node("roman")
        self._update(getattr(roman, "_tag", "").encode())
        for key in sorted(roman):
            self._update(b"key" + str(key).encode())
            if key in self._known:
                self._update(b"array" + self._known[key].encode())
            else:
                self._node(roman[key], (str(key),))

    def _node(self, node: Any, where: tuple[str, ...]) -> None:
        tag = getattr(node, "_tag", "")
        if tag.startswith("tag:stsci.edu:asdf/core/ndarray-"):
            self._update(b"array" + self._array(plain(node)).encode())
        elif tag.startswith("tag:stsci.edu:asdf/time/time-"):
            self._update(b"time" + str(plain(node).isot).encode())
        elif isinstance(node, Mapping):
            self._mapping(node, tag, where)
        elif isinstance(node, Sequence) and not isinstance(node, str):
            self._update(f"list{tag}{len(node)}".encode())
            for value in node:
                self._node(value, (*where, ""))
        else:
            self._update(
                f"{type(node).__name__ if not isinstance(node, str) else 'str'}{tag}{_scalar(node)}\0".encode()
            )

    def _mapping(self, node: Mapping[str, Any], tag: str, where: tuple[str, ...]) -> None:
        keys = sorted(str(key) for key in node if not (where and where[0] == "meta" and key in _LEFT_OUT))
        self._update(f"map{tag}{len(keys)}".encode())
        for key in keys:
            self._update(b"key" + key.encode() + b"\0")
            value = node[key]
            if where == ("meta", "ref_file") and isinstance(value, str):
                value = _reference(str(value), self._references)
            self._node(value, (*where, key))

    def _array(self, node: ArrayNode) -> str:
        return array_digest(self._container.map_array(node).array)


def _scalar(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _reference(name: str, digests: Mapping[str, str]) -> str:
    """A reference by its content where that is known; else a path, or the URL of a store, by its last part."""
    return digests.get(name) or (name.rsplit("/", 1)[-1] if name.startswith(_PLACES) else name)


def _column_values(column: Any) -> NDArray[Any]:
    """Values of a column without nulls, from its buffers: ``to_numpy`` imports pandas wherever there is one."""
    name = str(column.type)
    dtype = np.dtype(_ARROW_FLOATS.get(name, name))
    pieces = []
    for chunk in column.chunks:
        buffer, last = chunk.buffers()[1], chunk.offset + len(chunk)
        if name == "bool":
            pieces.append(np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")[chunk.offset : last] > 0)
        else:
            pieces.append(np.frombuffer(buffer, dtype)[chunk.offset : last])
    return np.concatenate(pieces) if pieces else np.empty(0, dtype)


def _parquet_digest(path: Path, references: Mapping[str, str]) -> str:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    hasher = hashlib.new(_ALGORITHM)
    for field in table.schema:
        unit = (field.metadata or {}).get(b"unit", b"")
        digest = array_digest(_column_values(table.column(field.name)))
        hasher.update(b"\0".join((b"column", field.name.encode(), unit, digest.encode())))
    for raw_key, raw_value in sorted((table.schema.metadata or {}).items()):
        key, value = raw_key.decode(), raw_value.decode()
        if key in _LEFT_OUT_OF_TABLES or key.rsplit(".", 1)[-1] in _LEFT_OUT:
            continue
        if key.startswith("roman.meta.ref_file."):
            value = _reference(value, references)
        hasher.update(b"\0".join((b"key", key.encode(), value.encode())))
    return f"{_ALGORITHM}:{hasher.hexdigest()}"
