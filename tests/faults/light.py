"""A light pipeline through the real engine: two stages of milliseconds, real payloads, Kafka and S3. Not the science.

A worker is a process: ``python -m tests.faults.light CONFIGURATION.json``. The configuration says where things are and,
for a test that shows that it can fail, which mutant of the engine it is.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from ops import serve as workers_verb
from stream import event_loop
from stream import worker as workers_module
from stream.broker import kafka_errors
from stream.broker.kafka import KafkaBroker
from stream.broker.kafka_settings import KafkaTimings
from stream.broker.protocol import Record, TopicPartition
from stream.clock import SystemClock
from stream.dead_letters import bury
from stream.failure import FailureClass, FatalError, PermanentError
from stream.identity import chain
from stream.inbox import Inbox
from stream.jobs import Job
from stream.lease import Lease
from stream.message import Message
from stream.process_end import run_process
from stream.process_runner import ProcessJobRunner
from stream.results import Manifest, ObjectKind, Results, StoredObject, file_digest, object_key
from stream.retry import Attempt, Breaker, Outcome, RetryPolicy
from stream.router import Router
from stream.run_records import Attempts, RunRecords
from stream.stopped_segments import StoppedSegments
from stream.store import ObjectStore
from stream.store.cache import ObjectCache
from stream.store.locations import StoreLimits
from stream.store.obstore_store import open_store
from stream.topology import Segment
from stream.tracker import OffsetTracker
from stream.watchdog import Watchdog, WatchLimits
from stream.worker import SegmentWorker, WorkFailedError
from tests.faults.light_topology import BRANCH, STAGES, TIMINGS, configured, segments, status_of
from tests.faults.outside_mutants import NETWORK_AND_STORE

PHASES = ("download", "compute", "put", "after-put", "after-publish")
RETRIES = (0.5,)
TIMINGS_BY_NAME = {
    "quick": TIMINGS,
    "hasty": dataclasses.replace(TIMINGS, revoke_seconds=1.0, rebalance_seconds=3.0, request_seconds=2.0),
    "own": KafkaTimings(),
    "endless": dataclasses.replace(TIMINGS, request_seconds=3600.0),
}


@dataclasses.dataclass
class Configuration:
    run: str
    broker: str
    store: str
    work: str
    journal: str
    triggers: str
    slots: int = 1
    seconds: float = 0.1
    wall_seconds: float = 3.0
    memory_bytes: int = 300_000_000
    drain_seconds: float = 20.0
    mutant: str = ""
    breaker: bool = False
    retry_seconds: float = RETRIES[0]
    timings: str = "quick"
    """``hasty`` gives requests up sooner, ``own`` is what workers have by default, ``endless`` gives nothing up."""
    stall_seconds: float = StoreLimits().stall

    @property
    def limits(self) -> StoreLimits:
        """The store's own when ``stall_seconds`` is, else in proportion to it."""
        stall = self.stall_seconds
        if stall == StoreLimits().stall:
            return StoreLimits()
        return StoreLimits(connect=stall, stall=stall, retries=5, wait=stall / 4, retry=2 * stall)

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(dataclasses.asdict(self)))
        return path


def recipe(stage: str) -> str:
    return hashlib.sha256(f"recipe of {stage}".encode()).hexdigest()


class LightWork:
    """Implements `stream.worker.SegmentWork` as the pipeline's own does: find, fetch, job, put, manifest, pointer."""

    def __init__(self, config: Configuration, store: ObjectStore, runner: ProcessJobRunner) -> None:
        self.config = config
        self.store = store
        self.results = Results(store)
        self.records = RunRecords(store, config.run)
        self.runner = runner
        self.cache = ObjectCache(store, Path(config.work) / "cache", max_bytes=10**9, digest=file_digest)

    def phase(self, name: str) -> None:
        """Die here if a test wants one worker to."""
        try:
            (Path(self.config.triggers) / f"kill-{name}").unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    async def process(self, message: Message, segment: Segment, *, attempt: str, bigger_slot: bool) -> Manifest:
        identity = chain(message.identity, recipe(segment.name))
        found = await self.results.find(identity)
        if found is not None:
            await self.records.point(found)  # whoever made it may have died, or failed, before it could
            return found
        given = await self.results.read(message.manifest)
        self.phase("download")
        made = Path(self.config.work) / attempt
        try:
            async with self.cache.lease(given.objects) as paths:
                source = paths[given.objects[0].name]
                result = await self._job(message, segment.name, source, made, bigger_slot=bigger_slot)
            key = object_key(message.exposure, segment.name, attempt, "payload")
            await self.store.put(key, made)
        finally:
            made.unlink(missing_ok=True)
        self.phase("put")
        manifest = Manifest(
            identity=identity,
            exposure=message.exposure,
            stage=segment.name,
            branch=BRANCH,
            facts=message.facts,
            objects=(StoredObject("payload", key, result["digest"], result["size"], ObjectKind.ARRAY),),
            attempt=attempt,
        )
        published = await self.results.publish(manifest)
        await self.records.point(published)
        self.phase("after-put")
        return published

    async def _job(
        self, message: Message, stage: str, source: Path, made: Path, *, bigger_slot: bool
    ) -> dict[str, Any]:
        job = Job(
            "tests.faults.light_job:execute",
            {
                "exposure": message.exposure, "stage": stage, "input": str(source), "out": str(made),
                "journal": self.config.journal, "seconds": message.facts.get("seconds", self.config.seconds),
                "act": message.facts.get("act"), "acts_at": message.facts.get("acts_at", STAGES[0]),
                "worker": os.getpid(),
            },
            wall_seconds=self.config.wall_seconds * (1 + bigger_slot),
            memory_bytes=self.config.memory_bytes * (1 + bigger_slot),
            label=message.exposure,
        )  # fmt: skip
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._die_meanwhile)
            outcome = await self.runner.run(job)
            tasks.cancel_scope.cancel()
        if outcome.failure is not None:
            raise WorkFailedError(outcome)
        value: dict[str, Any] = outcome.result
        return value

    async def _die_meanwhile(self) -> None:
        await anyio.sleep(self.config.seconds / 2)
        self.phase("compute")

    async def finish(self, message: Message, manifest: Manifest) -> None:
        raise AssertionError("nothing is finalized here")

    async def abandon(self, message: Message, reason: str) -> None:
        raise AssertionError("nothing is finalized here")


