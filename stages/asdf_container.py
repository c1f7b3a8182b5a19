"""The ASDF container at a low level: the YAML header alone, where the blocks lie, and arrays mapped from them.

Opening a file here parses its header and walks the block headers, and touches nothing else; no extension is loaded and
no schema is checked. Tagged nodes come out as plain Python values (times as astropy ``Time``, arrays as `ArrayNode`).
Not a replacement for `asdf`, which writes the products and reads what is richer than that.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from stream.failure import PermanentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK_MAGIC", "ArrayNode", "AsdfContainer", "Block", "Mapped", "foreign_tags", "open_container", "plain"]

BLOCK_MAGIC = b"\xd3BLK"
_BLOCK_HEADER = struct.Struct(">I4sQQQ16s")
_STREAMED = 1
_YAML_END = re.compile(rb"\r?\n\.\.\.\s*?\r?\n")
_READ = 1 << 16
_LARGEST_HEADER = 1 << 26

_NDARRAY = "tag:stsci.edu:asdf/core/ndarray-"
_TIME = "tag:stsci.edu:asdf/time/time-"
_COMPLEX = "tag:stsci.edu:asdf/core/complex-"
_CORE = "tag:stsci.edu:asdf/core/"
ROMAN_TAG = "asdf://stsci.edu/datamodels/roman/tags/"

_DTYPES = {
    **{
        f"{kind}{bits}": f"{letter}{bits // 8}"
        for kind, letter in (("int", "i"), ("uint", "u"))
        for bits in (8, 16, 32, 64)
    },
    **{f"float{bits}": f"f{bits // 8}" for bits in (16, 32, 64)},
    "complex64": "c8",
    "complex128": "c16",
    "bool8": "?",
}


@dataclass(frozen=True, slots=True)
class Block:
    """One binary block: where its data start, its sizes in the file and unpacked, and its compression ("" for none)."""

    offset: int
    allocated: int
    used: int
    size: int
    compression: str


@dataclass(frozen=True, slots=True)
class ArrayNode:
    """An array as the header describes it; ``source`` is a block number, or None when the values are inline."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    source: int | None
    offset: int = 0
    strides: tuple[int, ...] | None = None
    inline: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Mapped:
    """An array over a mapping of its own; keep the mapping to drop its pages."""

    array: NDArray[Any]
    mapping: mmap.mmap | None = None

    def drop_pages(self) -> None:
        """Give the resident pages of a read-only mapping back; they come again from the file when touched."""
        if self.mapping is not None and not self.array.flags.writeable:
            self.mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class AsdfContainer:
    """An opened file: its path, the raw (tagged) tree and its blocks."""

    path: Path
    tree: Mapping[str, Any]
    blocks: tuple[Block, ...] = field(default=())

    def node(self, *keys: str) -> Any:
        """The raw node at ``keys``; KeyError names the first key that is missing."""
        node: Any = self.tree
        for key in keys:
            if not isinstance(node, Mapping) or key not in node:
                raise KeyError(key)
            node = node[key]
        return node

    def block(self, node: ArrayNode) -> Block:
        """The block that holds an array.

        Raises
        ------
        PermanentError
            The file has no such block: it was cut off.
        """
        if node.source is None or not 0 <= node.source < len(self.blocks):
            raise PermanentError(
                f"{self.path}: truncated: data block {node.source} is missing, the file has {len(self.blocks)} blocks"
            )
        return self.blocks[node.source]

    def map_array(self, node: ArrayNode, *, writable: bool = False, threads: int = 1) -> Mapped:
        """Map an uncompressed array, or unpack a compressed one into memory.

        Parameters
        ----------
        node : ArrayNode
            Which array.
        writable : bool
            Map copy-on-write: changes stay private to this process.
        threads : int
            Threads for unpacking lz4.

        Returns
        -------
        Mapped
            The array in the file's dtype and byte order; read-only unless ``writable``.
        """
        if node.source is None:
            return Mapped(np.array(node.inline, dtype=node.dtype).reshape(node.shape))
        block = self.block(node)
        last = node.offset + _extent(node)
        if last > block.size:
            raise PermanentError(
                f"{self.path}: data block {node.source} holds {block.size} bytes, an array of shape {node.shape} and "
                f"dtype {node.dtype} needs {last}"
            )
        if node.nbytes == 0:
            return Mapped(np.empty(node.shape, node.dtype))
        if block.compression:
            raw = self.unpack(block, threads=threads)
            array = _strided(raw.data, node, node.offset)
            array.flags.writeable = writable
            return Mapped(array)
        start = block.offset + node.offset
        aligned = start - start % mmap.ALLOCATIONGRANULARITY
        access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
        with self.path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), start - aligned + _extent(node), access=access, offset=aligned)
        return Mapped(_strided(memoryview(mapping), node, start - aligned), mapping)

    def unpack(self, block: Block, *, threads: int = 1) -> NDArray[np.uint8]:
        """The bytes of a compressed block, unpacked into fresh memory."""
        out = np.empty(block.size, np.uint8)
        with self.path.open("rb") as file:
            if block.compression == "lz4":
                _unpack_lz4(self.path, file, block, out, threads)
                return out
            file.seek(block.offset)
            packed = file.read(block.used)
        unpacked = _UNPACKERS[block.compression](packed) if block.compression in _UNPACKERS else None
        if unpacked is None or len(unpacked) != block.size:
            raise PermanentError(
                f"{self.path}: a data block is compressed with {block.compression!r} and cannot be unpacked; "
                f"expected none, lz4, {', '.join(_UNPACKERS)}"
            )
        out[:] = np.frombuffer(unpacked, np.uint8)
        return out


