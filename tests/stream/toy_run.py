"""A run of the toy pipeline: real workers, aggregator, broker and store; its jobs run in this process."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import numpy as np

from ops.announce import Announcer
from ops.ingest import Entry
from ops.pipeline_jobs import JobLimits, PipelineJobs
from stream.aggregator import Aggregator, Solved
from stream.association import AssociationSettings, Close
from stream.broker.embedded import EmbeddedBroker
from stream.broker.protocol import Broker, Record
from stream.clock import SystemClock
from stream.failure import FailureClass
from stream.identity import hash_parts
from stream.jobs import Job, JobOutcome, JobProgress, Progress
from stream.member_list import MemberList, put_member_list
from stream.message import MemberMessage, MemberStatus, Message, MessageKind
from stream.results import Manifest, Results, file_digest
from stream.retry import Breaker, RetryPolicy
from stream.router import Router, run_topics
from stream.run_records import Attempts
from stream.segment import execute_segment
from stream.stage import Slot
from stream.store.obstore_store import open_store
from stream.topology import Segment, Segments, StageRow, Topology, dead_letter_topic_name
from stream.tracing import Tracing
from stream.worker import SegmentWorker
from tests.stream.toy_stages import ToyPayload, ToyReferences, toy_stages

RUN = "toy"
IMAGE = frozenset({"image"})
RETRIES = (0.01,)
PATIENCE = 20.0

JOINT, LAST = "align", "finish"


def toy_segments() -> Segments:
    rows = [StageRow(stage.name, IMAGE) for stage in toy_stages()]
    return Topology([*rows, StageRow(JOINT, IMAGE, joint=True), StageRow(LAST, IMAGE)]).cut(["shift"])


class ToyRunner:
    """Runs jobs at once, in this process; ``failures`` are given out first, by entry and label."""

    def __init__(self) -> None:
        self.failures: dict[tuple[str, str], list[FailureClass]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return

    async def run(self, job: Job, *, progress: Progress | None = None) -> JobOutcome:
        entry = job.entry.partition(":")[2]

        def report(document: dict[str, Any]) -> None:
            assert progress is not None
            progress(JobProgress(job.label, document))

        if entry != "execute":
            report({"event": "stage_started", "stage": {"solve": JOINT, "finalize": LAST}[entry]})
        if self.failures.get((entry, job.label)):
            told = self.failures[entry, job.label].pop(0)
            return JobOutcome(failure={"class": told.value, "message": f"{told.value} by order"})
        stages = {stage.name: stage for stage in toy_stages()}
        return JobOutcome(
            entry == "execute"
            and execute_segment(
                job.arguments["plan"],
                stages=stages,
                parameters={name: stage.parameters_type() for name, stage in stages.items()},
                payload=ToyPayload(),
                references=ToyReferences(gain=2.0),
                slot=Slot(),
                report=report,
            )
        )


class ToyRun:
    """Implements `stream.worker.SegmentWork`, and holds the parts of the run together."""

    def __init__(self, folder: Path, broker: Broker, tracing: Tracing) -> None:
        self.folder = folder
        self.broker = broker
        self.tracing = tracing
        self.store = open_store(folder / "store")
        self.results = Results(self.store)
        self.segments = toy_segments()
        self.clock = SystemClock()
        self.runner = ToyRunner()
        self.events: list[dict[str, Any]] = []
        self.observe = tracing.observing(self.events.append)
        self.jobs = PipelineJobs(
            runner=self.runner, environment={}, limits=JobLimits(1, 60.0, 10**9), observe=self.observe, tracing=tracing
        )
        self.router = Router(
            broker=broker, segments=self.segments, run=RUN, status_of=lambda _: MemberStatus.OK, clock=self.clock
        )

    @classmethod
    @asynccontextmanager
    async def opened(cls, folder: Path, tracing: Tracing) -> AsyncIterator[ToyRun]:
        async with EmbeddedBroker(folder / "log") as broker:
            run = cls(folder, broker, tracing)
            await broker.create_topics(run_topics(RUN, run.segments, retry_tiers=len(RETRIES)))
            yield run

    async def ingest(self, members: MemberList, *names: str) -> None:
        await put_member_list(self.store, RUN, members)
        announcer = Announcer(
            store=self.store, results=self.results, router=self.router, clock=self.clock, upload=True,
            tracing=self.tracing,
        )  # fmt: skip
        for number, name in enumerate(names):
            path = self.folder / f"{name}.npy"
            np.save(path, np.full((4, 5), number, np.float32))
            facts = {"exposure_type": "image", "detector": "WFI01"}
            entry = Entry(name, path, facts, file_digest(path), path.stat().st_size, path.stat().st_mtime_ns)
            assert (await announcer.exposure(entry, [members])).outcome == "announced"

    @asynccontextmanager
    async def serving(self, *names: str) -> AsyncIterator[None]:
        """Serve these segments; all when none is named."""
        async with anyio.create_task_group() as tasks:
            for segment in self.segments:
                if not names or segment.name in names:
                    await tasks.start(
                        self.aggregator().run if segment.name == JOINT else self.segment_worker(segment).run
                    )
            yield
            tasks.cancel_scope.cancel()

    def aggregator(self) -> Aggregator:
        return Aggregator(
            broker=self.broker, store=self.store, router=self.router, solver=self.solve, abandon=self.abandon,
            settings=AssociationSettings(), clock=self.clock, observe=self.observe, tracing=self.tracing,
        )  # fmt: skip

    def segment_worker(self, segment: Segment) -> SegmentWorker:
        return SegmentWorker(
            broker=self.broker, attempts=Attempts(self.store, run=RUN, worker="w", clock=self.clock),
            router=self.router, segment=segment, work=self, capacity=anyio.CapacityLimiter(2),
            policy=RetryPolicy(retry_delays=RETRIES, in_place_delay=0.01), breaker=Breaker(enabled=False),
            clock=self.clock, rng=random.Random(1), observe=self.observe, tracing=self.tracing,
        )  # fmt: skip

    async def process(self, message: Message, segment: Segment, *, attempt: str, bigger_slot: bool) -> Manifest:
        if message.kind is MessageKind.FINALIZE:
            await self.jobs.run("finalize", {}, label=message.exposure)
            identity = hash_parts("final", message.identity, message.association)
            return await self.results.publish(
                Manifest(identity=identity, exposure=message.exposure, stage=LAST, branch="image", attempt=attempt)
            )
        start = await self.results.read(message.manifest)
        plan = {
            "manifest": start.document(),
            "paths": {name: str(path) for name, path in (await self.results.fetch(start, self.folder / "c")).items()},
            "stages": segment.stages,
            "attempt": attempt,
            "staging": str(self.store.staging(attempt)),
        }
        made = await self.jobs.run("execute", {"plan": plan}, label=message.exposure)
        return (await self.results.publish_made(made))[-1]

    async def finish(self, message: Message, manifest: Manifest) -> None:
        self.observe({"event": "finalized", "exposure": message.exposure})

    async def abandon(self, message: Message, reason: str) -> None:
        self.observe({"event": "finalize_failed", "exposure": message.exposure, "reason": reason})

    async def solve(self, close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        await self.jobs.run("solve", {}, label=close.association)
        return Solved("results/solution/1", hash_parts("solution"))

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.fail_after(PATIENCE):
            while not holds():  # noqa: ASYNC110 - the events have no event to wait for
                await anyio.sleep(0.01)

    def count(self, event: str) -> int:
        return sum(found["event"] == event for found in self.events)

    async def records(self, topic: str) -> list[Record]:
        found: list[Record] = []
        for partition, (first, end) in (await self.broker.extents(topic)).items():
            found += await self.broker.read(topic, partition, first, end)
        return found

    async def dead_letters(self) -> list[Record]:
        return await self.records(dead_letter_topic_name(RUN))
