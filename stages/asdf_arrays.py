"""Write standard ASDF files for payloads: blocks whose data start on a page, or packed, and a block index at the end.

A page-aligned block can be memory-mapped into an aligned array; in a file as `asdf` writes it the data start anywhere,
and arithmetic on them is up to five times slower. The block header may be longer than its 48 bytes (ASDF standard,
"Block header"), which is how the data are moved to the next page; readers skip the rest. Checksums are left out (they
are optional, and cost as much as the write): the store's manifest has a digest. Not for products.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import yaml

from stages.asdf_container import BLOCK_MAGIC, ArrayNode, Mapped, open_container, plain

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["ARRAY_KEY", "Tagged", "map_array_file", "write_array_file", "write_asdf"]

ARRAY_KEY = "array"
"""Key of the array in a single-array file."""

_PAGE = 4096
_CACHE_LINE = 64
_ALIGN_TO_PAGE = 1 << 16
"""Blocks at least this large start on a page (at most one page in sixteen is padding), smaller ones on a cache line."""

_PIECE = 1 << 22
"""Bytes that are packed at once, as `asdf` has it."""

_HEADER = struct.Struct(">4sHI4sQQQ16s")
_MINIMUM_HEADER = 48
_PREAMBLE = b"#ASDF 1.0.0\n#ASDF_STANDARD 1.6.0\n"
_TAGS = "tag:stsci.edu:asdf/"
_SOFTWARE = {
    "name": "rampstream",
    "author": "The Rampstream developers",
    "version": "1",
}


def write_array_file(path: Path, array: NDArray[Any], *, pack: int = 0) -> None:
    """Write one array as an ASDF file of its own, its data on a page.

    Parameters
    ----------
    path : Path
        The file; overwritten.
    array : ndarray
        Any numeric dtype; written in C order and in its own byte order.
    pack : int
        Pack it with lz4 on so many threads: for flags, which become a tenth. 0 leaves it as it is, to be mapped.
    """
    write_asdf(path, {ARRAY_KEY: array}, pack=pack)


def map_array_file(path: Path, *, writable: bool = True, threads: int = 1) -> Mapped:
    """Map the array of a single-array file, copy-on-write with ``writable``, else read-only; unpack one that is packed.

    Raises
    ------
    PermanentError
        Not such a file, or one that was cut off.
    """
    from stream.failure import PermanentError

    container = open_container(path)
    node = plain(container.tree.get(ARRAY_KEY))
    if not isinstance(node, ArrayNode):
        raise PermanentError(f"{path}: no array under the key {ARRAY_KEY!r}: not a payload array")
    return container.map_array(node, writable=writable, threads=threads)


def write_asdf(path: Path, tree: Mapping[str, Any], *, pack: int = 0) -> None:
    """Write a tree of plain values, ``Time`` and arrays.

    Parameters
    ----------
    path : Path
        The file; overwritten.
    tree : mapping
        Dicts with str keys, lists, tuples (written as lists), str, numbers, bool, None, astropy ``Time``, numpy scalars
        (written as Python numbers), numeric arrays (each in a block) and `Tagged` mappings.
    pack : int
        Threads that pack the arrays with lz4; 0: they are not packed.

    Raises
    ------
    TypeError
        A value of another type: the text names it.
    """
    arrays: list[NDArray[Any]] = []
    text = _yaml({"asdf_library": Tagged(f"{_TAGS}core/software-1.0.0", _SOFTWARE, flow=True), **tree}, arrays)
    with path.open("wb") as file:
        file.write(_PREAMBLE)
        file.write(text)
        positions = []
        for array in arrays:
            positions.append(file.tell())
            if pack and array.nbytes:
                _write_packed(file, array, pack)
            else:
                _write_mapped(file, array)
        if positions:
            file.write(b"#ASDF BLOCK INDEX\n%YAML 1.1\n---\n" + repr(positions).encode() + b"\n...\n")


def _write_mapped(file: BinaryIO, array: NDArray[Any]) -> None:
    alignment = _PAGE if array.nbytes >= _ALIGN_TO_PAGE else _CACHE_LINE
    position = file.tell()
    least = position + 6 + _MINIMUM_HEADER
    start = least + -least % alignment
    stretched = start - position - 6
    size = array.nbytes
    file.write(_HEADER.pack(BLOCK_MAGIC, stretched, 0, b"\0\0\0\0", size, size, size, bytes(16)))
    file.write(bytes(stretched - _MINIMUM_HEADER))
    if size:
        file.write(array.reshape(-1).view(np.uint8).data)


def _write_packed(file: BinaryIO, array: NDArray[Any], threads: int) -> None:
    """Write pieces, each a length (4 bytes, big endian) and data that begin with their unpacked size."""
    position = file.tell()
    file.write(bytes(6 + _MINIMUM_HEADER))
    used = 0
    for piece in _packed(array.reshape(-1).view(np.uint8).data, threads):
        file.write(struct.pack(">I", len(piece)))
        file.write(piece)
        used += 4 + len(piece)
    end = file.tell()
    file.seek(position)
    file.write(_HEADER.pack(BLOCK_MAGIC, _MINIMUM_HEADER, 0, b"lz4\0", used, used, array.nbytes, bytes(16)))
    file.seek(end)


def _packed(data: memoryview, threads: int) -> Iterator[bytes]:
    import lz4.block

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lz4.block.compress, (data[first : first + _PIECE] for first in range(0, len(data), _PIECE)))


class Tagged:
    """A mapping with a tag, for example that of a data model.

    Parameters
    ----------
    tag : str
        The tag's URI.
    value : mapping
        As for `write_asdf`.
    flow : bool
        Write it on one line, in braces.
    """

    def __init__(self, tag: str, value: Mapping[str, Any], *, flow: bool = False) -> None:
        self.tag = tag
        self.value = dict(value)
        self.flow = flow


class _Scalar:
    """Text with a tag of the ASDF standard."""

    def __init__(self, tag: str, value: str) -> None:
        self.tag = _TAGS + tag
        self.value = value


_Dumper: Any = type(
    "_Dumper", (getattr(yaml, "CSafeDumper", yaml.SafeDumper),), {"ignore_aliases": lambda _self, _data: True}
)
_Dumper.add_representer(
    Tagged, lambda dumper, node: dumper.represent_mapping(node.tag, node.value, flow_style=node.flow)
)
_Dumper.add_representer(_Scalar, lambda dumper, node: dumper.represent_scalar(node.tag, node.value))


def _yaml(tree: Mapping[str, Any], arrays: list[NDArray[Any]]) -> bytes:
    document = Tagged(f"{_TAGS}core/asdf-1.1.0", {key: _encode(value, arrays, key) for key, value in tree.items()})
    text = yaml.dump(
        document,
        Dumper=_Dumper,
        version=(1, 1),
        tags={"!": _TAGS},
        explicit_start=True,
        explicit_end=True,
        allow_unicode=True,
        sort_keys=False,
        encoding="utf-8",
    )
    return bytes(text)


def _encode(value: Any, arrays: list[NDArray[Any]], where: str) -> Any:  # noqa: PLR0911 - one a type
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Tagged):
        return Tagged(value.tag, _encode(value.value, arrays, where), flow=value.flow)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.generic):
        return _encode(value.item(), arrays, where)
    if isinstance(value, np.ndarray):
        return _encode_array(value, arrays, where)
    if isinstance(value, Mapping):
        return {str(key): _encode(inner, arrays, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_encode(inner, arrays, f"{where}.{n}") for n, inner in enumerate(value)]
    if hasattr(value, "jd1"):
        return _encode_time(value)
    raise TypeError(f"{where}: a value of type {type(value).__name__} cannot be written")


def _encode_time(value: Any) -> Any:
    from astropy.time import Time

    whole, _, fraction = Time(value, format="isot", precision=9).value.partition(".")
    text = f"{whole}.{fraction.rstrip('0').ljust(3, '0')}"
    if value.scale == "utc":
        return _Scalar("time/time-1.4.0", text)
    fields = {"value": text, "scale": value.scale, "base_format": "isot"}
    return Tagged(f"{_TAGS}time/time-1.4.0", fields, flow=True)


def _encode_array(value: NDArray[Any], arrays: list[NDArray[Any]], where: str) -> Tagged:
    if value.dtype.kind not in "biufc" or value.dtype.itemsize > 16 or value.dtype == np.longdouble:
        raise TypeError(f"{where}: an array of dtype {value.dtype} cannot be written")
    arrays.append(np.ascontiguousarray(value))
    name = "bool8" if value.dtype.kind == "b" else value.dtype.name
    order = "big" if value.dtype.str.startswith(">") else "little"
    node = {"source": len(arrays) - 1, "datatype": name, "byteorder": order, "shape": list(value.shape)}
    return Tagged(f"{_TAGS}core/ndarray-1.1.0", node, flow=True)
