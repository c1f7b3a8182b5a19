"""Writes the objects of one result to a folder and digests them, before anything of them is visible. Not the store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from stream.results import ObjectKind, StoredObject, file_digest

__all__ = ["StagedObjects"]


class StagedObjects:
    """The files of one result. With two threads, one is digested while the next is written.

    Parameters
    ----------
    folder : Path
        Where to write; must not exist.
    key : callable
        From a file's name to its object's key.
    threads : int
        Threads that may be used.

    Attributes
    ----------
    files : dict
        Path of each file by its object's key.
    """

    def __init__(self, folder: Path, key: Callable[[str], str], *, threads: int) -> None:
        self._folder = folder
        self._key = key
        self._pool = ThreadPoolExecutor(1) if threads > 1 else None
        self._entries: list[tuple[str, ObjectKind, Path, Future[str]]] = []
        self._referred: list[StoredObject] = []
        self.files: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Make the folder."""
        self._folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the digests."""
        if self._pool is not None:
            self._pool.shutdown()

    def path(self, file: str) -> Path:
        """Return where to write a file."""
        return self._folder / file

    def refer(self, stored: StoredObject) -> None:
        """Let the result have an object that is stored already."""
        self._referred.append(stored)

    def add(self, name: str, path: Path, kind: ObjectKind) -> None:
        """Let the result have a file that was written."""
        if self._pool is not None:
            digest = self._pool.submit(file_digest, path)
        else:
            digest = Future()
            digest.set_result(file_digest(path))
        self._entries.append((name, kind, path, digest))
        self.files[self._key(path.name)] = str(path)

    def objects(self) -> tuple[StoredObject, ...]:
        """Return what the manifest lists."""
        written = [
            StoredObject(name, self._key(path.name), digest.result(), path.stat().st_size, kind)
            for name, kind, path, digest in self._entries
        ]
        return (*self._referred, *written)
