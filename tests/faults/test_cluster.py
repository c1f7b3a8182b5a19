"""The group changes its size, and the broker goes away: work goes on, alone, and is not done twice for nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio
import pytest

from stream.watchdog import EXIT_STATUS
from tests.faults.bench_of_workers import Bench
from tests.faults.light import SESSION

FULL = os.environ.get("RAMPSTREAM_FAULTS") == "full"
BOUNCES = 5 if FULL else 1
AWAY = 60.0 if FULL else 6.0
REPLICAS = (1, 4, 2, 6, 1) if FULL else (1, 3, 1)

pytestmark = pytest.mark.anyio


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def replicas(bench: Bench, count: int) -> None:
    """Start or drain workers until so many run."""
    while len(bench.running()) < count:
        bench.start()
    for worker in bench.running()[count:]:
        worker.terminate()
        await anyio.to_thread.run_sync(worker.wait)
        assert worker.returncode == 0


async def test_replicas_come_and_go_under_load(bench: Bench) -> None:
    """Also more of them than partitions: every one that was idle works again, for the work gets done."""
    async with bench.opened(partitions=2):
        await bench.ingest(20 * len(REPLICAS), seconds=0.2)
        for count in REPLICAS:
            await replicas(bench, count)
            before = len(bench.executions())
            await bench.wait_for(lambda before=before: len(bench.executions()) >= before + 6, 25)
        await bench.done(180)
        assert await bench.problems() == []
        # A drained worker leaves nothing undone; a rebalance may cost each slot the job that it interrupts.
        assert bench.redone() <= 2 * sum(REPLICAS)


async def test_the_broker_goes_and_comes_back(bench: Bench) -> None:
    async with bench.opened():
        workers = [bench.start(), bench.start()]
        await bench.ingest(20, seconds=0.2)
        await bench.wait_for(lambda: len(bench.executions()) >= 3)
        for _ in range(BOUNCES):
            await anyio.to_thread.run_sync(bench.cluster.kill)
            await anyio.sleep(1.0)
            await anyio.to_thread.run_sync(bench.cluster.start)
            await anyio.sleep(4.0)
        await anyio.to_thread.run_sync(bench.cluster.kill)
        before = [cpu_seconds(worker.pid) for worker in workers]
        await anyio.sleep(AWAY)
        busy = [cpu_seconds(worker.pid) - was for worker, was in zip(workers, before, strict=True)]
        await anyio.to_thread.run_sync(bench.cluster.start)
        await bench.done(120)
        assert all(worker.poll() is None for worker in workers)
        assert max(busy) < 0.3 * AWAY  # no busy loop
        assert await bench.problems() == []


async def test_a_blocked_event_loop_ends_its_worker_and_another_takes_over(bench: Bench) -> None:
    async with bench.opened():
        first = bench.start()
        await bench.ingest(12, seconds=0.2)
        await bench.wait_for(lambda: len(bench.executions()) >= 2)
        (bench.triggers / "block").touch()
        began = time.monotonic()
        status = await anyio.to_thread.run_sync(first.wait, 30)
        assert status == EXIT_STATUS
        assert time.monotonic() - began < 30
        assert (
            "time.sleep" in (bench.folder / "worker-0" / "stacks.log").read_text()
            or "_tick" in (bench.folder / "worker-0" / "stacks.log").read_text()
        )
        bench.start()
        await bench.done(SESSION + 60)
        assert await bench.problems() == []


async def test_without_its_watchdog_a_blocked_worker_shows(bench: Bench) -> None:
    async with bench.opened():
        first = bench.start(mutant="has-no-watchdog")
        await bench.ingest(4, seconds=0.2)
        await bench.wait_for(lambda: len(bench.executions()) >= 1)
        (bench.triggers / "block").touch()
        await bench.wait_for(lambda: not (bench.triggers / "block").exists())
        await anyio.sleep(8.0)
        assert first.poll() is None
        first.kill()
