"""Statuses of members as objects in the store. Which one is the newest is the changelog's to say, while there is one.

Each status that an association takes note of is written before the changelog tells of it. So a close, which names
digests alone, can be sent on by any aggregator, whatever became of its members since; and a changelog that was lost is
made anew (`stream.changelog`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stream.association import MemberRecord
from stream.close import Close, is_absent
from stream.failure import RetriableError
from stream.identity import canonical_json
from stream.message import MemberMessage
from stream.store import ObjectStore
from stream.together import together
from stream.tracing import Resting

__all__ = ["Kept", "KeptMember", "MemberStatuses", "status_key"]

READS_AT_ONCE = 16
"""Reads of small objects side by side: they wait for the store, not for this machine."""


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

    def to_json(self, partition: int) -> dict[str, Any]:
        """Return it as a JSON value, with the partition in which the association's members lie."""
        return {
            "partition": partition,
            "record": self.record.to_json(),
            "message": json.loads(zlib.decompress(self.packed)),
            "traceparent": self.trace.traceparent,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> KeptMember:
        """Read what `to_json` wrote."""
        record = MemberRecord.from_json(value["record"])
        return cls(record, _packed(value["message"]), Resting(value.get("traceparent"), record.changed_at))


def _packed(message: Any) -> bytes:
    # Not checked once more: it was a message, or comes from JSON.
    text = json.dumps(message, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return zlib.compress(text.encode(), level=1)


@dataclass(slots=True)
class Kept:
    """What is known of one association; ``dispatched`` is the newest revision whose members were sent on."""

    partition: int
    members: dict[str, KeptMember] = field(default_factory=dict)
    dispatched: int = 0

    def learn(self, member: KeptMember) -> bool:
        """Take note of a member unless a status from a higher offset is known; whether it was news."""
        known = self.members.get(member.record.member)
        if known is not None and known.record.offset >= member.record.offset:
            return False
        self.members[member.record.member] = member
        return True


def status_key(run: str, association: str, member: str, digest: str) -> str:
    """Key of one status of a member."""
    return f"runs/{run}/statuses/{association}/{member}/{digest}"


class MemberStatuses:
    """The statuses of one run.

    Parameters
    ----------
    store : ObjectStore
        Where they are.
    run : str
        The run.
    """

    def __init__(self, store: ObjectStore, run: str) -> None:
        self._store = store
        self._run = run

    async def keep(self, association: str, partition: int, member: KeptMember) -> None:
        """Write a status; one that a member has once more is written with its newest offset."""
        key = status_key(self._run, association, member.record.member, member.record.digest)
        await self._store.put(key, canonical_json(member.to_json(partition)))

    async def load(self, association: str, member: str, digest: str) -> KeptMember | None:
        """Read one status; None when there is none of this digest."""
        data = await self._store.get(status_key(self._run, association, member, digest))
        return None if data is None else KeptMember.from_json(json.loads(data))

    async def result(self, association: str, member: str, digest: str) -> str | None:
        """Read which result one status tells of, by its identity; None when there is none of this digest."""
        data = await self._store.get(status_key(self._run, association, member, digest))
        return None if data is None else json.loads(data)["message"]["identity"]

    async def as_closed(self, close: Close, known: Mapping[str, KeptMember]) -> dict[str, KeptMember]:
        """The members that a close uses, as they were at it, given what is known of them now.

        One may have changed since, or not be known here when the close is another's.

        Raises
        ------
        stream.failure.RetriableError
            A status is not in the store.
        """
        read = await self._at_close(close, known)
        found: dict[str, KeptMember] = {}
        for closed in close.members:
            if is_absent(closed.status):
                continue
            member = read.get(closed.member, known.get(closed.member))
            if member is None or member.record.digest != closed.digest:
                raise RetriableError(f"the status of {closed.member} at a close of {close.association} is not stored")
            found[closed.member] = member
        return found

    async def recall(self, close: Close, known: Kept) -> None:
        """Learn what members were at a close of whom nothing is known, or something else; of all, if it was forgotten.

        Of a forgotten association nothing is left but what owners that froze wrote late. Of two statuses of a member
        that of the higher offset holds, as anywhere.
        """
        for member in (await self._at_close(close, known.members if known.dispatched else {})).values():
            known.learn(member)

    async def _at_close(self, close: Close, known: Mapping[str, KeptMember]) -> dict[str, KeptMember]:
        """Read the statuses that a close has and that are not those that are known."""
        found: dict[str, KeptMember] = {}

        async def read(member: str, digest: str) -> None:
            status = await self.load(close.association, member, digest)
            if status is not None:
                found[member] = status

        wanted = [
            partial(read, closed.member, closed.digest)
            for closed in close.members
            if closed.digest is not None
            and ((status := known.get(closed.member)) is None or status.record.digest != closed.digest)
        ]
        await together(wanted, most=READS_AT_ONCE)
        return found

    async def newest(self, partitions: Collection[int]) -> dict[str, Kept]:
        """Read all of them: the associations, by id, whose members lie in some partitions, each member's newest."""
        prefix = f"runs/{self._run}/statuses/"
        found: dict[str, Kept] = {}

        async def read(key: str) -> None:
            value = json.loads(await self._store.get(key) or b"null")
            if value is not None and value["partition"] in partitions:
                association = key.removeprefix(prefix).partition("/")[0]
                found.setdefault(association, Kept(value["partition"])).learn(KeptMember.from_json(value))

        keys = [info.key async for info in self._store.list(prefix)]
        await together([partial(read, key) for key in keys], most=READS_AT_ONCE)
        return found
