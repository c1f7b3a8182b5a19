"""``rampstream worker``: serves segments of a run from the broker until it is told to stop.

SIGUSR1 makes it quiet: it takes nothing more and stays a member of its groups, so that a deployment causes no
rebalance before it must. SIGTERM and SIGINT drain: nothing more is taken, what is in flight is finished within a
budget, then the groups are left.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from ops.connect import add_engine_arguments, connected, engine_settings, view_run
from ops.endings import BREAKER, FAILED, STOPPED, Endings
from ops.engine import Engine, Folders
from ops.health import HealthServer, parse_address
from ops.monitor import Monitor
from ops.run_failure import stopped
from ops.run_inputs import RunInputs
from ops.run_options import log_to_file
from ops.settings import RunSettings
from ops.topics import group_topics
from ops.trace_export import exported_tracing
from ops.warm import PRELOADED
from stream import event_loop
from stream.aggregator import Aggregator
from stream.association import AssociationSettings, OnMissing
from stream.failure import FatalError, PermanentError, RetriableError
from stream.inbox import Inbox
from stream.metrics import Metrics
from stream.process_runner import ProcessJobRunner
from stream.retry import RetryPolicy
from stream.stopped_segments import StoppedSegments
from stream.store.stale import remove_stale
from stream.topology import Segments, topic_name
from stream.watchdog import EXIT_STATUS, Watchdog
from stream.worker import SegmentWorker

__all__ = ["Server", "add_arguments"]

LOG = logging.getLogger(__name__)

STOPS_SECONDS = 15.0
"""Between looks at what other workers' breakers stopped: one listing, and a job takes as long."""

