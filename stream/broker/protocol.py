"""The broker seam: what the engine asks of an event log. Every implementation passes `tests.contract`'s broker suite.

The vocabulary is Kafka's. A *topic* has partitions; records of one key stay in order in one partition; a *consumer
group* commits, for each partition, the next offset to read together with a small text of metadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, Self

__all__ = [
    "NOT_BEFORE",
    "AssignmentListener",
    "Broker",
    "Commit",
    "Consumer",
    "Headers",
    "Record",
    "TopicDifference",
    "TopicPartition",
    "TopicPlan",
    "TopicSpec",
]

Headers = tuple[tuple[str, bytes], ...]

NOT_BEFORE = "not-before"
"""Header with a Unix time in ms: until then a consumer withholds the record, and what follows in the partition."""


@dataclass(frozen=True, slots=True, order=True)
class TopicPartition:
    """One partition of one topic."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it lies in the log."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int

    @property
    def topic_partition(self) -> TopicPartition:
        """Where the record lies."""
        return TopicPartition(self.topic, self.partition)

    def header(self, name: str) -> bytes | None:
        """Value of the last header of that name."""
        for key, value in reversed(self.headers):
            if key == name:
                return value
        return None


@dataclass(frozen=True, slots=True)
class Commit:
    """Next offset to read and a small text (hints of what is finished above it)."""

    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What a topic should be, or is.

    ``config`` are settings by their Kafka names; ``replicas`` is None where the broker chooses, or has none.
    """

    name: str
    partitions: int = 1
    compacted: bool = False
    config: Mapping[str, str] = field(default_factory=dict)
    replicas: int | None = None


@dataclass(frozen=True, slots=True)
class TopicDifference:
    """One way in which a topic is not what it should be.

    With a ``conflict`` nothing may be published to it: keys would move, or records go. Anything else is for an operator
    to change, by ``remedy``, while work goes on.
    """

    topic: str
    setting: str
    found: str
    wanted: str
    conflict: bool
    remedy: str = ""

    def __str__(self) -> str:
        """One line."""
        return f"topic {self.topic} has {self.setting} {self.found}, wanted is {self.wanted}"


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What creating topics would do: those that are missing, complete with what the broker adds, and what differs."""

    create: tuple[TopicSpec, ...]
    differences: tuple[TopicDifference, ...] = ()

    @property
    def conflicts(self) -> tuple[TopicDifference, ...]:
        """Differences that forbid the use of a topic."""
        return tuple(difference for difference in self.differences if difference.conflict)


class AssignmentListener(Protocol):
    """Told about assignment, with heartbeats going on meanwhile.

    Both are awaited by the consumer before records of the new assignment are handed out. Each assignment has a higher
    epoch than the last.
    """

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions are about to go: commit what is finished; bounded in time."""
        ...

    async def on_assigned(self, partitions: Sequence[TopicPartition], epoch: int) -> None:
        """Partitions have come."""
        ...


class Consumer(Protocol):
    """One member of a consumer group."""

    async def fetch(self, *, max_records: int, timeout: float) -> Sequence[Record]:  # noqa: ASYNC109 - it returns, not raises
        """Records in order per partition, at most ``max_records``; empty after ``timeout`` seconds without any.

        Cancelling it loses nothing: records not returned are fetched again.
        """
        ...

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Fetch nothing from these partitions until `resume`."""
        ...

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Fetch from these partitions again."""
        ...

    def assignment(self) -> frozenset[TopicPartition]:
        """Partitions that this member owns now."""
        ...

    def owns(self, partition: TopicPartition, epoch: int) -> bool:
        """Whether the partition is still this member's, without a break since the assignment of that epoch.

        False also when the last sign of life that the group acknowledged is older than its session: another member may
        own the partition by now.
        """
        ...

    async def commit(self, commits: Mapping[TopicPartition, Commit]) -> None:
        """Store positions for the group. Raises RetriableError when this member no longer owns a partition."""
        ...

    async def committed(self, partition: TopicPartition) -> Commit | None:
        """The group's committed position, None before the first commit."""
        ...

    async def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from this offset."""
        ...

    async def offset_for_time(self, partition: TopicPartition, timestamp_ms: int) -> int | None:
        """First offset with a timestamp at or after this time, None when there is none."""
        ...

    async def position(self, partition: TopicPartition) -> int:
        """Next offset that fetch would return."""
        ...

    async def end_offset(self, partition: TopicPartition) -> int:
        """Offset that the next record appended will get."""
        ...


class Broker(Protocol):
    """An event log. Use as an async context manager."""

    async def __aenter__(self) -> Self:
        """Open or connect."""
        ...

    async def __aexit__(self, *exc: object) -> None:
        """Close; what was acknowledged stays."""
        ...

    async def plan_topics(self, specs: Sequence[TopicSpec]) -> TopicPlan:
        """What `create_topics` would create, and what differs in topics that exist; changes nothing."""
        ...

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create what does not exist. Raises PermanentError when a topic exists with other partitions or compaction."""
        ...

    async def topics(self) -> Mapping[str, TopicSpec]:
        """All topics that exist, without settings that this client may not see."""
        ...

    async def publish(
        self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers = (), partition: int | None = None
    ) -> Record:
        """Append durably; returns the record with its partition and offset once it is acknowledged.

        Without ``partition`` equal keys go to equal partitions.
        """
        ...

    def consumer(
        self, group: str, topics: Sequence[str], *, listener: AssignmentListener | None = None, start: str = "earliest"
    ) -> AbstractAsyncContextManager[Consumer]:
        """Join a group.

        A partition without a committed position starts at ``start``, ``earliest`` or ``latest``; with ``none`` it is
        a FatalError, as is in any case a committed position that the log no longer holds: somebody has to say
        (`reset`) where to go on. The first fetch raises it at the latest.
        """
        ...

    async def read_latest(self, topic: str) -> Mapping[bytes, Record]:
        """Read the topic to the end that it has now; the latest record of each key, tombstones left out."""
        ...

    async def read(self, topic: str, partition: int, first: int, last: int) -> Sequence[Record]:
        """Records with first <= offset < last, without a group."""
        ...

    async def extents(self, topic: str) -> Mapping[int, tuple[int, int]]:
        """First offset that is there, and the offset that the next record will get, by partition."""
        ...

    async def offsets_for_time(self, topic: str, timestamp_ms: int) -> Mapping[int, int | None]:
        """First offset with a timestamp at or after this time by partition, None where there is none."""
        ...

    async def committed(self, group: str, topic: str) -> Mapping[int, Commit]:
        """The group's committed positions by partition; partitions without one are left out."""
        ...

    async def reset(self, group: str, commits: Mapping[TopicPartition, Commit]) -> None:
        """Store positions for a group that has no members. Raises RetriableError when it has."""
        ...

    async def has_members(self, group: str) -> bool:
        """Whether somebody consumes as this group; an embedded log says so of all while another process consumes it."""
        ...

    async def lag(self, group: str, topic: str) -> int:
        """Records not yet committed by the group, over all partitions."""
        ...
