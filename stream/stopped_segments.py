"""Segments of a run that a breaker stopped, as objects in the store: until an operator says so, nobody serves them.

Without it whoever restarts workers would have each new one give up another few dozen messages before its own breaker
opens.
"""

from __future__ import annotations

import json
from typing import Any

from stream.clock import Clock
from stream.failure import FatalError
from stream.identity import canonical_json
from stream.store import ObjectStore

__all__ = ["StoppedSegments"]


class StoppedSegments:
    """The stopped segments of one run.

    Parameters
    ----------
    store : ObjectStore
        Where they are.
    run : str
        The run.
    clock : Clock
        Time.
    """

    def __init__(self, store: ObjectStore, run: str, clock: Clock) -> None:
        self._store = store
        self._run = run
        self._clock = clock

    async def stop(self, segment: str, reason: str) -> None:
        """Stop a segment for all workers; the first reason stays."""
        record = {"segment": segment, "reason": reason, "since": self._clock.now()}
        await self._store.put_if_absent(self._key(segment), canonical_json(record))

    async def resume(self, segment: str) -> bool:
        """Let a segment be served again; False when it was not stopped."""
        if await self._store.head(self._key(segment)) is None:
            return False
        await self._store.delete(self._key(segment))
        return True

    async def all(self) -> dict[str, dict[str, Any]]:
        """``segment``, ``reason`` and ``since`` (Unix time in s) of each by its name."""
        found = {}
        async for info in self._store.list(f"runs/{self._run}/stopped/"):
            data = await self._store.get(info.key)
            if data is not None:  # else resumed meanwhile
                record: dict[str, Any] = json.loads(data)
                found[str(record["segment"])] = record
        return found

    async def check(self, segments: list[str]) -> None:
        """Refuse to serve what is stopped.

        Raises
        ------
        stream.failure.FatalError
            One of the segments is; the text says why, and what to do.
        """
        stopped = await self.all()
        for segment in segments:
            if segment in stopped:
                msg = (
                    f"segment {segment} of run {self._run} is stopped: {stopped[segment]['reason']}; mend the cause "
                    f"(rampstream dlq list), then say rampstream resume {segment} --run {self._run}"
                )
                raise FatalError(msg)

    def _key(self, segment: str) -> str:
        return f"runs/{self._run}/stopped/{segment}"
