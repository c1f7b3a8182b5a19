"""What is known of an association outlives compaction, late writes of owners that froze, and being forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.association import Association, AssociationSettings, MemberRecord, Seen
from stream.broker.protocol import Broker, Record
from stream.changelog import Changelog
from stream.clock import SystemClock
from stream.identity import hash_parts
from stream.known_associations import KnownAssociations
from stream.member_list import MemberList, put_close, put_member_list
from stream.member_statuses import KeptMember, MemberStatuses
from stream.message import MemberMessage, MemberStatus
from stream.router import Router
from stream.store import ObjectStore
from stream.store.protocol import ObjectInfo
from stream.topology import StageRow, Topology
from stream.tracing import Resting

RUN, ID = "r", "pair-1"
MEMBERS = ("e2", "e1", "e3")
BRANCH = frozenset({"image"})


class Log:
    """A compacted topic in memory: what was written, and what compaction leaves of it."""

    def __init__(self) -> None:
        self.written: list[tuple[bytes, bytes | None]] = []

    async def publish(self, topic: str, *, key: bytes, value: bytes | None) -> None:
        self.written.append((key, value))

    def compact(self) -> None:
        self.written = list(dict(self.written).items())

    async def read_latest(self, topic: str) -> dict[bytes, Record]:
        latest = {key: value for key, value in dict(self.written).items() if value is not None}
        return {key: Record(topic, 0, 0, key, value, (), 0) for key, value in latest.items()}


class Objects:
    """A store in memory: the methods that are needed here."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    async def put(self, key: str, data: bytes) -> None:
        self.kept[key] = data

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        return self.kept.setdefault(key, data) == data

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for key in sorted(self.kept):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self.kept[key]), 0.0)


class Owner:
    """Does what the aggregator does with what it knows; time is the source offset."""

    def __init__(self, log: Log, store: Objects) -> None:
        rows = [StageRow("made", BRANCH), StageRow("joint", BRANCH, joint=True), StageRow("last", BRANCH)]
        broker = cast("Broker", log)
        router = Router(
            broker=broker, segments=Topology(rows).segments("granular"), run=RUN,
            status_of=lambda _: MemberStatus.OK, clock=SystemClock(),
        )  # fmt: skip
        self.store = cast("ObjectStore", store)
        self.known = KnownAssociations(
            broker=broker, store=self.store, router=router, settings=AssociationSettings(deadline=None)
        )

    async def state(self) -> Association:
        state, recalled = await self.known.find(ID, 0)
        self.known.take(state, 0, recalled, now=0.0)
        return state

    async def see(self, message: MemberMessage, offset: int) -> KeptMember | None:
        """Take note of a status in memory; what there is to write of it."""
        state = await self.state()
        seen = state.observe(message.member, message.status, message.digest, offset=offset, now=float(offset))
        record = state.record(message.member)
        assert record is not None
        return kept(message, record) if seen in {Seen.NEW, Seen.CHANGED} else None

    async def note(self, member: KeptMember) -> None:
        await self.known.note_member(ID, 0, member, lambda: None)

    async def close(self) -> None:
        state = await self.state()
        if state.changed and state.records():
            state.record_close(await put_close(self.store, RUN, state.close_by_operator()))
            assert state.last_close is not None
            await self.known.note_dispatched(ID, state.last_close.revision)

    async def forget(self) -> None:
        await self.known.forget(ID, self.known.drop(ID))

    def may_forget(self) -> bool:
        state = self.known.states.get(ID)
        if state is None or state.last_close is None or state.settled_at is None:
            return False
        return self.known.dispatched.get(ID, 0) >= state.last_close.revision


def message(member: str, content: str) -> MemberMessage:
    identity = hash_parts("member", member, content)
    return MemberMessage(
        run=RUN, association=ID, member=member, status=MemberStatus.OK, branch="image", identity=identity,
        manifest=f"results/{identity}/1",
    )  # fmt: skip


def kept(told: MemberMessage, record: MemberRecord) -> KeptMember:
    return KeptMember.of(record, told, Resting(None, record.changed_at))


STEP = st.one_of(
    st.tuples(st.just("status"), st.sampled_from(MEMBERS), st.sampled_from(("first", "second"))),
    st.sampled_from((("close",), ("forget",), ("compact",), ("late note",), ("late forget",), ("restart",))),
)


@settings(max_examples=200, deadline=None)
@example(  # all that is left of a forgotten association is the late note of an older sighting of its newest status
    before=[("status", "e2", "first")],
    after=[("close",), ("status", "e2", "second"), ("late note",), ("status", "e2", "first"), ("forget",)],
)
@given(before=st.lists(STEP, max_size=8), after=st.lists(STEP, max_size=14))
def test_another_owner_knows_the_newest_of_each_member_whatever_was_forgotten_compacted_or_written_late(
    before: list[tuple[str, ...]], after: list[tuple[str, ...]]
) -> None:
    anyio.run(_two_owners, before, after)