def open_container(path: Path, *, blocks: bool = True) -> AsdfContainer:
    """Read the header and, unless ``blocks`` is false, walk the block headers.

    Raises
    ------
    PermanentError
        Not an ASDF file, or one that was cut off: the text names the file.
    """
    try:
        with path.open("rb") as file:
            header, end = _read_header(path, file)
            found = tuple(_walk_blocks(path, file, end)) if blocks else ()
    except FileNotFoundError:
        raise PermanentError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise PermanentError(f"{path}: a directory; expected an ASDF file") from None
    return AsdfContainer(path, _parse(path, header), found)


def plain(node: Any) -> Any:  # noqa: PLR0911 - one a type
    """The node as dict, list, str, numbers, None, astropy ``Time`` and `ArrayNode`; other tags fall away."""
    tag = getattr(node, "_tag", "")
    if tag.startswith(_TIME):
        return _time(node)
    if tag.startswith(_NDARRAY):
        return _array_node(node)
    if tag.startswith(_COMPLEX):
        return complex(str(node).replace("i", "j").replace("I", "j").replace("J", "j"))
    if isinstance(node, Mapping):
        return {_plain_key(key): plain(value) for key, value in node.items()}
    if isinstance(node, str):
        return str(node)
    if isinstance(node, Sequence):
        return [plain(value) for value in node]
    return node