STALE_SECONDS = 86_400.0
"""Age of half-written files of killed workers that may be swept: no job takes a day."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    add_engine_arguments(parser)
    parser.add_argument("--preset", choices=("fused", "balanced", "granular"), help="refused if the run has another")
    parser.add_argument("--segments", metavar="A,B", help="segments to serve, by their first stage (default: all)")
    parser.add_argument("--slots", type=int, help="exposures worked on at the same time")
    parser.add_argument("--threads", type=int, help="threads of all slots together (default: the machine's cores)")
    parser.add_argument("--health", metavar="HOST:PORT", help="where to answer /healthz, /readyz and /metrics")
    parser.set_defaults(handle=run_verb)


def run_verb(options: argparse.Namespace) -> int:
    """Serve; 0 after SIGTERM."""
    settings = engine_settings(options)
    log_to_file(settings.work)
    server = Server(settings, preset=options.preset, segments=options.segments)
    return event_loop.run(server.serve)


class Server:
    """One worker process.

    Parameters
    ----------
    settings : RunSettings
        Which run, broker and store, and how much to do at a time.
    preset : str, optional
        How the caller believes that the run is cut.
    segments : str, optional
        Names of the segments to serve, separated by commas; all when not given.
    """

    def __init__(self, settings: RunSettings, *, preset: str | None = None, segments: str | None = None) -> None:
        self._settings = settings
        self._preset = preset
        self._names = None if segments is None else [name.strip() for name in segments.split(",") if name.strip()]
        self._inboxes: dict[str, Inbox] = {}
        self._metrics = Metrics()
        self._endings = Endings(settings.work / "logs" / "endings.log")
        self._ending: tuple[str, list[str]] = (FAILED, [])
        self._monitor: Monitor | None = None
        self._quiet_at_once = False

    async def serve(self) -> int:
        """Work until told to stop; returns the exit status.

        Raises
        ------
        stream.failure.FatalError
            The engine cannot go on: credentials, a full disk, an open breaker, no broker.
        """
        signal.signal(signal.SIGUSR1, self._told_early)
        signal.signal(signal.SIGTERM, self._stopped_early)
        for event in self._endings.begin():
            self._observe(event)
        try:
            await self._serve()
            self._ending = (STOPPED, [])
        except BaseExceptionGroup as group:
            raise stopped(group, self._settings.work) from group
        finally:
            self._endings.note(*self._ending)
        return 0

    async def _serve(self) -> None:
        folders = Folders(self._settings.work.absolute())
        async with AsyncExitStack() as stack:
            # Job processes are forked from a server that is started before this process has threads to lose.
            runner = await stack.enter_async_context(
                ProcessJobRunner(
                    slots=self._settings.slots,
                    preload=PRELOADED,
                    log_dir=folders.root / "logs" / "jobs",
                    observe=self._observe,
                    warm=self._settings.warm_server,
                )
            )
            tracing = await stack.enter_async_context(exported_tracing(self._settings.run, worker_name()))
            connection = await stack.enter_async_context(connected(self._settings, observe=self._observe))
            view = await view_run(connection, self._preset)
            await anyio.to_thread.run_sync(connection.store.sweep_staging, STALE_SECONDS)
            await anyio.to_thread.run_sync(remove_stale, folders.scratch, STALE_SECONDS)
            inputs = await RunInputs.opened(view.definition, folders.references, view.settings, self._observe)
            await anyio.to_thread.run_sync(inputs.sweep)
            topics = await connection.broker.topics()
            engine = Engine(
                broker=connection.broker,
                store=connection.store,
                runner=runner,
                run=self._settings.run,
                pipeline=view.pipeline,
                definition=view.definition,
                settings=view.settings,
                folders=folders,
                visible=_unseen,
                associations=association_settings(view.definition),
                worker=worker_name(),
                policy=RetryPolicy(retry_delays=view.settings.retry_seconds),
                partitions={name: spec.partitions for name, spec in topics.items()},
                start="none",
                shared=True,
                observe=self._observe,
                tracing=tracing,
                inputs=inputs,
            )
            await anyio.to_thread.run_sync(engine.cache.sweep)
            segments = engine.pipeline.segments
            await engine.stopped.check(self._chosen(segments))
            aligns = any(segments.topology.row(name).joint for name in self._chosen(segments))
            await engine.check_environment(stars=aligns)
            await self._work(engine)

    def _told_early(self, *_: Any) -> None:
        """Be quiet from the start: it was asked for before there was anything to be quiet about."""
        self._quiet_at_once = True

    def _stopped_early(self, *_: Any) -> None:
        """End at once: nothing is begun. Processes that were forked for jobs end with this one."""
        self._endings.note(STOPPED)
        os._exit(0)

    def _observe(self, event: dict[str, Any]) -> None:
        self._metrics.observe(event)
        if event["event"] == "breaker":
            self._ending = (BREAKER, [event["segment"]])

    def _bitten(self, reason: str) -> None:
        self._endings.note(reason)
        os._exit(EXIT_STATUS)

    def _chosen(self, segments: Segments) -> list[str]:
        known = [segment.name for segment in segments]
        if self._names is None:
            return known
        unknown = [name for name in self._names if name not in known]
        if unknown or not self._names:
            raise PermanentError(f"--segments: there is no segment {unknown or ''}; this run has {', '.join(known)}")
        return [name for name in known if name in self._names]

    async def _work(self, engine: Engine) -> None:
        segments = engine.pipeline.segments
        chosen = self._chosen(segments)
        served: dict[str, Aggregator | SegmentWorker] = {
            name: engine.aggregator()
            if segments.topology.row(name).joint
            else engine.segment_worker(segments.named(name))
            for name in chosen
        }
        self._inboxes = {name: part.inbox for name, part in served.items()}
        groups = group_topics(engine.run, segments, len(engine.settings.retry_seconds))
        self._metrics.prepare({name: segments.named(name).stages for name in chosen})
        watchdog = Watchdog(dump=engine.folders.root / "logs" / "stacks.log", on_trip=self._bitten)
        self._monitor = monitor = Monitor(
            broker=engine.broker,
            inboxes=self._inboxes,
            topics={name: groups[topic_name(engine.run, name)] for name in chosen},
            aggregator=next((part for part in served.values() if isinstance(part, Aggregator)), None),
            tokens=engine.tokens,
            metrics=self._metrics,
            watchdog=watchdog,
        )
        self._metrics["slots"].set(engine.settings.slots)
        health = HealthServer(registry=self._metrics.registry, live=monitor.live, ready=monitor.not_ready)
        host, port = parse_address(engine.settings.health)
        watchdog.start()
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._until_told, monitor, tasks.cancel_scope)
                tasks.start_soon(monitor.run)
                tasks.start_soon(self._watch_stops, engine.stopped, chosen)
                port = await tasks.start(health.serve, host, port)
                for part in served.values():
                    await tasks.start(part.run)
                monitor.ready = True
                told = f"serving {', '.join(chosen)} of run {engine.run}; health and metrics at http://{host}:{port}"
                LOG.info("%s", told)
                sys.stdout.write(f"rampstream worker {engine.worker}: {told}\n")
                sys.stdout.flush()
        finally:
            watchdog.stop()

    async def _watch_stops(self, stopped: StoppedSegments, segments: list[str]) -> None:
        """End this worker when the breaker of another one stops a segment that it serves."""
        while True:
            await anyio.sleep(STOPS_SECONDS)
            try:
                await stopped.check(segments)
            except RetriableError as error:
                LOG.warning("the store does not tell whether a segment is stopped: %s", error)
            except FatalError:
                self._ending = (BREAKER, [])
                raise

    async def _until_told(
        self, monitor: Monitor, scope: anyio.CancelScope, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """End what is in a scope when told to stop, also while it starts: a restore may take minutes."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) as signals:
            task_status.started()
            if self._quiet_at_once:
                self._be_quiet(monitor)
            async for told in signals:
                LOG.info("%s: taking nothing more", told.name)
                self._be_quiet(monitor)
                if told is not signal.SIGUSR1:
                    break
        await drain(list(self._inboxes.values()), self._settings.drain_seconds)
        scope.cancel()

    def _be_quiet(self, monitor: Monitor) -> None:
        monitor.stopping = True
        for inbox in self._inboxes.values():
            inbox.quiet()


async def drain(inboxes: Sequence[Inbox], seconds: float) -> bool:
    """Wait for what is in flight; False when the budget ends first."""
    with anyio.move_on_after(seconds) as scope:
        for inbox in inboxes:
            await inbox.idle()
    if scope.cancelled_caught:
        LOG.warning("%d messages are given up after %.0f s", sum(inbox.in_flight for inbox in inboxes), seconds)
    return not scope.cancelled_caught


def association_settings(definition: dict[str, Any]) -> AssociationSettings:
    """How the associations of a run close, by its definition."""
    rules = definition["associations"]
    return AssociationSettings(
        minimum=rules["minimum"],
        deadline=rules["deadline"],
        revision_delay=rules["revision_delay"],
        on_missing=OnMissing(rules["on_missing"]),
    )


def worker_name() -> str:
    """Name of this process in attempts and logs."""
    return f"{socket.gethostname()}-{os.getpid()}"


async def _unseen(_: Any) -> None:
    return
