"""Apache Kafka behind the broker seam, through aiokafka. No transactions: exactly-once effects rest on identity.

One idempotent producer, acknowledged by all in-sync replicas, made anew when it can no longer be trusted; consumers as
`stream.broker.kafka_consumer` has them; and a reader without a group for everything that only looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

import aiokafka
import anyio
from aiokafka.admin import AIOKafkaAdminClient

from stream.broker.kafka_access import refusal
from stream.broker.kafka_buffer import record_from
from stream.broker.kafka_closing import abandoned, closed
from stream.broker.kafka_consumer import KafkaConsumer
from stream.broker.kafka_errors import failures
from stream.broker.kafka_groups import asked_patiently, has_members
from stream.broker.kafka_pacing import paced
from stream.broker.kafka_settings import KafkaSecurity, KafkaTimings
from stream.broker.kafka_topics import KafkaTopics
from stream.broker.protocol import AssignmentListener, Commit, Headers, Record, TopicPartition, TopicPlan, TopicSpec
from stream.failure import PermanentError, RetriableError

__all__ = ["KafkaBroker"]

LOG = logging.getLogger(__name__)

_STALLED_SECONDS = 10.0
"""How long a read to the end may see nothing new: the end was there when it began, so this means a sick cluster."""

_Place = aiokafka.TopicPartition


class KafkaBroker:
    """A Kafka cluster; see `stream.broker.protocol.Broker`.

    Parameters
    ----------
    servers : str
        ``HOST:PORT[,HOST:PORT…]`` to find the cluster by.
    timings : KafkaTimings
        Limits.
    security : KafkaSecurity
        TLS and SASL.
    replication : int
        Replicas of topics that are created; 0 for three, or as many as there are brokers.
    """

    def __init__(
        self,
        servers: str,
        *,
        timings: KafkaTimings | None = None,
        security: KafkaSecurity | None = None,
        replication: int = 0,
    ) -> None:
        self.servers = servers
        self._timings = timings or KafkaTimings()
        self._options: dict[str, Any] = {
            "bootstrap_servers": servers.split(","),
            "client_id": "rampstream",
            **(security or KafkaSecurity()).options(),
        }
        self._epochs = itertools.count(1)
        self._replication = replication
        self._known: dict[str, int] = {}
        self._producer: Any = None
        self._producing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._looking = asyncio.Lock()
        self._admin: Any = None
        self._reader: Any = None
        self._consumers: list[KafkaConsumer] = []

    @classmethod
    def from_url(cls, url: str, **options: Any) -> KafkaBroker:
        """Make one from ``kafka://HOST:PORT[,HOST:PORT…]``; security comes from the environment.

        Raises
        ------
        PermanentError
            The URL has not this form.
        """
        servers = url.removeprefix("kafka://").rstrip("/")
        for server in servers.split(","):
            host, _, port = server.rpartition(":")
            if not host or not port.isdigit():
                msg = f"broker {url!r}: expected kafka://HOST:PORT[,HOST:PORT…], got the server {server!r}"
                raise PermanentError(msg)
        options.setdefault("security", KafkaSecurity.from_environment())
        return cls(servers, **options)

    async def __aenter__(self) -> Self:
        """Connect. Raises RetriableError when no server answers, FatalError when one does not let this client in."""
        milliseconds = int(self._timings.request_seconds * 1000)
        self._admin = AIOKafkaAdminClient(request_timeout_ms=milliseconds, **self._options)
        paced(self._admin._client)  # noqa: SLF001
        async with self._connecting():
            try:
                await self._admin.start()
            except BaseException:
                await self._admin.close()
                raise
        self._topics = KafkaTopics(self._admin, replication=self._replication, servers=self.servers)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close; what was acknowledged stays."""
        with anyio.CancelScope(shield=True):
            for consumer in tuple(self._consumers):
                await consumer.leave()
            for client in (self._producer, self._reader):
                if client is not None:
                    await closed(client.stop())
            if self._admin is not None:
                await closed(self._admin.close())
            self._producer = self._reader = None

    @contextlib.asynccontextmanager
    async def _connecting(self) -> AsyncIterator[None]:
        """Say why this client is not let in, where aiokafka says only that it could not connect."""
        try:
            with failures(f"cannot connect to Kafka at {self.servers}"):
                yield
        except RetriableError as error:
            why = await refusal(self._options)
            if why is not None:
                raise why from error
            raise

    async def plan_topics(self, specs: Sequence[TopicSpec]) -> TopicPlan:
        """What is missing, and what differs in partitions, replicas and settings."""
        return await self._topics.plan(specs)

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create what does not exist, and wait until it can be used."""
        await self._topics.create(specs)
        self._known.clear()

    async def topics(self) -> Mapping[str, TopicSpec]:
        """All topics that are not the cluster's own."""
        return await self._topics.all()

    async def publish(
        self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers = (), partition: int | None = None
    ) -> Record:
        """Append, acknowledged by all in-sync replicas. A cancelled call appends or not, never half."""
        await self._partitions(topic)
        producer = await self._ready_producer()
        now_ms = int(time.time() * 1000)
        try:
            with failures(f"cannot publish to {topic}"):
                # The client itself never gives a record of an idempotent producer up, nor asks whether it still should.
                async with asyncio.timeout(self._timings.request_seconds):
                    done = await producer.send_and_wait(
                        topic, value, key=key, partition=partition, headers=list(headers), timestamp_ms=now_ms
                    )
        except RetriableError as error:
            # Delivered or not, nobody knows, and an idempotent producer that gave up on a record may refuse the next.
            await self._retire(producer)
            why = await refusal(self._options)
            if why is not None:
                raise why from error
            raise
        return Record(topic, done.partition, done.offset, key, value, headers, done.timestamp)

    async def _ready_producer(self) -> Any:
        async with self._producing:
            if self._producer is None:
                producer = aiokafka.AIOKafkaProducer(
                    acks="all",
                    enable_idempotence=True,
                    request_timeout_ms=int(self._timings.request_seconds * 1000),
                    retry_backoff_ms=200,
                    **self._options,
                )
                paced(producer.client)
                async with self._connecting():
                    try:
                        await producer.start()
                    except BaseException:
                        await closed(producer.stop())
                        raise
                self._producer = producer
            return self._producer

    async def _retire(self, producer: Any) -> None:
        """Have the next publish make a new producer."""
        async with self._producing:
            if self._producer is producer:
                self._producer = None
                LOG.warning("the producer is made anew")
                retiring = asyncio.create_task(abandoned(producer))
                self._retiring.add(retiring)
                retiring.add_done_callback(self._retiring.discard)

    @contextlib.asynccontextmanager
    async def consumer(
        self, group: str, topics: Sequence[str], *, listener: AssignmentListener | None = None, start: str = "earliest"
    ) -> AsyncIterator[KafkaConsumer]:
        """Join a group.

        Raises
        ------
        stream.failure.PermanentError
            A topic does not exist, or ``start`` is none of earliest, latest, none.
        """
        if start not in {"earliest", "latest", "none"}:
            msg = f"a consumer starts at 'earliest', 'latest' or 'none', not {start!r}"
            raise PermanentError(msg)
        for topic in topics:
            await self._partitions(topic)
        consumer = KafkaConsumer(
            options=self._options,
            group=group,
            topics=topics,
            start=start,
            timings=self._timings,
            positions=self._positions,
            refusal=lambda: refusal(self._options),
            next_epoch=self._epochs.__next__,
            listener=listener,
        )
        self._consumers.append(consumer)
        try:
            await consumer.join()
            yield consumer
        finally:
            await consumer.leave()
            self._consumers.remove(consumer)

    async def read_latest(self, topic: str) -> Mapping[bytes, Record]:
        """Latest record of each key."""
        latest: dict[bytes, Record] = {}
        wanted = {TopicPartition(topic, number): extent for number, extent in (await self.extents(topic)).items()}
        async for record in self._between(wanted):
            if record.key is None:
                continue
            latest.pop(record.key, None)
            if record.value is not None:
                latest[record.key] = record
        return latest

    async def read(self, topic: str, partition: int, first: int, last: int) -> Sequence[Record]:
        """Records with first <= offset < last."""
        beginning, end = (await self.extents(topic))[partition]
        wanted = {TopicPartition(topic, partition): (max(first, beginning), min(last, end))}
        return [record async for record in self._between(wanted)]

    async def _between(self, wanted: Mapping[TopicPartition, tuple[int, int]]) -> AsyncIterator[Record]:
        """Records of several partitions between offsets that exist, without a group."""
        ends = {_Place(p.topic, p.partition): end for p, (first, end) in wanted.items() if first < end}
        if not ends:
            return
        what = ", ".join(sorted({place.topic for place in ends}))
        async with self._looking:
            reader = await self._ready_reader()
            with failures(f"cannot read {what}"):
                reader.assign(list(ends))
                for partition, (first, end) in wanted.items():
                    if first < end:
                        reader.seek(_Place(partition.topic, partition.partition), first)
                progress = time.monotonic()
                while ends:
                    found = await reader.getmany(*ends, timeout_ms=200)
                    for place, messages in found.items():
                        for message in messages:
                            if message.offset < ends[place]:
                                yield record_from(message)
                    progress = time.monotonic() if found else progress
                    # Not the last record's offset: compaction and markers leave gaps, also at the end.
                    ends = {place: end for place, end in ends.items() if await reader.position(place) < end}
                    if time.monotonic() - progress > _STALLED_SECONDS:
                        msg = f"{what} cannot be read to its end"
                        raise RetriableError(msg)
                reader.unsubscribe()

    async def extents(self, topic: str) -> Mapping[int, tuple[int, int]]:
        """First offset that is there, and the next one, by partition."""
        places = [_Place(topic, number) for number in range(await self._partitions(topic))]
        found = await self._extents(places)
        return {place.partition: found[place] for place in places}

    async def _extents(self, places: Sequence[Any]) -> dict[Any, tuple[int, int]]:
        reader = await self._ready_reader()
        with failures("cannot look up offsets"):
            first, end = await reader.beginning_offsets(places), await reader.end_offsets(places)
        return {place: (first[place], end[place]) for place in places}

    async def offsets_for_time(self, topic: str, timestamp_ms: int) -> Mapping[int, int | None]:
        """First offset with a timestamp at or after this time, by partition."""
        places = {_Place(topic, number): timestamp_ms for number in range(await self._partitions(topic))}
        reader = await self._ready_reader()
        with failures(f"cannot look up times in {topic}"):
            found = await reader.offsets_for_times(places)
        return {place.partition: None if at is None else at.offset for place, at in found.items()}

    async def committed(self, group: str, topic: str) -> Mapping[int, Commit]:
        """The group's committed positions by partition."""
        places = [TopicPartition(topic, number) for number in range(await self._partitions(topic))]
        found = await self._committed(group, places)
        return {place.partition: found[place] for place in places if place in found}

    async def _committed(self, group: str, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Commit]:
        places = [_Place(partition.topic, partition.partition) for partition in partitions]
        what = f"cannot look up the positions of group {group}"
        found = await asked_patiently(
            what,
            lambda: self._admin.list_consumer_group_offsets(group, partitions=places),
            seconds=self._timings.request_seconds,
        )
        return {
            TopicPartition(place.topic, place.partition): Commit(at.offset, at.metadata or "")
            for place, at in found.items()
            if at.offset >= 0
        }

    async def _positions(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, int, Commit | None]]:
        if not partitions:
            return {}
        places = [_Place(p.topic, p.partition) for p in partitions]
        # Two connections: both may have fallen silent, which is noticed only after a while.
        commits, extents = await asyncio.gather(self._committed(group, partitions), self._extents(places))
        return {p: (*extents[_Place(p.topic, p.partition)], commits.get(p)) for p in partitions}

    async def reset(self, group: str, commits: Mapping[TopicPartition, Commit]) -> None:
        """Store positions for a group that has no members."""
        if not commits:
            return
        offsets = {
            _Place(p.topic, p.partition): aiokafka.OffsetAndMetadata(c.offset, c.metadata) for p, c in commits.items()
        }
        client = aiokafka.AIOKafkaConsumer(group_id=group, enable_auto_commit=False, **self._options)
        paced(client._client)  # noqa: SLF001
        try:
            with failures(f"group {group} has members, or its positions cannot be set"):
                await client.start()
                client.assign(list(offsets))
                async with asyncio.timeout(self._timings.request_seconds):
                    await client.commit(offsets)
        finally:
            with anyio.CancelScope(shield=True):
                await closed(client.stop())

    async def has_members(self, group: str) -> bool:
        """Whether the group has members, by its coordinator."""
        return await has_members(self._admin, group, seconds=self._timings.request_seconds)

    async def lag(self, group: str, topic: str) -> int:
        """Records not yet committed by the group."""
        committed, total = await self.committed(group, topic), 0
        for number, (first, end) in (await self.extents(topic)).items():
            commit = committed.get(number)
            total += end - (first if commit is None else max(first, commit.offset))
        return total

    async def _ready_reader(self) -> Any:
        async with self._producing:
            if self._reader is None:
                reader = aiokafka.AIOKafkaConsumer(
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    request_timeout_ms=int(self._timings.request_seconds * 1000),
                    retry_backoff_ms=200,
                    **self._options,
                )
                paced(reader._client)  # noqa: SLF001
                async with self._connecting():
                    try:
                        await reader.start()
                    except BaseException:
                        await closed(reader.stop())
                        raise
                # Looking offsets up takes as long as one request may: then it never notices a connection that fell
                # silent, and fails for good. (aiokafka 0.14)
                reader._request_timeout_ms *= 2  # noqa: SLF001
                self._reader = reader
            return self._reader

    async def _partitions(self, topic: str) -> int:
        """Number of partitions of a topic. The client would wait long for one that does not exist."""
        if topic not in self._known:
            self._known[topic] = await self._topics.partitions(topic)
        return self._known[topic]
