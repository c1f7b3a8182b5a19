"""Consumes topics: hands each record to a handler, a bounded number at a time, and commits the finished prefix.

Order is write effect, publish, commit: a handler that returns has done the first two. What a handler raises decides:

* RetriableError: the record is handed out again after a pause, for as long as its partition is owned;
* OrphanedError: the partition went to another member, which does the rest;
* anything else stops the inbox with nothing committed for the record, so that it is seen again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.abc import TaskStatus

from stream.broker.protocol import Broker, Consumer, Record, TopicPartition
from stream.clock import Clock, SystemClock
from stream.failure import RetriableError
from stream.lease import Lease, OrphanedError
from stream.precedence import Capacity
from stream.tracker import OffsetTracker

__all__ = ["FETCH_SECONDS", "REVOKE_SECONDS", "Inbox"]

LOG = logging.getLogger(__name__)

FETCH_SECONDS = 0.5
"""How long one fetch waits. It bounds how late a call to be quiet is noticed; an arrival wakes a fetch."""

REVOKE_SECONDS = 5.0
"""How long partitions that must go wait for the records in flight. Short jobs end in it and are not repeated; a
rebalance of the whole group waits as long, and should be over in 15 s with a join and a sync of some seconds each."""

_GATHER_SECONDS = 0.05
"""How long a commit waits for others that finish meanwhile: 200 short messages a second make 20 commits instead of 200,
and what a crash repeats is longer by what finished in it, whose results are found."""

_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Seconds between tries of a handler whose surroundings fail: the last one goes on for good."""

