"""Consumes topics: hands each record to a handler, a bounded number at a time, and commits the finished prefix.

Order is write effect, publish, commit: a handler that returns has done the first two. A handler that raises stops the
inbox with nothing committed for its record, so that the record is seen again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.abc import TaskStatus

from stream.broker.protocol import Broker, Consumer, Record, TopicPartition
from stream.failure import RetriableError
from stream.tracker import OffsetTracker

__all__ = ["FETCH_SECONDS", "Inbox"]

LOG = logging.getLogger(__name__)

FETCH_SECONDS = 0.5
"""How long one fetch waits. It bounds how late a freed slot is noticed; an arrival wakes a fetch."""

Handler = Callable[[Record], Awaitable[None]]


class Inbox:
    """One member of a consumer group that works on several records at a time.

    Parameters
    ----------
    broker : Broker
        The log.
    group : str
        Consumer group.
    topics : sequence of str
        Topics to subscribe to.
    handler : callable
        Called with each record, at most ``capacity`` at once.
    capacity : int
        Records in flight.
    start : str
        Where a partition without a commit starts, ``earliest`` or ``latest``.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        group: str,
        topics: Sequence[str],
        handler: Handler,
        capacity: int = 1,
        start: str = "earliest",
    ) -> None:
        self._broker = broker
        self._group = group
        self._topics = tuple(topics)
        self._handler = handler
        self._capacity = anyio.CapacityLimiter(capacity)
        self._start = start
        self._consumer: Consumer | None = None
        self._trackers: dict[TopicPartition, OffsetTracker] = {}

    @property
    def in_flight(self) -> int:
        """Records handed out and not finished."""
        return sum(tracker.in_flight for tracker in self._trackers.values())

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Commit what is finished, then let go: what still runs may finish but never commits."""
        for partition in partitions:
            tracker = self._trackers.pop(partition, None)
            if tracker is not None:
                await self._commit(partition, tracker)
                tracker.close()

    async def on_assigned(self, partitions: Sequence[TopicPartition], epoch: int) -> None:
        """Take up each partition where the group's commit left off."""
        consumer = self._consumer
        if consumer is None:
            return
        for partition in partitions:
            await self._take_up(consumer, partition, epoch)

    async def _take_up(self, consumer: Consumer, partition: TopicPartition, epoch: int) -> OffsetTracker:
        commit = await consumer.committed(partition)
        start = commit.offset if commit is not None else await consumer.position(partition)
        tracker = OffsetTracker.restored(commit, epoch=epoch, start=start)
        self._trackers[partition] = tracker
        return tracker

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Consume until cancelled. Cancelling it cancels the handlers; nothing unfinished is committed."""
        async with (
            self._broker.consumer(self._group, self._topics, listener=self, start=self._start) as consumer,
            anyio.create_task_group() as tasks,
        ):
            self._consumer = consumer
            task_status.started()
            while True:
                await self._wait_for_capacity()
                free = int(self._capacity.total_tokens) - self._capacity.borrowed_tokens
                for record in await consumer.fetch(max_records=max(1, int(free)), timeout=FETCH_SECONDS):
                    partition = record.topic_partition
                    tracker = self._trackers.get(partition) or await self._take_up(consumer, partition, 0)
                    if tracker.start(record.offset):
                        await self._capacity.acquire_on_behalf_of(record)
                        tasks.start_soon(self._handle, record, partition, tracker)
                    else:
                        await self._commit(partition, tracker)

    async def _wait_for_capacity(self) -> None:
        marker = object()
        await self._capacity.acquire_on_behalf_of(marker)
        self._capacity.release_on_behalf_of(marker)

    async def _handle(self, record: Record, partition: TopicPartition, tracker: OffsetTracker) -> None:
        try:
            await self._handler(record)
        finally:
            self._capacity.release_on_behalf_of(record)
        tracker.finish(record.offset)
        await self._commit(partition, tracker)

    async def _commit(self, partition: TopicPartition, tracker: OffsetTracker) -> None:
        pending = tracker.pending()
        if pending is None or self._consumer is None:
            return
        try:
            await self._consumer.commit({partition: pending})
        except RetriableError as error:
            LOG.warning("commit of %s was refused, its records may be repeated: %s", partition, error)
        else:
            tracker.acknowledge(pending)
