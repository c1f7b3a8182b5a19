"""Tells the listener of a group's member in the background that partitions have come. Not when they go.

aiokafka sends no sign of life before its callback returns, and an aggregator may have more to restore than a session
lasts: awaited there, it would lose its partitions, join again, and restore again, for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from stream.broker.protocol import AssignmentListener, TopicPartition
from stream.failure import Failure, FatalError, RetriableError

__all__ = ["Telling"]

LOG = logging.getLogger(__name__)

_PAUSE = 0.5
"""Seconds between tries when broker or store do not answer."""


class Telling:
    """At most one assignment at a time.

    Parameters
    ----------
    group : str
        For the log.
    listener : AssignmentListener or None
        Told.
    told : callable
        Called when the listener has taken an assignment up, with None, or cannot, with the failure.
    """

    def __init__(self, group: str, listener: AssignmentListener | None, told: Callable[[Failure | None], None]) -> None:
        self._group = group
        self.listener = listener
        self._on_told = told
        self._task: asyncio.Task[None] | None = None

    def begin(self, partitions: Sequence[TopicPartition], epoch: int) -> None:
        """Tell of an assignment."""
        self._task = asyncio.create_task(self._tell(partitions, epoch), name=f"tells the listener of {self._group}")

    async def interrupt(self, seconds: float) -> None:
        """Tell no more, for the partitions go; waits so long for the listener to let itself be interrupted."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=seconds)
            self._task = None

    async def _tell(self, partitions: Sequence[TopicPartition], epoch: int) -> None:
        while True:
            try:
                if self.listener is not None and partitions:
                    await self.listener.on_assigned(partitions, epoch)
            except RetriableError as error:
                LOG.warning("group %s cannot take its partitions up yet: %s", self._group, error)
                await asyncio.sleep(_PAUSE)
            except Failure as error:
                self._told(error)
                return
            except Exception as error:
                LOG.exception("the listener of group %s failed", self._group)
                self._told(FatalError(f"the listener of group {self._group} failed: {error!r}"))
                return
            else:
                self._told(None)
                return

    def _told(self, failure: Failure | None) -> None:
        if self._task is asyncio.current_task():  # else the partitions went, and it took its time to stop
            self._on_told(failure)