Handler = Callable[[Record, Lease], Awaitable[None]]
Assigned = Callable[[Sequence[TopicPartition]], Awaitable[None]]


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
        Called with each record and its lease.
    capacity : Capacity
        One token for each record in flight; inboxes may share them.
    start : str
        Where a partition without a commit starts: ``earliest``, ``latest``, or ``none`` to refuse.
    clock : Clock
        Time.
    revoke_seconds : float
        How long partitions that must go wait for records in flight.
    on_assigned, on_revoked : callable, optional
        Awaited with partitions that have come, before their records are handed out, and that are about to go.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        group: str,
        topics: Sequence[str],
        handler: Handler,
        capacity: Capacity | None = None,
        start: str = "earliest",
        clock: Clock | None = None,
        revoke_seconds: float = REVOKE_SECONDS,
        on_assigned: Assigned | None = None,
        on_revoked: Assigned | None = None,
    ) -> None:
        self._broker = broker
        self.group = group
        self._topics = tuple(topics)
        self._handler = handler
        self._capacity: Capacity = capacity or anyio.CapacityLimiter(1)
        self._start = start
        self._clock = clock or SystemClock()
        self._revoke_seconds = revoke_seconds
        self._listeners = (on_assigned, on_revoked)
        self._consumer: Consumer | None = None
        self._trackers: dict[TopicPartition, OffsetTracker] = {}
        self._quiet = False
        self._finished = anyio.Event()
        self._to_commit = anyio.Event()
        self.last_start = self._clock.monotonic()
        self.rebalances = 0
        self.stable_since: float | None = None
        self.taking_up = False

    @property
    def in_flight(self) -> int:
        """Records handed out and not finished."""
        return sum(tracker.in_flight for tracker in self._trackers.values())

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        """Partitions that it works on."""
        return tuple(sorted(self._trackers))

    def gaps(self) -> dict[TopicPartition, int]:
        """Records seen beyond what may be committed, by partition."""
        return {partition: tracker.position - tracker.prefix for partition, tracker in self._trackers.items()}

    def prefix(self, partition: TopicPartition) -> int:
        """Offset below which everything of a partition is finished; 0 when it is not owned."""
        tracker = self._trackers.get(partition)
        return 0 if tracker is None else tracker.prefix

    def quiet(self) -> None:
        """Hand out nothing more; what is in flight goes on, and the membership too."""
        self._quiet = True

    async def idle(self) -> None:
        """Wait until nothing is in flight and what is finished is committed."""
        while self.in_flight or any(tracker.pending() for tracker in self._trackers.values()):
            self._to_commit.set()
            with anyio.move_on_after(FETCH_SECONDS):
                await self._finished.wait()

    def owns(self, partition: TopicPartition) -> bool:
        """Whether a partition is this member's now."""
        tracker = self._trackers.get(partition)
        return tracker is not None and self._holds(partition, tracker)

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Start nothing more, wait a while for what is in flight, commit, and let go.

        What still runs then may store its result, but never publishes and never commits.
        """
        going = {partition: self._trackers.pop(partition) for partition in partitions if partition in self._trackers}
        self.stable_since = None
        with anyio.move_on_after(self._revoke_seconds):
            while any(tracker.in_flight for tracker in going.values()):
                await self._finished.wait()
        await self._commit(going)
        for tracker in going.values():
            tracker.close()
        if self._listeners[1] is not None:
            await self._listeners[1](partitions)

    async def on_assigned(self, partitions: Sequence[TopicPartition], epoch: int) -> None:
        """Take up each partition where the group's commit left off."""
        consumer = self._consumer
        if consumer is None:
            return
        for partition in partitions:
            commit = await consumer.committed(partition)
            start = commit.offset if commit is not None else await consumer.position(partition)
            self._trackers[partition] = OffsetTracker.restored(commit, epoch=epoch, start=start)
        if self._listeners[0] is not None:
            self.taking_up = True
            try:
                await self._listeners[0](partitions)
            finally:
                self.taking_up = False
        self.rebalances += 1
        self.stable_since = self._clock.monotonic()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Consume until cancelled. Cancelling it cancels the handlers; nothing unfinished is committed."""
        async with (
            self._broker.consumer(self.group, self._topics, listener=self, start=self._start) as consumer,
            anyio.create_task_group() as tasks,
        ):
            self._consumer = consumer
            tasks.start_soon(self._committer)
            task_status.started()
            while not self._quiet:
                wanted = max(1, int(self._capacity.total_tokens - self._capacity.borrowed_tokens))
                for record in await consumer.fetch(max_records=wanted, timeout=FETCH_SECONDS):
                    if not await self._hand_out(record, tasks):
                        break
            while True:  # still a member: the group must not be rebalanced by whoever is only being quiet
                consumer.pause(list(consumer.assignment()))
                await consumer.fetch(max_records=1, timeout=FETCH_SECONDS)

    async def _hand_out(self, record: Record, tasks: anyio.abc.TaskGroup) -> bool:
        """Give a record to a handler once there is room; False when nothing more is to be handed out."""
        tracker = self._trackers.get(record.topic_partition)
        if tracker is None:
            return True  # revoked since it was fetched
        borrower = object()
        await self._capacity.acquire_on_behalf_of(borrower)
        current = self._trackers.get(record.topic_partition) is tracker
        if self._quiet or not current or not tracker.start(record.offset):
            self._capacity.release_on_behalf_of(borrower)
            self._to_commit.set()
            return not self._quiet
        self.last_start = self._clock.monotonic()
        tasks.start_soon(self._handle, record, tracker, borrower)
        return True

    def _going(self, partition: TopicPartition, tracker: OffsetTracker) -> bool:
        """Whether a partition is about to go, or gone: what is in flight may end, and nothing may begin."""
        return tracker.closed or self._trackers.get(partition) is not tracker

    def _holds(self, partition: TopicPartition, tracker: OffsetTracker) -> bool:
        return not tracker.closed and self._consumer is not None and self._consumer.owns(partition, tracker.epoch)

    async def _handle(self, record: Record, tracker: OffsetTracker, borrower: object) -> None:
        partition = record.topic_partition
        lease = Lease(lambda: self._holds(partition, tracker), lambda: not self._going(partition, tracker))
        try:
            await self._tries(record, lease, tracker)
        except OrphanedError:
            LOG.info("%s@%d went to another member", partition, record.offset)
            tracker.give_up(record.offset)
            self._finished.set()
            self._finished = anyio.Event()
            return
        finally:
            self._capacity.release_on_behalf_of(borrower)
        tracker.finish(record.offset)
        self._to_commit.set()
        self._finished.set()
        self._finished = anyio.Event()

    async def _tries(self, record: Record, lease: Lease, tracker: OffsetTracker) -> None:
        tries = 0
        while True:
            try:
                await self._handler(record, lease)
            except (RetriableError, OrphanedError) as error:
                # A lease may be in doubt (no sign of life from the group) and turn out to hold.
                if self._going(record.topic_partition, tracker):
                    raise OrphanedError from error
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)] * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
                LOG.warning("%s@%d: %r; again in %.1f s", record.topic_partition, record.offset, error, pause)
                tries += 1
                await self._clock.sleep(pause)
                if self._going(record.topic_partition, tracker):
                    raise OrphanedError from error
            else:
                return

    async def _committer(self) -> None:
        """Commit what finished since the last commit, all partitions at once."""
        while True:
            await self._to_commit.wait()
            await anyio.sleep(_GATHER_SECONDS)
            self._to_commit = anyio.Event()
            if not await self._commit(self._trackers):
                await anyio.sleep(1.0)
                self._to_commit.set()

    async def _commit(self, trackers: dict[TopicPartition, OffsetTracker]) -> bool:
        found = {partition: tracker.pending() for partition, tracker in trackers.items()}
        pending = {partition: commit for partition, commit in found.items() if commit is not None}
        if not pending or self._consumer is None:
            return True
        known = dict(trackers)
        try:
            await self._consumer.commit(pending)
        except RetriableError as error:
            LOG.warning("a commit was refused, its records may be repeated: %s", error)
            return False
        for partition, commit in pending.items():
            known[partition].acknowledge(commit)
        return True
