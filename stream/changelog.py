"""The aggregator's memory: records of members in a compacted topic, and one that says which close was sent on.

Reads and writes records. What they mean for an association is `stream.association`'s.

Each status has a key of its own, with its source offset; the one before is removed after the new one is written. So an
owner that froze and writes an old status late covers no newer one, whatever compaction does: of all that are there,
that of the highest offset holds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

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


@dataclass(slots=True)
class _Content:
    """What a changelog says: associations by id, whole partitions, keys of statuses that are not the newest ones."""

    found: dict[str, Kept] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)
    covered: list[str] = field(default_factory=list)
    newest: dict[tuple[str, str], str] = field(default_factory=dict)

    def learn(self, key: str, association: str, member: KeptMember, kept: Kept) -> None:
        """Take note of a status; of two of one member the key of the older one is `covered`."""
        place = (association, member.record.member)
        if kept.learn(member):
            before = self.newest.get(place)
            self.newest[place] = key
            self.covered += [] if before is None else [before]
        else:
            self.covered.append(key)


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
        return (await self._read(partitions)).found

    async def restore(self, partitions: Collection[int], statuses: MemberStatuses) -> dict[str, Kept]:
        """Read it to its end as `read` does, and make it whole again where it was lost.

        Only the owner of a partition may, and before it takes note of anything: else the old would cover the new.
        """
        content = await self._read(partitions)
        found = content.found
        for key in content.covered:
            await self._remove(key)
        lost = set(partitions) - content.whole
        if not lost:
            return found
        for association, kept in (await statuses.newest(lost)).items():
            known = found.setdefault(association, Kept(kept.partition))
            news = [(known.members.get(name), member) for name, member in kept.members.items() if known.learn(member)]
            for before, member in news:
                await self.note_member(association, kept.partition, member, before=before)
            if news:
                LOG.warning("the changelog lacked %d members of %s, which the store has", len(news), association)
        for partition in sorted(lost):
            await self._publish(f"{WHOLE}/{partition}", {"partition": partition, "whole": True})
        return found

    async def _read(self, partitions: Collection[int] | None) -> _Content:
        content = _Content()
        records = dict(await self._broker.read_latest(self._topic))
        for number, raw in enumerate(list(records)):
            if number % _AT_A_TIME == 0:
                await checkpoint()
            record, key = records.pop(raw), raw.decode()  # not kept beside what is made of it
            association, _, member = key.partition("/")
            value = json.loads(record.value or b"null")
            if partitions is not None and value["partition"] not in partitions:
                continue
            if association == WHOLE:
                content.whole.add(value["partition"])
                continue
            kept = content.found.setdefault(association, Kept(value["partition"]))
            if member == DISPATCHED:
                kept.dispatched = int(value["revision"])
            else:
                content.learn(key, association, KeptMember.from_json(value), kept)
        return content

    async def note_member(
        self, association: str, partition: int, member: KeptMember, *, before: KeptMember | None = None
    ) -> None:
        """Keep the newest of a member, and no longer the one that was known ``before``."""
        await self._publish(_key(association, member), member.to_json(partition))
        if before is not None and before.record.offset < member.record.offset:
            await self._remove(_key(association, before))

    async def note_dispatched(self, association: str, partition: int, revision: int) -> None:
        """Keep that the members of a close were sent on."""
        await self._publish(f"{association}/{DISPATCHED}", {"partition": partition, "revision": revision})

    async def forget(self, association: str, members: Iterable[KeptMember]) -> None:
        """Keep these statuses no longer, and in the end not which close was sent on.

        In this order, so that an association of which a crash leaves only some statuses is not taken for one whose
        close was not sent on.
        """
        for member in members:
            await self._remove(_key(association, member))
        await self._remove(f"{association}/{DISPATCHED}")

    async def _publish(self, key: str, value: dict[str, object]) -> None:
        await self._broker.publish(self._topic, key=key.encode(), value=canonical_json(value))

    async def _remove(self, key: str) -> None:
        await self._broker.publish(self._topic, key=key.encode(), value=None)


def _key(association: str, member: KeptMember) -> str:
    return f"{association}/{member.record.member}/{member.record.offset}"
