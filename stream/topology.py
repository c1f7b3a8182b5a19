"""The pipeline as data: which stage comes next, what is run together, which topic and partition a message goes to.

Pure functions of the table; no stage is called here, and nothing is known of what stages do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from stream.failure import PermanentError

__all__ = [
    "Preset",
    "Segment",
    "Segments",
    "StageRow",
    "Topology",
    "changelog_topic_name",
    "dead_letter_topic_name",
    "partition_for",
    "product_event_topic_name",
    "retry_topic_name",
    "stable_hash",
    "topic_name",
]

_STAGE_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_LONGEST_TOPIC = 249
"""Kafka's limit: a partition's folder is named after the topic, and file names end at 255 bytes."""


class Preset(StrEnum):
    """Named ways of cutting the pipeline into segments."""

    FUSED = "fused"
    """As few segments as there can be: only joint stages stand alone."""
    BALANCED = "balanced"
    """As fused, and cut where the table says ``balanced_head``."""
    GRANULAR = "granular"
    """Every stage a segment of its own."""


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage in the table.

    Parameters
    ----------
    name : str
        The stage's name.
    branches : frozenset of str
        The branches on which the stage runs.
    joint : bool
        Whether it works on all members of an association together.
    balanced_head : bool
        Whether a segment of the preset ``balanced`` starts here.
    """

    name: str
    branches: frozenset[str]
    joint: bool = False
    balanced_head: bool = False

    def __post_init__(self) -> None:
        if not _STAGE_NAME.fullmatch(self.name):
            msg = f"the stage name {self.name!r} is not made of lower-case letters, digits and '_', a letter first"
            raise PermanentError(msg)
        if not self.branches:
            msg = f"stage {self.name!r} runs on no branch: name at least one"
            raise PermanentError(msg)


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive stages run back to back in memory; named after its head, whose topic is its inbox."""

    name: str
    stages: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.stages or self.stages[0] != self.name:
            msg = f"segment {self.name!r} is named after its first stage, got the stages {list(self.stages)}"
            raise PermanentError(msg)


class Topology:
    """The stages in order, each with the branches it runs on.

    Parameters
    ----------
    rows : iterable of StageRow
        The table; names are unique.

    Raises
    ------
    stream.failure.PermanentError
        The table is empty or names a stage twice.
    """

    def __init__(self, rows: Iterable[StageRow]) -> None:
        self.rows = tuple(rows)
        self._index = {row.name: position for position, row in enumerate(self.rows)}
        if not self.rows:
            msg = "a topology needs at least one stage"
            raise PermanentError(msg)
        if len(self._index) != len(self.rows):
            names = [row.name for row in self.rows]
            twice = sorted({name for name in names if names.count(name) > 1})
            msg = f"stages are named twice in the topology: {', '.join(twice)}"
            raise PermanentError(msg)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topology) and self.rows == other.rows

    def __hash__(self) -> int:
        return hash(self.rows)

    def __contains__(self, stage: object) -> bool:
        return stage in self._index

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in order."""
        return tuple(row.name for row in self.rows)

    @property
    def branches(self) -> frozenset[str]:
        """All branches that any stage runs on."""
        return frozenset[str]().union(*(row.branches for row in self.rows))

    def row(self, stage: str) -> StageRow:
        """Row of a stage. Raises PermanentError for a stage that is not in the table."""
        return self.rows[self.index(stage)]

    def index(self, stage: str) -> int:
        """Place of a stage in the order. Raises PermanentError for a stage that is not in the table."""
        try:
            return self._index[stage]
        except KeyError:
            msg = f"there is no stage {stage!r} in this topology; it has {', '.join(self.stages)}"
            raise PermanentError(msg) from None

    def next_stage(self, after: str, branch: str) -> str | None:
        """Return the first stage behind ``after`` that runs on the branch, None when there is none."""
        return self._first(self.rows[self.index(after) + 1 :], branch)

    def first_stage(self, branch: str) -> str | None:
        """Return the first stage that runs on the branch, None when there is none."""
        return self._first(self.rows, branch)

    def route(self, branch: str) -> tuple[str, ...]:
        """All stages that run on the branch, in order."""
        return tuple(row.name for row in self.rows if branch in row.branches)

    def inserted(self, row: StageRow, *, before: str | None = None, after: str | None = None) -> Topology:
        """Return a topology with a stage more, before or after another.

        A stage put before the head of a balanced segment joins the segment in front of it.

        Raises
        ------
        stream.failure.PermanentError
            Not exactly one of ``before`` and ``after`` is given, or it is not in the table, or the name is taken.
        """
        if (before is None) == (after is None):
            msg = f"say either before or after which stage {row.name!r} is to be inserted"
            raise PermanentError(msg)
        place = self.index(before) if before is not None else self.index(str(after)) + 1
        return Topology([*self.rows[:place], row, *self.rows[place:]])

    def replaced(self, row: StageRow) -> Topology:
        """Return a topology in which this row stands in the place of that of its name."""
        place = self.index(row.name)
        return Topology([*self.rows[:place], row, *self.rows[place + 1 :]])

    def segments(self, preset: Preset | str) -> Segments:
        """Cut into segments by a preset's name. Raises PermanentError for an unknown one."""
        try:
            chosen = Preset(preset)
        except ValueError:
            msg = f"there is no preset {preset!r}; choose one of {', '.join(Preset)}"
            raise PermanentError(msg) from None
        if chosen is Preset.GRANULAR:
            heads = self.stages
        elif chosen is Preset.BALANCED:
            heads = tuple(row.name for row in self.rows if row.balanced_head)
        else:
            heads = ()
        return self.cut(heads)

    def cut(self, heads: Iterable[str]) -> Segments:
        """Cut into segments that start at these stages, at the first one, and around every joint stage."""
        starts = {0, *(self.index(head) for head in heads)}
        for position, row in enumerate(self.rows):
            if row.joint:
                starts |= {position, position + 1}
        edges = sorted(start for start in starts if start < len(self.rows))
        names = self.stages
        return Segments(
            self,
            tuple(Segment(names[a], names[a:b]) for a, b in zip(edges, [*edges[1:], len(names)], strict=True)),
        )

    @staticmethod
    def _first(rows: Sequence[StageRow], branch: str) -> str | None:
        return next((row.name for row in rows if branch in row.branches), None)