class SettableClock:
    """Sets the time of day of this process by as many seconds as a file says; its monotonic clock goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0.0

    def look(self) -> None:
        if not self.path.exists():
            return
        if not self.offset:
            real = time.time
            time.time = lambda: real() + self.offset
        self.offset = float(self.path.read_text())


class LightRouter(Router):
    """The router, with a place to die after publishing."""

    work: LightWork

    async def forward(self, message: Message, manifest: Manifest) -> None:
        await super().forward(message, manifest)
        self.work.phase("after-publish")


def note(path: str, *words: object) -> None:
    """Append one line with the time at its end, as a whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (" ".join(map(str, words)) + f" {time.time():.3f}\n").encode())
    os.close(descriptor)


class NotedAttempts(Attempts):
    """Attempts that write down when the engine decided to begin one: nothing is awaited between that and the note."""

    def __init__(self, config: Configuration, store: ObjectStore) -> None:
        super().__init__(store, run=config.run, worker=str(os.getpid()), clock=SystemClock())
        self._journal = config.journal + ".starts"

    async def first(self, exposure: str, stage: str) -> Any:
        note(self._journal, os.getpid(), stage, exposure)
        return await super().first(exposure, stage)

    async def start(self, exposure: str, stage: str, **options: Any) -> Any:
        note(self._journal, os.getpid(), stage, exposure)
        return await super().start(exposure, stage, **options)


def note_assignments(inbox: Inbox, stage: str, path: str) -> None:
    """Write down which partitions of the stage's topic come and go, and when."""
    assigned, revoked = inbox.on_assigned, inbox.on_revoked

    def numbers(partitions: Sequence[TopicPartition]) -> str:
        return ",".join(str(p.partition) for p in partitions if p.topic == inbox.group) or "-"

    async def on_revoked(partitions: Sequence[TopicPartition]) -> None:
        note(path, os.getpid(), stage, "revoked", numbers(partitions))
        await revoked(partitions)

    async def on_assigned(partitions: Sequence[TopicPartition], epoch: int) -> None:
        await assigned(partitions, epoch)
        note(path, os.getpid(), stage, "assigned", numbers(partitions))

    inbox.on_revoked = on_revoked  # type: ignore[method-assign]
    inbox.on_assigned = on_assigned  # type: ignore[method-assign]


def mutate(name: str) -> None:
    """Break the engine in one way: a fault test must notice."""
    if name == "commits-what-it-has-fetched":
        OffsetTracker.prefix = property(lambda self: self._next)  # type: ignore[assignment,method-assign]
    elif name == "publishes-new-results-only":
        forward = LightRouter.forward
        known: set[str] = set()

        async def only_new(self: LightRouter, message: Message, manifest: Manifest) -> None:
            if not manifest.attempt.endswith(tuple(known) or ("-",)):
                return
            await forward(self, message, manifest)

        create = Attempts._create

        async def noted(self: Attempts, *args: Any, **kwargs: Any) -> Any:
            record = await create(self, *args, **kwargs)
            if record is not None:
                known.add(record.id)
            return record

        LightRouter.forward = only_new  # type: ignore[method-assign]
        Attempts._create = noted  # type: ignore[method-assign]
    elif name == "ignores-leases":
        _ignore_leases()
    elif name == "counts-attempts-of-dead-workers":
        RetryPolicy.admit = functools.partialmethod(_admit_none)  # type: ignore[assignment,method-assign]
    elif name == "does-not-drain":
        workers_verb.drain = _no_drain
    elif name == "has-no-limits":
        LightWork._job = _unlimited(LightWork._job)  # type: ignore[method-assign]
    elif name == "has-no-watchdog":
        Watchdog.trip = lambda self, reason: None  # type: ignore[method-assign]
    elif name == "keeps-what-was-revoked":
        Inbox.on_revoked = _let_nothing_go  # type: ignore[method-assign]
        _ignore_leases()
    elif name == "buries-what-it-understood":
        workers_module.bury = _bury_text
    elif name == "takes-an-outage-for-fatal":
        kafka_errors.RetriableError = FatalError  # type: ignore[misc,assignment]
    elif name in NETWORK_AND_STORE:
        NETWORK_AND_STORE[name]()
    elif name == "keeps-a-broken-producer":
        KafkaBroker._retire = _keep  # type: ignore[method-assign]
    elif name:
        msg = f"there is no mutant {name}"
        raise ValueError(msg)


