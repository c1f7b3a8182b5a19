"""A bounded local cache of fetched objects, checked when they come. Objects of a local store are used where they lie.

Keys of large objects are never written twice with other content, so a file that is here and was checked is right. What
is leased stays readable whatever is evicted meanwhile, by this process or another that shares the folder: a lease is a
folder of hard links. A file with more than one link is in use by someone and is not evicted, for that would free
nothing.

::

    cache = ObjectCache(store, folder, max_bytes=50_000_000_000, digest=file_digest)
    cache.sweep()
    async with cache.lease(manifest.objects) as paths:
        use(paths["tree"])

In the folder: ``checked/KEY``, whole files whose digest was right; ``.leases-PID-…/``, what one process leases and is
fetching, with a lock on ``alive`` that it holds as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary, finalize

import anyio
import anyio.to_thread

from stream.failure import FatalError, RetriableError
from stream.together import together

__all__ = ["Described", "FetchedFrom", "ObjectCache"]

_TOGETHER = 4
"""Objects fetched at once for one lease: enough to fill a link, and one request's memory each. Small ones wait for
answers and not for the link: who wants many of them says so."""

_UNSEEN_SHARE = 8
"""A process walks the folder again once it has added this part of the room that it saw: so eight processes that share
the folder cannot exceed its bound unseen, and the cost of walks does not grow with what is kept."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Differs after each start of the machine: what was not yet on the disk then may be holes of the right size."""


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
        """Bytes; negative where they are not known."""
        ...


class FetchedFrom(Protocol):
    """What the cache needs of a store."""

    async def fetch(self, key: str, cache: Path) -> Path:
        """A local file with the content (see `stream.store.protocol.ObjectStore`)."""
        ...

    def staging(self, name: str) -> Path | None:
        """None when the store is not local."""
        ...


