"""Workers that die, are told to stop, or are frozen: nothing is lost, and nothing has two results."""

from __future__ import annotations

import signal
import time
from typing import Any

import anyio
import pytest

from tests.faults.bench_of_workers import FULL, Bench
from tests.faults.light import PHASES
from tests.faults.light_topology import SESSION

KILLS = 20 if FULL else 5
INPUTS = 100 if FULL else 30

pytestmark = pytest.mark.anyio


async def kill_at_phases(bench: Bench, phases: list[str], **worker: Any) -> float:
    """Have a worker die at each phase in turn, and start another for it; the longest time to recover."""
    longest = 0.0
    for _ in range(2):
        bench.start(**worker)
    for phase in phases:
        trigger = bench.triggers / f"kill-{phase}"
        trigger.touch()
        with anyio.move_on_after(30):
            while trigger.exists():  # noqa: ASYNC110 - other processes
                await anyio.sleep(0.02)
        if trigger.exists():
            trigger.unlink()
            return longest  # nothing left to do it at
        began = time.monotonic()
        before = len(bench.executions())
        bench.start(**worker)
        with anyio.move_on_after(SESSION + 15):
            while len(bench.executions()) <= before and await bench.lag():  # noqa: ASYNC110 - other processes
                await anyio.sleep(0.1)
        longest = max(longest, time.monotonic() - began)
    return longest


async def test_killed_workers_lose_nothing_and_redo_little(bench: Bench) -> None:
    async with bench.opened():
        await bench.ingest(INPUTS)
        sampler = bench.offsets_safe()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sampler.run)
            longest = await kill_at_phases(bench, [PHASES[n % len(PHASES)] for n in range(KILLS)])
            await bench.done()
            tasks.cancel_scope.cancel()
        assert await bench.problems() == []
        assert sampler.problems == []
        assert bench.redone() <= KILLS
        if FULL:
            assert longest <= SESSION + 15
        await anyio.to_thread.run_sync(bench.stop_all)
        assert await bench.problems() == []  # nor is anything left behind


@pytest.mark.parametrize(
    ("mutant", "phases"),
    [
        ("commits-what-it-has-fetched", ["compute"] * 5),
        ("publishes-new-results-only", ["after-put", "after-put"]),
        ("counts-attempts-of-dead-workers", ["compute", "compute"]),
    ],
)
@pytest.mark.mutant
async def test_mutants_that_killed_workers_must_show(bench: Bench, mutant: str, phases: list[str]) -> None:
    async with bench.opened():
        await bench.ingest(24)
        await kill_at_phases(bench, phases, mutant=mutant, slots=2, seconds=0.6)
        await bench.settled(SESSION + 20)
        assert await bench.problems() != []


JOB = 100.0 if FULL else 3.0
LONG, SHORT = (180.0, 30.0) if FULL else (20.0, 1.0)


@pytest.mark.parametrize(("drain", "redone"), [(LONG, 0), (SHORT, 1)])
async def test_a_worker_that_is_told_to_stop_finishes_within_its_budget(
    bench: Bench, drain: float, redone: int
) -> None:
    async with bench.opened():
        worker = bench.start(drain_seconds=drain, wall_seconds=2 * JOB + 60)
        await bench.ingest(1, seconds=JOB)
        await bench.wait_for(lambda: len(bench.executions()) == 1)
        began = time.monotonic()
        worker.terminate()
        status = await anyio.to_thread.run_sync(worker.wait, 200)
        took = time.monotonic() - began
        assert status == 0
        assert took < (drain + 8 if redone else JOB + 8)
        bench.start(wall_seconds=2 * JOB + 60)
        await bench.done(2 * JOB + 60)
        assert await bench.problems() == []
        assert bench.redone() == redone


@pytest.mark.mutant(in_slice=True)
async def test_a_worker_that_does_not_drain_shows(bench: Bench) -> None:
    async with bench.opened():
        worker = bench.start(drain_seconds=20.0, wall_seconds=60.0, mutant="does-not-drain")
        await bench.ingest(1, seconds=3.0)
        await bench.wait_for(lambda: len(bench.executions()) == 1)
        worker.terminate()
        await anyio.to_thread.run_sync(worker.wait, 30)
        bench.start(wall_seconds=60.0)
        await bench.done()
        assert bench.redone() > 0


async def test_a_quiet_worker_ends_what_it_has_begins_nothing_and_stays_a_member(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        worker = bench.start(wall_seconds=60.0)
        await bench.joined(worker)
        await bench.ingest(3, seconds=1.0)
        await bench.wait_for(lambda: len(bench.executions()) == 1)
        worker.send_signal(signal.SIGUSR1)
        await anyio.sleep(1.0 + SESSION + 1.0)
        assert len(bench.executions()) == 1
        assert await bench.lag() == 3  # two of the first stage, and what the one that ended sent on
        assert [row for row in bench.assignments() if row[2] == "revoked"] == []
        worker.terminate()
        assert await anyio.to_thread.run_sync(worker.wait, 30) == 0
        bench.start(wall_seconds=60.0)
        await bench.done()
        assert await bench.problems() == []
        assert bench.redone() == 0


async def freeze_and_thaw(bench: Bench, mutant: str = "") -> None:
    """Freeze a worker for longer than its session, with a job that fails meanwhile; another one succeeds at it."""
    first = bench.start(mutant=mutant, wall_seconds=60.0)
    await bench.ingest(1, seconds=1.0, act="fails-first")
    await bench.wait_for(lambda: len(bench.executions()) >= 1)
    first.send_signal(signal.SIGSTOP)
    await bench.ingest(5, first=1)
    second = bench.start(wall_seconds=60.0)
    await bench.wait_for(lambda: any(row[3] == second.pid for row in bench.executions()), 30)
    await bench.done(60)
    thawed = time.time()
    first.send_signal(signal.SIGCONT)
    await anyio.sleep(4.0)
    late = [row for row in bench.executions() if row[3] == first.pid and row[2] > thawed]
    assert late == [] or mutant


async def test_a_frozen_worker_that_thaws_makes_nothing_known_of_its_old_life(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        sampler = bench.offsets_safe()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sampler.run)
            await freeze_and_thaw(bench)
            tasks.cancel_scope.cancel()
        assert await bench.problems() == []
        assert sampler.problems == []
        await bench.ingest(4, first=6)
        await bench.done()  # and it is a member again
        assert await bench.problems() == []
        assert await bench.late_starts() == []


@pytest.mark.mutant
async def test_a_thawed_worker_that_ignores_its_lease_shows(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        await freeze_and_thaw(bench, "ignores-leases")
        assert any("dead letters" in problem for problem in await bench.problems())
