"""Reference files opened read-only, with arrays memory-mapped. Which file to open is `stages.reference_selection`'s.

Arrays are mapped straight from the file where they lie uncompressed and aligned. Others (lz4, or a start that is not a
multiple of the item size, on which arithmetic is up to five times slower) are written once into a cache folder as
page-aligned arrays and mapped from there, shared by all workers of a machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.array_copies import ArrayCopies, Held
from stages.asdf_arrays import map_array_file, write_array_file
from stages.asdf_container import ArrayNode, AsdfContainer, Mapped, foreign_tags, open_container, plain
from stream.failure import PermanentError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FitsReference", "Reference", "check_shape", "open_reference"]

_CACHED_FROM = 1 << 20
"""Smaller arrays are unpacked or copied in memory: not worth a file."""


class Reference:
    """One opened reference file in ASDF.

    Parameters
    ----------
    path : Path
        The file.
    recorded_name : str, optional
        What ``meta.ref_file.<type>`` says; by default the absolute path.
    cache : Path, optional
        Folder for unpacked or realigned copies of large arrays. Without it compressed arrays are unpacked into memory
        and unaligned ones mapped as they are.
    cache_bytes : int, optional
        Bound on that folder (see `stages.array_copies.ArrayCopies`).
    content : str, optional
        What names the copies: the digest of a file that comes and goes under changing paths; by default its recorded
        name, size and modification time.

    Attributes
    ----------
    path : Path
        The file.
    recorded_name : str
        What ``meta.ref_file.<type>`` says.

    Raises
    ------
    PermanentError
        Not ASDF, cut off, or no key ``roman``.
    """

    def __init__(
        self,
        path: Path,
        *,
        recorded_name: str | None = None,
        cache: Path | None = None,
        cache_bytes: int | None = None,
        content: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.recorded_name = os.path.abspath(path) if recorded_name is None else recorded_name  # noqa: PTH100
        self._copies = None if cache is None else ArrayCopies(cache, cache_bytes)
        self._content = content
        self._held: list[Held] = []
        self._mapped: dict[tuple[str, ...], Mapped] = {}
        self._values: dict[tuple[str, ...], Any] = {}
        self._container = self._open()

    def _open(self) -> AsdfContainer | None:
        container = open_container(self.path)
        if "roman" not in container.tree:
            raise PermanentError(f"{self.path}: no key 'roman'; expected a reference file")
        return container

    def array(self, *keys: str) -> NDArray[Any]:
        """Read-only array at ``roman.<keys…>``, for example ``array("coeffs")``; mapped, so nothing is read yet.

        Raises
        ------
        PermanentError
            The file has no such array.
        """
        if keys not in self._mapped:
            self._mapped[keys] = self._map(keys)
        return self._mapped[keys].array

    def value(self, *keys: str) -> Any:
        """Any node at ``roman.<keys…>``: plain values, arrays mapped, astropy models as such.

        Raises
        ------
        PermanentError
            The file has no such node.
        """
        if keys not in self._values:
            node = self._node(keys)
            self._values[keys] = self._rich_value(keys) if foreign_tags(node) else self._with_arrays(keys, plain(node))
        return self._values[keys]

    def is_aligned(self, *keys: str) -> bool:
        """Whether the array lies in this file uncompressed and aligned, so that it is mapped from there directly."""
        assert self._container is not None
        node = plain(self._node(keys))
        if not isinstance(node, ArrayNode) or node.source is None:
            return False
        block = self._container.block(node)
        native = node.dtype == node.dtype.newbyteorder("=")
        return not block.compression and native and (block.offset + node.offset) % node.dtype.alignment == 0

    def drop_pages(self) -> None:
        """Give back the memory of mapped pages; arrays stay valid and come again from the file when touched."""
        for mapped in self._mapped.values():
            mapped.drop_pages()

    def moved_to(self, path: Path) -> None:
        """Go on with the same content under another path."""
        self.path = path
        if self._container is not None:
            self._container = replace(self._container, path=path)

    def close(self) -> None:
        """Forget the mappings; each is released when the last array over it goes."""
        self._mapped.clear()
        self._values.clear()
        while self._held:
            self._held.pop().close()

    def _node(self, keys: Sequence[str]) -> Any:
        assert self._container is not None
        try:
            return self._container.node("roman", *keys)
        except KeyError as error:
            raise PermanentError(f"{self.path}: roman.{'.'.join(keys)} is missing (no key {error})") from None

    def _map(self, keys: tuple[str, ...]) -> Mapped:
        node = plain(self._node(keys))
        if not isinstance(node, ArrayNode):
            raise PermanentError(f"{self.path}: roman.{'.'.join(keys)} is a {type(node).__name__}; expected an array")
        assert self._container is not None
        if node.source is None or self.is_aligned(*keys):
            return self._container.map_array(node)
        if self._copies is None or node.nbytes < _CACHED_FROM:
            return self._in_memory(node)
        return self._copied(node, keys, self._copies)

    def _in_memory(self, node: ArrayNode) -> Mapped:
        assert self._container is not None
        mapped = self._container.map_array(node)
        native = node.dtype.newbyteorder("=")
        if mapped.mapping is not None and node.dtype == native and node.nbytes >= _CACHED_FROM:
            return mapped
        array = np.require(mapped.array, dtype=native, requirements=["C", "A"])
        array = array.copy() if array is mapped.array and mapped.mapping is not None else array
        array.flags.writeable = False
        return Mapped(array)

    def _copied(self, node: ArrayNode, keys: tuple[str, ...], copies: ArrayCopies) -> Mapped:
        """The copy in the cache folder, held as long as this reference is open."""
        container = self._container
        assert container is not None

        def make(path: Path) -> None:
            array = container.map_array(node, threads=2).array
            write_array_file(path, array.astype(array.dtype.newbyteorder("="), copy=False))

        content = self._content
        if content is None:
            stat = self.path.stat()
            content = "\0".join((self.recorded_name, str(stat.st_size), str(stat.st_mtime_ns)))
        path, held = copies.hold("\0".join((content, *keys)), make)
        self._held.append(held)
        return map_array_file(path, writable=False)

    def _with_arrays(self, keys: tuple[str, ...], value: Any) -> Any:
        if isinstance(value, ArrayNode):
            return self.array(*keys)
        if isinstance(value, dict):
            return {key: self._with_arrays((*keys, key), inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._in_list(inner) for inner in value]
        return value

    def _in_list(self, value: Any) -> Any:
        if isinstance(value, ArrayNode):
            return self._in_memory(value).array
        if isinstance(value, dict):
            return {key: self._in_list(inner) for key, inner in value.items()}
        return [self._in_list(inner) for inner in value] if isinstance(value, list) else value

    def _rich_value(self, keys: Sequence[str]) -> Any:
        """A node that needs its converter (models, units), read by the field's library."""
        import asdf

        with asdf.open(self.path, memmap=False, lazy_load=False) as file:
            node: Any = file.tree["roman"]
            for key in keys:
                node = node[key]
        return node