class ObjectCache:
    """Fetched objects in one folder.

    Parameters
    ----------
    store : FetchedFrom
        Where they come from.
    folder : Path
        Where they are kept.
    max_bytes : int
        Least recently used ones go before it is exceeded; what is in use stays, and may exceed it.
    digest : callable
        SHA-256 of a file, in hexadecimal.
    observe : callable
        Told about hits and misses.
    """

    def __init__(
        self,
        store: FetchedFrom,
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
        self._kept = folder / "checked"
        self._leases = folder / f".leases-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._let_go: Callable[[], object] | None = None
        self._opening = anyio.Lock()
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self._coming = 0
        self._added = 0
        self._may_add = -1
        self._looking = anyio.Lock()

    @property
    def is_local(self) -> bool:
        """Whether objects are used where the store has them."""
        return self._local

    @asynccontextmanager
    async def lease(self, objects: Sequence[Described], *, most: int = _TOGETHER) -> AsyncIterator[dict[str, Path]]:
        """Local files of objects by name, for as long as the context lasts; not to be changed.

        Parameters
        ----------
        objects : sequence of Described
            What is wanted.
        most : int
            Objects fetched at once.

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
        async with self._opening:
            if self._let_go is None:
                await anyio.to_thread.run_sync(self._open)
        if self._added:
            await self._room_for(0)
        async with self._scratch() as lease:
            yield await self._leased(objects, lease, most)

    def adopt(self, key: str, path: Path) -> None:
        """Keep a file that was just put under a key: its next reader need not fetch it."""
        if self._local:
            return
        target = self._kept / key
        partial = target.with_name(f"{target.name}.{os.getpid()}.{uuid.uuid4().hex}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, partial)
            partial.replace(target)
            self._added += path.stat().st_size
        except OSError:  # another file system, or no room: it will be fetched
            return

    def sweep(self) -> None:
        """Remove what killed processes left, and all files after a power failure. Call it at start."""
        if self._local or not self._folder.is_dir():
            return
        with self._exclusively():
            for folder in self._folder.glob(".leases-*"):
                if not _is_alive(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            boot, noted = _BOOT.read_bytes(), self._folder / ".boot"
            if not noted.exists() or noted.read_bytes() != boot:
                shutil.rmtree(self._kept, ignore_errors=True)
                noted.write_bytes(boot)
        for unfinished in self._kept.rglob("*.partial"):
            if not Path(f"/proc/{unfinished.name.split('.')[-3]}").exists():
                unfinished.unlink(missing_ok=True)

    def close(self) -> None:
        """Give up all leases; so does the end of the process."""
        if self._let_go is not None:
            self._let_go()
            self._let_go = None

    def _open(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._exclusively():
                self._leases.mkdir()
                alive = os.open(self._leases / "alive", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
                fcntl.flock(alive, fcntl.LOCK_EX)
        except OSError as error:
            raise self._unusable(error) from error
        self._let_go = finalize(self, _let_go, self._leases, alive, os.getpid())

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        with (self._folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        folder = self._leases / uuid.uuid4().hex
        try:
            await anyio.Path(folder).mkdir()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            yield folder
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def _leased(self, objects: Sequence[Described], lease: Path, most: int) -> dict[str, Path]:
        paths: dict[str, Path] = {}

        async def one(number: int, stored: Described) -> None:
            paths[stored.name] = await self._linked(stored, lease / f"{number}-{stored.key.rpartition('/')[2]}")

        await together((partial(one, number, stored) for number, stored in enumerate(objects)), most=most)
        return paths

    async def _linked(self, stored: Described, link: Path) -> Path:
        lock = self._locks.get(stored.key)
        if lock is None:
            lock = self._locks[stored.key] = anyio.Lock()
        async with lock:
            hit = size = await anyio.to_thread.run_sync(self._link, stored, link)
            if size is None:
                size = await self._fetch(stored, link)
        self._observe({"event": "cache", "outcome": "miss" if hit is None else "hit", "bytes": size})
        return link

    def _link(self, stored: Described, link: Path) -> int | None:
        """Link what is kept; its size, None when it is not kept."""
        kept = self._kept / stored.key
        try:
            size = kept.stat().st_size
            if size != stored.size >= 0:
                kept.unlink(missing_ok=True)
                return None
            os.utime(kept)
            os.link(kept, link)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        return size

    async def _fetch(self, stored: Described, link: Path) -> int:
        """Fetch, check and keep an object; its size."""
        expected = max(0, stored.size)
        self._coming += expected
        try:
            await self._room_for(self._coming)
            # Beside the link, in the folder that goes with the lease.
            path = await self._store.fetch(stored.key, link.with_name(f"{link.name}.coming"))
            size = await anyio.to_thread.run_sync(self._keep, stored, path, link)
            self._added += size
        finally:
            self._coming -= expected
        return size

    def _keep(self, stored: Described, path: Path, link: Path) -> int:
        """Check and keep what was fetched; its size."""
        found = self._digest(path)
        if found != stored.digest:
            msg = f"{stored.key} is damaged: its SHA-256 is {found[:16]}…, expected {stored.digest[:16]}…"
            raise RetriableError(msg)
        kept = self._kept / stored.key
        try:
            size = path.stat().st_size
            os.link(path, link)  # first, for from then on it may be evicted
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.replace(kept)
        except OSError as error:
            raise self._unusable(error) from error
        return size

    async def _room_for(self, size: int) -> None:
        """Evict if so much more may not fit. Most often that is known without a look at the folder."""
        if self._added + size <= self._may_add:
            return
        async with self._looking:
            if self._added + size > self._may_add:
                added = self._added
                kept = await anyio.to_thread.run_sync(self._evict, size)
                self._added -= added
                self._may_add = (self._max_bytes - kept) // _UNSEEN_SHARE

    def _evict(self, size: int) -> int:
        """Remove the least recently used until there is room for ``size``; bytes that are kept."""
        found = []
        for folder, _, files in os.walk(self._kept):
            for name in files:
                path = Path(folder, name)
                try:
                    found.append((path.stat(), path))
                except FileNotFoundError:
                    continue
        total = size + sum(status.st_size for status, _ in found)
        for status, path in sorted(found, key=lambda item: item[0].st_mtime):
            if total <= self._max_bytes:
                break
            if status.st_nlink == 1:
                path.unlink(missing_ok=True)
                total -= status.st_size
        return total - size

    def _unusable(self, error: OSError) -> FatalError:
        return FatalError(f"the cache {self._folder} cannot be used: {error.strerror}")


def _let_go(leases: Path, alive: int, process: int) -> None:
    if os.getpid() == process:  # not in a fork of it
        shutil.rmtree(leases, ignore_errors=True)
        os.close(alive)


def _is_alive(leases: Path) -> bool:
    """Whether the process that made the folder lives: then it holds the lock. Numbers of processes come again."""
    try:
        with (leases / "alive").open("rb") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
