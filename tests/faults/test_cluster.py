"""The group changes its size, and the broker goes away: work goes on, alone, and is not done twice for nothing."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from stream.topology import topic_name
from stream.watchdog import EXIT_STATUS
from tests.faults.bench_of_workers import FULL, Bench
from tests.faults.light_topology import SESSION, STAGES

BOUNCES = 5 if FULL else 1
AWAY = 60.0 if FULL else 6.0
REPLICAS = (1, 4, 2, 6, 1) if FULL else (1, 3, 1)
IDLE = 60.0 if FULL else 4.0

pytestmark = pytest.mark.anyio


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def replicas(bench: Bench, count: int, **worker: Any) -> None:
    """Start or drain workers until so many run."""
    for started in [bench.start(**worker) for _ in range(count - len(bench.running()))]:
        await bench.joined(started)
    for surplus in bench.running()[count:]:
        surplus.terminate()
        await anyio.to_thread.run_sync(surplus.wait)
        assert surplus.returncode == 0


async def come_and_go(bench: Bench, **worker: Any) -> list[float]:
    """Change the number of workers under load; results a second and worker at each."""
    rates = []
    await bench.ingest(24 * len(REPLICAS), seconds=0.3)
    for count in REPLICAS:
        await replicas(bench, count, **worker)
        before, began = len(bench.executions()), time.monotonic()
        with anyio.move_on_after(30):
            await bench.wait_for(lambda before=before, count=count: len(bench.executions()) >= before + 6 * count, 30)
        rates.append((len(bench.executions()) - before) / (time.monotonic() - began) / min(count, PARTITIONS))
    return rates


PARTITIONS = 8


async def test_replicas_come_and_go_under_load(bench: Bench) -> None:
    async with bench.opened(partitions=PARTITIONS):
        rates = await come_and_go(bench)
        await bench.done(180)
        assert await bench.problems() == []
        assert await bench.late_starts() == []
        assert max(bench.rebalances(), default=0.0) <= 15
        # A drained worker leaves nothing undone; a rebalance may cost each slot the job that it interrupts.
        assert bench.redone() <= 2 * sum(REPLICAS)
        if FULL:
            assert sum(rates) / len(rates) >= 0.6 * rates[0]


@pytest.mark.mutant(in_slice=True)
async def test_a_worker_that_keeps_what_was_revoked_shows(bench: Bench) -> None:
    async with bench.opened(partitions=PARTITIONS):
        await bench.ingest(60, seconds=1.5)
        late: list[str] = []
        for _ in range(6):  # a record must be waiting for the slot, and its partition be one that goes
            await bench.joined(bench.start(mutant="keeps-what-was-revoked", wall_seconds=60.0))
            await anyio.sleep(2.5)
            late = await bench.late_starts()
            if late:
                break
        assert late != []


async def test_workers_that_were_idle_for_want_of_partitions_work_again(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        for _ in range(3):
            bench.start()
        await bench.ingest(4)
        await bench.done()
        await anyio.sleep(IDLE)
        while len(bench.running()) > 1:
            # Who works is drained, so that one that was idle has to take over.
            before = len(bench.executions())
            await bench.ingest(4, first=len(bench.inputs))
            await bench.done(60)
            pids = {row[3] for row in bench.executions()[before:]}
            busy = [worker for worker in bench.running() if worker.pid in pids]
            assert busy
            for worker in busy[: len(bench.running()) - 1]:
                worker.terminate()
                await anyio.to_thread.run_sync(worker.wait)
        await bench.ingest(4, first=len(bench.inputs))
        await bench.done(60)
        assert await bench.problems() == []


async def away(bench: Bench, *nodes: int) -> None:
    """Take nodes away for a while; no worker may be busy meanwhile."""
    for node in nodes:
        await anyio.to_thread.run_sync(bench.cluster.kill, node)
    workers = bench.running()
    before = [cpu_seconds(worker.pid) for worker in workers]
    await anyio.sleep(AWAY)
    busy = [cpu_seconds(worker.pid) - was for worker, was in zip(workers, before, strict=True)]
    for node in nodes:
        await anyio.to_thread.run_sync(bench.cluster.start, node)
    assert max(busy) < 0.3 * AWAY


async def test_the_broker_goes_and_comes_back(bench: Bench) -> None:
    async with bench.opened():
        workers = [bench.start(), bench.start()]
        for worker in workers:  # one that is still starting would end, and say why
            await bench.joined(worker)
        await bench.ingest(20, seconds=0.2)
        await bench.wait_for(lambda: len(bench.executions()) >= 3)
        await away(bench, 1)
        await bench.done(120)
        assert all(worker.poll() is None for worker in workers)
        assert await bench.problems() == []


@pytest.mark.mutant
async def test_a_worker_that_takes_an_outage_for_fatal_shows(bench: Bench) -> None:
    async with bench.opened():
        worker = bench.start(mutant="takes-an-outage-for-fatal", timings="hasty")
        await bench.ingest(20, seconds=0.2)
        await bench.wait_for(lambda: len(bench.executions()) >= 3)
        await anyio.to_thread.run_sync(bench.cluster.kill)
        await anyio.sleep(AWAY)
        await anyio.to_thread.run_sync(bench.cluster.start)
        with anyio.move_on_after(30):
            await anyio.to_thread.run_sync(worker.wait, abandon_on_cancel=True)
        assert worker.poll() is not None  # it does not outlast the outage, as the others do


async def important_node(bench: Bench) -> int:
    """The coordinator of the first group, and, if that is alive, the leader of its first partition in turn."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.cluster.servers)
    await admin.start()
    try:
        topic = topic_name(bench.run, STAGES[0])
        coordinator = int(await admin.find_coordinator(topic))
        [described] = await admin.describe_topics([topic])
        leaders = [int(partition["leader"]) for partition in described["partitions"]]
    finally:
        await admin.close()
    return random.choice([coordinator, *leaders[:1]])


@pytest.mark.skipif(not FULL, reason="three brokers are too much beside other tests on two cores: make faults")
async def test_leaders_and_coordinators_are_bounced(bench_of_three: Bench) -> None:
    bench = bench_of_three
    async with bench.opened():
        workers = [bench.start(), bench.start()]
        for worker in workers:
            await bench.joined(worker)
        await bench.ingest(10 + 20 * BOUNCES, seconds=0.2)
        await bench.wait_for(lambda: len(bench.executions()) >= 3)
        for _ in range(BOUNCES):
            node = await important_node(bench)
            await anyio.to_thread.run_sync(bench.cluster.kill, node)
            await anyio.sleep(3.0)
            await anyio.to_thread.run_sync(bench.cluster.start_what_is_down)  # else the next one takes a majority away
            await anyio.sleep(6.0)
        if FULL:
            await away(bench, 1, 2, 3)
        await bench.done(180)
        assert all(worker.poll() is None for worker in workers)
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


@pytest.mark.mutant
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
