"""A pipeline whose one stage does nothing, through the real engine: what is left is the engine's own cost. No science.

A worker is a process: ``python -m bench.empty_stage CONFIGURATION.json``. It serves until SIGTERM, then writes what it
asked of the store. All that a worker does for a message of the calibration pipeline is done: attempts, a job in a
process of its own, payload, manifest, pointer, a message to the next stage's inbox, a commit.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio

from stream import event_loop
from stream.broker.kafka import KafkaBroker
from stream.broker.protocol import Broker
from stream.clock import SystemClock
from stream.identity import chain, root_identity
from stream.jobs import Job
from stream.message import MemberStatus, Message
from stream.process_end import run_process
from stream.process_runner import ProcessJobRunner
from stream.results import Manifest, ObjectKind, Results, StoredObject, file_digest, object_key
from stream.retry import Breaker, RetryPolicy
from stream.router import Router
from stream.run_records import Attempts, RunRecords
from stream.stage import Slot
from stream.store import ObjectStore
from stream.store.cache import ObjectCache
from stream.store.measured import MeasuredStore
from stream.store.obstore_store import open_store
from stream.topology import Segment, Segments, StageRow, Topology
from stream.worker import SegmentWorker, WorkFailedError

BRANCH = "x"
STAGE = "empty"
NEXT = "sink"
RECIPE = hashlib.sha256(b"the stage that does nothing").hexdigest()
CACHE_BYTES = 2_000_000_000


@dataclass
class Configuration:
    """What a worker is told."""

    run: str
    broker: str
    store: str
    work: str
    slots: int = 8


@dataclass
class StoreCosts:
    """How often the store was asked for what, and how long that took."""

    operations: dict[str, list[float]] = field(default_factory=dict)

    def observe(self, event: dict[str, Any]) -> None:
        if event["event"] == "store":
            known = self.operations.setdefault(event["operation"], [0, 0.0])
            known[0] += 1
            known[1] += event["seconds"]


def segments() -> Segments:
    """The stage, one behind it that nobody serves, and a joint one, which a router must have."""
    rows = [StageRow(STAGE, frozenset({BRANCH})), StageRow(NEXT, frozenset({BRANCH}))]
    rows += [StageRow("joint", frozenset({"y"}), joint=True), StageRow("last", frozenset({"y"}))]
    return Topology(rows).segments("granular")


def execute(arguments: dict[str, Any], slot: Slot, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The job: read the payload, change nothing, write it."""
    del slot, report
    data = Path(arguments["input"]).read_bytes()
    Path(arguments["out"]).write_bytes(data)
    return {"digest": hashlib.sha256(data).hexdigest(), "size": len(data)}


class EmptyWork:
    """Implements `stream.worker.SegmentWork` with the steps of `ops.work.PipelineWork`."""

    def __init__(self, config: Configuration, store: ObjectStore, runner: ProcessJobRunner) -> None:
        self._results = Results(store)
        self._records = RunRecords(store, config.run)
        self._runner = runner
        self._cache = ObjectCache(store, Path(config.work) / "cache", max_bytes=CACHE_BYTES, digest=file_digest)
        self._scratch = Path(config.work) / "scratch"
        self._scratch.mkdir(parents=True, exist_ok=True)

    async def process(self, message: Message, segment: Segment, *, attempt: str, bigger_slot: bool) -> Manifest:
        """Find the result, or fetch the input, run the job, store payload, manifest and pointer."""
        del bigger_slot
        identity = chain(message.identity, RECIPE)
        found = await self._results.find(identity)
        if found is not None:
            return found
        given = await self._results.read(message.manifest)
        made = self._scratch / attempt
        try:
            async with self._cache.lease(given.objects) as paths:
                outcome = await self._runner.run(
                    Job(
                        "bench.empty_stage:execute",
                        {"input": str(paths["payload"]), "out": str(made)},
                        wall_seconds=60.0,
                        memory_bytes=500_000_000,
                        label=message.exposure,
                    )
                )
            if outcome.failure is not None:
                raise WorkFailedError(outcome)
            key = object_key(message.exposure, segment.name, attempt, "payload")
            payload = StoredObject("payload", key, **outcome.result, kind=ObjectKind.ARRAY)
            manifest = Manifest(
                identity=identity, exposure=message.exposure, stage=segment.name, branch=BRANCH, facts=message.facts,
                objects=(payload,), attempt=attempt,
            )  # fmt: skip
            published = await self._results.publish_made(
                {"files": {key: str(made)}, "manifests": [manifest.document()]}
            )
        finally:
            made.unlink(missing_ok=True)
        await self._records.point(published[0])
        return published[0]

    async def finish(self, message: Message, manifest: Manifest) -> None:  # noqa: ARG002 - the protocol's
        raise AssertionError("nothing is finalized here")

    async def abandon(self, message: Message, reason: str) -> None:  # noqa: ARG002 - the protocol's
        raise AssertionError("nothing is finalized here")


