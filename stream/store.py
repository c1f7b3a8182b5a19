"""The object-store seam: named immutable bytes with put-if-absent. Every implementation passes `tests.contract`'s store suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["ObjectInfo", "ObjectStore"]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as listed."""

    key: str
    size: int
    modified: float
    """Unix time in seconds."""


class ObjectStore(Protocol):
    """Objects by key. Keys use ``/``; objects are never changed, only replaced or deleted."""

    async def put(self, key: str, data: bytes | Path) -> ObjectInfo:
        """Write bytes, or the content of a local file; visible only when complete."""
        ...

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create; False (and nothing changed) when the key exists: of many racers exactly one gets True."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The bytes, None when the key does not exist."""
        ...

    async def head(self, key: str) -> ObjectInfo | None:
        """Size and time, None when the key does not exist."""
        ...

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``, in key order."""
        ...

    async def delete(self, key: str) -> None:
        """Remove; no error when the key does not exist."""
        ...

    async def fetch(self, key: str, cache: Path) -> Path:
        """A local file with the content: the object's own file for a local store, else a copy under ``cache``.

        The file must not be changed. Raises RetriableError when the object does not exist.
        """
        ...

    def staging(self, key: str) -> Path | None:
        """A path on a local store's own file system to write a large object to before ``put``, which then moves it."""
        ...
