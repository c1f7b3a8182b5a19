"""A member of a consumer group on Kafka: one reader that always polls, bounded buffers, epochs and leases.

aiokafka checks on the client that somebody polls, and a cancelled ``getmany`` switches that check off for good: so one
task of ours is always inside ``getmany`` and is never cancelled; everybody else takes from its buffers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiokafka
import anyio
from aiokafka import ConsumerRebalanceListener, errors

from stream.broker.kafka_assignor import make_assignor
from stream.broker.kafka_buffer import PartitionBuffer, record_from
from stream.broker.kafka_errors import failure_from, failures
from stream.broker.kafka_pacing import paced
from stream.broker.kafka_settings import POLL_SECONDS, KafkaTimings
from stream.broker.kafka_telling import Telling
from stream.broker.protocol import AssignmentListener, Commit, Record, TopicPartition
from stream.failure import Failure, FatalError, RetriableError

__all__ = ["KafkaConsumer", "Positions", "Refusal"]

LOG = logging.getLogger(__name__)

_PAUSE = 0.5
"""Seconds between tries when the cluster does not answer."""

_UNSET_SECONDS = 0.02
"""Before the reader looks again whether positions are set: that takes two round trips."""

_LEAVE_SECONDS = 10.0
"""For the listener's last commit beyond its own budget, and again for leaving the group."""

Positions = Callable[[str, Sequence[TopicPartition]], Any]
"""Awaited with group and partitions: (first, end, commit or None) of each."""

Refusal = Callable[[], Awaitable[FatalError | None]]
"""Awaited when the group is silent: why the cluster lets this client in no more, None when it does not say so."""


