"""``rampstream run``: the whole pipeline on this machine, through the same engine that serves topics.

Ingests what is named, works until every association is closed and its products are in place, and exits. Everything
that matters is in the work folder: killed and started again with the same words, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.to_thread
from rich.console import Console

from ops.ingest import Entry, Ingest, inspect, read_inputs
from ops.joint import JointSolver
from ops.outcome import Outcomes
from ops.pipeline_jobs import PATIENCE, JobLimits, PipelineJobs
from ops.product_sets import ProductSets
from ops.progress import ProgressBars, closing_table
from ops.run_failure import first_failure, stopped
from ops.run_options import RunOptions, log_to_file
from ops.table import Pipeline, build_pipeline
from ops.work import PipelineWork, drop_payloads, ingest_key
from stream.aggregator import Aggregator
from stream.association import AssociationSettings
from stream.broker.embedded import EmbeddedBroker
from stream.clock import SystemClock
from stream.failure import FatalError
from stream.identity import canonical_json, hash_parts, root_identity
from stream.member_list import put_member_list
from stream.message import MemberStatus, Message
from stream.process_runner import ProcessJobRunner
from stream.results import Manifest, Results
from stream.retry import Breaker, RetryPolicy
from stream.router import Router, run_topics
from stream.run_records import Attempts, RunRecords
from stream.store import probe_put_if_absent
from stream.store.obstore_store import open_store
from stream.worker import SegmentWorker

__all__ = ["EmbeddedRun", "run_from_options"]

LOG = logging.getLogger(__name__)

STALE_SECONDS = 86_400.0
"""Age of half-written files of killed runs that may be swept: no job takes a day."""

NEVER = 1e15
"""Seconds: in a run that a person watches a changed member is taken up when all have reported, not after a delay."""

WIDTH = 160
"""Columns of the closing table where there is no terminal."""

RETRY_SECONDS = (2.0, 10.0)
"""Retry tiers of such a run: it should end within the time that its reader waits for a table."""


def run_from_options(namespace: argparse.Namespace) -> int:
    """Run, show what came of it, and return the exit status."""
    options = RunOptions(namespace)
    log_to_file(options.work)
    console = Console(stderr=True)
    report = anyio.run(EmbeddedRun(options, console).execute)
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
        console.print(closing_table(report))
        for name, reason in report["refused"].items():
            console.print(f"{name}: {reason}", style="red", markup=False)
        console.print(f"products in {report['out']}; log in {report['log']}", markup=False)
    return int(report["exit"])


class EmbeddedRun:
    """One execution of ``rampstream run``.

    Parameters
    ----------
    options : RunOptions
        What was asked for.
    console : Console
        Where bars are drawn.
    """

    def __init__(self, options: RunOptions, console: Console) -> None:
        self._options = options
        self._settings = options.settings
        self._console = console
        self._clock = SystemClock()
        self._pipeline: Pipeline = build_pipeline(options.settings)
        self._definition = {
            **self._pipeline.definition(),
            "references": str(options.references),
            "pins": {kind: str(path) for kind, path in options.settings.references.items()},
            "gaia": str(options.gaia),
        }
        self.run = f"run-{hash_parts('definition', self._definition)[:12]}"
        self._changed = anyio.Event()
        self._session_ms = int(self._clock.now() * 1000)

    async def execute(self) -> dict[str, Any]:
        """Do it all and return the report.

        Raises
        ------
        FatalError
            The engine had to stop; what was done is kept.
        PermanentError
            A setting, a pinned reference or the star table is not usable; no exposure was begun.
        """
        try:
            return await self._execute()
        except BaseExceptionGroup as group:  # the engine's parts own task groups, each of which wraps what ended it
            raise first_failure(group, self._options.work) from group

    async def _execute(self) -> dict[str, Any]:
        begun = time.monotonic()
        ingest = read_inputs(self._options.inputs)
        async with AsyncExitStack() as stack:
            self._broker = await stack.enter_async_context(EmbeddedBroker(self._options.work / "log"))
            self._store = open_store(self._options.work / "store")
            await probe_put_if_absent(self._store)
            await anyio.to_thread.run_sync(self._store.sweep_staging, STALE_SECONDS)
            self._results = Results(self._store)
            self._records = RunRecords(self._store, self.run)
            await self._records.define(self._definition)
            await self._broker.create_topics(
                run_topics(self.run, self._pipeline.segments, retry_tiers=len(RETRY_SECONDS))
            )
            self._runner = await stack.enter_async_context(self._make_runner())
            await self._check_environment()
            for entry in ingest.entries.values():
                await anyio.to_thread.run_sync(inspect, entry)
            self._outcomes = Outcomes(ingest.lists, session_ms=self._session_ms)
            with ProgressBars(
                self._console,
                exposures=len(self._outcomes.rows),
                stages=len(self._pipeline.segments.topology.stages),
                enabled=not self._options.json and self._console.is_terminal,
            ) as self._bars:
                await self._work(ingest)
            await self._collect()
        return self._report(ingest, time.monotonic() - begun)

    def _make_runner(self) -> ProcessJobRunner:
        return ProcessJobRunner(
            slots=self._settings.slots, preload=("ops.preload:warm",), log_dir=self._options.work / "logs" / "jobs"
        )

    def _environment(self) -> dict[str, Any]:
        return {
            "entries": self._pipeline.entries,
            "parameters": self._settings.parameters,
            "references": str(self._options.references),
            "pins": self._definition["pins"],
            "gaia": str(self._options.gaia),
            "cache": str(self._options.work / "cache" / "references"),
        }

    async def _check_environment(self) -> None:
        stages = list(self._pipeline.segments.topology.stages)
        jobs = PipelineJobs(runner=self._runner, environment=self._environment(), limits=self._limits())
        await jobs.run_patiently("check", {"stages": stages}, label="check")

    def _observe(self, event: dict[str, Any]) -> None:
        self._outcomes.observe(event)
        exposure = str(event.get("exposure", ""))
        if event["event"] == "stage_started":
            self._bars.stage_started(exposure, event["stage"])
        elif event["event"] == "stage":
            work = self._outcomes.work[exposure]
            self._bars.stages_done(exposure, len(work.stages) + len(work.reused))
        elif event["event"] in {"finalized", "finalize_failed"}:
            self._bars.exposure_done(exposure)
        self._changed.set()

    async def _work(self, ingest: Ingest) -> None:
        cache = self._options.work / "cache" / "objects"
        router = Router(
            broker=self._broker, segments=self._pipeline.segments, run=self.run, status_of=_status_of, clock=self._clock
        )
        self._products = ProductSets(
            store=self._store, results=self._results, run=self.run, out=self._options.out, cache=cache,
            observe=self._observe,
        )  # fmt: skip
        jobs = PipelineJobs(
            runner=self._runner, environment=self._environment(), limits=self._limits(), observe=self._observe
        )
        work = PipelineWork(
            jobs=jobs,
            store=self._store,
            results=self._results,
            records=self._records,
            router=router,
            products=self._products,
            cache=cache,
            scratch=self._options.work / "scratch",
            keep_after=self._settings.keep_after,
            observe=self._observe,
        )
        aggregator = Aggregator(
            broker=self._broker,
            store=self._store,
            router=router,
            solver=JointSolver(jobs=jobs, store=self._store, results=self._results, cache=cache).solve,
            abandon=work.abandon,
            settings=AssociationSettings(deadline=None, revision_delay=NEVER),
            clock=self._clock,
            observe=self._observe,
        )
        attempts = Attempts(self._store, run=self.run, worker=f"run-{os.getpid()}", clock=self._clock)
        await attempts.clear()  # a person has started it anew
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(aggregator.run)
                for segment in self._pipeline.segments:
                    if not router.segments.topology.row(segment.name).joint:
                        await tasks.start(self._worker(segment, router, work, attempts).run)
                await self._announce(ingest, router)
                await self._until_done(aggregator)
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise stopped(group, self._options.work) from group

    def _limits(self) -> JobLimits:
        settings = self._settings
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = settings.job_memory_gb * 1e9 if settings.job_memory_gb else 0.8 * memory / settings.slots
        return JobLimits(max(1, settings.threads // settings.slots), settings.job_seconds, int(limit))

    def _worker(self, segment: Any, router: Router, work: PipelineWork, attempts: Attempts) -> SegmentWorker:
        return SegmentWorker(
            broker=self._broker,
            attempts=attempts,
            router=router,
            segment=segment,
            work=work,
            capacity=self._settings.slots,
            policy=RetryPolicy(tries_in_place=PATIENCE, retry_delays=RETRY_SECONDS),
            breaker=Breaker(enabled=False),
            clock=self._clock,
            rng=random.Random(),  # noqa: S311 - jitter
            observe=self._observe,
        )

    async def _announce(self, ingest: Ingest, router: Router) -> None:
        for members in ingest.lists:
            await put_member_list(self._store, self.run, members)
        for entry in ingest.entries.values():
            mine = tuple(m.association for m in ingest.lists if entry.id in m.members)
            error = entry.error or await self._register(entry)
            if error is not None:
                LOG.error("%s", error)
                for association in mine:
                    await router.failed(entry.id, association, error, entry.facts)
                continue
            root = root_identity(entry.id, entry.digest)
            manifest = await self._results.publish(_root_manifest(entry, root))
            branch = str(entry.facts["exposure_type"])
            first = router.segments.topology.first_stage(branch)
            if first is None:
                raise FatalError(f"no stage of the topology runs on exposure type {branch}")
            await router.send(
                Message(
                    run=self.run, exposure=entry.id, stage=first, branch=branch, identity=root, manifest=manifest.key,
                    facts=entry.facts, associations=mine,
                )
            )  # fmt: skip

    async def _register(self, entry: Entry) -> str | None:
        """Take note of what is ingested under a name; the reason if that is refused."""
        root = root_identity(entry.id, entry.digest)
        document = canonical_json(
            {"identity": root, "path": str(entry.path), "digest": entry.digest, "manifest": f"results/{root}/1"}
        )
        key = ingest_key(self.run, entry.id)
        if await self._store.put_if_absent(key, document):
            return None
        known = json.loads(await self._store.get(key) or b"{}")
        if known.get("digest") != entry.digest and not self._options.replace:
            return (
                f"{entry.path}: an exposure named {entry.id} with other content was ingested before from "
                f"{known.get('path')} (SHA-256 {str(known.get('digest'))[:12]}…, now {entry.digest[:12]}…); "
                "say --replace to take the new one"
            )
        await self._store.put(key, document)
        return None

    async def _until_done(self, aggregator: Aggregator) -> None:
        pending = set(self._outcomes.lists)
        sent: set[str] = set()
        while pending:
            self._changed = anyio.Event()
            for association in sorted(pending):
                if await self._is_done(association, aggregator, sent):
                    pending.discard(association)
            if pending:
                await self._changed.wait()

    async def _is_done(self, association: str, aggregator: Aggregator, sent: set[str]) -> bool:
        if not self._outcomes.all_reported(association):
            return False
        close = await self._products.newest_close(association)
        if close is None:
            return False
        if association not in self._outcomes.closed | self._outcomes.dispatched.keys() | sent:
            sent.add(association)  # closed by an earlier session: take up what changed since, or send its members on
            await aggregator.settle(association)
            return False
        if not self._outcomes.is_done(association, close.used, close.revision):
            return False
        await self._products.check(association)
        complete = await self._products.current(association)
        if complete is None:
            return False
        self._note_products(association, complete)
        return True

    def _note_products(self, association: str, complete: Any) -> None:
        folder = self._products.folder(complete)
        for (exposure, _), row in self._outcomes.rows.items():
            if row.association != association:
                continue
            found = complete.members.get(exposure)
            if found is None:
                row.status = "failed"
                row.reason = row.reason or complete.failed.get(exposure)
            else:
                row.status, row.reason, row.summary = "done", None, found["summary"]
                row.products = [str(folder / product["name"]) for product in found["products"]]

    async def _collect(self) -> None:
        """Drop the payloads of exposures whose associations are all closed with every member ok."""
        if self._settings.keep:
            return
        stages = self._pipeline.segments.topology.stages
        failed = {row.association for row in self._outcomes.rows.values() if row.status != "done"}
        wanted = {row.exposure for row in self._outcomes.rows.values() if row.association in failed}
        for exposure in {row.exposure for row in self._outcomes.rows.values()} - wanted:
            await drop_payloads(self._store, self._results, self._records, exposure, stages)
        shutil.rmtree(self._options.work / "scratch", ignore_errors=True)

    def _report(self, ingest: Ingest, seconds: float) -> dict[str, Any]:
        rows = [
            row.to_json(self._outcomes.work.setdefault(row.exposure, self._outcomes.new_work()))
            for row in self._outcomes.rows.values()
        ]
        bad = ingest.refused or any(row["status"] != "done" for row in rows)
        first, last = self._outcomes.first_work, self._outcomes.last_product
        return {
            "run": self.run,
            "exit": 1 if bad else 0,
            "out": str(self._options.out),
            "log": str(self._options.work / "logs" / "run.log"),
            "seconds": seconds,
            "work_seconds": None if first is None or last is None else last - first,
            "refused": ingest.refused,
            "exposures": rows,
        }


def _root_manifest(entry: Entry, identity: str) -> Manifest:
    return Manifest(
        identity=identity,
        exposure=entry.id,
        stage="ingest",
        branch=str(entry.facts["exposure_type"]),
        facts=entry.facts,
        extra={"path": str(entry.path), "digest": entry.digest, "size": entry.size, "mtime_ns": entry.mtime_ns},
    )


def _status_of(manifest: Manifest) -> MemberStatus:
    from stages.saturation import SATURATED_BRANCH

    if manifest.branch == SATURATED_BRANCH:
        return MemberStatus.SATURATED
    return MemberStatus.OK if manifest.object("tie_points") is not None else MemberStatus.SKIPPED