def _admit_none(self: RetryPolicy, earlier: list[Attempt]) -> Any:
    from stream.retry import Action, Decision

    if any(attempt.outcome is Outcome.OPEN for attempt in earlier):
        return Decision(Action.DEAD_LETTER, "an attempt was left open")
    return None


def _ignore_leases() -> None:
    Lease.check = lambda self: None  # type: ignore[method-assign]
    Lease.check_start = lambda self: None  # type: ignore[method-assign]
    Lease.held = property(lambda self: True)  # type: ignore[assignment,method-assign]


async def _bury_text(broker: Any, run: str, record: Record, **details: Any) -> None:
    text = (record.value or b"").decode(errors="replace").encode()
    await bury(broker, run, dataclasses.replace(record, value=text), **details)


async def _let_nothing_go(self: Inbox, partitions: Any) -> None:
    await self._commit(self._trackers)


async def _no_drain(inboxes: Any, seconds: float) -> bool:
    return False


async def _keep(self: KafkaBroker, producer: Any) -> None:
    return


def _unlimited(run: Any) -> Any:
    async def patched(self: LightWork, *args: Any, **kwargs: Any) -> Any:
        self.config.wall_seconds = 3600.0
        return await run(self, *args, **kwargs)

    return patched


async def serve(config: Configuration) -> None:
    mutate(config.mutant)
    clock = SettableClock(Path(config.triggers) / "clock")
    store = open_store(config.store, limits=config.limits)
    work_folder = Path(config.work)
    runner = ProcessJobRunner(slots=config.slots, log_dir=work_folder / "jobs", preload=("tests.faults.light_job",))
    watchdog = Watchdog(limits=WatchLimits(loop=4.0), dump=work_folder / "stacks.log")
    async with runner, KafkaBroker.from_url(config.broker, timings=TIMINGS_BY_NAME[config.timings]) as broker:
        work = LightWork(config, store, runner)
        topics = await broker.topics()
        router = LightRouter(
            broker=broker, segments=segments(), run=config.run, status_of=status_of, clock=SystemClock(),
            partitions={name: spec.partitions for name, spec in topics.items()},
        )  # fmt: skip
        router.work = work
        stopped = StoppedSegments(store, config.run, SystemClock())
        await stopped.check(list(STAGES))
        tokens = anyio.CapacityLimiter(config.slots)
        workers = [
            SegmentWorker(
                broker=broker,
                attempts=NotedAttempts(config, store),
                router=router,
                segment=router.segments.named(name),
                work=work,
                capacity=tokens,
                policy=RetryPolicy(retry_delays=(config.retry_seconds,), in_place_delay=0.1),
                breaker=Breaker(enabled=config.breaker, in_a_row=5, observations=3),
                clock=SystemClock(),
                rng=random.Random(),
                start="none",
                revoke_seconds=TIMINGS_BY_NAME[config.timings].revoke_seconds,
                stopped=stopped,
            )
            for name in STAGES
        ]
        inboxes = [worker.inbox for worker in workers]
        for stage, inbox in zip(STAGES, inboxes, strict=True):
            note_assignments(inbox, stage, config.journal + ".groups")
        async with anyio.create_task_group() as tasks:
            for worker in workers:
                await tasks.start(worker.run)
            watchdog.start()
            tasks.start_soon(_tick, watchdog, Path(config.triggers), clock)
            print("serving", flush=True)  # noqa: T201
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1) as signals:
                async for told in signals:
                    for inbox in inboxes:
                        inbox.quiet()
                    if told is signal.SIGTERM:
                        break
            await workers_verb.drain(inboxes, config.drain_seconds)
            tasks.cancel_scope.cancel()


async def _tick(watchdog: Watchdog, triggers: Path, clock: SettableClock) -> None:
    while True:
        watchdog.tick()
        clock.look()
        if (triggers / "block").exists():
            (triggers / "block").unlink(missing_ok=True)
            time.sleep(60)  # noqa: ASYNC251 - the fault: a blocked event loop
        await anyio.sleep(0.1)


def main() -> int:
    config: Configuration = configured(Configuration)
    try:
        event_loop.run(serve, config)
    except BaseExceptionGroup as group:
        logging.getLogger().exception("stopped")
        return 3 if group.subgroup(lambda e: getattr(e, "failure_class", None) is FailureClass.FATAL) else 1
    except PermanentError:
        logging.getLogger().exception("stopped")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_process(main))
