"""Aggregators whose ownership or memory is lost: each revision is closed once, and what was known is known again."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

import anyio
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from stream.association import Close, CloseReason
from stream.failure import RetriableError
from stream.message import MemberStatus
from tests.faults.bench_of_aggregators import AggregatorBench, at_the_same_time
from tests.faults.bench_of_workers import FULL
from tests.faults.light_aggregator import Memory
from tests.faults.light_topology import SESSION

MEMBERS = ("m2", "m3", "m1")
OK, FAILED, *_ = MemberStatus
RACES = 40 if FULL else 16
CHANGES = 40 if FULL else 12
SHOWN = 3.0

pytestmark = pytest.mark.anyio

Benches = Callable[[str], AggregatorBench]


@dataclass(frozen=True)
class Owners:
    """An aggregator that was frozen, another that has its partition now, and what both know of."""

    frozen: Popen[bytes]
    other: Popen[bytes]
    deadlines: dict[str, float]
    """Of each association, as Unix times."""

    def thaw(self) -> None:
        self.frozen.send_signal(signal.SIGCONT)


async def frozen_owner(bench: AggregatorBench, *faults: str, associations: int) -> Owners:
    """Freeze an owner that knows all members but one; thawed, it goes on believing that the partition is its own."""
    names = [await bench.announce(f"a{number}", *MEMBERS) for number in range(associations)]
    # Once the session of the one that is frozen is over, the group takes seconds to agree, and again when it thaws.
    deadline = SESSION + 10.0
    options: dict[str, Any] = {"faults": ["believes-it-owns", *faults], "deadline": deadline, "solve_seconds": 0.2}
    first = bench.start(**options)
    await bench.until("restored", worker=first)
    second = bench.start(**options)
    await bench.until("restored", 2, worker=first)  # it keeps the partition when the second one joins
    await bench.send(*(bench.message(name, member) for name in names for member in MEMBERS[:2]))
    await bench.until("member", 2 * associations)
    await bench.done()
    deadlines = {name: memory.deadline_at or 0.0 for name, memory in (await bench.memory()).items()}
    first.send_signal(signal.SIGSTOP)
    await bench.until("restored", worker=second)
    if time.time() > min(deadlines.values()) - 1.0:
        raise TimeoutError("a deadline passed before there were two owners")
    return Owners(first, second, deadlines)


async def two_owners(bench: AggregatorBench) -> list[str]:
    """Have each last member come about when its deadline passes, to two owners."""
    owners = await frozen_owner(bench, associations=RACES)
    owners.thaw()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_look_at_closes, bench)
        for number, (name, deadline) in enumerate(owners.deadlines.items()):
            # From well before the deadline to a little after it: some find the association open at both owners.
            at = deadline - 0.6 + number / RACES
            await anyio.sleep(max(0.0, at - time.time()))
            await bench.send(bench.message(name, MEMBERS[2]))
        for worker in (owners.frozen, owners.other):
            await bench.until("dispatched", worker=worker)
        found = await bench.settled()
        tasks.cancel_scope.cancel()
    return found


async def thawed_when_it_is_closed(bench: AggregatorBench, *faults: str) -> list[str]:
    """Have the last members come to one owner; the other one wakes after the deadlines, and knows nothing of them."""
    owners = await frozen_owner(bench, *faults, associations=4)
    names = list(owners.deadlines)
    await bench.send(*(bench.message(name, MEMBERS[2]) for name in names))
    await bench.until("dispatched", len(names), worker=owners.other)
    assert {close.reason for name in names for close in await bench.closes(name)} == {CloseReason.COMPLETE}
    await anyio.sleep(max(0.0, max(owners.deadlines.values()) - time.time()))
    owners.thaw()
    await bench.until("dispatched", len(names), worker=owners.frozen)
    return await bench.settled(SHOWN if faults else 30.0)


async def _look_at_closes(bench: AggregatorBench) -> None:
    while True:
        for name in bench.lists:
            await bench.closes(name)
        await anyio.sleep(0.05)


async def test_two_owners_agree_on_one_close_for_each_revision(aggregators: Benches) -> None:
    async with aggregators("owners").opened(partitions=1) as bench:
        assert await two_owners(bench) == []


async def test_an_owner_sends_on_a_close_of_another_with_members_that_it_never_saw(aggregators: Benches) -> None:
    async with aggregators("thawed").opened(partitions=1) as bench:
        assert await thawed_when_it_is_closed(bench) == []


@pytest.mark.mutant(in_slice=True)
async def test_mutants_that_an_owner_who_wakes_must_show(aggregators: Benches) -> None:
    mutants = ["overwrites-closes", "sends-on-what-is-known"]
    found = await at_the_same_time(mutants, aggregators, thawed_when_it_is_closed, partitions=1)
    assert all(found.values()), found


COMPACTED = {
    "segment.ms": "200",
    "min.cleanable.dirty.ratio": "0.01",
    "max.compaction.lag.ms": "1000",
    "delete.retention.ms": "100",
}
"""Has a changelog compacted in a second or two: by default that takes a gigabyte, or a week."""


async def gaps(bench: AggregatorBench) -> int:
    """Records that compaction has taken from the changelog."""
    missing = 0
    for partition, (_, end) in (await bench.broker.extents(bench.changelog_topic)).items():
        missing += end - len(await bench.broker.read(bench.changelog_topic, partition, 0, end))
    return missing


async def compacted(bench: AggregatorBench, *faults: str) -> tuple[list[str], list[Close]]:
    """Have members change while the changelog is compacted, kill the aggregator, and let the last one come."""
    name = await bench.announce("a", *MEMBERS)
    worker = bench.start(faults=faults)
    changes = 0
    with anyio.fail_after(60):
        while changes < CHANGES or await gaps(bench) < CHANGES / 2:
            await bench.send(*(bench.message(name, member, content=str(changes)) for member in MEMBERS[:2]))
            changes += 1
            await anyio.sleep(0.1)
    await bench.done()
    await bench.kill(worker)
    worker = bench.start(faults=faults)
    await bench.until("restored", worker=worker)
    await bench.send(bench.message(name, MEMBERS[2]))
    return await bench.settled(SHOWN if faults else 30.0), await bench.closes(name)


async def test_a_changelog_that_is_compacted_while_it_is_written_forgets_nobody(aggregators: Benches) -> None:
    async with aggregators("compacted").opened(partitions=1, changelog=COMPACTED) as bench:
        found, closes = await compacted(bench)
        assert found == []
        assert [close.reason for close in closes] == [CloseReason.COMPLETE]


@pytest.mark.mutant
async def test_one_that_keeps_members_under_one_key_shows(aggregators: Benches) -> None:
    async with aggregators("compacted").opened(partitions=1, changelog=COMPACTED) as bench:
        found, _ = await compacted(bench, "keeps-one-record")
        assert found != []


async def delete_changelog(bench: AggregatorBench) -> None:
    """Delete the topic and make it anew, empty, as `rampstream topics apply` does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.cluster.servers)
    await admin.start()
    try:
        await admin.delete_topics([bench.changelog_topic])
    finally:
        await admin.close()
    with anyio.fail_after(30):
        while True:
            with contextlib.suppress(RetriableError):
                if bench.changelog_topic not in await bench.broker.topics():
                    break
            await anyio.sleep(0.1)
    await bench.broker.create_topics(bench.topics(2))


