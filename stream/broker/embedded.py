"""The embedded broker: a durable local log in the work directory, for one consuming process. No server, no network.

One process at a time consumes (`ConsumerLock`); any number may append and read. In that process each group has one
owner of each topic, so there are no rebalances: an assignment comes once and goes when the consumer leaves.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import anyio

from stream.broker.embedded_lock import ConsumerLock
from stream.broker.embedded_log import EventLog, Slice
from stream.broker.embedded_shared import SharedLog
from stream.broker.protocol import AssignmentListener, Commit, Headers, Record, TopicPartition, TopicPlan, TopicSpec
from stream.broker.topic_plan import planned
from stream.clock import Clock, SystemClock
from stream.failure import FatalError, PermanentError, RetriableError

__all__ = ["EmbeddedBroker", "EmbeddedConsumer"]

_State = tuple[int, int]
"""Wakes of this process and version of the log: whatever may bring records changes one of them."""

_POLL_SECONDS = 0.1
"""How often another process's appends, and withheld records, are looked for: one pragma, but a hop to a thread, some
0.6 ms in all, so 0.6 % of a core for each waiting consumer. Appends of this process wake consumers at once."""

_REVOKE_SECONDS = 30.0
"""How long a listener may take to commit when its consumer leaves, cancelled or not: commits take milliseconds."""


class EmbeddedBroker:
    """The log in one directory; see `stream.broker.protocol.Broker`.

    Parameters
    ----------
    directory : Path
        The work directory, on a local file system (SQLite's WAL needs shared memory); created when it does not exist.
    clock : Clock, optional
        Gives the records their timestamps and decides when a withheld record is due.
    """

    def __init__(self, directory: Path, *, clock: Clock | None = None) -> None:
        self.directory = directory
        self._clock = clock or SystemClock()
        self._lock = ConsumerLock(directory / "consumer.lock")
        self._log = SharedLog(directory)
        self._epochs = itertools.count(1)
        self._consumers: list[EmbeddedConsumer] = []

    async def __aenter__(self) -> Self:
        """Open the log. Raises FatalError when that cannot be done."""
        await self._log.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close; consumers that are still in use lose their partitions."""
        with anyio.CancelScope(shield=True):
            for consumer in tuple(self._consumers):
                self._leave(consumer)
            await self._log.close()

    async def plan_topics(self, specs: Sequence[TopicSpec]) -> TopicPlan:
        """What is missing, and what differs; partitions and compaction are all that this log has."""
        return planned(specs, await self.topics(), settings=False)

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create topics that do not exist, all or none."""
        await self._log.call(lambda log: log.create_topics(specs))

    async def topics(self) -> Mapping[str, TopicSpec]:
        """All topics."""
        return await self._log.call(lambda log: log.topics())

    async def publish(
        self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers = (), partition: int | None = None
    ) -> Record:
        """Append durably. A cancelled call appends or not, never half."""
        now_ms = self.now_ms()
        try:
            return await self._log.call(lambda log: log.append(topic, key, value, headers, partition, now_ms))
        finally:
            # Also when cancelled: the thread may have appended before the cancellation was delivered.
            self._log.wake()

    @contextlib.asynccontextmanager
    async def consumer(
        self, group: str, topics: Sequence[str], *, listener: AssignmentListener | None = None, start: str = "earliest"
    ) -> AsyncIterator[EmbeddedConsumer]:
        """Join a group as the owner of all partitions of these topics.

        The listener hears of the assignment in the first `EmbeddedConsumer.fetch`, so that it may use the consumer.

        Raises
        ------
        stream.failure.FatalError
            Another process consumes this log, or another consumer of this group owns one of the topics.
        stream.failure.PermanentError
            A topic does not exist, or ``start`` is none of these.
        """
        if start not in {"earliest", "latest", "none"}:
            msg = f"a consumer starts at 'earliest', 'latest' or 'none', not {start!r}"
            raise PermanentError(msg)
        consumer = EmbeddedConsumer(self._log, self.now_ms, next(self._epochs), group, topics, listener)
        self._join(consumer)
        try:
            await consumer.locate(start)
            yield consumer
        finally:
            try:
                await consumer.revoke()
            finally:
                self._leave(consumer)

    async def read_latest(self, topic: str) -> Mapping[bytes, Record]:
        """Latest record of each key."""
        return await self._log.call(lambda log: log.read_latest(topic))

    async def read(self, topic: str, partition: int, first: int, last: int) -> Sequence[Record]:
        """Records with first <= offset < last."""
        return await self._log.call(lambda log: log.read(topic, partition, first, last))

    async def extents(self, topic: str) -> Mapping[int, tuple[int, int]]:
        """First offset that is there, and the next one, by partition."""
        return await self._log.call(lambda log: {p.partition: log.extent(p) for p in log.partitions(topic)})

    async def offsets_for_time(self, topic: str, timestamp_ms: int) -> Mapping[int, int | None]:
        """First offset with a timestamp at or after this time, by partition."""
        return await self._log.call(
            lambda log: {p.partition: log.offset_for_time(p, timestamp_ms) for p in log.partitions(topic)}
        )

    async def committed(self, group: str, topic: str) -> Mapping[int, Commit]:
        """The group's committed positions by partition."""
        return await self._log.call(
            lambda log: {p.partition: c for p in log.partitions(topic) if (c := log.committed(group, p)) is not None}
        )

    async def reset(self, group: str, commits: Mapping[TopicPartition, Commit]) -> None:
        """Store positions for a group that has no consumer in this process."""
        if any(consumer.group == group for consumer in self._consumers):
            msg = f"group {group} has a consumer: its positions cannot be set from outside"
            raise RetriableError(msg)
        await self._log.call(lambda log: log.commit(group, commits))

    async def has_members(self, group: str) -> bool:
        """Whether the group has a consumer here, or another process consumes the log, as whatever groups."""
        return any(consumer.group == group for consumer in self._consumers) or self._lock.held_by_another()

    async def lag(self, group: str, topic: str) -> int:
        """Records not yet committed by the group."""
        return await self._log.call(lambda log: log.lag(group, topic))

    def now_ms(self) -> int:
        """The clock's time in ms."""
        return int(self._clock.now() * 1000)

    def _join(self, consumer: EmbeddedConsumer) -> None:
        for other in self._consumers:
            shared = sorted(other.topics & consumer.topics)
            if other.group == consumer.group and shared:
                msg = (
                    f"group {consumer.group} already has a consumer of topic {shared[0]} in this process; "
                    "an embedded log gives each group one owner of a topic"
                )
                raise FatalError(msg)
        self._log.check()
        self._lock.acquire()
        self._consumers.append(consumer)

    def _leave(self, consumer: EmbeddedConsumer) -> None:
        consumer.lost = True
        if consumer in self._consumers:
            self._consumers.remove(consumer)
            if not self._consumers:
                self._lock.release()


class EmbeddedConsumer:
    """The owner of some topics for one group, from `EmbeddedBroker.consumer`; see `stream.broker.protocol.Consumer`."""

    def __init__(
        self,
        log: SharedLog,
        now_ms: Callable[[], int],
        epoch: int,
        group: str,
        topics: Sequence[str],
        listener: AssignmentListener | None,
    ) -> None:
        self.group = group
        self.topics = frozenset(topics)
        self.lost = False
        self._log = log
        self._now_ms = now_ms
        self._epoch = epoch
        self._listener = listener
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._assigned = False

    async def fetch(self, *, max_records: int, timeout: float) -> Sequence[Record]:  # noqa: ASYNC109 - the protocol's
        """Records in order per partition; empty after ``timeout`` seconds of real time without any."""
        gives_up = anyio.current_time() + timeout
        self._check_member()
        await self._assign()
        nothing_at: _State | None = None
        while True:
            self._check_member()
            # Taken before the log is read, it can only be too old: then the log is read once more, and nothing missed.
            woken = self._log.woken
            state, found = await self._collect(max_records, nothing_at)
            if found.records:
                return found.records
            nothing_at = state if found.due_ms is None else None
            remaining = gives_up - anyio.current_time()
            if remaining <= 0:
                return ()
            with anyio.move_on_after(min(remaining, _POLL_SECONDS)):
                await woken.wait()

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Fetch nothing from these partitions until `resume`."""
        self._paused |= self._positions.keys() & set(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Fetch from these partitions again."""
        self._paused -= set(partitions)
        self._log.wake()

    def assignment(self) -> frozenset[TopicPartition]:
        """All partitions of the topics, from the first fetch on."""
        return frozenset(self._positions) if self._assigned and not self.lost else frozenset()

    def owns(self, partition: TopicPartition, epoch: int) -> bool:
        """Whether the assignment of that epoch, the only one, goes on."""
        return partition in self.assignment() and epoch == self._epoch

    async def commit(self, commits: Mapping[TopicPartition, Commit]) -> None:
        """Store positions, all or none."""
        owned = self.assignment()
        for partition in commits:
            if partition not in owned:
                msg = f"group {self.group} does not own {partition.topic}[{partition.partition}] through this consumer"
                raise RetriableError(msg)
        await self._log.call(lambda log: log.commit(self.group, commits))

    async def committed(self, partition: TopicPartition) -> Commit | None:
        """The group's committed position."""
        return await self._log.call(lambda log: log.committed(self.group, partition))

    async def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from this offset."""
        self._owned(partition)
        self._positions[partition] = offset
        self._log.wake()

    async def offset_for_time(self, partition: TopicPartition, timestamp_ms: int) -> int | None:
        """First offset with a timestamp at or after this time."""
        return await self._log.call(lambda log: log.offset_for_time(partition, timestamp_ms))

    async def position(self, partition: TopicPartition) -> int:
        """Next offset that fetch would return."""
        return self._owned(partition)

    async def end_offset(self, partition: TopicPartition) -> int:
        """Offset that the next record will get."""
        return await self._log.call(lambda log: log.end(partition))

    async def locate(self, start: str) -> None:
        """Find the first offset of each partition: the committed one, else where ``start`` says."""

        def find(log: EventLog) -> dict[TopicPartition, int]:
            specs = log.topics()
            positions = {}
            for topic in sorted(self.topics):
                if topic not in specs:
                    msg = f"there is no topic {topic} to consume; create it first"
                    raise PermanentError(msg)
                for number in range(specs[topic].partitions):
                    partition = TopicPartition(topic, number)
                    commit = log.committed(self.group, partition)
                    if commit is None and start == "none":
                        msg = f"group {self.group} has no position in {topic}[{number}]: set one first (topics apply)"
                        raise FatalError(msg)
                    first, end = log.extent(partition)
                    if commit is not None and commit.offset > end:
                        msg = (
                            f"group {self.group} committed offset {commit.offset} of {topic}[{number}], which holds "
                            f"{first} to {end}: set a position that it holds"
                        )
                        raise FatalError(msg)
                    beginning = first if start == "earliest" else end
                    positions[partition] = beginning if commit is None else commit.offset
            return positions

        self._positions = await self._log.call(find)

    async def revoke(self) -> None:
        """Tell the listener that the partitions go; it may still commit. Bounded in time, and not cancelled."""
        if self._listener is None or not self.assignment():
            return
        with anyio.move_on_after(_REVOKE_SECONDS, shield=True):
            await self._listener.on_revoked(sorted(self._positions))

    def _check_member(self) -> None:
        if self.lost:
            msg = f"the consumer of group {self.group} has left"
            raise RetriableError(msg)

    async def _assign(self) -> None:
        if self._assigned:
            return
        self._assigned = True
        if self._listener is not None:
            await self._listener.on_assigned(sorted(self._positions), self._epoch)

    async def _collect(self, max_records: int, nothing_at: _State | None) -> tuple[_State, Slice]:
        """Read what has come, unless nothing has changed since there was nothing; with the state that was read."""
        wanted = {partition: at for partition, at in self._positions.items() if partition not in self._paused}
        now_ms = self._now_ms()
        wakes = self._log.wakes

        def read(log: EventLog) -> tuple[_State, Slice]:
            state = (wakes, log.version())
            if state == nothing_at:
                return state, Slice(())
            return state, log.read_due(wanted, limit=max_records, now_ms=now_ms)

        state, found = await self._log.call(read)
        # Paused, sought or lost while the thread read: what it brought for such a partition is dropped.
        kept = []
        for record in found.records:
            partition = record.topic_partition
            if partition in self._paused or self._positions[partition] != wanted[partition] or self.lost:
                continue
            kept.append(record)
        for record in kept:
            self._positions[record.topic_partition] = record.offset + 1
        return state, Slice(tuple(kept), found.due_ms)

    def _owned(self, partition: TopicPartition) -> int:
        if partition not in self.assignment():
            msg = f"group {self.group} does not own {partition.topic}[{partition.partition}] through this consumer"
            raise RetriableError(msg)
        return self._positions[partition]
