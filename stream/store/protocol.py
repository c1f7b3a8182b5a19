"""The object-store seam: named immutable bytes with put-if-absent. Implementations pass the contract suite in tests."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stream.failure import FatalError, PermanentError

__all__ = ["ObjectInfo", "ObjectStore", "check_key", "probe_put_if_absent"]

# What every store and file system takes as it is; a leading dot is the store's own (and rules out "." and "..").
_KEY = re.compile(r"[A-Za-z0-9_+=@,:~-][A-Za-z0-9._+=@,:~-]*(/[A-Za-z0-9_+=@,:~-][A-Za-z0-9._+=@,:~-]*)*")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as listed."""

    key: str
    size: int
    modified: float
    """Unix time in seconds."""


class ObjectStore(Protocol):
    """Objects by key. Keys use ``/``; objects are never changed, only replaced or deleted.

    No key may be the folder of another (``a`` and ``a/b``): a local store could not hold both.

    Every method raises a `stream.failure.Failure`: RetriableError when the store does not answer, FatalError when it
    refuses (credentials, permissions) or is full, PermanentError for a key that no store could hold.
    """

    async def put(self, key: str, data: bytes | Path) -> ObjectInfo:
        """Write bytes, or the content of a local file; visible only when complete.

        A file under a path that `staging` gave is moved, any other is copied.
        """
        ...

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create; False (and nothing changed) when the key exists with other content.

        Of racers that bring different bytes exactly one gets True. It is the bytes that win, not the caller: a creation
        whose reply was lost is known again by them, so racers that bring equal bytes may each get True, and True may be
        said once more for bytes that were created before. Whoever must be the only one brings bytes that nobody else
        has, with an attempt's id in them; where equal bytes mean the same to everyone (a definition, a close, a member
        list, a pointer, the manifest of one attempt) it makes no difference who wrote them.

        After a RetriableError the object may have been created, or even be created later by a request that was
        delayed on its way: try again, and take what is there for the winner.
        """
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

    def staging(self, name: str) -> Path | None:
        """A fresh path on a local store's own file system; None when the store is not local.

        It does not exist yet: make it a file, or a folder for several. What is written there is visible to nobody
        until `put` moves it to its key; what is left over is the caller's to remove.
        """
        ...

    def sweep_staging(self, older_than: float) -> int:
        """Remove staged files that no one has touched for so many seconds (left by killed processes); how many."""
        ...


def check_key(key: str) -> str:
    """Return the key if every store can hold it.

    Raises
    ------
    stream.failure.PermanentError
        It is empty, has empty or dotted parts, or characters that a store might change.
    """
    if not _KEY.fullmatch(key):
        msg = (
            f"{key!r} cannot name an object: expected parts of ASCII letters, digits and ._+=@,:~- that do not start "
            "with a dot, separated by single slashes"
        )
        raise PermanentError(msg)
    return key


async def probe_put_if_absent(store: ObjectStore) -> None:
    """Refuse a store that ignores put-if-absent: on it two workers could both believe that they were first.

    Raises
    ------
    stream.failure.FatalError
        The second creation of one key was accepted.
    """
    key = f"probes/put-if-absent-{uuid.uuid4().hex}"
    try:
        first = await store.put_if_absent(key, b"first")
        second = await store.put_if_absent(key, b"second")
        content = await store.get(key)
    finally:
        await store.delete(key)
    if (first, second, content) != (True, False, b"first"):
        msg = (
            "the object store does not honour put-if-absent (If-None-Match: *), on which exactly-once results rest: "
            f"created {first}, then {second}, and read {content!r}; use a store that does, or upgrade this one"
        )
        raise FatalError(msg)
