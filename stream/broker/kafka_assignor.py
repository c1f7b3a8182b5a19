"""Shares the partitions of a group out evenly topic by topic, and leaves them where they are as far as that allows.

A group reads a stage's inbox and its retry topics. Assignors that count partitions of all topics alike may give one
member the inbox and another one the retry topics, where there is nearly nothing to do. Leaving partitions where they
are is KIP-54's idea.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

__all__ = ["Owned", "make_assignor", "share_out", "share_topic"]

Owned = Mapping[str, Sequence[int]]
"""Partitions by topic."""

Claim = tuple[int, Owned]
"""What a member says it had, and of which round of sharing out."""


def share_topic(
    partitions: Sequence[int], members: Sequence[str], claims: Sequence[tuple[str, int]], loads: Mapping[str, int]
) -> dict[str, list[int]]:
    """Share one topic's partitions out: nobody has two more than another, and whoever had one keeps it if possible.

    Parameters
    ----------
    partitions : sequence of int
        All of the topic.
    members : sequence of str
        Who reads it; at least one.
    claims : sequence of (str, int)
        Who had which partition, the most believable first.
    loads : mapping
        How many partitions of other topics each member has: what is over goes to those with the fewest.
    """
    least, over = divmod(len(partitions), len(members))
    shares: dict[str, list[int]] = {member: [] for member in members}
    free = set(partitions)
    for room in (least, least + 1):
        for member, partition in claims:
            held = shares[member]
            if partition in free and len(held) < room and (room == least or over):
                over -= len(held) == least
                held.append(partition)
                free.discard(partition)
    for partition in sorted(free):
        member = min(members, key=lambda name: (len(shares[name]), loads.get(name, 0), name))
        shares[member].append(partition)
    return {member: sorted(share) for member, share in shares.items()}


def share_out(
    partitions: Owned, subscriptions: Mapping[str, Iterable[str]], claims: Mapping[str, Claim]
) -> dict[str, dict[str, list[int]]]:
    """Share the partitions of all topics out, those of the largest topic first.

    Parameters
    ----------
    partitions : mapping
        Partitions by topic.
    subscriptions : mapping
        Topics by member.
    claims : mapping
        What members had, by member; of two who claim the same the one of the later round is believed.
    """
    believed = sorted(claims, key=lambda member: (-claims[member][0], member))
    shares: dict[str, dict[str, list[int]]] = {member: {} for member in subscriptions}
    loads = dict.fromkeys(subscriptions, 0)
    for topic in sorted(partitions, key=lambda topic: (-len(partitions[topic]), topic)):
        members = sorted(member for member, topics in subscriptions.items() if topic in topics)
        if not members:
            continue
        had = [(name, number) for name in believed if name in members for number in claims[name][1].get(topic, ())]
        for member, share in share_topic(partitions[topic], members, had, loads).items():
            if share:
                shares[member][topic] = share
                loads[member] += len(share)
    return shares


def make_assignor() -> type[AbstractPartitionAssignor]:
    """An assignor for one consumer: aiokafka keeps an assignor's state on its class."""

    class TopicByTopic(AbstractPartitionAssignor):  # type: ignore[misc]
        name = "topic-by-topic"
        version = 0
        round = 0
        owned: ClassVar[Owned] = {}

        @classmethod
        def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
            claim = json.dumps({"round": cls.round, "owned": cls.owned}).encode()
            return ConsumerProtocolMemberMetadata(cls.version, sorted(topics), claim)

        @classmethod
        def assign(cls, cluster: Any, members: Mapping[str, Any]) -> dict[str, ConsumerProtocolMemberAssignment]:
            claims = {member: _claim(metadata.user_data) for member, metadata in members.items()}
            subscriptions = {member: set(metadata.subscription) for member, metadata in members.items()}
            known = {topic: cluster.partitions_for_topic(topic) or () for topic in set().union(*subscriptions.values())}
            shares = share_out({topic: sorted(numbers) for topic, numbers in known.items()}, subscriptions, claims)
            mark = json.dumps({"round": 1 + max((number for number, _ in claims.values()), default=0)}).encode()
            return {
                member: ConsumerProtocolMemberAssignment(cls.version, sorted(share.items()), mark)
                for member, share in shares.items()
            }

        @classmethod
        def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
            cls.round = int(json.loads(assignment.user_data or b"{}").get("round", 0))
            cls.owned = {topic: list(numbers) for topic, numbers in assignment.assignment}

    return TopicByTopic


def _claim(data: bytes) -> Claim:
    try:
        document = json.loads(data or b"{}")
        return int(document["round"]), {str(topic): list(numbers) for topic, numbers in document["owned"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # of no version that we know: it had nothing
        return 0, {}
