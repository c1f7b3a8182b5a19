"""Aggregators that are killed, told things twice and out of order: an association closes once, and loses nobody."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import anyio
import pytest

from stream.association import Close, CloseOutcome, CloseReason, OnMissing
from stream.message import MemberStatus
from tests.faults.aggregator_faults import PHASES
from tests.faults.bench_of_aggregators import AggregatorBench, at_the_same_time
from tests.faults.bench_of_workers import FULL

MEMBERS = ("m3", "m1", "m4", "m2")
OK, FAILED, SKIPPED, SATURATED = MemberStatus
ORDERS = 24 if FULL else 6
SHOWN = 3.0
"""How long a mutant has to become right after all: what is not killed needs a second."""

pytestmark = pytest.mark.anyio

Benches = Callable[[str], AggregatorBench]


async def killed_before_the_last_come(bench: AggregatorBench, phases: tuple[str, ...], *faults: str) -> list[str]:
    """Kill an aggregator that waits for one member each, or at a phase, and start another one each time."""
    names = [await bench.announce(f"a{number}", *MEMBERS) for number in range(len(phases))]
    worker = bench.start(faults=faults)
    await bench.send(*(bench.message(name, member) for name in names for member in MEMBERS[:-1]))
    await bench.done()
    for name, phase in zip(names, phases, strict=True):
        await bench.until("restored", worker=worker)
        last = bench.message(name, MEMBERS[-1])
        if phase == "while-it-waits":
            await bench.kill(worker)
            await bench.send(last)
        else:
            (bench.triggers / f"kill-{phase}").touch()
            await bench.send(last)
            await bench.killed_at(phase, worker)
        worker = bench.start(faults=faults)
    await bench.until("restored", worker=worker)
    return await bench.settled(SHOWN if faults else 30.0)


async def test_killed_with_all_but_one_there_it_closes_once_and_sends_all_on(aggregators: Benches) -> None:
    async with aggregators("killed").opened() as bench:
        phases = PHASES if FULL else ("after-close", "mid-dispatch")
        assert await killed_before_the_last_come(bench, ("while-it-waits", *phases)) == []
        for name in bench.lists:
            assert [close.reason for close in await bench.closes(name)] == [CloseReason.COMPLETE]


@pytest.mark.mutant(in_slice=True)
async def test_mutants_that_killed_aggregators_must_show(aggregators: Benches) -> None:
    mutants = {
        "forgets-members": "while-it-waits",
        "takes-closes-for-sent": "after-close",
        "sends-under-another-id": "mid-dispatch",
    }
    found = await at_the_same_time(
        list(mutants), aggregators, lambda bench, name: killed_before_the_last_come(bench, (mutants[name],), name)
    )
    assert all(found.values()), found


async def told_thrice_in_any_order(bench: AggregatorBench, *faults: str) -> list[list[Close]]:
    """Tell many associations of the same members, each three times, in another order each; their closes."""
    names = [await bench.announce(f"a{number}", *MEMBERS) for number in range(ORDERS)]
    statuses = dict(zip(MEMBERS, (OK, SKIPPED, OK, SATURATED), strict=True))
    told = [bench.message(name, member, status) for name in names for member, status in statuses.items()] * 3
    random.shuffle(told)
    worker = bench.start(faults=faults)
    await bench.send(*told)
    await bench.until("restored", worker=worker)
    found = await bench.settled(SHOWN if faults else 30.0)
    assert found == [] or faults
    return [await bench.closes(name) for name in names]


def alike(closes: list[list[Close]]) -> bool:
    """Whether each association has one close, and all have the same one."""
    return all(len(found) == 1 for found in closes) and len({found[0].members for found in closes}) == 1


async def test_repeats_in_any_order_make_one_close_of_the_same_content(aggregators: Benches) -> None:
    async with aggregators("orders").opened() as bench:
        assert alike(await told_thrice_in_any_order(bench))
        assert len(bench.events("solve")) == ORDERS


@pytest.mark.mutant
async def test_mutants_that_repeats_in_any_order_must_show(aggregators: Benches) -> None:
    mutants = ["counts-messages", "orders-by-arrival"]
    found = await at_the_same_time(mutants, aggregators, told_thrice_in_any_order)
    assert not any(map(alike, found.values())), found


async def failed_late_and_changed(bench: AggregatorBench, rule: OnMissing, *faults: str) -> list[str]:
    """Have one member fail, one not come in time, both come after all, and one change; what was not as it must be."""
    name = await bench.announce("a", *MEMBERS)
    changing, failing, other, late = MEMBERS
    worker = bench.start(faults=faults, on_missing=rule.value, deadline=1.5)
    await bench.until("restored", worker=worker)
    steps = [
        [bench.message(name, changing), bench.message(name, other), bench.message(name, failing, FAILED)],
        [bench.message(name, late)],
        [bench.message(name, failing)],
        [bench.message(name, changing, content="anew")] * 2 + [bench.message(name, other)],
    ]
    for number, step in enumerate(steps):
        await bench.send(*step)
        waits = rule is OnMissing.WAIT and number < 2
        if waits:
            await anyio.sleep(2.0 - number)  # past the deadline, and past what would be a new revision
        found = await bench.settled(SHOWN if faults else 30.0, waiting=[name] if waits else [])
        if found:
            return found
    closes = [(close.reason, close.outcome) for close in await bench.closes(name)]
    changed, failed = (CloseReason.CHANGED, CloseOutcome.ALIGN), (CloseReason.CHANGED, CloseOutcome.FAIL)
    expected = {
        OnMissing.ALIGN: [(CloseReason.DEADLINE, CloseOutcome.ALIGN), changed, changed, changed],
        OnMissing.FAIL: [(CloseReason.DEADLINE, CloseOutcome.FAIL), failed, changed, changed],
        OnMissing.WAIT: [(CloseReason.COMPLETE, CloseOutcome.ALIGN), changed],
    }[rule]
    return [] if closes == expected else [f"closes {closes}, expected {expected}"]


async def test_failed_late_and_changed_members_are_in_a_revision(aggregators: Benches) -> None:
    found = await at_the_same_time(
        [*OnMissing], aggregators, lambda bench, rule: failed_late_and_changed(bench, OnMissing(rule))
    )
    assert found == {rule: [] for rule in OnMissing}


@pytest.mark.mutant
async def test_mutants_that_late_and_failed_members_must_show(aggregators: Benches) -> None:
    mutants = {"closes-for-good": OnMissing.ALIGN, "aligns-whoever-failed": OnMissing.FAIL}
    found = await at_the_same_time(
        list(mutants), aggregators, lambda bench, name: failed_late_and_changed(bench, mutants[name], name)
    )
    assert all(found.values()), found


async def down_past_the_deadline(bench: AggregatorBench, *faults: str) -> list[Close]:
    """Kill an aggregator with one member there, and start another after the deadline, when more have come."""
    name, other = await bench.announce("a", *MEMBERS), await bench.announce("b", "n1", "n2")
    deadline = 2.0
    worker = bench.start(faults=faults, deadline=deadline)
    await bench.send(bench.message(name, MEMBERS[0]))
    began = time.monotonic()
    await bench.until("member")
    await bench.done()
    await bench.kill(worker)
    for number in range(100):  # a backlog that takes a moment to read
        await bench.send(bench.message(other, "n1", content=str(number)))
    await bench.send(bench.message(other, "n2"))
    await bench.send(bench.message(name, MEMBERS[1]), bench.message(name, MEMBERS[2], FAILED))
    await anyio.sleep(max(0.0, began + deadline + 0.5 - time.monotonic()))
    worker = bench.start(faults=faults, deadline=deadline)
    await bench.until("restored", worker=worker)
    found = await bench.settled()
    assert found == [] or faults
    return await bench.closes(name)


async def test_who_came_while_it_was_down_past_the_deadline_counts(aggregators: Benches) -> None:
    async with aggregators("outage").opened(partitions=1) as bench:
        (close,) = await down_past_the_deadline(bench)
        assert close.reason is CloseReason.DEADLINE
        assert [member.status for member in close.members] == ["ok", "ok", "failed", "missing"]


@pytest.mark.mutant
async def test_one_that_closes_before_it_read_its_backlog_shows(aggregators: Benches) -> None:
    async with aggregators("outage").opened(partitions=1) as bench:
        first, *_ = await down_past_the_deadline(bench, "ignores-the-backlog")
        assert [member.status for member in first.members] != ["ok", "ok", "failed", "missing"]


async def superseded(bench: AggregatorBench, *faults: str) -> tuple[list[Close], list[Close]]:
    """Announce an edited list before the last member of the old one comes; the closes of both."""
    old = await bench.announce("a", *MEMBERS)
    bench.start(faults=faults)
    await bench.send(*(bench.message(old, member) for member in MEMBERS[:-1]))
    await bench.until("member", 3)
    new = await bench.announce("a", *MEMBERS[1:])
    await bench.send(bench.message(old, MEMBERS[-1]), *(bench.message(new, member) for member in MEMBERS[1:]))
    assert await bench.settled(left=[old]) == []
    return await bench.closes(old), await bench.closes(new)


async def test_an_edited_list_supersedes_the_one_before(aggregators: Benches) -> None:
    async with aggregators("superseded").opened() as bench:
        old, new = await superseded(bench)
        assert (old, len(new)) == ([], 1)


@pytest.mark.mutant
async def test_one_that_does_not_look_for_newer_lists_shows(aggregators: Benches) -> None:
    async with aggregators("superseded").opened() as bench:
        old, _ = await superseded(bench, "closes-when-superseded")
        assert old != []