def foreign_tags(node: Any) -> set[str]:
    """Tags inside a node that `plain` cannot express (models, units, tables …)."""
    tag = getattr(node, "_tag", "")
    known = (_TIME, _CORE, ROMAN_TAG, "tag:yaml.org,2002:")
    found = {tag} if tag and not tag.startswith(known) else set()
    if tag.startswith(_NDARRAY):
        return found
    if isinstance(node, Mapping):
        for value in node.values():
            found |= foreign_tags(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            found |= foreign_tags(value)
    return found


def _plain_key(key: Any) -> Any:
    return str(key) if isinstance(key, str) else key


def _read_header(path: Path, file: BinaryIO) -> tuple[bytes, int]:
    header = file.read(_READ)
    if not header.startswith(b"#ASDF"):
        raise PermanentError(f"{path}: not an ASDF file: it does not start with '#ASDF'")
    searched = 0
    while True:
        match = _YAML_END.search(header, max(0, searched - 8))
        if match:
            return header[: match.end()], match.end()
        searched = len(header)
        more = file.read(_READ)
        if not more or len(header) > _LARGEST_HEADER:
            raise PermanentError(f"{path}: truncated: the end of the ASDF header is missing")
        header += more


def _parse(path: Path, header: bytes) -> Mapping[str, Any]:
    import yaml
    from asdf.util import load_yaml

    try:
        tree = load_yaml(BytesIO(header), tagged=True)
    except (ValueError, yaml.YAMLError) as error:
        raise PermanentError(f"{path}: the ASDF header is not valid YAML: {error}") from error
    if not isinstance(tree, Mapping):
        raise PermanentError(f"{path}: the ASDF header holds no mapping")
    return tree


def _walk_blocks(path: Path, file: BinaryIO, end: int) -> list[Block]:
    file.seek(0, 2)
    size = file.tell()
    file.seek(end)
    padding = file.read(_READ).find(BLOCK_MAGIC)
    if padding < 0:
        return []
    blocks: list[Block] = []
    position = end + padding
    while True:
        file.seek(position)
        start = file.read(6 + _BLOCK_HEADER.size)
        if not start.startswith(BLOCK_MAGIC):
            return blocks
        if len(start) < 6 + _BLOCK_HEADER.size:
            raise PermanentError(f"{path}: truncated: the header of data block {len(blocks)} is incomplete")
        (length,) = struct.unpack(">H", start[4:6])
        flags, compression, allocated, used, unpacked, _ = _BLOCK_HEADER.unpack(start[6:])
        offset = position + 6 + length
        if flags & _STREAMED:
            allocated = used = unpacked = size - offset
        if offset + used > size or offset + allocated > size:
            raise PermanentError(
                f"{path}: truncated: data block {len(blocks)} ends at byte {offset + allocated}, the file has {size}"
            )
        name = compression.rstrip(b"\0").decode("ascii", "replace")
        blocks.append(Block(offset, allocated, used, unpacked, name))
        position = offset + allocated


def _array_node(node: Any) -> ArrayNode:
    if isinstance(node, Sequence):
        values = np.array(plain(list(node)))
        return ArrayNode(values.dtype, values.shape, None, inline=values)
    name = node.get("datatype")
    if not isinstance(name, str) or name not in _DTYPES:
        if "data" not in node or name is not None:
            raise PermanentError(f"arrays of datatype {name!r} are not supported; expected one of {', '.join(_DTYPES)}")
        values = np.array(plain(node["data"]))
        return ArrayNode(values.dtype, values.shape, None, inline=values)
    order: Literal["<", ">"] = ">" if node.get("byteorder", "big") == "big" else "<"
    dtype = np.dtype(_DTYPES[name]).newbyteorder(order)
    if "data" in node:
        values = np.array(plain(node["data"]), dtype=dtype)
        return ArrayNode(dtype, tuple(node.get("shape", values.shape)), None, inline=values)
    source = node.get("source")
    if not isinstance(source, int):
        raise PermanentError(f"an array refers to {source!r}; expected a data block of the same file")
    strides = tuple(node["strides"]) if "strides" in node else None
    shape = tuple(int(n) for n in node["shape"])
    return ArrayNode(dtype, shape, source, int(node.get("offset", 0)), strides)


def _extent(node: ArrayNode) -> int:
    if node.strides is None or 0 in node.shape:
        return node.nbytes
    return sum((n - 1) * step for n, step in zip(node.shape, node.strides, strict=True)) + node.dtype.itemsize


def _strided(buffer: memoryview, node: ArrayNode, offset: int) -> NDArray[Any]:
    return np.ndarray(node.shape, node.dtype, buffer=buffer, offset=offset, strides=node.strides)


def _time(node: Any) -> Any:
    from astropy.time import Time

    if isinstance(node, str):
        return Time(str(node), scale="utc")
    value = plain(node["value"])
    if isinstance(value, str):
        return Time(value, scale=str(node.get("scale", "utc")))
    return Time(value, format=str(node.get("base_format") or node.get("format")), scale=str(node.get("scale", "utc")))


def _unpack_zlib(packed: bytes) -> bytes:
    import zlib

    return zlib.decompress(packed)


def _unpack_bzip2(packed: bytes) -> bytes:
    import bz2

    return bz2.decompress(packed)


_UNPACKERS = {"zlib": _unpack_zlib, "bzp2": _unpack_bzip2}


def _unpack_lz4(path: Path, file: BinaryIO, block: Block, out: NDArray[np.uint8], threads: int) -> None:
    """Unpack the pieces: each is a length (4 bytes, big endian) and data that begin with their unpacked size."""
    import lz4.block

    end = block.offset + block.used
    with (
        mmap.mmap(file.fileno(), end, access=mmap.ACCESS_READ) as mapping,
        memoryview(mapping) as packed,
    ):
        pieces = []
        position, filled = block.offset, 0
        while position < end:
            (length,) = struct.unpack_from(">I", packed, position)
            (size,) = struct.unpack_from("<I", packed, position + 4)
            pieces.append((position + 4, length, filled, size))
            position += 4 + length
            filled += size
        if position != end or filled != block.size:
            raise PermanentError(
                f"{path}: an lz4 data block is damaged: its pieces do not add up to {block.size} bytes"
            )

        def unpack(piece: tuple[int, int, int, int]) -> None:
            start, length, first, size = piece
            with packed[start : start + length] as source:
                out[first : first + size] = np.frombuffer(lz4.block.decompress(source), np.uint8)

        try:
            with ThreadPoolExecutor(max(1, threads)) as pool:
                list(pool.map(unpack, pieces))
        except lz4.block.LZ4BlockError as error:
            raise PermanentError(f"{path}: an lz4 data block is damaged: {error}") from error
