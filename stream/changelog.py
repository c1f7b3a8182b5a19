"""The aggregator's memory: one record a member in a compacted topic, and one that says which close was sent on.

Reads and writes records. What they mean for an association is `stream.association`'s.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection

from anyio.lowlevel import checkpoint

from stream.broker.protocol import Broker
from stream.identity import canonical_json
from stream.member_statuses import Kept, KeptMember, MemberStatuses

__all__ = ["Changelog"]

LOG = logging.getLogger(__name__)

DISPATCHED = "#dispatched"
"""Stands in a key where a member's id would."""

_AT_A_TIME = 100
"""Records decoded before others get their turn: 10 ms. There may be 100 000, while heartbeats must go on."""

WHOLE = "#whole"
"""Stands in a key where an association's id would, before a partition: what its statuses in the store say is here
too. A changelog without it is a new one, or one that was lost and made anew."""


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
        return (await self._read(partitions))[0]

    async def restore(self, partitions: Collection[int], statuses: MemberStatuses) -> dict[str, Kept]:
        """Read it to its end as `read` does, and make it whole again where it was lost.

        Only the owner of a partition may, and before it takes note of anything: else the old would cover the new.
        """
        found, whole = await self._read(partitions)
        lost = set(partitions) - whole
        if not lost:
            return found
        for association, kept in (await statuses.newest(lost)).items():
            known = found.setdefault(association, Kept(kept.partition))
            news = [member for member in kept.members.values() if known.learn(member)]
            for member in news:
                await self.note_member(association, kept.partition, member)
            if news:
                LOG.warning("the changelog lacked %d members of %s, which the store has", len(news), association)
        for partition in sorted(lost):
            await self._publish(f"{WHOLE}/{partition}", {"partition": partition, "whole": True})
        return found

    async def _read(self, partitions: Collection[int] | None) -> tuple[dict[str, Kept], set[int]]:
        found: dict[str, Kept] = {}
        whole: set[int] = set()
        records = dict(await self._broker.read_latest(self._topic))
        for number, key in enumerate(list(records)):
            if number % _AT_A_TIME == 0:
                await checkpoint()
            record = records.pop(key)  # not kept beside what is made of it
            association, _, member = key.decode().partition("/")
            value = json.loads(record.value or b"null")
            if partitions is not None and value["partition"] not in partitions:
                continue
            if association == WHOLE:
                whole.add(value["partition"])
                continue
            kept = found.setdefault(association, Kept(value["partition"]))
            if member == DISPATCHED:
                kept.dispatched = int(value["revision"])
            else:
                kept.learn(KeptMember.from_json(value))
        return found, whole

    async def note_member(self, association: str, partition: int, member: KeptMember) -> None:
        """Keep the newest of a member."""
        await self._publish(f"{association}/{member.record.member}", member.to_json(partition))

    async def note_dispatched(self, association: str, partition: int, revision: int) -> None:
        """Keep that the members of a close were sent on."""
        await self._publish(f"{association}/{DISPATCHED}", {"partition": partition, "revision": revision})

    async def _publish(self, key: str, value: dict[str, object]) -> None:
        await self._broker.publish(self._topic, key=key.encode(), value=canonical_json(value))