def _status_of(_: Manifest) -> MemberStatus:
    raise AssertionError("there is no joint stage here")


def router_of(broker: Broker, run: str, partitions: int) -> Router:
    """The router of the pipeline."""
    topics = {f"{run}.{stage}": partitions for stage in (STAGE, NEXT)}
    return Router(
        broker=broker, segments=segments(), run=run, status_of=_status_of, clock=SystemClock(), partitions=topics
    )


async def ingest(store: ObjectStore, router: Router, exposure: str, size: int) -> None:
    """Store a payload of so many random bytes and its manifest, and announce the exposure."""
    data = os.urandom(size)
    digest = hashlib.sha256(data).hexdigest()
    key = object_key(exposure, "ingest", digest[:16], "payload")
    await store.put(key, data)
    root = Manifest(
        identity=root_identity(exposure, digest), exposure=exposure, stage="ingest", branch=BRANCH,
        objects=(StoredObject("payload", key, digest, size, ObjectKind.ARRAY),),
    )  # fmt: skip
    await Results(store).publish(root)
    await router.send(
        Message(
            run=router.run, exposure=exposure, stage=STAGE, branch=BRANCH, identity=root.identity, manifest=root.key
        )
    )


@asynccontextmanager
async def _worker(config: Configuration, costs: StoreCosts) -> AsyncIterator[SegmentWorker]:
    store = MeasuredStore(open_store(config.store), costs.observe)
    runner = ProcessJobRunner(
        slots=config.slots, log_dir=Path(config.work) / "jobs", preload=("bench.empty_stage",), recycle_after=1000
    )
    async with runner, KafkaBroker.from_url(config.broker) as broker:
        partitions = (await broker.topics())[f"{config.run}.{STAGE}"].partitions
        router = router_of(broker, config.run, partitions)
        clock = SystemClock()
        yield SegmentWorker(
            broker=broker,
            attempts=Attempts(store, run=config.run, worker=str(os.getpid()), clock=clock),
            router=router,
            segment=router.segments.named(STAGE),
            work=EmptyWork(config, store, runner),
            # As in a worker of the calibration pipeline: the next payload is fetched while all slots compute.
            capacity=anyio.CapacityLimiter(config.slots + 1),
            policy=RetryPolicy(retry_delays=()),
            breaker=Breaker(),
            clock=clock,
            rng=random.Random(),  # noqa: S311 - jitter
        )


async def serve(config: Configuration) -> None:
    """Serve until SIGTERM, and tell the costs."""
    costs = StoreCosts()
    async with _worker(config, costs) as worker, anyio.create_task_group() as tasks:
        await tasks.start(worker.run)
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                break
        worker.inbox.quiet()
        await worker.inbox.idle()
        tasks.cancel_scope.cancel()
    (Path(config.work) / "costs.json").write_text(json.dumps(asdict(costs)))


def main() -> int:
    event_loop.run(serve, Configuration(**json.loads(Path(sys.argv[1]).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(run_process(main))
