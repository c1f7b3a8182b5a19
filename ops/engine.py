"""Puts the parts of the engine together for one run, embedded or distributed. Not the deciding of what to work on."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from ops.joint import JointSolver
from ops.pipeline_jobs import PATIENCE, JobLimits, PipelineJobs
from ops.product_sets import ProductSets, Visible
from ops.run_inputs import RunInputs
from ops.settings import RunSettings
from ops.star_answers import StarAnswers
from ops.table import Pipeline
from ops.work import PipelineWork
from stream.aggregator import Aggregator
from stream.association import AssociationSettings
from stream.broker.protocol import Broker
from stream.clock import Clock, SystemClock
from stream.inbox import REVOKE_SECONDS
from stream.jobs import JobRunner
from stream.message import MemberStatus
from stream.precedence import Capacity, Tokens
from stream.results import Manifest, Results, file_digest
from stream.retry import Breaker, RetryPolicy
from stream.router import Router
from stream.run_records import Attempts, RunRecords
from stream.stopped_segments import StoppedSegments
from stream.store import ObjectStore
from stream.store.cache import ObjectCache
from stream.topology import Segment
from stream.tracing import Forwarding, Tracing
from stream.worker import SegmentWorker

__all__ = ["Engine", "Folders", "job_environment", "job_limits", "status_of"]

Observer = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a process keeps what it can make again: fetched objects, files being made, digests of references."""

    root: Path

    @property
    def objects(self) -> Path:
        """Fetched objects."""
        return self.root / "cache" / "objects"

    @property
    def references(self) -> Path:
        """Digests of reference files, fetched ones, and arrays unpacked from them."""
        return self.root / "cache" / "references"

    @property
    def scratch(self) -> Path:
        """Files being made."""
        return self.root / "scratch"


def status_of(manifest: Manifest) -> MemberStatus:
    """Status of a member for the joint stage, from its last result."""
    from stages.step import SATURATED_BRANCH

    if manifest.branch == SATURATED_BRANCH:
        return MemberStatus.SATURATED
    return MemberStatus.OK if manifest.object("tie_points") is not None else MemberStatus.SKIPPED


def job_environment(definition: Mapping[str, Any], inputs: RunInputs) -> dict[str, Any]:
    """What job processes need to know of a run (see `ops.workbench.Workbench`)."""
    return {
        "entries": {row["name"]: row["entry"] for row in definition["topology"]},
        "parameters": definition["parameters"],
        "pins": definition["pins"],
        "salt": definition.get("salt"),
        **inputs.environment,
    }


