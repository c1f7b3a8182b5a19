"""What Kafka and the object store cost a real exposure, by preset: time beside pure compute, bytes moved. Not parity.

For each preset one worker process serves all segments of a run. A first exposure warms it up (kernels, references).
One that is alone tells how long an exposure is on its way, and what its jobs and stages report of themselves. A stream
of others tells how much longer each more of them takes, when the next one is fetched and the last one stored while a
job computes, and whose CPU time that is.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
from prometheus_client.parser import text_string_to_metric_families

from bench.throughput import cpu_seconds
from stream.broker.kafka import KafkaBroker
from stream.topology import product_event_topic_name

__all__ = ["PRESETS", "PresetCosts", "measure_preset"]

COMPUTING = ("execute", "solve", "finalize")
"""Jobs that are there without Kafka and store too."""

PRESETS = ("fused", "balanced", "granular")
HEAD, LAST = "dq_init", "finalize"
LOOK_SECONDS = 0.2
"""A look costs some requests of Kafka, and its length is the error of a time."""

PATIENCE_SECONDS = 1800.0

Found = TypeVar("Found")
Metrics = dict[tuple[str, str], float]
"""Value by name of the sample and its labels."""


@dataclass(frozen=True)
class PresetCosts:
    """Of one exposure in the steady state."""

    preset: str
    exposures: int
    """In the stream."""
    wall_seconds: float
    """Of one that is alone, from its announcement to the commit of its last message."""
    stream_seconds: float
    """By which each more of them prolongs a stream."""
    stream_cpu_seconds: dict[str, float]
    """Of each in a stream, by who spent them."""
    job_seconds: float
    """Of one that is alone, in job processes: input opened, all stages, payload and products written to local files."""
    compute_seconds: float
    """Of its stages alone."""
    compute_cpu_seconds: float
    written_bytes: float
    read_bytes: float
    result_bytes: float
    """Of what was written, the results of stages (the rest are products, manifests and records)."""
    requests: float
    """Of the store."""


def measure_preset(
    preset: str,
    data: Path,
    inputs: list[Path],
    broker: str,
    store: str,
    work: Path,
    *,
    rampstream: list[str],
    servers: dict[str, int],
) -> PresetCosts:
    """Send exposures through the preset: one to warm it up, one alone, the others together.

    Parameters
    ----------
    preset : str
        How the pipeline is cut.
    data : Path
        A simulation, with references and stars.
    inputs : list of Path
        At least four L1 files.
    broker, store : str
        Running servers.
    work : Path
        The worker's folder.
    rampstream : list of str
        The command.
    servers : dict
        Process ids of the servers by name.
    """
    run = f"bench-{preset}-{time.time_ns()}"
    # Each in a store of its own, for results are found again by whoever asks for the same.
    environment = {
        **os.environ, "RAMPSTREAM_BROKER": broker, "RAMPSTREAM_STORE": f"{store}-{preset}", "RAMPSTREAM_RUN": run
    }  # fmt: skip
    call = functools.partial(_call, rampstream, environment)
    call("topics", "apply", "--preset", preset, "--partitions", "1", "--references", str(data / "references"),
         "--gaia", str(data / "gaia.parquet"))  # fmt: skip
    first, alone, *others = map(str, inputs)
    with _worker(rampstream, environment, work) as (worker, metrics):
        call("ingest", first)
        anyio.run(_finished, broker, run, 1)
        before = metrics()
        call("ingest", alone)
        wall = anyio.run(_finished, broker, run, 2)
        after = metrics()
        # Uploading the stream would take the worker's cores: it waits meanwhile, for less than its session.
        worker.send_signal(signal.SIGSTOP)
        call("ingest", *others)
        began, spent_before = time.time(), cpu_seconds(worker.pid, servers)
        worker.send_signal(signal.SIGCONT)
        lasted = anyio.run(_shown, broker, run, len(inputs)) - began
        call("status", "--wait", "60")
        spent_after = cpu_seconds(worker.pid, servers)

    def spent(name: str, label: str = "") -> float:
        return sum(value - before.get(key, 0.0) for key, value in after.items() if key[0] == name and label in key[1])

    moved = {name: spent("rampstream_object_bytes_total", f"operation={name}") for name in ("put", "create")}
    return PresetCosts(
        preset=preset,
        exposures=len(others),
        wall_seconds=wall,
        # The first is fetched, and the last stored and finalized, while nothing computes, as when there is one alone.
        stream_seconds=(lasted - wall) / (len(others) - 1),
        stream_cpu_seconds={name: (spent_after[name] - spent_before[name]) / len(others) for name in spent_after},
        job_seconds=sum(spent("rampstream_job_seconds_sum", f"entry={entry}") for entry in COMPUTING),
        compute_seconds=spent("rampstream_stage_seconds_sum"),
        compute_cpu_seconds=spent("rampstream_stage_cpu_seconds_total"),
        written_bytes=sum(moved.values()),
        read_bytes=spent("rampstream_object_bytes_total") - sum(moved.values()),
        result_bytes=spent("rampstream_stored_bytes_total"),
        requests=spent("rampstream_object_operation_seconds_count"),
    )


def _call(rampstream: list[str], environment: dict[str, str], *words: str) -> None:
    done = subprocess.run([*rampstream, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench: rampstream {' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")


@contextlib.contextmanager
def _worker(
    rampstream: list[str], environment: dict[str, str], work: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], Metrics]]]:
    """A worker of all segments, and a function that reads its metrics."""
    work.mkdir(parents=True, exist_ok=True)
    command = [*rampstream, "worker", "--slots", "1", "--work", str(work), "--health", "127.0.0.1:0"]
    with (work / "output").open("wb") as output:
        worker = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        while (told := re.search(r"at (http://\S+)", (work / "output").read_text())) is None:
            if worker.poll() is not None:
                sys.exit(f"bench: the worker ended:\n{(work / 'output').read_text()[-4000:]}")
            time.sleep(LOOK_SECONDS)
        yield worker, functools.partial(_metrics, f"{told[1]}/metrics")
    finally:
        worker.terminate()
        try:
            worker.wait(60)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _metrics(url: str) -> Metrics:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - ours, on loopback
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name, ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def _shown(broker_url: str, run: str, count: int) -> float:
    """Wait for the products of so many; when the last of them became visible, in seconds."""
    topic = product_event_topic_name(run)

    async def seen(broker: KafkaBroker) -> float | None:
        (extent,) = (await broker.extents(topic)).values()
        if extent[1] < count:
            return None
        return max(record.timestamp_ms / 1000 for record in await broker.read(topic, 0, 0, count))

    return await _waited_for(broker_url, seen, f"{count} exposures of run {run}")


async def _finished(broker_url: str, run: str, count: int) -> float:
    """Wait until so many are finalized and committed; seconds since the last of them was announced."""
    group = topic = f"{run}.{LAST}"

    async def committed(broker: KafkaBroker) -> float | None:
        (extent,) = (await broker.extents(topic)).values()
        if extent[1] < count or await broker.lag(group, topic):
            return None
        ended = time.time()
        (announced,) = await broker.read(f"{run}.{HEAD}", 0, count - 1, count)
        return ended - announced.timestamp_ms / 1000

    return await _waited_for(broker_url, committed, f"exposure {count} of run {run}")


async def _waited_for(broker_url: str, look: Callable[[KafkaBroker], Awaitable[Found | None]], what: str) -> Found:
    gives_up = time.monotonic() + PATIENCE_SECONDS
    async with KafkaBroker.from_url(broker_url) as broker:
        while (found := await look(broker)) is None:
            if time.monotonic() > gives_up:
                sys.exit(f"bench: no products of {what} after {PATIENCE_SECONDS:.0f} s")
            await anyio.sleep(LOOK_SECONDS)
    return found
