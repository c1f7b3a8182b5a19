"""Messages a second of one worker whose stage does nothing, and what each message costs. Not how exposures fare.

The worker is a process beside a real Kafka and a real S3 server. The rate is told by the times of the records that it
published, so that nothing looks on while it works; CPU seconds are those of the processes, from /proc.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from bench.empty_stage import NEXT, STAGE, Configuration, ingest, router_of, segments
from bench.memory import descendants
from stream.broker.kafka import KafkaBroker
from stream.broker.protocol import Record
from stream.router import run_topics
from stream.store.obstore_store import open_store

__all__ = ["Throughput", "cpu_seconds", "measure_throughput"]

PARTITIONS = 4
PAYLOAD_BYTES = 16_384
TOGETHER = 16
LOOK_SECONDS = 0.5
"""A look costs two requests of Kafka."""
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Throughput:
    """What one worker did."""

    messages: int
    slots: int
    seconds: float
    rate: float
    cpu_ms: dict[str, float]
    """CPU time of a message, by who spent it."""
    requests: dict[str, dict[str, float]]
    """Of the store: how many a message, and milliseconds each."""


async def measure_throughput(
    broker_url: str, store_url: str, work: Path, servers: dict[str, int], *, messages: int, warm_up: int, slots: int
) -> Throughput:
    """Prepare exposures, let one worker serve them, and read what it published.

    Parameters
    ----------
    broker_url, store_url : str
        Running servers.
    work : Path
        The worker's folder.
    servers : dict
        Process ids of the servers by name, whose CPU time counts too.
    messages, warm_up : int
        How many are measured, after how many that are not.
    slots : int
        Job processes.
    """
    run = f"bench-{time.time_ns()}"
    store = open_store(store_url)
    config = Configuration(run=run, broker=broker_url, store=store_url, work=str(work), slots=slots)
    async with KafkaBroker.from_url(broker_url) as broker:
        await broker.create_topics(run_topics(run, segments(), partitions=PARTITIONS))
        limit = anyio.CapacityLimiter(TOGETHER)
        router = router_of(broker, run, PARTITIONS)

        async def one(number: int) -> None:
            async with limit:
                await ingest(store, router, f"exposure-{number:06d}", PAYLOAD_BYTES)

        async with anyio.create_task_group() as tasks:
            for number in range(warm_up + messages):
                tasks.start_soon(one, number)
        return await _served(broker, config, servers, warm_up, messages)


def _start(config: Configuration) -> subprocess.Popen[bytes]:
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    (work / "configuration.json").write_text(json.dumps(asdict(config)))
    command = [sys.executable, "-m", "bench.empty_stage", str(work / "configuration.json")]
    with (work / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


async def _served(
    broker: KafkaBroker, config: Configuration, servers: dict[str, int], warm_up: int, messages: int
) -> Throughput:
    work = Path(config.work)
    worker = await anyio.to_thread.run_sync(_start, config)
    try:
        await _published(broker, config.run, warm_up, worker, work)
        before = cpu_seconds(worker.pid, servers)
        await _published(broker, config.run, warm_up + messages, worker, work)
        after = cpu_seconds(worker.pid, servers)
        while await broker.lag(f"{config.run}.{STAGE}", f"{config.run}.{STAGE}"):  # noqa: ASYNC110 - in the cluster
            await anyio.sleep(LOOK_SECONDS)
        worker.send_signal(signal.SIGTERM)
        await anyio.to_thread.run_sync(worker.wait, 60)
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    records = await _records(broker, config.run)
    if len({record.key for record in records}) != warm_up + messages:
        sys.exit(f"bench: {warm_up + messages} messages went in, {len(records)} came out; see {work / 'log'}")
    times = sorted(record.timestamp_ms for record in records)
    seconds = (times[-1] - times[warm_up - 1]) / 1000
    costs: dict[str, list[float]] = json.loads((work / "costs.json").read_text())["operations"]
    # The looks at /proc come a little late, both alike: for the shares that is near enough.
    return Throughput(
        messages=messages,
        slots=config.slots,
        seconds=seconds,
        rate=messages / seconds,
        cpu_ms={name: 1000 * (after[name] - before[name]) / messages for name in after},
        requests={
            name: {"each": count / len(records), "ms": 1000 * spent / count}
            for name, (count, spent) in sorted(costs.items())
        },
    )


async def _published(broker: KafkaBroker, run: str, wanted: int, worker: subprocess.Popen[bytes], work: Path) -> None:
    while sum(end for _, end in (await broker.extents(f"{run}.{NEXT}")).values()) < wanted:
        if worker.poll() is not None:
            sys.exit(f"bench: the worker ended with status {worker.returncode}:\n{(work / 'log').read_text()[-4000:]}")
        await anyio.sleep(LOOK_SECONDS)


async def _records(broker: KafkaBroker, run: str) -> list[Record]:
    found: list[Record] = []
    for partition, (first, end) in (await broker.extents(f"{run}.{NEXT}")).items():
        found += await broker.read(f"{run}.{NEXT}", partition, first, end)
    return found


def cpu_seconds(worker: int, servers: dict[str, int]) -> dict[str, float]:
    """CPU seconds so far of the worker, of its job processes and their server together, and of the servers."""
    spent = {"worker": _seconds(worker), "jobs": sum(_seconds(pid) for pid in descendants(worker) if pid != worker)}
    return spent | {name: sum(_seconds(p) for p in descendants(pid)) for name, pid in servers.items()}


def _seconds(pid: int) -> float:
    """CPU seconds of a process and its reaped children."""
    try:
        fields: list[Any] = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(int(value) for value in fields[11:15]) / _TICK
