"""What the aggregator keeps, and what becomes of closes that are not its own doing. On real servers: `tests.faults`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream import aggregator as aggregator_module
from stream.aggregator import Aggregator, Solved
from stream.association import AssociationSettings, Close, MemberRecord
from stream.broker.embedded import EmbeddedBroker
from stream.broker.protocol import TopicSpec
from stream.changelog import Changelog
from stream.clock import SystemClock
from stream.dispatch import pause_after
from stream.failure import FailureClass, RetriableError
from stream.identity import hash_parts
from stream.jobs import JobOutcome
from stream.member_list import MemberList, load_close, put_member_list, superseded_by, take_product_name
from stream.member_statuses import Kept, KeptMember, MemberStatuses
from stream.message import MemberMessage, MemberStatus, Message, OrderAction, OrderMessage
from stream.router import Router, run_topics
from stream.store import ObjectStore
from stream.store.obstore_store import open_store
from stream.together import together
from stream.topology import StageRow, Topology
from stream.tracing import Resting
from stream.worker import WorkFailedError

RUN = "r"
BRANCH = frozenset({"image"})
PAIR = MemberList("pair-1", ("e2", "e1"), "pair")
EDITED = MemberList("pair-2", ("e2", "e3"), "pair")
OTHER = MemberList("other-1", ("f1", "f2"), "other")
PATIENCE = 20.0

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def member(name: str, content: str = "", association: str = PAIR.association) -> MemberMessage:
    identity = hash_parts("member", name, content)
    return MemberMessage(
        run=RUN, association=association, member=name, status=MemberStatus.OK, branch="image", identity=identity,
        manifest=f"results/{identity}/1",
    )  # fmt: skip


def kept(message: MemberMessage, offset: int) -> KeptMember:
    record = MemberRecord(message.member, message.status, message.digest, offset, 10.0 + offset, 500.0)
    return KeptMember.of(record, message, Resting(None, record.changed_at))


class Site:
    """An aggregator on an embedded broker; a solver that does what a test says."""

    def __init__(self, broker: EmbeddedBroker, store: ObjectStore) -> None:
        self.broker = broker
        self.store = store
        rows = [StageRow("made", BRANCH), StageRow("joint", BRANCH, joint=True), StageRow("last", BRANCH)]
        self.segments = Topology(rows).segments("granular")
        self.router = Router(
            broker=broker, segments=self.segments, run=RUN, status_of=lambda _: MemberStatus.OK, clock=SystemClock()
        )
        self.events: list[dict[str, Any]] = []
        self.abandoned: list[str] = []

    @classmethod
    @asynccontextmanager
    async def opened(cls, folder: Path) -> AsyncIterator[Site]:
        async with EmbeddedBroker(folder / "log") as broker:
            site = cls(broker, open_store(folder / "store"))
            await broker.create_topics(run_topics(RUN, site.segments))
            await put_member_list(site.store, RUN, PAIR)
            await take_product_name(site.store, RUN, PAIR)
            yield site

    async def solve(self, close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        return Solved("results/solution/1", hash_parts("solution"))

    async def abandon(self, message: Message, reason: str) -> None:
        self.abandoned.append(message.exposure)

    @asynccontextmanager
    async def serving(
        self,
        solve: Callable[[Close, dict[str, MemberMessage]], Awaitable[Solved | None]] | None = None,
        *,
        revision_delay: float = 1800.0,
        forget_seconds: float = 86_400.0,
        patient: bool = True,
    ) -> AsyncIterator[Aggregator]:
        aggregator = Aggregator(
            broker=self.broker, store=self.store, router=self.router, solver=solve or self.solve, abandon=self.abandon,
            settings=AssociationSettings(deadline=None, revision_delay=revision_delay), clock=SystemClock(),
            observe=self.events.append, forget_seconds=forget_seconds, patient=patient,
        )  # fmt: skip
        async with anyio.create_task_group() as tasks:
            await tasks.start(aggregator.run)
            yield aggregator
            tasks.cancel_scope.cancel()

    async def until(self, event: str, count: int = 1) -> None:
        with anyio.fail_after(PATIENCE):
            while sum(found["event"] == event for found in self.events) < count:  # noqa: ASYNC110 - events of a list
                await anyio.sleep(0.01)

    async def sent(self) -> dict[tuple[str, int | None], str]:
        """Identities that were sent on, by exposure and revision."""
        records = await self.broker.read("r.last", 0, 0, 100)
        return {(m.exposure, m.revision): m.identity for m in map(Message.from_record, records)}


async def test_a_changelog_that_was_lost_is_made_anew_from_the_store_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = MemberStatuses(open_store(tmp_path / "store"), RUN)
    first, again = kept(member("e1"), 3), kept(member("e1", "redriven"), 7)
    other = kept(member("e9", association="elsewhere"), 0)
    for partition, known in ((0, first), (0, again), (0, kept(member("e2"), 5)), (1, other)):
        await statuses.keep(known.message.association, partition, known)
    async with EmbeddedBroker(tmp_path / "log") as broker:
        await broker.create_topics([TopicSpec("changelog", 1, compacted=True)])
        changelog = Changelog(broker, "changelog")
        newer = kept(member("e2", "noted after the loss"), 8)
        await changelog.note_member(PAIR.association, 0, newer)
        expected = {PAIR.association: Kept(0, {"e1": again, "e2": newer})}
        assert await changelog.restore({0}, statuses) == expected
        assert await changelog.read({0}) == expected

        async def unread(self: MemberStatuses, partitions: set[int]) -> dict[str, Kept]:
            assert partitions == {1}, "what is whole is not looked for in the store"
            return {}

        monkeypatch.setattr(MemberStatuses, "newest", unread)
        assert await changelog.restore({0, 1}, statuses) == expected


async def test_a_status_that_a_member_has_once_more_is_the_newest_in_the_store(tmp_path: Path) -> None:
    statuses = MemberStatuses(open_store(tmp_path), RUN)
    good, bad, good_again = kept(member("e1"), 1), kept(member("e1", "bad"), 2), kept(member("e1"), 3)
    for known in (good, bad, good_again):
        await statuses.keep(PAIR.association, 0, known)
    assert await statuses.newest({0}) == {PAIR.association: Kept(0, {"e1": good_again})}


async def test_members_are_sent_on_as_they_were_at_the_close_though_one_changed_before(tmp_path: Path) -> None:
    async with Site.opened(tmp_path) as site:
        solving = anyio.Event()

        async def endless(close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
            solving.set()
            await anyio.sleep_forever()
            return None

        async with site.serving(endless):
            for name in PAIR.members:
                await site.router.send_member(member(name))
            await solving.wait()
            await site.router.send_member(member("e1", "anew"))
            await site.until("member", 3)
        async with site.serving():
            await site.until("dispatched")
        assert await site.sent() == {("e1", 1): member("e1").identity, ("e2", 1): member("e2").identity}


async def test_a_closed_association_is_forgotten_in_time_and_who_comes_late_opens_a_revision_with_all(
    tmp_path: Path,
) -> None:
    async with Site.opened(tmp_path) as site:
        async with site.serving(revision_delay=0.3, forget_seconds=0.2) as aggregator:
            for name in PAIR.members:
                await site.router.send_member(member(name))
            await site.until("dispatched")
            assert PAIR.association in aggregator.state(), "not at once"
            await site.until("forgotten")
            assert aggregator.state() == {}
            assert await aggregator.known.changelog.read() == {}
            await site.router.send_member(member("e2"))  # a repeat of who was there
            await site.until("forgotten", 2)
        async with site.serving(revision_delay=0.3, forget_seconds=0.2):
            await site.router.send_member(member("e1", "anew"))
            await site.until("dispatched", 2)
            await site.until("forgotten", 3)
        assert [event["associations"] for event in site.events if event["event"] == "restored"] == [0, 0]
        assert [event["revision"] for event in site.events if event["event"] == "closed"] == [1, 2]
        sent = await site.sent()
        assert sent == {
            **{(name, 1): member(name).identity for name in PAIR.members},
            ("e1", 2): member("e1", "anew").identity, ("e2", 2): member("e2").identity,
        }  # fmt: skip


async def test_a_store_that_does_not_answer_while_a_close_is_solved_fails_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregator_module, "_PAUSE_SECONDS", 0.01)
    tries: list[int] = []

    async def solve(close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        tries.append(close.revision)
        if len(tries) < 3:
            raise RetriableError("the store does not answer")
        return Solved("results/solution/1", hash_parts("solution"))

    async with Site.opened(tmp_path) as site, site.serving(solve):
        for name in PAIR.members:
            await site.router.send_member(member(name))
        await site.until("dispatched")
        assert (tries, site.abandoned) == ([1, 1, 1], [])
        assert len(await site.sent()) == 2


def failing(failure_class: FailureClass) -> WorkFailedError:
    return WorkFailedError(JobOutcome(failure={"class": failure_class.value, "message": "by order"}))


def failures(site: Site) -> set[tuple[str, str, str]]:
    told = [event for event in site.events if event["event"] == "attempt_failed"]
    return {(event["exposure"], event["class"], event["action"]) for event in told}


async def test_a_solve_that_fails_for_something_outside_is_tried_until_it_works_and_blocks_no_other_association(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregator_module, "_PAUSE_SECONDS", 0.01)
    tries: list[str] = []
    other_sent = anyio.Event()

    async def solve(close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        tries.append(close.association)
        if close.association == PAIR.association and (tries.count(PAIR.association) < 3 or not other_sent.is_set()):
            raise failing(FailureClass.RETRIABLE)
        return Solved("results/solution/1", hash_parts("solution"))

    async with Site.opened(tmp_path) as site, site.serving(solve):
        for name in PAIR.members:
            await site.router.send_member(member(name))
        await site.until("attempt_failed")
        await put_member_list(site.store, RUN, OTHER)
        for name in OTHER.members:
            await site.router.send_member(member(name, association=OTHER.association))
        await site.until("dispatched")
        other_sent.set()
        await site.until("dispatched", 2)
        dispatched = [event["association"] for event in site.events if event["event"] == "dispatched"]
        assert dispatched == [OTHER.association, PAIR.association]
        assert tries.count(PAIR.association) >= 3
        assert failures(site) == {(PAIR.association, "retriable", "retry_later")}
        assert site.abandoned == []
        assert {name for name, _ in await site.sent()} == {*PAIR.members, *OTHER.members}


async def test_a_close_that_could_not_be_solved_is_solved_by_the_next_owner(tmp_path: Path) -> None:
    async def solve(close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        raise failing(FailureClass.RETRIABLE)

    async with Site.opened(tmp_path) as site:
        async with site.serving(solve):
            for name in PAIR.members:
                await site.router.send_member(member(name))
            await site.until("attempt_failed")
        assert await site.sent() == {}
        async with site.serving():
            await site.until("dispatched")
        assert (len(await site.sent()), site.abandoned) == (2, [])


async def test_a_close_that_cannot_be_solved_yet_gives_way_to_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregator_module, "_PAUSE_SECONDS", 0.01)

    async def solve(close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        if close.revision == 1:
            raise failing(FailureClass.RETRIABLE)
        return Solved("results/solution/2", hash_parts("solution"))

    async with Site.opened(tmp_path) as site, site.serving(solve, revision_delay=0.0, forget_seconds=0.0):
        for name in PAIR.members:
            await site.router.send_member(member(name))
        await site.until("attempt_failed")
        await site.router.send_member(member("e1", "anew"))
        await site.until("forgotten")  # not while anything is still tried
        assert set(await site.sent()) == {("e1", 2), ("e2", 2)}


@pytest.mark.parametrize(
    ("failure_class", "patient"),
    [(FailureClass.PERMANENT, True), (FailureClass.RESOURCE, True), (FailureClass.RETRIABLE, False)],
)
async def test_a_solve_that_failed_for_good_is_given_up_until_an_operator_opens_another_revision(
    tmp_path: Path, failure_class: FailureClass, patient: bool
) -> None:
    async def solve(close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        if close.revision == 1:
            raise failing(failure_class)
        return Solved("results/solution/2", hash_parts("solution"))

    async with Site.opened(tmp_path) as site, site.serving(solve, patient=patient):
        for name in PAIR.members:
            await site.router.send_member(member(name))
        await site.until("dispatched")
        assert sorted(site.abandoned) == sorted(PAIR.members)
        assert failures(site) == {(PAIR.association, failure_class.value, "abandon")}
        order = OrderMessage(run=RUN, association=PAIR.association, action=OrderAction.REOPEN, revision=2)
        for _ in range(2):
            await site.router.send_member(order)
        await site.until("order", 2)
        await site.until("dispatched", 2)
        refused = [event["refusal"] for event in site.events if event["event"] == "order"]
        assert refused == [None, "revision 2 is there already"]
        assert set(await site.sent()) == {("e1", 2), ("e2", 2)}
        assert len(site.abandoned) == 2


async def test_who_did_not_wait_for_the_close_is_sent_on_once_more_with_another_revision(tmp_path: Path) -> None:
    async with Site.opened(tmp_path) as site, site.serving():
        skipped = member("e1").replaced(status=MemberStatus.SKIPPED)
        for message in (skipped, member("e2")):
            await site.router.send_member(message)
        await site.until("dispatched")
        order = OrderMessage(run=RUN, association=PAIR.association, action=OrderAction.REOPEN, revision=2)
        await site.router.send_member(order)
        await site.until("dispatched", 2)
        sent = [Message.from_record(record) for record in await site.broker.read("r.last", 0, 0, 100)]
        assert sorted((m.exposure, m.revision or 0) for m in sent) == [("e1", 0), ("e1", 0), ("e2", 1), ("e2", 2)]


def test_the_pause_between_solves_doubles_up_to_some_minutes() -> None:
    pauses = [pause_after(failed, 5.0) for failed in (0, 1, 2, 3, 7, 10_000)]
    assert pauses == [5.0, 5.0, 10.0, 20.0, 300.0, 300.0]


async def test_a_superseded_association_is_not_closed_until_its_list_is_announced_again(tmp_path: Path) -> None:
    async with Site.opened(tmp_path) as site:
        await put_member_list(site.store, RUN, EDITED)
        assert await take_product_name(site.store, RUN, EDITED) == PAIR.association
        order = OrderMessage(run=RUN, association=PAIR.association, action=OrderAction.CLOSE, revision=1)
        async with site.serving():
            for name in PAIR.members:
                await site.router.send_member(member(name))
            await site.router.send_member(order)
            await site.until("order")
            refused = [event["refusal"] for event in site.events if event["event"] == "order"]
            assert refused == [f"it is superseded by {EDITED.association}"]
            assert await load_close(site.store, RUN, PAIR.association, 1) is None
            assert await take_product_name(site.store, RUN, PAIR) == EDITED.association
            await site.router.send_member(member("e1"))  # who announces the list tells of its members again
            await site.until("dispatched")
        assert len(await site.sent()) == 2


async def test_the_list_of_a_product_name_that_was_announced_last_is_the_newest(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert await superseded_by(store, RUN, PAIR.association, PAIR.product_name) is None
    for listed, before in ((PAIR, None), (PAIR, None), (EDITED, "pair-1"), (EDITED, None), (PAIR, "pair-2")):
        assert await take_product_name(store, RUN, listed) == before
    assert await superseded_by(store, RUN, EDITED.association, EDITED.product_name) == PAIR.association
    assert await superseded_by(store, RUN, PAIR.association, PAIR.product_name) is None
    assert await superseded_by(store, "another-run", EDITED.association, EDITED.product_name) is None
    plain = MemberList("e1-0", ("e1",))
    assert await take_product_name(store, RUN, plain) is None
    assert await superseded_by(store, RUN, plain.association, None) is None


async def test_announcers_at_once_of_one_product_name_agree_which_list_was_last(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    lists = {f"pair-{number}": MemberList(f"pair-{number}", (f"e{number}",), "pair") for number in range(12)}
    before: dict[str, str | None] = {}

    async def announce(name: str) -> None:
        before[name] = await take_product_name(store, RUN, lists[name])

    await together([partial(announce, name) for name in lists])
    (last,) = set(lists) - set(before.values())
    behind: list[str] = []
    while (name := before[behind[-1]] if behind else last) is not None:
        behind.append(name)
    assert sorted(behind) == sorted(lists), "each came behind another one, and one was the first"
    for name in lists:
        assert await superseded_by(store, RUN, name, "pair") == (None if name == last else last)
