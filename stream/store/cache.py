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
import hashlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
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

_SMALL = 1024 * 1024
"""Objects up to this size come as bytes, and are checked, written and kept in one step."""

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

    async def get(self, key: str) -> bytes | None:
        """The bytes, None when the key does not exist."""
        ...

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
        self._fetched = 0
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
        if self._let_go is None:
            async with self._opening:
                if self._let_go is None:
                    await anyio.to_thread.run_sync(self._open)
        if self._added:
            await self._room_for(0)
        folder = self._leases / uuid.uuid4().hex
        links = [(stored, folder / f"{place}-{stored.key.rpartition('/')[2]}") for place, stored in enumerate(objects)]
        try:
            await self._leased(folder, links, most)
            yield {stored.name: link for stored, link in links}
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_remove, folder, [link for _, link in links])

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

    async def _leased(self, folder: Path, links: Sequence[tuple[Described, Path]], most: int) -> None:
        # A switch to a thread costs more than what is done there for a file: so one for all that is kept.
        fetched = self._fetched
        sizes = await anyio.to_thread.run_sync(self._begin, folder, links)
        for size in sizes:
            if size is not None:
                self._observe({"event": "cache", "outcome": "hit", "bytes": size})
        absent = [linked for linked, size in zip(links, sizes, strict=True) if size is None]
        await together([partial(self._linked, stored, link, fetched) for stored, link in absent], most=most)

    def _begin(self, folder: Path, links: Sequence[tuple[Described, Path]]) -> list[int | None]:
        """Make the folder of a lease and link what is kept; sizes, None for what is not."""
        try:
            folder.mkdir()
        except OSError as error:
            raise self._unusable(error) from error
        return [self._link(stored, link) for stored, link in links]

    async def _linked(self, stored: Described, link: Path, fetched: int) -> None:
        """Link what was not kept when so many had been fetched here."""
        lock = self._locks.get(stored.key)
        if lock is None:
            lock = self._locks[stored.key] = anyio.Lock()
        async with lock:
            # Who waited for the lock waited for a fetch of the same object.
            hit = None if self._fetched == fetched else await anyio.to_thread.run_sync(self._link, stored, link)
            size = await self._fetch(stored, link) if hit is None else hit
        self._observe({"event": "cache", "outcome": "miss" if hit is None else "hit", "bytes": size})

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
            if 0 <= stored.size <= _SMALL:
                data = await self._store.get(stored.key)
                if data is None:
                    raise RetriableError(f"{stored.key} does not exist in {self._store!r}")
                size = await anyio.to_thread.run_sync(self._keep_small, stored, data, link)
            else:
                # Beside the link, in the folder that goes with the lease.
                path = await self._store.fetch(stored.key, link.with_name(f"{link.name}.coming"))
                size = await anyio.to_thread.run_sync(self._keep, stored, path, link)
            self._added += size
            self._fetched += 1
        finally:
            self._coming -= expected
        return size

    def _keep(self, stored: Described, path: Path, link: Path) -> int:
        """Check and keep what was fetched; its size."""
        _check(stored, self._digest(path))
        kept = self._kept / stored.key
        try:
            size = path.stat().st_size
            os.link(path, link)  # first, for from then on it may be evicted
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.replace(kept)
        except OSError as error:
            raise self._unusable(error) from error
        return size

    def _keep_small(self, stored: Described, data: bytes, link: Path) -> int:
        """Check, write and keep a small object; its size."""
        _check(stored, hashlib.sha256(data).hexdigest())
        kept = self._kept / stored.key
        try:
            link.write_bytes(data)
            kept.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # another process that shares the folder was faster
                os.link(link, kept)
        except OSError as error:
            raise self._unusable(error) from error
        return len(data)

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


def _check(stored: Described, found: str) -> None:
    if found != stored.digest:
        msg = f"{stored.key} is damaged: its SHA-256 is {found[:16]}…, expected {stored.digest[:16]}…"
        raise RetriableError(msg)


def _remove(folder: Path, links: Sequence[Path]) -> None:
    """Remove a lease; most often there is nothing in it but its links."""
    try:
        for link in links:
            link.unlink(missing_ok=True)
        folder.rmdir()
    except OSError:  # large objects come in folders of their own
        shutil.rmtree(folder, ignore_errors=True)


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
