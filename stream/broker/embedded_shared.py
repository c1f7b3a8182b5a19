"""The embedded log as a broker and its consumers share it: one call at a time, each in a worker thread. Not the log."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread

from stream.broker.embedded_log import EventLog
from stream.failure import FatalError

__all__ = ["SharedLog"]

Result = TypeVar("Result")


class SharedLog:
    """The connection to the log that a broker and its consumers share.

    Parameters
    ----------
    directory : Path
        Where the log lies.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log: EventLog | None = None
        self._process = 0
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self.wakes = 0
        self.woken = anyio.Event()

    async def open(self) -> None:
        """Open it. Raises FatalError when that cannot be done."""
        self._log = await to_thread.run_sync(self._open, limiter=self._one_at_a_time)
        self._process = os.getpid()

    async def close(self) -> None:
        """Close it."""
        log, self._log = self._log, None
        if log is not None:
            await to_thread.run_sync(log.close, limiter=self._one_at_a_time)

    def check(self) -> EventLog:
        """Return the log; raises FatalError where it is not open, or belongs to the process above."""
        if self._log is None:
            msg = f"the log in {self._directory} is not open"
            raise FatalError(msg)
        if self._process != os.getpid():
            msg = "an embedded log that was opened before a fork must not be used in the child: SQLite would damage it"
            raise FatalError(msg)
        return self._log

    async def call(self, work: Callable[[EventLog], Result]) -> Result:
        """Run one call; once it has begun, cancellation waits for its end."""
        return await to_thread.run_sync(work, self.check(), limiter=self._one_at_a_time)

    def wake(self) -> None:
        """Wake whoever waits: there may be something to read."""
        self.wakes += 1
        self.woken.set()
        self.woken = anyio.Event()

    def _open(self) -> EventLog:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"the work directory {self._directory} cannot be created: {error}"
            raise FatalError(msg) from error
        return EventLog(self._directory / "events.sqlite3")
