"""``rampstream run``: the whole pipeline on this machine, through the same engine that serves topics.

Ingests what is named, works until every association is closed and its products are in place, and exits. Everything
that matters is in the work folder: killed and started again with the same words, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.to_thread
from rich.console import Console

from ops.announce import Announcer
from ops.crds_cache import is_crds_definition
from ops.dropped_payloads import drop_payloads
from ops.engine import Engine, Folders
from ops.ingest import Ingest, inspect, read_inputs
from ops.outcome import Outcomes
from ops.pipeline_jobs import PATIENCE
from ops.product_sets import ProductSet
from ops.progress import ProgressBars, closing_table
from ops.projection import Projection
from ops.run_failure import first_failure, stopped
from ops.run_inputs import RunInputs
from ops.run_options import RunOptions, log_to_file
from ops.step_outputs import StepOutputs
from ops.table import Pipeline, build_pipeline
from ops.trace_export import exported_tracing
from ops.warm import PRELOADED
from stream.aggregator import Aggregator
from stream.association import AssociationSettings
from stream.broker.embedded import EmbeddedBroker
from stream.clock import SystemClock
from stream.identity import hash_parts
from stream.process_runner import ProcessJobRunner
from stream.retry import RetryPolicy
from stream.router import run_topics
from stream.run_records import RunRecords
from stream.store import probe_put_if_absent
from stream.store.obstore_store import open_store

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
    if options.without_effect is not None:
        LOG.warning("%s", options.without_effect)
        sys.stderr.write(f"rampstream: {options.without_effect}\n")
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
            "references": options.references,
            "pins": {kind: str(path) for kind, path in options.settings.references.items()},
            "gaia": options.gaia,
        }
        self._crds = is_crds_definition(options.references)
        self.run = f"run-{hash_parts('definition', self._definition)[:12]}"
        self._refused: dict[str, str] = {}
        self._changed = anyio.Event()
        self._session_ms = int(self._clock.now() * 1000)
        self._outcomes = Outcomes((), session_ms=self._session_ms)

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
            await RunRecords(self._store, self.run).define(self._definition)
            await self._broker.create_topics(
                run_topics(self.run, self._pipeline.segments, retry_tiers=len(RETRY_SECONDS))
            )
            self._runner = await stack.enter_async_context(self._make_runner())
            self._tracing = await stack.enter_async_context(exported_tracing(self.run, f"run-{os.getpid()}"))
            folders = Folders(self._options.work)
            inputs = await RunInputs.opened(self._definition, folders.references, self._settings)
            await anyio.to_thread.run_sync(inputs.sweep)
            self._engine = self._make_engine(folders, inputs)
            await self._engine.check_environment()
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
                await self._keep_outputs()
            await self._collect()
        return self._report(ingest, time.monotonic() - begun)

    def _make_runner(self) -> ProcessJobRunner:
        preload = (*PRELOADED, *(("ops.preload:warm_crds",) if self._crds else ()))
        return ProcessJobRunner(
            slots=self._settings.slots,
            preload=preload,
            log_dir=self._options.work / "logs" / "jobs",
            warm=self._settings.warm_server,
        )

    def _make_engine(self, folders: Folders, inputs: RunInputs) -> Engine:
        self._projection = Projection(store=self._store, out=self._options.out, cache=folders.objects)
        return Engine(
            broker=self._broker,
            store=self._store,
            runner=self._runner,
            run=self.run,
            pipeline=self._pipeline,
            definition=self._definition,
            settings=self._settings,
            folders=folders,
            visible=self._project,
            associations=AssociationSettings(deadline=None, revision_delay=NEVER),
            worker=f"run-{os.getpid()}",
            policy=RetryPolicy(tries_in_place=PATIENCE, retry_delays=RETRY_SECONDS),
            breaking=False,
            patient=False,
            observe=self._observe,
            tracing=self._tracing,
            clock=self._clock,
            inputs=inputs,
        )

    async def _project(self, complete: ProductSet) -> None:
        await self._projection.project(complete)
        await self._projection.remove_former(complete, await self._engine.products.former(complete))

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
        aggregator = self._engine.aggregator()
        await self._engine.attempts.clear()  # a person has started it anew
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(aggregator.run)
                for segment in self._pipeline.segments:
                    if not self._pipeline.segments.topology.row(segment.name).joint:
                        await tasks.start(self._engine.segment_worker(segment).run)
                await self._announce(ingest)
                await self._until_done(aggregator)
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise stopped(group, self._options.work) from group

    async def _announce(self, ingest: Ingest) -> None:
        announcer = Announcer(
            store=self._store,
            results=self._engine.results,
            router=self._engine.router,
            clock=self._clock,
            upload=False,
            again=True,
            replace=self._options.replace,
            tracing=self._tracing,
        )
        await announcer.lists(ingest)
        for entry in ingest.entries.values():
            announced = await announcer.exposure(entry, ingest.lists)
            if announced.reason is not None:
                self._refused[announced.exposure] = announced.reason

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
        close = await self._engine.products.newest_close(association)
        if close is None:
            return False
        if association not in self._outcomes.closed | self._outcomes.dispatched.keys() | sent:
            sent.add(association)  # closed by an earlier session: take up what changed since, or send its members on
            await aggregator.settle(association)
            return False
        if not self._outcomes.is_done(association, close.used, close.revision):
            return False
        await self._engine.products.check(association)
        complete = await self._engine.products.current(association)
        if complete is None:
            return False
        self._note_products(association, complete)
        return True

    def _note_products(self, association: str, complete: Any) -> None:
        folder = self._projection.folder(complete)
        for (exposure, _), row in self._outcomes.rows.items():
            if row.association != association:
                continue
            found = complete.members.get(exposure)
            if exposure in self._refused:  # there may be products of what was ingested under its name before
                row.status, row.reason = "failed", self._refused[exposure]
            elif found is None:
                row.status = "failed"
                row.reason = row.reason or complete.failed.get(exposure)
            else:
                row.status, row.reason, row.summary = "done", None, found["summary"]
                row.products = [str(folder / product["name"]) for product in found["products"]]

    async def _keep_outputs(self) -> None:
        """Write the outputs of the stages that were asked for beside the products."""
        if not self._settings.save_results:
            return
        engine = self._engine
        outputs = StepOutputs(
            run=self.run,
            stages=self._settings.save_results,
            topology=self._pipeline.segments.topology,
            store=self._store,
            results=engine.results,
            cache=engine.cache,
            jobs=engine.jobs,
            work=engine.work,
            scratch=engine.folders.scratch,
        )
        for row in self._outcomes.rows.values():
            product_name = self._outcomes.lists[row.association].product_name
            folder = self._options.out / product_name if product_name else self._options.out
            row.outputs = [str(path) for path in await outputs.write(row.exposure, folder, row.products)]

    async def _collect(self) -> None:
        """Drop the payloads of exposures whose associations are all closed with every member ok."""
        if self._settings.keep:
            return
        stages = self._pipeline.segments.topology.stages
        failed = {row.association for row in self._outcomes.rows.values() if row.status != "done"}
        wanted = {row.exposure for row in self._outcomes.rows.values() if row.association in failed}
        for exposure in {row.exposure for row in self._outcomes.rows.values()} - wanted:
            await drop_payloads(self._store, self._engine.results, self._engine.records, exposure, stages)
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