class KafkaConsumer(ConsumerRebalanceListener):  # type: ignore[misc]
    """See `stream.broker.protocol.Consumer`; made by `stream.broker.kafka.KafkaBroker.consumer`.

    Parameters
    ----------
    options : mapping
        Of every client of the broker.
    group, topics, start : str, sequence of str, str
        As for `Broker.consumer`.
    timings : KafkaTimings
        Limits.
    positions : callable
        Finds extents and commits.
    refusal : callable
        Finds out why the group is silent.
    next_epoch : callable
        Gives a number higher than any before.
    listener : AssignmentListener, optional
        Told about assignment.
    """

    def __init__(
        self,
        *,
        options: Mapping[str, Any],
        group: str,
        topics: Sequence[str],
        start: str,
        timings: KafkaTimings,
        positions: Positions,
        refusal: Refusal,
        next_epoch: Callable[[], int],
        listener: AssignmentListener | None,
    ) -> None:
        self.group = group
        self._topics = list(topics)
        self._start = start
        self._timings = timings
        self._positions = positions
        self._refusal = refusal
        self._asked_at = time.monotonic()
        self._asking: asyncio.Task[None] | None = None
        self._next_epoch = next_epoch
        self._listener = listener
        self._telling = Telling(group, listener, self._told)
        self._buffers: dict[TopicPartition, PartitionBuffer] = {}
        self._paused: set[TopicPartition] = set()
        self._ready = False
        self._epoch = 0
        self._alive_at = 0.0
        self._turn = 0
        self._failure: Failure | None = None
        self._stopping = False
        self._arrived = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._client = aiokafka.AIOKafkaConsumer(
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=(make_assignor(),),
            **timings.consumer_options(),
            **options,
        )
        paced(self._client._client)  # noqa: SLF001

    async def join(self) -> None:
        """Connect and join the group in the background."""
        with failures(f"cannot consume {', '.join(self._topics)}"):
            self._client.subscribe(self._topics, listener=self)
            await self._client.start()
        self._observe_heartbeats()
        self._reader = asyncio.create_task(self._read(), name=f"reader of {self.group}")

    async def leave(self) -> None:
        """Let the listener commit, then leave the group; not cancelled, for half a leave makes a zombie member."""
        with anyio.CancelScope(shield=True):
            self._stopping = True
            if self._reader is not None:
                await asyncio.wait([self._reader])
            if self._asking is not None:
                self._asking.cancel()
                await asyncio.wait([self._asking])
            with anyio.move_on_after(self._timings.revoke_seconds + _LEAVE_SECONDS):
                await self._give_up(sorted(self._buffers))
            with anyio.move_on_after(_LEAVE_SECONDS):
                await self._client.stop()

    # What aiokafka calls

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Hand out nothing more, let the listener commit, and end the epoch."""
        del revoked
        await self._give_up(sorted(self._buffers))

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """Find where each partition starts, then have the listener told, and hand out records after that."""
        partitions = sorted(TopicPartition(p.topic, p.partition) for p in assigned)
        self._alive_at = time.monotonic()
        self._epoch = self._next_epoch()
        while not self._stopping:
            try:
                await self._begin(partitions)
            except RetriableError as error:
                LOG.warning("group %s cannot take its partitions up yet: %s", self.group, error)
                await asyncio.sleep(_PAUSE)
            except Failure as error:
                self._failure = error
                break
            else:
                self._telling.begin(partitions, self._epoch)
                break
        self._arrived.set()

    def _told(self, failure: Failure | None) -> None:
        self._failure = self._failure or failure
        self._ready = failure is None
        self._arrived.set()

    async def _begin(self, partitions: Sequence[TopicPartition]) -> None:
        found = await self._positions(self.group, partitions)
        self._buffers = {}
        for partition in partitions:
            at = self._beginning(partition, *found[partition])
            self._client.seek(aiokafka.TopicPartition(partition.topic, partition.partition), at)
            self._buffers[partition] = PartitionBuffer(at)

    def _beginning(self, partition: TopicPartition, first: int, end: int, commit: Commit | None) -> int:
        where = f"{partition.topic}[{partition.partition}]"
        if commit is None:
            if self._start == "none":
                raise FatalError(
                    f"group {self.group} has no position in {where}: rampstream topics apply sets the first one"
                )
            return first if self._start == "earliest" else end
        if not first <= commit.offset <= end:
            raise FatalError(
                f"group {self.group} committed offset {commit.offset} of {where}, which holds {first} to {end}: "
                "records were deleted before they were read, or the topic was made anew; set a position that it holds"
            )
        return commit.offset

    async def _give_up(self, partitions: Sequence[TopicPartition]) -> None:
        self._ready = False
        await self._telling.interrupt(self._timings.revoke_seconds)
        for buffer in self._buffers.values():
            buffer.records.clear()
        try:
            if self._listener is not None and partitions:
                with anyio.move_on_after(self._timings.revoke_seconds + _LEAVE_SECONDS / 2):
                    await self._listener.on_revoked(partitions)
        except Failure as error:
            LOG.warning("group %s: the listener failed when its partitions went: %s", self.group, error)
        finally:
            self._buffers = {}
            self._paused = set()

    def _observe_heartbeats(self) -> None:
        """Note when the group last acknowledged a sign of life. aiokafka keeps that to itself (0.14)."""
        coordinator: Any = self._client._coordinator  # noqa: SLF001
        send = coordinator._do_heartbeat  # noqa: SLF001

        async def observed() -> Any:
            sent = time.monotonic()
            acknowledged = await send()
            if acknowledged:
                self._alive_at = sent
            return acknowledged

        coordinator._do_heartbeat = observed  # noqa: SLF001

    # The reader

    async def _read(self) -> None:
        while not self._stopping:
            try:
                self._sync_paused()
                found = await self._client.getmany(timeout_ms=int(POLL_SECONDS * 1000), max_records=500)
            except errors.ConsumerStoppedError:
                return
            except errors.NoOffsetForPartitionError:
                # The client looks for positions by itself as soon as it is assigned, before `_begin` sets them.
                await asyncio.sleep(_UNSET_SECONDS)
            except errors.OffsetOutOfRangeError as error:
                why = "records were deleted before they were read, or the topic was made anew"
                self._failure = FatalError(f"group {self.group}: {why}: {error}")
            except errors.KafkaError as error:
                failure = failure_from(error, f"group {self.group} cannot read")
                if isinstance(failure, FatalError):
                    self._failure = failure
                LOG.warning("%s", failure)
                await asyncio.sleep(_PAUSE)
            except Exception as error:
                LOG.exception("the reader of group %s failed", self.group)
                self._failure = FatalError(f"the reader of group {self.group} failed: {error!r}")
            else:
                self._keep(found)
                self._ask_if_silent()
            if self._failure is not None:
                self._arrived.set()
                await asyncio.sleep(_PAUSE)

    def _ask_if_silent(self) -> None:
        """Stop a member whose password or certificate was withdrawn: the client would try to connect for ever."""
        now = time.monotonic()
        if now - max(self._alive_at, self._asked_at) > self._timings.session_seconds:
            self._asked_at = now
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(), name=f"asks why group {self.group} is silent")

    async def _ask(self) -> None:
        self._failure = self._failure or await self._refusal()
        self._arrived.set()

    def _keep(self, found: Mapping[Any, Sequence[Any]]) -> None:
        for partition, messages in found.items():
            buffer = self._buffers.get(TopicPartition(partition.topic, partition.partition))
            if buffer is None:
                continue  # it went meanwhile
            for message in messages:
                buffer.add(record_from(message))
        if found:
            self._arrived.set()

    def _sync_paused(self) -> None:
        """Pause in the client what is full here; resume it once half of it is gone."""
        for partition, buffer in self._buffers.items():
            client_partition = aiokafka.TopicPartition(partition.topic, partition.partition)
            if not buffer.held and buffer.full:
                self._client.pause(client_partition)
                buffer.held = True
            elif buffer.held and buffer.roomy:
                self._client.resume(client_partition)
                buffer.held = False

    # What the engine calls

    async def fetch(self, *, max_records: int, timeout: float) -> Sequence[Record]:  # noqa: ASYNC109 - the protocol's
        """Records in order per partition, fair between partitions; only takes from the buffers."""
        gives_up = time.monotonic() + timeout
        while True:
            if self._failure is not None:
                raise self._failure
            if self._stopping:
                msg = f"the consumer of group {self.group} has left"
                raise RetriableError(msg)
            self._arrived.clear()
            records, due_in = self._take(max_records)
            if records:
                return records
            wait = gives_up - time.monotonic()
            if wait <= 0:
                return ()
            if due_in is not None:
                wait = min(wait, max(0.001, due_in))
            with anyio.move_on_after(wait):
                await self._arrived.wait()

    def _take(self, most: int) -> tuple[tuple[Record, ...], float | None]:
        """Take in turn from each partition; with the seconds until the next withheld record is due."""
        taken: list[Record] = []
        due: float | None = None
        partitions = sorted(self._buffers) if self._ready else []
        for step in range(len(partitions)):
            partition = partitions[(self._turn + step) % len(partitions)]
            buffer = self._buffers[partition]
            share = max(1, most // len(partitions))
            while buffer.records and partition not in self._paused and share and len(taken) < most:
                left = buffer.due_in()
                if left > 0:
                    due = left if due is None else min(due, left)
                    break
                taken.append(buffer.take())
                share -= 1
        self._turn += 1
        return tuple(taken), due

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Hand out nothing from these partitions until `resume`; the reader stops by itself when its buffer is full."""
        self._paused |= self._buffers.keys() & set(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Hand out from these partitions again."""
        self._paused -= set(partitions)
        self._arrived.set()

    def assignment(self) -> frozenset[TopicPartition]:
        """Partitions that this member owns now."""
        return frozenset(self._buffers) if self._ready else frozenset()

    def owns(self, partition: TopicPartition, epoch: int) -> bool:
        """Whether the assignment of that epoch goes on and the group heard of this member within the session.

        While partitions are being given up they still are this member's: what finishes then is published once.
        """
        alive = time.monotonic() - self._alive_at < self._timings.session_seconds
        return alive and epoch == self._epoch and partition in self._buffers

    async def commit(self, commits: Mapping[TopicPartition, Commit]) -> None:
        """Store positions; refused when another member may own a partition."""
        for partition in commits:
            if partition not in self._buffers:
                msg = f"group {self.group} does not own {partition.topic}[{partition.partition}] through this consumer"
                raise RetriableError(msg)
        offsets = {
            aiokafka.TopicPartition(p.topic, p.partition): aiokafka.OffsetAndMetadata(c.offset, c.metadata)
            for p, c in commits.items()
        }
        with failures(f"group {self.group} cannot commit"):
            try:
                async with asyncio.timeout(self._timings.request_seconds):
                    await self._client.commit(offsets)
            except (errors.IllegalStateError, errors.ConsumerStoppedError) as error:
                raise RetriableError(f"group {self.group} cannot commit: {error}") from error

    async def committed(self, partition: TopicPartition) -> Commit | None:
        """The group's committed position."""
        found: Commit | None = (await self._positions(self.group, [partition]))[partition][2]
        return found

    async def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from this offset."""
        self._owned(partition)
        held = self._buffers[partition].held
        self._buffers[partition] = PartitionBuffer(offset)
        self._buffers[partition].held = held
        self._client.seek(aiokafka.TopicPartition(partition.topic, partition.partition), offset)

    async def offset_for_time(self, partition: TopicPartition, timestamp_ms: int) -> int | None:
        """First offset with a timestamp at or after this time."""
        client_partition = aiokafka.TopicPartition(partition.topic, partition.partition)
        with failures(f"cannot look up times in {partition.topic}"):
            found = (await self._client.offsets_for_times({client_partition: timestamp_ms}))[client_partition]
        return None if found is None else int(found.offset)

    async def position(self, partition: TopicPartition) -> int:
        """Next offset that fetch would return."""
        return self._owned(partition).position

    async def end_offset(self, partition: TopicPartition) -> int:
        """Offset that the next record will get."""
        return int((await self._positions(self.group, [partition]))[partition][1])

    def _owned(self, partition: TopicPartition) -> PartitionBuffer:
        if partition not in self._buffers:
            msg = f"group {self.group} does not own {partition.topic}[{partition.partition}] through this consumer"
            raise RetriableError(msg)
        return self._buffers[partition]