async def _two_owners(before: list[tuple[str, ...]], after: list[tuple[str, ...]]) -> None:
    """One owner works, and freezes with its last status not yet noted; a second goes on; the first one thaws once."""
    log, store = Log(), Objects()
    await put_member_list(cast("ObjectStore", store), RUN, MemberList(ID, MEMBERS))
    frozen, offset, newest = Owner(log, store), 0, dict[str, tuple[str, int]]()
    in_flight: tuple[KeptMember, int] | None = None
    source: list[tuple[MemberMessage, int]] = []
    await frozen.known.restore({0})

    async def step(owner: Owner, what: tuple[str, ...]) -> None:
        nonlocal offset, in_flight
        if what[0] == "status":
            told = message(*what[1:])
            source.append((told, offset))
            if owner is frozen and in_flight is not None:
                await owner.note(in_flight[0])
                in_flight = None
            member = await owner.see(told, offset)
            if member is not None:
                newest[told.member] = (told.digest, offset)
                if owner is frozen:
                    in_flight = (member, offset)
                else:
                    await owner.note(member)
            offset += 1
        elif what[0] == "close" and (owner is not frozen or in_flight is None):
            await owner.close()
        elif what[0] == "forget" and owner.may_forget() and (owner is not frozen or in_flight is None):
            await owner.forget()
        elif what[0] == "compact":
            log.compact()

    for what in before:
        await step(frozen, what)
    owner = Owner(log, store)
    await owner.known.restore({0})
    if in_flight is not None:  # nobody committed it: it is read again
        told, at = source[-1]
        member = await owner.see(told, at)
        if member is not None:
            await owner.note(member)
    for what in after:
        if what[0] == "late note" and in_flight is not None:
            await frozen.known.changelog.note_member(ID, 0, in_flight[0])
            in_flight = None
        elif what[0] == "late forget" and in_flight is None and frozen.may_forget():
            await frozen.forget()
        elif what[0] == "restart":
            owner = Owner(log, store)
            await owner.known.restore({0})
        else:
            await step(owner, what)
    third = Owner(log, store)
    await third.known.restore({0})
    state = await third.state()
    assert {record.member: (record.digest, record.offset) for record in state.records()} == newest
    closed = {m.member: m.digest for m in state.last_close.members if m.digest} if state.last_close else {}
    assert state.changed == (state.last_close is None or any(closed.get(m) != d for m, (d, _) in newest.items()))


@pytest.mark.anyio
async def test_a_forgotten_association_leaves_nothing_in_memory_and_changelog_and_a_late_member_finds_it_all() -> None:
    log, store = Log(), Objects()
    owner = Owner(log, store)
    await put_member_list(owner.store, RUN, MemberList(ID, MEMBERS))
    await owner.known.restore({0})
    for number, name in enumerate(MEMBERS[:2]):
        member = await owner.see(message(name, "first"), number)
        assert member is not None
        await owner.note(member)
    await owner.close()
    assert owner.may_forget()
    await owner.forget()
    assert (owner.known.states, owner.known.members, owner.known.partitions) == ({}, {}, {})
    log.compact()
    assert [key for key, value in log.written if value is not None] == [b"#whole/0"]
    another = Owner(log, store)
    assert await another.known.restore({0}) == []
    assert await another.see(message(MEMBERS[0], "first"), 7) is None, "a repeat of who was there"
    late = await another.see(message(MEMBERS[2], "first"), 8)
    assert late is not None
    await another.note(late)
    await another.close()
    state = await another.state()
    assert state.last_close is not None
    assert (state.last_close.revision, state.last_close.used) == (2, MEMBERS)


@pytest.mark.anyio
async def test_of_two_statuses_of_a_member_in_the_changelog_the_older_one_is_removed_when_it_is_restored() -> None:
    log, store = Log(), Objects()
    changelog = Changelog(cast("Broker", log), "changelog")
    newer = kept(message("e1", "second"), MemberRecord("e1", MemberStatus.OK, "d2", 5, 5.0))
    older = kept(message("e1", "first"), MemberRecord("e1", MemberStatus.OK, "d1", 3, 3.0))
    await changelog.note_member(ID, 0, newer)
    await changelog.note_member(ID, 0, older)  # of an owner that froze before it wrote
    log.compact()
    found = await changelog.restore({0}, MemberStatuses(cast("ObjectStore", store), RUN))
    assert found[ID].members == {"e1": newer}
    left: Any = await log.read_latest("changelog")
    assert set(left) == {b"pair-1/e1/5", b"#whole/0"}