def job_limits(settings: RunSettings) -> JobLimits:
    """What one job may use of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = settings.job_memory_gb * 1e9 if settings.job_memory_gb else 0.8 * memory / settings.slots
    return JobLimits(max(1, settings.threads // settings.slots), settings.job_seconds, int(limit))


@dataclass(kw_only=True)
class Engine:
    """The parts that serve one run in this process.

    Attributes
    ----------
    broker, store, runner : Broker, ObjectStore, JobRunner
        Open already.
    run : str
        The run.
    pipeline : Pipeline
        Its segments.
    definition : mapping
        Its definition.
    settings : RunSettings
        Slots, threads and limits.
    folders : Folders
        Where this process keeps what it can make again.
    visible : callable
        Awaited with each complete product set.
    associations : AssociationSettings
        How associations close.
    observe : callable
        Told what happens.
    partitions : mapping
        Partitions of each topic that has more than one.
    start : str
        Where a partition without a commit starts.
    worker : str
        Name of this process in the attempts.
    policy : RetryPolicy
        What becomes of failures.
    breaking : bool
        Whether a stage that fails too much is stopped.
    patient : bool
        Whether a joint solution that something outside fails is tried until it works.
    shared : bool
        Whether all segments share the slots (else each has its own tokens, and jobs wait for one another).
    tracing : Tracing
        Traces of messages.
    inputs : RunInputs, optional
        References and star table; local ones by default.
    """

    broker: Broker
    store: ObjectStore
    runner: JobRunner
    run: str
    pipeline: Pipeline
    definition: Mapping[str, Any]
    settings: RunSettings
    folders: Folders
    visible: Visible
    associations: AssociationSettings
    worker: str
    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(tries_in_place=PATIENCE))
    breaking: bool = True
    patient: bool = True
    shared: bool = False
    partitions: Mapping[str, int] = field(default_factory=dict)
    start: str = "earliest"
    revoke_seconds: float = REVOKE_SECONDS
    observe: Observer = lambda _: None
    tracing: Tracing = field(default_factory=Forwarding)
    clock: Clock = field(default_factory=SystemClock)
    inputs: RunInputs | None = None

    def __post_init__(self) -> None:
        self.observe = self.tracing.observing(self.observe)
        self.results = Results(self.store, on_difference=self._differs)
        self.records = RunRecords(self.store, self.run)
        self.stopped = StoppedSegments(self.store, self.run, self.clock)
        self.attempts = Attempts(self.store, run=self.run, worker=self.worker, clock=self.clock)
        self.router = Router(
            broker=self.broker,
            segments=self.pipeline.segments,
            run=self.run,
            status_of=status_of,
            clock=self.clock,
            partitions=self.partitions,
            spread=self.settings.spread,
        )
        self.products = ProductSets(
            store=self.store,
            results=self.results,
            run=self.run,
            visible=self.visible,
            publish=self.router.send_event,
            observe=self.observe,
        )
        inputs = self.inputs or RunInputs(self.definition, self.folders.references)
        self.jobs = PipelineJobs(
            runner=self.runner,
            environment=job_environment(self.definition, inputs),
            inputs=inputs,
            limits=job_limits(self.settings),
            observe=self.observe,
            tracing=self.tracing,
        )
        self.cache = ObjectCache(
            self.store,
            self.folders.objects,
            max_bytes=int(self.settings.cache_gb * 1e9),
            digest=file_digest,
            observe=self.observe,
        )
        self.work = PipelineWork(
            jobs=self.jobs,
            store=self.store,
            results=self.results,
            records=self.records,
            router=self.router,
            products=self.products,
            cache=self.cache,
            scratch=self.folders.scratch,
            keep_after=(*self.settings.keep_after, *self.settings.save_results),
            observe=self.observe,
        )
        # One message more than there are slots, whose payload is fetched while a job runs; and one for later segments
        # alone, so that an exposure goes on though others have been begun behind it.
        self._tokens = Tokens(self.settings.slots + 2, kept=1)

    async def check_environment(self, *, stars: bool = True) -> None:
        """Have a job process make every stage and open the star table: what is wrong is told before any work.

        Without ``stars`` a table in object storage is not fetched for it, nor a catalog opened.
        """
        stages = list(self.pipeline.segments.topology.stages)
        await self.jobs.run_patiently("check", {"stages": stages, "stars_matter": stars}, label="check", stars=stars)

    def aggregator(self) -> Aggregator:
        """The aggregator of the joint stage."""
        return Aggregator(
            broker=self.broker,
            store=self.store,
            router=self.router,
            solver=JointSolver(
                jobs=self.jobs,
                store=self.store,
                results=self.results,
                cache=self.cache,
                scratch=self.folders.scratch,
                precedence=self._place(self.router.joint_stage),
                stars=StarAnswers(
                    jobs=self.jobs,
                    store=self.store,
                    scratch=self.folders.scratch,
                    at_once=max(1, self.settings.slots // 2),
                ),
                observe=self.observe,
            ).solve,
            abandon=self.work.abandon,
            dispatched=self.products.check,  # a close that has nobody finalized is complete at once
            settings=self.associations,
            clock=self.clock,
            observe=self.observe,
            start=self.start,
            revoke_seconds=self.revoke_seconds,
            tracing=self.tracing,
            patient=self.patient,
        )

    @property
    def tokens(self) -> Capacity:
        """What segments share, as the first one sees it: whether there is room to begin another exposure."""
        return self._tokens.of(0)

    def segment_worker(self, segment: Segment) -> SegmentWorker:
        """One that serves a segment; what is further on in the pipeline has precedence."""
        place = self._place(segment.name)
        return SegmentWorker(
            broker=self.broker,
            attempts=self.attempts,
            router=self.router,
            segment=segment,
            work=self.work,
            capacity=self._tokens.of(place) if self.shared else anyio.CapacityLimiter(self.settings.slots),
            policy=self.policy,
            breaker=Breaker(enabled=self.breaking),
            stopped=self.stopped,
            clock=self.clock,
            rng=random.Random(),  # noqa: S311 - jitter
            observe=self.observe,
            start=self.start,
            revoke_seconds=self.revoke_seconds,
            tracing=self.tracing,
        )

    def _place(self, stage: str) -> int:
        return self.pipeline.segments.topology.index(stage)

    def _differs(self, winner: Manifest, loser: Manifest) -> None:
        self.observe({"event": "results_differ", "stage": winner.stage, "exposure": loser.exposure})
