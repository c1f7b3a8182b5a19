"""An aggregator with many open associations: taken up side by side, kept small, looked at only when there is why."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream.aggregator import Aggregator, Solved
from stream.association import Association, AssociationSettings, Close, MemberRecord
from stream.broker.embedded import EmbeddedBroker
from stream.changelog import Changelog
from stream.clock import SystemClock
from stream.identity import hash_parts
from stream.member_list import MemberList, load_close, put_member_list
from stream.member_statuses import KeptMember
from stream.message import MemberMessage, MemberStatus, Message
from stream.router import Router, run_topics
from stream.store import ObjectStore
from stream.store.obstore_store import open_store
from stream.topology import Segments, StageRow, Topology, changelog_topic_name, topic_name
from stream.tracing import Resting

pytestmark = pytest.mark.anyio

RUN, JOINT, MANY = "run", "joint", 100
FACTS = {"locality": 3, "meta": {f"exposure.value_{number}": number / 7 for number in range(50)}}
PATIENCE = 30.0


def segments() -> Segments:
    rows = [StageRow("first", frozenset({"x"})), StageRow(JOINT, frozenset({"x"}), joint=True)]
    return Topology([*rows, StageRow("last", frozenset({"x"}))]).segments("granular")


def member_message(association: str, member: str) -> MemberMessage:
    identity = hash_parts(member)
    return MemberMessage(
        run=RUN, association=association, member=member, status=MemberStatus.OK, branch="x", identity=identity,
        manifest=f"results/{identity}/1", facts=FACTS,
    )  # fmt: skip


class SlowStore:
    """Answers late, and knows how many wait for it."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.waiting = self.most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def get(self, key: str) -> bytes | None:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            await anyio.sleep(0.01)
            return await self.inner.get(key)
        finally:
            self.waiting -= 1


class Site:
    """A run with associations ``a0``, ``a1``, … of two members each, whose first one has come."""

    def __init__(self, broker: EmbeddedBroker, folder: Path) -> None:
        self.broker = broker
        self.store = SlowStore(open_store(folder / "store"))
        self.changelog = Changelog(broker, changelog_topic_name(RUN, JOINT))
        self.router = Router(
            broker=broker, segments=segments(), run=RUN, status_of=lambda _: MemberStatus.OK, clock=SystemClock()
        )
        self.events: list[dict[str, Any]] = []
        self.solved: list[tuple[str, list[MemberMessage]]] = []

    async def announce(self, association: str) -> None:
        members = (f"{association}_1", f"{association}_2")
        await put_member_list(self.store.inner, RUN, MemberList(association, members))

    async def keep(self, association: str, member: str, *, deadline_at: float, offset: int = 0) -> None:
        message = member_message(association, member)
        record = MemberRecord(member, MemberStatus.OK, message.digest, offset, 1000.0, deadline_at)
        await self.changelog.note_member(association, 0, KeptMember.of(record, message, Resting("00-trace", 1000.0)))

    @asynccontextmanager
    async def aggregating(self) -> AsyncIterator[Aggregator]:
        aggregator = Aggregator(
            broker=self.broker, store=self.store, router=self.router, solver=self._solve, abandon=self._abandon,
            settings=AssociationSettings(), clock=SystemClock(), observe=self.events.append,
        )  # fmt: skip
        async with anyio.create_task_group() as tasks:
            await tasks.start(aggregator.run)
            await until(lambda: self.count("restored") == 1)
            yield aggregator
            tasks.cancel_scope.cancel()

    def count(self, event: str) -> int:
        return sum(found["event"] == event for found in self.events)

    async def _solve(self, close: Close, messages: dict[str, MemberMessage]) -> Solved:
        self.solved.append((close.association, list(messages.values())))
        return Solved("results/solution/1", hash_parts("solution"))

    async def _abandon(self, message: Message, reason: str) -> None:
        raise AssertionError(message, reason)


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - events of a list
            await anyio.sleep(0.01)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with EmbeddedBroker(tmp_path / "log") as broker:
        await broker.create_topics(run_topics(RUN, segments()))
        site = Site(broker, tmp_path)
        far = SystemClock().now() + 86_400.0
        for number in range(MANY):
            await site.announce(f"a{number}")
            await site.keep(f"a{number}", f"a{number}_1", deadline_at=far)
        yield site


async def test_many_associations_are_taken_up_side_by_side_and_whole(site: Site) -> None:
    async with site.aggregating() as aggregator:
        state = aggregator.state()
        assert sorted(state) == sorted(f"a{number}" for number in range(MANY))
        for name, association in state.items():
            assert association.expected == (f"{name}_1", f"{name}_2")
            assert [record.member for record in association.records()] == [f"{name}_1"]
    # Side by side: one after the other they would wait for the store 200 times; but not all at once.
    assert 8 < site.store.most < MANY
    assert not site.solved


async def test_what_is_kept_of_a_member_is_its_whole_message_in_little_room(site: Site) -> None:
    kept = (await site.changelog.read())["a7"].members["a7_1"]
    assert kept.message == member_message("a7", "a7_1")
    assert kept.trace == Resting("00-trace", 1000.0)
    assert len(kept.packed) < len(kept.message.encode()) / 2


async def test_an_association_that_a_crash_left_complete_is_closed_after_the_restore(site: Site) -> None:
    await site.keep("a3", "a3_2", deadline_at=SystemClock().now() + 86_400.0, offset=1)
    async with site.aggregating():
        await until(lambda: site.count("dispatched") == 1)
    ((association, messages),) = site.solved
    assert association == "a3"
    assert messages == [member_message("a3", "a3_1"), member_message("a3", "a3_2")]


async def test_a_deadline_fires_for_its_association_alone(site: Site) -> None:
    await site.announce("soon")
    await site.keep("soon", "soon_1", deadline_at=SystemClock().now() + 1.0)
    async with site.aggregating():
        await until(lambda: site.count("dispatched") == 1)
        await site.router.send_member(member_message("a5", "a5_2"))
        await until(lambda: site.count("dispatched") == 2)
    assert [association for association, _ in site.solved] == ["soon", "a5"]
    close = await load_close(site.store.inner, RUN, "soon", 1)
    assert close is not None
    assert close.reason == "deadline"


async def test_a_member_makes_the_aggregator_look_at_its_association_and_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    due = Association.due

    def noting(self: Association, now: float, *, backlog_read: bool = True) -> Close | None:
        asked.append(self.id)
        return due(self, now, backlog_read=backlog_read)

    async with site.aggregating():
        await anyio.sleep(0.3)  # the look at all that were restored
        monkeypatch.setattr(Association, "due", noting)
        await site.router.send_member(member_message("a5", "a5_2"))
        await until(lambda: site.count("dispatched") == 1)
        await anyio.sleep(0.1)
    assert set(asked) == {"a5"}
    (record,) = (await site.broker.read(topic_name(RUN, "last"), 0, 0, 10))[:1]
    assert record.key is not None