class Segments(Sequence[Segment]):
    """A topology cut into segments: every stage in exactly one, in order, joint stages alone.

    Raises
    ------
    stream.failure.PermanentError
        The segments are not that.
    """

    def __init__(self, topology: Topology, segments: Iterable[Segment]) -> None:
        self.topology = topology
        self._segments = tuple(segments)
        self._of = {stage: segment for segment in self._segments for stage in segment.stages}
        named = tuple(stage for segment in self._segments for stage in segment.stages)
        if named != topology.stages:
            expected = ", ".join(topology.stages)
            msg = f"the segments hold the stages {', '.join(named)}; expected, in this order, {expected}"
            raise PermanentError(msg)
        for segment in self._segments:
            joint = [stage for stage in segment.stages if topology.row(stage).joint]
            if joint and len(segment.stages) > 1:
                msg = f"the joint stage {joint[0]!r} must be a segment of its own, not part of {segment.name!r}"
                raise PermanentError(msg)

    def __len__(self) -> int:
        return len(self._segments)

    def __getitem__(self, index: int) -> Segment:  # type: ignore[override]
        return self._segments[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Segments):
            return self.topology == other.topology and self._segments == other._segments
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.topology, self._segments))

    def named(self, name: str) -> Segment:
        """Segment of that name. Raises PermanentError when there is none."""
        for segment in self._segments:
            if segment.name == name:
                return segment
        msg = f"there is no segment {name!r}; there are {', '.join(segment.name for segment in self._segments)}"
        raise PermanentError(msg)

    def containing(self, stage: str) -> Segment:
        """Segment in which a stage runs. Raises PermanentError for a stage that is not in the topology."""
        self.topology.index(stage)
        return self._of[stage]

    def inbox(self, run: str, stage: str) -> str:
        """Topic to which a message that starts at this stage is published: that of the head of its segment."""
        return topic_name(run, self.containing(stage).name)

    def next_inside(self, after: str, branch: str) -> str | None:
        """Return the stage to go on with in memory; None when the next one is in another segment, or there is none."""
        following = self.topology.next_stage(after, branch)
        if following is not None and self._of[following] is self.containing(after):
            return following
        return None


def topic_name(run: str, stage: str) -> str:
    """Name of a stage's topic in a run, ``<run>.<stage>``.

    Run names have no ``.`` and no ``_``: Kafka takes the two for equal in the names of metrics and refuses topics
    that collide, as ``a_b.c`` and ``a.b_c`` do.

    Raises
    ------
    stream.failure.PermanentError
        A name has other characters, or the topic's name is longer than Kafka allows.
    """
    if not _RUN_NAME.fullmatch(run):
        msg = f"the run name {run!r} is not made of letters, digits and '-', a letter or digit first"
        raise PermanentError(msg)
    if not _STAGE_NAME.fullmatch(stage):
        msg = f"the stage name {stage!r} is not made of lower-case letters, digits and '_', a letter first"
        raise PermanentError(msg)
    return _checked(f"{run}.{stage}")


def retry_topic_name(run: str, stage: str, tier: int) -> str:
    """Name of the topic for records of a segment's inbox that wait for their turn in a retry tier (from 0)."""
    return _checked(f"{topic_name(run, stage)}.retry-{tier}")


def changelog_topic_name(run: str, stage: str) -> str:
    """Name of the compacted topic with the state of a joint stage's aggregator."""
    return _checked(f"{topic_name(run, stage)}.changelog")


def dead_letter_topic_name(run: str) -> str:
    """Name of the run's topic for records that no attempt can help. No stage's name has a ``-``."""
    return topic_name(run, "x").removesuffix("x") + "dead-letters"


def product_event_topic_name(run: str) -> str:
    """Name of the run's topic for events about products that became visible."""
    return topic_name(run, "x").removesuffix("x") + "product-events"


def _checked(topic: str) -> str:
    if len(topic) > _LONGEST_TOPIC:
        msg = f"the topic name {topic[:40]}… has {len(topic)} characters, Kafka allows {_LONGEST_TOPIC}"
        raise PermanentError(msg)
    return topic


def stable_hash(text: str) -> int:
    """Hash that is the same in every process and on every machine, as Python's own is not."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def partition_for(locality: int | str, key: str, *, partitions: int, spread: int = 1) -> int:
    """Partition for an item: items of one locality share ``spread`` neighbouring partitions.

    ``(locality * spread + hash(key) mod spread) mod partitions``: a worker that owns few partitions meets few
    localities, and so keeps their reference files hot.

    Parameters
    ----------
    locality : int or str
        What should stay together; a number is used as it is, so that numbered localities spread evenly.
    key : str
        What tells items of one locality apart.
    partitions, spread : int
        Number of partitions, and over how many of them one locality is spread.
    """
    if partitions < 1 or spread < 1:
        msg = f"partitions and spread must be at least 1, got {partitions} and {spread}"
        raise PermanentError(msg)
    number = stable_hash(locality) if isinstance(locality, str) else locality
    return (number * spread + stable_hash(key) % spread) % partitions