async def changelog_lost(bench: AggregatorBench, *faults: str) -> tuple[dict[str, Memory], dict[str, Memory]]:
    """Delete the changelog while no aggregator runs; what was known before and after. Then let all last ones come."""
    open_, closed = await bench.announce("a", *MEMBERS), await bench.announce("b", *MEMBERS)
    options: dict[str, Any] = {"faults": faults, "deadline": 600.0}
    worker = bench.start(**options)
    await bench.send(bench.message(open_, MEMBERS[1]), bench.message(open_, MEMBERS[0], FAILED))
    await bench.send(*(bench.message(closed, member) for member in MEMBERS))
    await bench.until("dispatched")
    await bench.send(bench.message(open_, MEMBERS[0], content="redriven"))
    await bench.until("member", 6)
    await bench.done()
    before = await bench.memory()
    await bench.kill(worker)
    await delete_changelog(bench)
    worker = bench.start(**options)
    await bench.until("restored", worker=worker)
    with anyio.move_on_after(SHOWN if faults else 20.0):  # what was closed is sent on again, and noted
        while await bench.memory() != before:  # noqa: ASYNC110 - another process
            await anyio.sleep(0.1)
    after = await bench.memory()
    if not faults:
        await bench.send(bench.message(open_, MEMBERS[2]))
        assert await bench.settled() == []
    return before, after


async def test_a_changelog_that_was_deleted_is_made_anew_from_the_store(aggregators: Benches) -> None:
    async with aggregators("lost").opened() as bench:
        before, after = await changelog_lost(bench)
        assert len(before) == 2
        assert after == before
        for name in bench.lists:
            assert [close.reason for close in await bench.closes(name)] == [CloseReason.COMPLETE]


@pytest.mark.mutant
async def test_one_that_trusts_in_its_changelog_alone_shows(aggregators: Benches) -> None:
    async with aggregators("lost").opened() as bench:
        before, after = await changelog_lost(bench, "keeps-no-statuses")
        assert after != before
