"""The aggregator's memory: one record a member in a compacted topic, and one that says which close was sent on.

Reads and writes records. What they mean for an association is `stream.association`'s.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field

from stream.association import MemberRecord
from stream.broker.protocol import Broker
from stream.identity import canonical_json
from stream.message import MemberMessage
from stream.tracing import Resting

__all__ = ["Changelog", "Kept", "KeptMember"]

DISPATCHED = "#dispatched"
"""Stands in a key where a member's id would."""


@dataclass(frozen=True, slots=True)
class KeptMember:
    """What is known of a member: its newest record and message, and its trace."""

    record: MemberRecord
    message: MemberMessage
    trace: Resting


@dataclass(slots=True)
class Kept:
    """What is known of one association; ``dispatched`` is the newest revision whose members were sent on."""

    partition: int
    members: dict[str, KeptMember] = field(default_factory=dict)
    dispatched: int = 0


class Changelog:
    """The changelog of one joint stage.

    Parameters
    ----------
    broker : Broker
        Where it lies.
    topic : str
        Its topic.
    """

    def __init__(self, broker: Broker, topic: str) -> None:
        self._broker = broker
        self._topic = topic

    async def read(self, partitions: Collection[int] | None = None) -> dict[str, Kept]:
        """Read it to its end: the associations, by id, whose members lie in some partitions (all when not given)."""
        found: dict[str, Kept] = {}
        for key, record in (await self._broker.read_latest(self._topic)).items():
            association, _, member = key.decode().partition("/")
            value = json.loads(record.value or b"null")
            if partitions is not None and value["partition"] not in partitions:
                continue
            kept = found.setdefault(association, Kept(value["partition"]))
            if member == DISPATCHED:
                kept.dispatched = int(value["revision"])
                continue
            known = MemberRecord.from_json(value["record"])
            kept.members[member] = KeptMember(
                known,
                MemberMessage.model_validate_json(json.dumps(value["message"])),
                Resting(value.get("traceparent"), known.changed_at),
            )
        return found

    async def note_member(self, association: str, partition: int, member: KeptMember) -> None:
        """Keep the newest of a member."""
        value = {
            "partition": partition,
            "record": member.record.to_json(),
            "message": member.message.model_dump(mode="json"),
            "traceparent": member.trace.traceparent,
        }
        await self._broker.publish(
            self._topic, key=f"{association}/{member.record.member}".encode(), value=canonical_json(value)
        )

    async def note_dispatched(self, association: str, partition: int, revision: int) -> None:
        """Keep that the members of a close were sent on."""
        value = {"partition": partition, "revision": revision}
        await self._broker.publish(self._topic, key=f"{association}/{DISPATCHED}".encode(), value=canonical_json(value))