class FitsReference(Reference):
    """A reference in FITS (the dust maps): ``array()`` is the primary image, ``value("header")`` its header."""

    def _open(self) -> None:
        return None

    def array(self, *keys: str) -> NDArray[Any]:
        """The primary image in native byte order, read-only; ``keys`` may be empty or ``("data",)``."""
        if keys not in {(), ("data",)}:
            raise PermanentError(f"{self.path}: a FITS reference has no array {'.'.join(keys)!r}")
        if () not in self._mapped:
            from astropy.io import fits

            with fits.open(self.path, memmap=False) as hdus:
                data = np.asarray(hdus[0].data)
            data = data.astype(data.dtype.newbyteorder("="), copy=False)
            data.flags.writeable = False
            self._mapped[()] = Mapped(data)
        return self._mapped[()].array

    def value(self, *keys: str) -> Any:
        """The header (``value("header")``, an astropy ``Header``), or one card (``value("header", "FIELD")``)."""
        from astropy.io import fits

        if not keys or keys[0] != "header" or len(keys) > 2:
            raise PermanentError(f"{self.path}: a FITS reference has no value {'.'.join(keys)!r}; expected 'header'")
        header = fits.getheader(self.path)
        if len(keys) == 1:
            return header
        if keys[1] not in header:
            raise PermanentError(f"{self.path}: the header has no card {keys[1]!r}")
        return header[keys[1]]

    def is_aligned(self, *keys: str) -> bool:  # noqa: ARG002
        """Never: FITS is big endian."""
        return False


def open_reference(
    path: Path,
    *,
    recorded_name: str | None = None,
    cache: Path | None = None,
    cache_bytes: int | None = None,
    content: str | None = None,
) -> Reference:
    """Open a reference file, ASDF or FITS by its extension; parameters as of `Reference`."""
    kind = FitsReference if path.suffix.lower() in {".fits", ".fit"} else Reference
    return kind(path, recorded_name=recorded_name, cache=cache, cache_bytes=cache_bytes, content=content)


def check_shape(reference: Any, *keys: str, expected: Sequence[int | None], dtype: str | None = None) -> NDArray[Any]:
    """The array at ``keys``, after a check of its shape (None: any length) and, if given, its dtype.

    Raises
    ------
    PermanentError
        Names the file, the array, what was found and what the exposure needs.
    """
    array: NDArray[Any] = reference.array(*keys)
    field = ".".join(keys)
    words = ", ".join("any" if n is None else str(n) for n in expected)
    if len(array.shape) != len(expected) or any(
        wanted is not None and found != wanted for found, wanted in zip(array.shape, expected, strict=True)
    ):
        raise PermanentError(f"{reference.path}: {field} has shape {array.shape}; the exposure needs ({words})")
    if dtype is not None and array.dtype != np.dtype(dtype):
        raise PermanentError(f"{reference.path}: {field} has dtype {array.dtype}; expected {np.dtype(dtype)}")
    return array
