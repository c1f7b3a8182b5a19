"""``rampstream associations`` tells who is waited for, without an aggregator; closing and reopening are done by one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops.cli import main
from ops.connect import Connection, connected, view_run
from ops.engine import status_of
from ops.product_sets import ProductSet, ProductSets
from ops.serve import association_settings
from stream.aggregator import Aggregator, Solved
from stream.association import Close
from stream.broker.protocol import Record
from stream.clock import SystemClock
from stream.failure import PermanentError
from stream.identity import association_id, hash_parts
from stream.member_list import MemberList, put_member_list, take_product_name
from stream.message import MemberMessage, MemberStatus, Message, OrderAction, OrderMessage
from stream.results import Manifest, ObjectKind, StoredObject
from stream.router import Router
from stream.topology import dead_letter_topic_name, product_event_topic_name
from tests.ops.small_run import define_run, settings_in
from tests.servers import KafkaCluster, kafka_cluster

MEMBERS = ("r1_wfi01", "r1_wfi02", "r1_wfi03")
ID = association_id("r1", MEMBERS)
PATIENCE = 60.0


class Site:
    """A run that is set up, in a folder; each verb opens it anew, as an operator's would."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.settings = settings_in(folder)
        self.events: list[dict[str, Any]] = []
        self._capsys = capsys

    def said(self, *words: str, status: int = 0) -> str:
        self._capsys.readouterr()
        assert main(["associations", *words]) == status
        captured = self._capsys.readouterr()
        return captured.out + captured.err

    def printed(self) -> str:
        return "".join(self._capsys.readouterr())

    def told(self, *words: str) -> Any:
        return json.loads(self.said(*words, "--json"))

    def during(self, serve: Callable[[Served], Awaitable[None]]) -> None:
        async def go() -> None:
            async with self.serving() as served:
                await serve(served)

        anyio.run(go)

    @asynccontextmanager
    async def serving(self, *, aggregates: bool = True) -> AsyncIterator[Served]:
        async with connected(self.settings) as connection:
            view = await view_run(connection)
            router = Router(
                broker=connection.broker, segments=view.pipeline.segments, run="prompt", status_of=status_of,
                clock=SystemClock(),
            )  # fmt: skip
            served = Served(connection, router, self.events)
            aggregator = Aggregator(
                broker=connection.broker, store=connection.store, router=router, solver=served.solve,
                abandon=served.abandon, settings=association_settings(view.definition), clock=SystemClock(),
                observe=self.events.append, dispatched=served.products.check,
            )  # fmt: skip
            async with anyio.create_task_group() as tasks:
                if aggregates:
                    await tasks.start(aggregator.run)
                yield served
                tasks.cancel_scope.cancel()


class Served:
    """What a test does while an aggregator works."""

    def __init__(self, connection: Connection, router: Router, events: list[dict[str, Any]]) -> None:
        self.connection = connection
        self.router = router
        self.events = events
        self.seen: list[ProductSet] = []
        self.products = self.worker()
        self.unsolvable: str | None = None

    def worker(self) -> ProductSets:
        """Product sets as another process has them, which knows of none that was complete."""
        return ProductSets(
            store=self.connection.store, results=self.connection.results, run="prompt", visible=self.see,
            publish=self.router.send_event,
        )  # fmt: skip

    async def see(self, complete: ProductSet) -> None:
        self.seen.append(complete)

    async def solve(self, close: Close, messages: dict[str, MemberMessage]) -> Solved:
        assert tuple(messages) == close.used
        if self.unsolvable is not None:
            raise PermanentError(self.unsolvable)
        return Solved("results/solution/1", hash_parts("solution"))

    async def abandon(self, message: Message, reason: str) -> None:
        assert reason == self.unsolvable
        await self.products.failed(str(message.association), message.revision, message.exposure, reason)

    async def member(self, name: str, status: MemberStatus = MemberStatus.OK, content: str = "") -> None:
        identity = hash_parts("member", name, content)
        if status is MemberStatus.FAILED:
            message = MemberMessage(run="prompt", association=ID, member=name, status=status, reason="no flat")
        else:
            message = MemberMessage(
                run="prompt", association=ID, member=name, status=status, branch="WFI_IMAGE", identity=identity,
                manifest=f"results/{identity}/1",
            )  # fmt: skip
        await self.router.send_member(message)

    async def finalize(self, association: str = ID, *, but: str | None = None) -> None:
        """Finalize each member that was sent on, ``but`` one; again, what was finalized before."""
        for record in await self.records("prompt.finalize"):
            message = Message.from_record(record)
            assert message.association == association
            if message.exposure == but:
                continue
            identity = hash_parts("final", message.identity, message.revision)
            data = message.exposure.encode()
            info = await self.connection.store.put(f"objects/{identity}", data)
            product = f"{message.exposure}_cal.asdf"
            digest = hash_parts("bytes", message.exposure)
            manifest = Manifest(
                identity=identity, exposure=message.exposure, stage="finalize", branch="WFI_IMAGE",
                objects=(StoredObject(product, info.key, digest, info.size, ObjectKind.PRODUCT),),
                extra={"content": {product: hash_parts("content", message.exposure)}},
            )  # fmt: skip
            await self.connection.results.publish(manifest)
            await self.products.finalized(association, message.revision or message.identity, manifest)

    async def records(self, topic: str) -> list[Record]:
        found: list[Record] = []
        for partition, (first, end) in (await self.connection.broker.extents(topic)).items():
            found += await self.connection.broker.read(topic, partition, first, end)
        return found

    async def until(self, event: str, count: int = 1) -> None:
        with anyio.fail_after(PATIENCE):
            while sum(found["event"] == event for found in self.events) < count:  # noqa: ASYNC110 - events of a list
                await anyio.sleep(0.01)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with kafka_cluster(tmp_path_factory.mktemp("kafka")) as running:
        yield running


def announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rules: str, *, partitions: int
) -> Site:
    """A run whose settings file says something of associations, with one of three members."""
    define_run(tmp_path, monkeypatch, partitions=partitions, rules=rules)
    site = Site(tmp_path, capsys)

    async def announce() -> None:
        async with connected(site.settings) as connection:
            await put_member_list(connection.store, "prompt", MemberList(ID, MEMBERS, "r1"))

    anyio.run(announce)
    return site


@pytest.fixture
def site(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Site:
    """A run on the embedded broker; on Kafka where a test says so."""
    if getattr(request, "param", "embedded") == "kafka":
        monkeypatch.setenv("RAMPSTREAM_BROKER", request.getfixturevalue("cluster").url)
    return announced(tmp_path, monkeypatch, capsys, 'on_missing = "fail"\ndeadline = 3600', partitions=2)


def test_the_list_tells_who_came_and_who_is_waited_for_without_an_aggregator(site: Site) -> None:
    (before,) = site.told("list")
    assert (before["association"], before["product_name"], before["expected"]) == (ID, "r1", 3)
    assert (before["waited_for"], before["present"], before["since"], before["deadline"]) == (3, {}, None, None)

    async def two_come(served: Served) -> None:
        await served.member(MEMBERS[1])
        await served.member(MEMBERS[0], MemberStatus.FAILED)
        await served.until("member", 2)

    site.during(two_come)
    (listed,) = site.told("list", "--open")
    assert listed["present"] == {"failed": 1, "ok": 1}
    assert (listed["waited_for"], listed["revision"], listed["closed"], listed["complete"]) == (1, 0, None, False)
    assert listed["since"] < listed["deadline"]
    (shown,) = site.told("show", "r1")
    assert [(one["member"], one["status"]) for one in shown["members"]] == [
        (MEMBERS[0], "failed"), (MEMBERS[1], "ok"), (MEMBERS[2], None),
    ]  # fmt: skip
    assert [one["reason"] for one in shown["members"]] == ["no flat", None, None]
    assert '"reason": "no flat"' in site.said("show", "r1")
    assert shown["missing"] == [MEMBERS[2]]
    assert listed["until"] == listed["deadline"]
    assert "1 failed, 1 ok" in site.said("list")
    assert "no association r2 in run prompt" in site.said("show", "r2", status=2)
    assert "say which associations" in site.said("close", status=2)


@pytest.mark.parametrize("site", ["embedded", "kafka"], indirect=True)
def test_an_operator_closes_and_reopens_through_the_aggregator_once_each(site: Site) -> None:
    assert "no member has come" in site.said("close", ID)

    async def one_comes(served: Served) -> None:
        await served.member(MEMBERS[1])
        await served.until("member")

    site.during(one_comes)
    assert "it is not closed yet" in site.said("reopen", ID, "--execute")
    plan = site.said("close", ID)
    assert f"revision 1 would be ordered: align 1 of 3 members, without {MEMBERS[0]}, {MEMBERS[2]}" in plan
    assert "--execute" in plan
    assert site.told("list")[0]["closed"] is None

    # Twice, while no aggregator runs: the orders lie in the log until there is one.
    for _ in range(2):
        assert site.told("close", ID, "--execute")[0]["ordered"]

    async def finalized(served: Served) -> None:
        await served.until("order", 2)
        await served.until("dispatched")
        await served.finalize()
        assert [complete.revision for complete in served.seen] == [1]

    site.during(finalized)
    assert [event["refusal"] for event in site.events if event["event"] == "order"] == [
        None, "revision 1 is there already",
    ]  # fmt: skip
    (listed,) = site.told("list")
    # The run's rule is on_missing = "fail"; what an operator closes is aligned all the same.
    assert (listed["revision"], listed["closed"], listed["outcome"]) == (1, "operator", "align")
    assert (listed["changes"], listed["complete"], listed["deadline"]) == (0, True, None)
    assert site.told("list", "--open") == []
    assert "closed with revision 1" in site.said("close", ID, "--execute")
    assert "nothing changed since revision 1" in site.said("reopen", ID, "--execute")

    async def another_comes(served: Served) -> None:
        await served.member(MEMBERS[2])
        order = OrderMessage(run="prompt", association=ID, action=OrderAction.CLOSE, revision=1)
        await served.router.send_member(order)  # the first order once more, as a client that got no answer does
        await served.until("order", 3)

    site.during(another_comes)
    (shown,) = site.told("show", ID)
    assert (shown["changes"], shown["changed"]) == (1, [MEMBERS[2]])
    assert shown["next_revision"] is not None, "after revision_delay, if nobody reopens it"
    assert site.told("reopen", "r*", "--execute")[0]["revision"] == 2

    async def reopened(served: Served) -> None:
        await served.until("dispatched", 2)

    site.during(reopened)
    (listed,) = site.told("list")
    assert (listed["revision"], listed["changes"], listed["complete"]) == (2, 0, False)


def test_an_order_that_leaves_out_a_revision_or_is_of_no_association_is_a_dead_letter(site: Site) -> None:
    async def ordered(served: Served) -> None:
        await served.member(MEMBERS[0])
        order = OrderMessage(run="prompt", association=ID, action=OrderAction.REOPEN, revision=3)
        await served.router.send_member(order)
        await served.router.send_member(order.replaced(association="none"))
        await served.until("dead_letter", 2)
        letters = await served.records(dead_letter_topic_name("prompt"))
        assert {letter.value for letter in letters} == {order.encode(), order.replaced(association="none").encode()}

    site.during(ordered)
    assert not [event for event in site.events if event["event"] == "closed"]


def test_products_that_become_visible_are_told_of_and_repeats_are_known_by_their_id(site: Site) -> None:
    async def all_come(served: Served) -> None:
        for name in reversed(MEMBERS):
            await served.member(name)
        await served.until("dispatched")
        await served.finalize()
        (first,) = await served.records(product_event_topic_name("prompt"))
        assert first.key == ID.encode()
        value = json.loads(first.value or b"")
        assert (value["kind"], value["product_name"], value["revision"]) == ("products", "r1", 1)
        assert value["expected"] == value["used"] == list(MEMBERS)
        for member, products in value["exposures"].items():
            (product,) = products
            assert product["name"] == f"{member}_cal.asdf"
            assert product["content"] == hash_parts("content", member)
            assert await served.connection.store.get(product["key"]) == member.encode()
        record = await served.connection.store.get(value["record"])
        assert ProductSet(**json.loads(record or b"")).revision == 1
        # What a worker did that was killed before its commit, another one does again.
        served.products = served.worker()
        await served.finalize()
        repeats = await served.records(product_event_topic_name("prompt"))
        assert len(repeats) > 1
        assert {repeat.header("ce_id") for repeat in repeats} == {first.header("ce_id")}
        # Another revision is another event.
        await served.member(MEMBERS[0], content="anew")
        await served.until("member", 4)
        order = OrderMessage(run="prompt", association=ID, action=OrderAction.REOPEN, revision=2)
        await served.router.send_member(order)
        await served.until("dispatched", 2)
        await served.finalize()
        last = (await served.records(product_event_topic_name("prompt")))[-1]
        assert json.loads(last.value or b"")["revision"] == 2
        assert last.header("ce_id") != first.header("ce_id")

    site.during(all_come)


def products_failed(shown: dict[str, Any]) -> dict[str, str]:
    return {one["member"]: one["products_failed"] for one in shown["members"] if one["products_failed"] is not None}


def test_it_is_told_why_members_failed_and_why_one_that_came_has_no_products(site: Site) -> None:
    async def all_come(served: Served) -> None:
        await served.member(MEMBERS[0])
        await served.member(MEMBERS[1], MemberStatus.FAILED)
        await served.member(MEMBERS[2])
        await served.until("dispatched")
        await served.products.failed(ID, 1, MEMBERS[0], "no room")
        await served.finalize(but=MEMBERS[0])

    site.during(all_come)
    (shown,) = site.told("show", ID)
    assert shown["complete"]
    assert [(one["status"], one["reason"], one["products_failed"]) for one in shown["members"]] == [
        ("ok", None, "no room"), ("failed", "no flat", None), ("ok", None, None),
    ]  # fmt: skip


def test_an_association_of_which_nobody_can_be_finalized_is_complete_too(site: Site) -> None:
    async def all_fail(served: Served) -> None:
        for name in MEMBERS:
            await served.member(name, MemberStatus.FAILED)
        await served.until("dispatched")
        (event,) = await served.records(product_event_topic_name("prompt"))
        assert json.loads(event.value or b"")["failed"] == dict.fromkeys(MEMBERS, "failed")

    site.during(all_fail)
    assert site.told("list")[0]["complete"]
    assert main(["status", "--wait", "0"]) == 0, "there is nobody left to wait for"


def test_an_association_whose_solve_was_given_up_says_why_and_can_be_reopened_though_nothing_changed(
    site: Site,
) -> None:
    async def not_solved(served: Served) -> None:
        served.unsolvable = "the catalog refused"
        for name in MEMBERS[:2]:
            await served.member(name)
        await served.router.send_member(
            OrderMessage(run="prompt", association=ID, action=OrderAction.CLOSE, revision=1)
        )
        await served.until("dispatched")

    async def solved(served: Served) -> None:
        await served.until("dispatched", 2)
        await served.finalize()
        assert [complete.revision for complete in served.seen] == [2]

    site.during(not_solved)
    (shown,) = site.told("show", ID)
    assert products_failed(shown) == dict.fromkeys(MEMBERS[:2], "the catalog refused"), "of members that were there"
    assert site.told("list")[0]["without_products"] == 2
    assert "2 without" in site.said("list")
    assert main(["products"]) == 0
    assert f"{MEMBERS[0]}: no products in revision 1 of {ID}: the catalog refused" in site.printed()
    (ordered,) = site.told("reopen", ID, "--execute")
    assert (ordered["revision"], ordered["used"], ordered["ordered"]) == (2, list(MEMBERS[:2]), True)
    site.during(solved)
    (shown,) = site.told("show", ID)
    assert (shown["revision"], products_failed(shown), shown["complete"]) == (2, {}, True)
    assert "nothing changed since revision 2" in site.said("reopen", ID, "--execute")


def test_a_superseded_association_is_told_of_as_such_and_its_products_are_not_shown_any_more(site: Site) -> None:
    edited = MemberList(association_id("r1", MEMBERS[:2]), MEMBERS[:2], "r1")

    async def superseded(served: Served) -> None:
        await take_product_name(served.connection.store, "prompt", MemberList(ID, MEMBERS, "r1"))
        for name in MEMBERS:
            await served.member(name)
        await served.until("dispatched")
        await served.finalize()
        assert [complete.association async for complete in served.products.all()] == [ID]
        await put_member_list(served.connection.store, "prompt", edited)
        await take_product_name(served.connection.store, "prompt", edited)
        await served.finalize()  # a worker that was killed before its commit does it again
        assert [complete.association for complete in served.seen] == [ID]
        assert [complete.association async for complete in served.products.all()] == []
        await served.member(MEMBERS[0], content="anew")
        await served.until("member", 4)

    site.during(superseded)
    by_id = {one["association"]: one for one in site.told("list")}
    assert by_id[ID]["superseded_by"] == edited.association
    assert (by_id[ID]["changes"], by_id[ID]["next_revision"]) == (1, None)
    assert by_id[edited.association]["superseded_by"] is None
    assert "complete, superseded" in site.said("list")
    assert [one["association"] for one in site.told("list", "--open")] == [edited.association]
    assert site.told("show", ID)[0]["superseded_by"] == edited.association
    assert f"superseded by {edited.association}" in site.said("reopen", ID, "--execute")
