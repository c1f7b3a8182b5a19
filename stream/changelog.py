"""The aggregator's memory: one record a member in a compacted topic, and one that says which close was sent on.

Reads and writes records. What they mean for an association is `stream.association`'s.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from anyio.lowlevel import checkpoint

from stream.association import MemberRecord
from stream.broker.protocol import Broker
from stream.identity import canonical_json
from stream.message import MemberMessage
from stream.tracing import Resting

__all__ = ["Changelog", "Kept", "KeptMember"]

DISPATCHED = "#dispatched"
"""Stands in a key where a member's id would."""

_AT_A_TIME = 100
"""Records decoded before others get their turn: 10 ms. There may be 100 000, while heartbeats must go on."""


@dataclass(frozen=True, slots=True)
class KeptMember:
    """What is known of a member: its newest record and message, and its trace.

    The message is kept packed: its facts are some kB of text and several times that as objects, nobody looks at them
    before a close, and 100 000 members may wait for one.
    """

    record: MemberRecord
    packed: bytes
    trace: Resting

    @classmethod
    def of(cls, record: MemberRecord, message: MemberMessage, trace: Resting) -> KeptMember:
        """Pack what is known."""
        return cls(record, _packed(message.model_dump(mode="json")), trace)

    @property
    def message(self) -> MemberMessage:
        """The newest message, unpacked."""
        return MemberMessage.model_validate_json(zlib.decompress(self.packed))


def _packed(message: Any) -> bytes:
    return zlib.compress(json.dumps(message).encode(), level=1)


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
        records = dict(await self._broker.read_latest(self._topic))
        for number, key in enumerate(list(records)):
            if number % _AT_A_TIME == 0:
                await checkpoint()
            record = records.pop(key)  # not kept beside what is made of it
            association, _, member = key.decode().partition("/")
            value = json.loads(record.value or b"null")
            if partitions is not None and value["partition"] not in partitions:
                continue
            kept = found.setdefault(association, Kept(value["partition"]))
            if member == DISPATCHED:
                kept.dispatched = int(value["revision"])
                continue
            known = MemberRecord.from_json(value["record"])
            trace = Resting(value.get("traceparent"), known.changed_at)
            kept.members[member] = KeptMember(known, _packed(value["message"]), trace)
        return found

    async def note_member(self, association: str, partition: int, member: KeptMember) -> None:
        """Keep the newest of a member."""
        value = {
            "partition": partition,
            "record": member.record.to_json(),
            "message": json.loads(zlib.decompress(member.packed)),
            "traceparent": member.trace.traceparent,
        }
        await self._broker.publish(
            self._topic, key=f"{association}/{member.record.member}".encode(), value=canonical_json(value)
        )

    async def note_dispatched(self, association: str, partition: int, revision: int) -> None:
        """Keep that the members of a close were sent on."""
        value = {"partition": partition, "revision": revision}
        await self._broker.publish(self._topic, key=f"{association}/{DISPATCHED}".encode(), value=canonical_json(value))
