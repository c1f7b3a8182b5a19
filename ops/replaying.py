"""``rampstream replay plan|execute``: sends exposures of one run through another, from stored results where they hold.

The new run has its own topics, groups, pointers and products; of the run that it is taken from, nothing changes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio

from ops.connect import Connection, RunView, add_engine_arguments, connected, engine_settings, view_run
from ops.engine import Folders, job_environment, status_of
from ops.gaia_option import add_gaia
from ops.replay_plan import ReplayPlan, definition_with_changes, planned_exposure
from ops.run_inputs import RunInputs, defined_references
from ops.star_sources import defined_stars
from ops.table import defined_pipeline
from ops.topics import apply
from ops.trace_export import exported_tracing
from ops.work import ingest_key
from stream.broker.protocol import Record
from stream.clock import SystemClock
from stream.failure import PermanentError, PoisonError
from stream.member_list import put_member_list, read_member_list
from stream.message import MemberMessage, Message, OrderMessage, decode
from stream.router import Router
from stream.topology import topic_name

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    actions = parser.add_subparsers(required=True, metavar="plan|execute")
    plan = actions.add_parser("plan", help="say what would be replayed from where, and write it to a file")
    plan.add_argument("--topic", required=True, metavar="STAGE", help="stage whose topic is replayed")
    plan.add_argument("--from-run", default="prompt", metavar="RUN", help="the run to take exposures from")
    plan.add_argument("--from-offset", type=int, metavar="N", help="records from this offset of each partition")
    plan.add_argument("--to-offset", type=int, metavar="N", help="records before this offset of each partition")
    plan.add_argument("--since", metavar="TIME", help="records published since (ISO 8601, UTC by default)")
    plan.add_argument("--until", metavar="TIME", help="records published before")
    plan.add_argument("--exposure", action="append", default=[], metavar="GLOB", help="only these exposures")
    plan.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="STAGE.PARAMETER=VALUE", help="changed"
    )
    plan.add_argument("--references", metavar="DIR|URL|crds://CONTEXT", help="other reference files")
    plan.add_argument(
        "--parameters", action="append", default=[], type=Path, metavar="FILE.asdf", help="a step's parameter file"
    )
    plan.add_argument("--reference", action="append", default=[], dest="pins", metavar="TYPE=FILE", help="pinned")
    add_gaia(plan)
    plan.add_argument("--recompute", action="store_true", help="reuse no result from the topic's stage on")
    plan.add_argument("--out", type=Path, default=Path("replay.json"), metavar="PLAN", help="file for the plan")
    plan.add_argument("--json", action="store_true", help="print the plan's summary as one JSON document")
    add_engine_arguments(plan)
    plan.set_defaults(handle=plan_verb)
    execute = actions.add_parser("execute", help="publish what a plan says")
    execute.add_argument("plan", type=Path, metavar="PLAN", help="file that replay plan wrote")
    execute.add_argument("--json", action="store_true", help="print one JSON document")
    add_engine_arguments(execute)
    execute.set_defaults(handle=execute_verb)


def plan_verb(options: argparse.Namespace) -> int:
    """Plan; 1 when nothing is selected or an exposure cannot be replayed."""
    if options.run is None or options.run == options.from_run:
        raise PermanentError("say the new run with --run NEWRUN; it must be another than the one replayed")
    plan = anyio.run(_plan, options)
    options.out.write_text(plan.encode(), encoding="utf-8")
    summary = plan.summary()
    if options.json:
        sys.stdout.write(json.dumps({**summary, "plan": str(options.out)}) + "\n")
    else:
        then = f"rampstream replay execute {options.out} does it" if plan.anything else "there is nothing to execute"
        sys.stdout.write(_shown(summary) + f"written to {options.out}; {then}\n")
    return 1 if plan.refused or not plan.anything else 0


async def _plan(options: argparse.Namespace) -> ReplayPlan:
    settings = engine_settings(options, run=options.from_run)
    async with connected(settings) as connection:
        view = await view_run(connection)
        definition = definition_with_changes(
            view.definition,
            parameters=settings.parameters,
            references=None if options.references is None else await defined_references(options.references, settings),
            pins=settings.references,
            gaia=None if options.gaia is None else await defined_stars(options.gaia),
            salt=options.run if options.recompute else None,
        )
        segments = view.pipeline.segments
        if options.topic not in [segment.name for segment in segments]:
            inboxes = ", ".join(segment.name for segment in segments)
            raise PermanentError(f"--topic {options.topic}: run {settings.run} has the inboxes {inboxes}")
        if options.topic == segments.topology.stages[-1]:
            raise PermanentError(f"--topic {options.topic}: they belong to closes of the old run; replay tweakreg")
        plan = ReplayPlan(settings.run, options.run, options.topic, definition, view.layout)
        await _select(options, connection, view, plan)
        folder = Folders(settings.work.absolute()).references
        environment = job_environment(definition, await RunInputs.opened(definition, folder, settings))
        for message in list(plan.selected.values()):
            await planned_exposure(connection, view, environment, message, plan)
        await _announced(connection, plan)
    return plan


async def _select(options: argparse.Namespace, connection: Connection, view: RunView, plan: ReplayPlan) -> None:
    topic = topic_name(view.settings.run, options.topic)
    async for record in _records(options, connection, topic):
        try:
            message = decode(record)
        except PoisonError:
            continue
        if isinstance(message, OrderMessage):  # about closes of the old run
            continue
        name = message.member if isinstance(message, MemberMessage) else message.exposure
        if options.exposure and not any(fnmatch.fnmatchcase(name, glob) for glob in options.exposure):
            continue
        if isinstance(message, MemberMessage):
            plan.members[f"{message.association}/{message.member}"] = message.replaced(run=plan.run)
        else:
            plan.selected[name] = message  # the newest of an exposure


async def _records(options: argparse.Namespace, connection: Connection, topic: str) -> AsyncIterator[Record]:
    broker = connection.broker
    since = _milliseconds(options.since, "--since")
    until = _milliseconds(options.until, "--until")
    starts = {} if since is None else await broker.offsets_for_time(topic, since)
    for partition, (first, end) in sorted((await broker.extents(topic)).items()):
        begin = first if options.from_offset is None else max(first, options.from_offset)
        stop = end if options.to_offset is None else min(end, options.to_offset)
        if since is not None:
            found = starts.get(partition)
            begin = stop if found is None else max(begin, found)
        for record in await broker.read(topic, partition, begin, stop):
            if until is None or record.timestamp_ms < until:
                yield record


def _milliseconds(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise PermanentError(f"{option} {text!r}: expected a time like 2027-01-31T12:00:00") from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


async def _announced(connection: Connection, plan: ReplayPlan) -> None:
    """Which associations the selection touches, and whether it has all their members."""
    touched: dict[str, set[str]] = {}
    for exposure in plan.exposures:
        for association in exposure["message"]["associations"]:
            touched.setdefault(association, set()).add(exposure["exposure"])
    for member in plan.members.values():
        touched.setdefault(member.association, set()).add(member.member)
    for association, present in touched.items():
        members = await read_member_list(connection.store, plan.from_run, association)
        plan.associations[association] = [member for member in members.members if member not in present]


def execute_verb(options: argparse.Namespace) -> int:
    """Do what a plan says; safe to repeat. 1, and nothing is created, when the plan has no exposures."""
    try:
        plan = ReplayPlan.decode(options.plan.read_text(encoding="utf-8"))
    except OSError as error:
        raise PermanentError(f"{options.plan}: cannot be read: {error.strerror}") from error
    if options.run not in {None, plan.run}:
        raise PermanentError(f"--run {options.run}: the plan is for run {plan.run}")
    if not plan.anything:
        sys.stderr.write(f"rampstream: {options.plan}: the plan has no exposures; run {plan.run} is not created\n")
        if options.json:
            sys.stdout.write(json.dumps({"run": plan.run, "published": 0}) + "\n")
        return 1
    report = anyio.run(_execute, options, plan)
    sys.stdout.write(
        json.dumps(report) + "\n"
        if options.json
        else f"{report['published']} messages published to run {report['run']}\n"
    )
    return 0


async def _execute(options: argparse.Namespace, plan: ReplayPlan) -> dict[str, Any]:
    settings = engine_settings(options, run=plan.run, preset=plan.layout["preset"])
    async with exported_tracing(plan.run, f"replay-{os.getpid()}") as tracing, connected(settings) as opened:
        existing = await opened.broker.topics()
        inbox = topic_name(plan.from_run, plan.definition["topology"][0]["name"])
        settings = settings.model_copy(
            update={
                "partitions": existing[inbox].partitions,
                "spread": plan.layout["spread"],
                "retry_seconds": tuple(plan.layout["retry_seconds"]),
            }
        )
        connection = Connection(settings, opened.broker, opened.store)
        pipeline = defined_pipeline(plan.definition, settings)
        await apply(connection, plan.definition, pipeline)
        for association in plan.associations:
            members = await read_member_list(connection.store, plan.from_run, association)
            await put_member_list(connection.store, plan.run, members)
        partitions = {name: spec.partitions for name, spec in (await connection.broker.topics()).items()}
        router = Router(
            broker=connection.broker, segments=pipeline.segments, run=plan.run, status_of=status_of,
            clock=SystemClock(), partitions=partitions, spread=settings.spread,
        )  # fmt: skip
        for exposure in plan.exposures:
            ingested = await connection.store.get(ingest_key(plan.from_run, exposure["exposure"]))
            if ingested is not None:
                await connection.store.put(ingest_key(plan.run, exposure["exposure"]), ingested)
            with tracing.starting("replay", exposure=exposure["exposure"]):
                await router.send(Message.model_validate_json(json.dumps(exposure["message"])))
        for member in plan.members.values():
            with tracing.starting("replay", exposure=member.member):
                await router.send_member(member)
    return {"run": plan.run, "published": len(plan.exposures) + len(plan.members)}


def _shown(summary: dict[str, Any]) -> str:
    lines = [
        f"replay of {summary['from_run']}.{summary['topic']} as run {summary['run']}: {summary['exposures']} exposures"
    ]
    lines += [f"  {count} start after {stage}" for stage, count in summary["start_after"].items()]
    lines += [f"  {stage}: computed {summary['computed'].get(stage, 0)}, reused {summary['reused'].get(stage, 0)}"
              for stage in Counter({**summary["computed"], **summary["reused"]})]  # fmt: skip
    lines += [f"  refused {exposure}: {reason}" for exposure, reason in summary["refused"].items()]
    lines += [
        f"  association {association} lacks {', '.join(lacking)}"
        for association, lacking in summary["incomplete_associations"].items()
    ]
    return "\n".join(lines) + "\n"
