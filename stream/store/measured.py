"""An object store that tells how long each operation took and how many bytes it moved. Everything passes through."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stream.failure import Failure
from stream.store.protocol import ObjectInfo, ObjectStore

__all__ = ["MeasuredStore"]


class MeasuredStore:
    """Wraps a store.

    Parameters
    ----------
    inner : ObjectStore
        The store.
    observe : callable
        Called with ``{"event": "store", "operation", "outcome", "seconds", "bytes"}``; the outcome is ``ok``, the
        class of the failure, or ``unfinished`` for what was cancelled (or a listing that was not read to its end).
    """

    def __init__(self, inner: ObjectStore, observe: Callable[[dict[str, Any]], None]) -> None:
        self._inner = inner
        self._observe = observe

    def __repr__(self) -> str:
        return repr(self._inner)

    @contextmanager
    def _measured(self, operation: str) -> Iterator[dict[str, int]]:
        moved = {"bytes": 0}
        began = time.perf_counter()
        outcome = "unfinished"
        try:
            yield moved
            outcome = "ok"
        except Failure as error:
            outcome = error.failure_class.value
            raise
        finally:
            seconds = time.perf_counter() - began
            self._observe(
                {"event": "store", "operation": operation, "outcome": outcome, "seconds": seconds, **moved}
            )  # fmt: skip

    async def put(self, key: str, data: bytes | Path) -> ObjectInfo:
        """Write."""
        with self._measured("put") as moved:
            info = await self._inner.put(key, data)
            moved["bytes"] = info.size
        return info

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create."""
        with self._measured("create") as moved:
            created = await self._inner.put_if_absent(key, data)
            moved["bytes"] = len(data)
        return created

    async def get(self, key: str) -> bytes | None:
        """Read."""
        with self._measured("get") as moved:
            data = await self._inner.get(key)
            moved["bytes"] = len(data or b"")
        return data

    async def head(self, key: str) -> ObjectInfo | None:
        """Look up."""
        with self._measured("head"):
            return await self._inner.head(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """List; the time of the whole listing, its reader's included."""
        with self._measured("list"):
            async for info in self._inner.list(prefix):
                yield info

    async def delete(self, key: str) -> None:
        """Remove."""
        with self._measured("delete"):
            await self._inner.delete(key)

    async def fetch(self, key: str, cache: Path) -> Path:
        """Make a local file."""
        with self._measured("fetch") as moved:
            path = await self._inner.fetch(key, cache)
            moved["bytes"] = 0 if self._inner.staging("probe") is not None else path.stat().st_size
        return path

    def staging(self, name: str) -> Path | None:
        """A fresh path on a local store's file system."""
        return self._inner.staging(name)

    def sweep_staging(self, older_than: float) -> int:
        """Remove what was left there."""
        return self._inner.sweep_staging(older_than)
