"""Gathers many small objects into one file that a job can map. A file for each would cost ten times as much.

They are not cached: who wants ten thousand of them wants them once.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread

from stream.failure import FatalError, RetriableError
from stream.store.cache import Described
from stream.store.protocol import ObjectStore
from stream.together import together

__all__ = ["Gathered", "gathered"]

_TOGETHER = 32
"""Objects asked for at once: each waits for an answer, and is small."""

_WRITTEN_TOGETHER = 4 * 1024 * 1024
"""Bytes that are written in one step: a step is a switch to a thread and back."""

_ALIGNED = 64
"""Each object begins at a multiple of this many bytes, so that arrays in it are aligned as in a file of its own."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """Objects in one file: ``places`` has offset and size in bytes by the object's name."""

    path: Path
    places: dict[str, tuple[int, int]] = field(default_factory=dict)


@asynccontextmanager
async def gathered(store: ObjectStore, objects: Sequence[Described], folder: Path) -> AsyncIterator[Gathered]:
    """One file with the content of all objects, for as long as the context lasts.

    Parameters
    ----------
    store : ObjectStore
        Where they are.
    objects : sequence of Described
        What is wanted; names are unique.
    folder : Path
        Where the file goes; made when it does not exist.

    Raises
    ------
    stream.failure.RetriableError
        An object does not exist, or is not what its digest says.
    stream.failure.FatalError
        The file cannot be written.
    """
    found = Gathered(folder / f"gathered-{uuid.uuid4().hex}")
    file = await anyio.to_thread.run_sync(_created, found.path)
    try:
        with file:
            await _Gathering(store, found, file).all_of(objects)
        yield found
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: found.path.unlink(missing_ok=True))


class _Gathering:
    def __init__(self, store: ObjectStore, found: Gathered, file: BinaryIO) -> None:
        self._store = store
        self._found = found
        self._file = file
        self._end = 0
        self._unwritten: list[bytes] = []
        self._size = 0
        self._writing = anyio.Lock()

    async def all_of(self, objects: Sequence[Described]) -> None:
        rest = iter(objects)
        # So many that go on until nothing is left: a task for each object would cost as much as its request.
        await together([lambda: self._some_of(rest)] * min(_TOGETHER, len(objects)))
        await self._write()

    async def _some_of(self, rest: Iterator[Described]) -> None:
        for described in rest:
            data = await self._store.get(described.key)
            if data is None:
                raise RetriableError(f"{self._store!r}: {described.key} does not exist")
            digest = hashlib.sha256(data).hexdigest()
            if digest != described.digest:
                raise RetriableError(
                    f"{described.key} is damaged: its SHA-256 is {digest[:16]}…, expected {described.digest[:16]}…"
                )
            self._found.places[described.name] = (self._end, len(data))
            padding = -len(data) % _ALIGNED
            self._unwritten += (data, bytes(padding))
            self._end += len(data) + padding
            self._size += len(data) + padding
            if self._size >= _WRITTEN_TOGETHER:
                await self._write()

    async def _write(self) -> None:
        # What comes meanwhile is written next: in the order in which it got its place.
        async with self._writing:
            parts, self._unwritten, self._size = self._unwritten, [], 0
            try:
                await anyio.to_thread.run_sync(_append, self._file, parts)
            except OSError as error:
                raise FatalError(f"{self._found.path} cannot be written: {error.strerror}") from error


def _created(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")
    except OSError as error:
        raise FatalError(f"{path} cannot be written: {error.strerror}") from error


def _append(file: BinaryIO, parts: list[bytes]) -> None:
    file.write(b"".join(parts))
    file.flush()
