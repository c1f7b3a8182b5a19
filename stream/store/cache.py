"""A bounded local cache of fetched objects, checked when they come. Objects of a local store are used where they lie.

Keys of large objects are never written twice with other content, so a file that is here and was checked is right. What
is leased stays readable whatever is evicted meanwhile, by this process or another that shares the folder: a lease is a
folder of hard links.

::

    async with cache.lease(manifest.objects) as paths:
        use(paths["tree"])
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread

from stream.failure import FatalError, RetriableError
from stream.store.protocol import ObjectStore

__all__ = ["Described", "ObjectCache"]

_TOGETHER = 4
"""Objects fetched at once for one lease: enough to fill a link, and one request's memory each."""


class Described(Protocol):
    """An object as a manifest describes it."""

    @property
    def name(self) -> str:
        """Its name in the result."""
        ...

    @property
    def key(self) -> str:
        """Its key in the store."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of its bytes, in hexadecimal."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...


class ObjectCache:
    """Fetched objects in one folder.

    Parameters
    ----------
    store : ObjectStore
        Where they come from.
    folder : Path
        Where they are kept.
    max_bytes : int
        Least recently used ones go beyond it; one lease may exceed it.
    digest : callable
        SHA-256 of a file, in hexadecimal.
    observe : callable
        Told about hits and misses.
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        *,
        max_bytes: int,
        digest: Callable[[Path], str],
        observe: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._max_bytes = max_bytes
        self._digest = digest
        self._observe = observe
        self._local = store.staging("probe") is not None
        self._locks: dict[str, anyio.Lock] = {}
        self._leases = folder / f".leases-{os.getpid()}-{uuid.uuid4().hex[:6]}"

    @property
    def is_local(self) -> bool:
        """Whether objects are used where the store has them."""
        return self._local

    @asynccontextmanager
    async def lease(self, objects: Sequence[Described]) -> AsyncIterator[dict[str, Path]]:
        """Local files of objects by name, for as long as the context lasts; not to be changed.

        Raises
        ------
        stream.failure.RetriableError
            An object does not exist, or is not what its digest says.
        stream.failure.FatalError
            The folder cannot be written to.
        """
        if self._local:
            yield {stored.name: await self._store.fetch(stored.key, self._folder) for stored in objects}
            return
        lease = self._leases / uuid.uuid4().hex
        try:
            yield await self._leased(objects, lease)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(lease, ignore_errors=True))

    def adopt(self, key: str, path: Path) -> None:
        """Keep a file that was just put under a key: its next reader need not fetch it."""
        if self._local:
            return
        target = self._folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.{uuid.uuid4().hex}.partial")
        try:
            os.link(path, partial)
        except OSError:  # another file system: it will be fetched
            return
        partial.replace(target)

    def sweep(self) -> None:
        """Remove what killed processes left: their leases and half-fetched files."""
        for folder in self._folder.glob(".leases-*"):
            if not Path(f"/proc/{folder.name.split('-')[1]}").exists():
                shutil.rmtree(folder, ignore_errors=True)
        for partial in self._folder.rglob("*.partial"):
            process = partial.name.split(".")[-3]
            if not Path(f"/proc/{process}").exists():
                partial.unlink(missing_ok=True)

    async def _leased(self, objects: Sequence[Described], lease: Path) -> dict[str, Path]:
        paths: dict[str, Path] = {}
        errors: list[Exception] = []
        limit = anyio.CapacityLimiter(_TOGETHER)

        async def one(number: int, stored: Described) -> None:
            try:
                async with limit:
                    paths[stored.name] = await self._linked(stored, lease / f"{number}-{stored.key.rpartition('/')[2]}")
            except Exception as error:  # noqa: BLE001 - raised below, alone: a group would hide its class
                errors.append(error)

        await anyio.Path(lease).mkdir(parents=True)
        async with anyio.create_task_group() as tasks:
            for number, stored in enumerate(objects):
                tasks.start_soon(one, number, stored)
        if errors:
            raise errors[0]
        return paths

    async def _linked(self, stored: Described, link: Path) -> Path:
        lock = self._locks.setdefault(stored.key, anyio.Lock())
        async with lock:
            hit = await anyio.to_thread.run_sync(self._link, stored, link)
            if not hit:
                await self._fetch(stored)
                if not await anyio.to_thread.run_sync(self._link, stored, link):
                    msg = f"{stored.key} was evicted while it was fetched: the cache {self._folder} is too small"
                    raise RetriableError(msg)
        if not lock.statistics().tasks_waiting:
            self._locks.pop(stored.key, None)
        self._observe({"event": "cache", "outcome": "hit" if hit else "miss", "bytes": stored.size})
        return link

    def _link(self, stored: Described, link: Path) -> bool:
        kept = self._folder / stored.key
        try:
            if kept.stat().st_size != stored.size:
                kept.unlink(missing_ok=True)
                return False
            os.utime(kept)
            os.link(kept, link)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise FatalError(f"the cache {self._folder} cannot be used: {error.strerror}") from error
        return True

    async def _fetch(self, stored: Described) -> None:
        kept = self._folder / stored.key
        await self._store.fetch(stored.key, self._folder)
        found = await anyio.to_thread.run_sync(self._digest, kept)
        if found != stored.digest:
            await anyio.Path(kept).unlink(missing_ok=True)
            msg = f"{stored.key} is damaged: its SHA-256 is {found[:16]}…, expected {stored.digest[:16]}…"
            raise RetriableError(msg)
        await anyio.to_thread.run_sync(self._evict, kept)

    def _evict(self, keep: Path) -> None:
        found = []
        for folder, folders, files in os.walk(self._folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                path = Path(folder, name)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                if not name.endswith(".partial"):
                    found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._max_bytes:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
