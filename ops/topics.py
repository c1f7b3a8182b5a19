"""``rampstream topics plan|apply``: defines a run, creates its topics, and says where its groups begin.

An existing topic is never changed. Partitions and clean-up policy that differ are conflicts, and refused; retention,
replicas and their like that differ are told, with the command that an operator may run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from ops.connect import (
    Connection,
    add_engine_arguments,
    connected,
    engine_settings,
    layout_key,
    put_layout,
)
from ops.gaia_option import add_gaia
from ops.run_inputs import defined_references
from ops.settings import RunSettings
from ops.star_sources import defined_stars
from ops.table import Pipeline, build_pipeline, defined_pipeline
from stream.broker.protocol import Broker, Commit, TopicDifference, TopicPartition, TopicSpec
from stream.failure import FatalError, PermanentError, RetriableError
from stream.router import run_topics
from stream.topology import Segments, retry_topic_name, topic_name

__all__ = ["add_arguments", "apply", "bootstrap", "definition_of", "group_topics", "plan"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    parser.add_argument("action", choices=("plan", "apply"), help="say what would be done, or do it")
    add_engine_arguments(parser)
    parser.add_argument(
        "--preset", choices=("fused", "balanced", "granular"), help="default: that of the run; granular for a new one"
    )
    parser.add_argument("--partitions", type=int, help="partitions of each inbox (default: 36)")
    parser.add_argument(
        "--references",
        metavar="DIR|URL|crds://CONTEXT",
        help="folder with reference files, where references push published them, or a CRDS context",
    )
    add_gaia(parser)
    parser.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="STAGE.PARAMETER=VALUE", help="one parameter"
    )
    parser.add_argument(
        "--reference", action="append", default=[], dest="pins", metavar="TYPE=FILE", help="a pinned reference"
    )
    parser.add_argument(
        "--parameters", action="append", default=[], type=Path, metavar="FILE.asdf", help="a step's parameter file"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(handle=run_verb)


def run_verb(options: argparse.Namespace) -> int:
    """Plan or apply; 0 when everything is, or could be made, as wanted."""
    settings = engine_settings(options, **({} if options.preset else {"preset": "granular"}))
    return anyio.run(_run, options, settings)


async def _run(options: argparse.Namespace, settings: RunSettings) -> int:
    async with connected(settings) as opened:
        connection = await _as_laid_out(opened, options)
        definition = await _definition(connection, options)
        pipeline = defined_pipeline(definition, connection.settings)
        report = await plan(connection, definition, pipeline)
        if options.action == "apply":
            if report["conflicts"]:
                raise FatalError("; ".join([*report["changes"], *report["conflicts"]]))
            report["notes"] = await apply(connection, definition, pipeline)
            report["applied"] = True
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write(_shown(report))
    return 1 if report["conflicts"] else 0


async def _as_laid_out(connection: Connection, options: argparse.Namespace) -> Connection:
    """With the layout that the run has, except for what is given."""
    layout, settings = await _layout(connection), connection.settings
    if layout is None:
        return connection
    kept: dict[str, Any] = {} if options.preset else {"preset": layout["preset"]}
    if "spread" not in settings.model_fields_set:
        kept["spread"] = layout["spread"]
    if "retry_seconds" not in settings.model_fields_set:
        kept["retry_seconds"] = tuple(layout["retry_seconds"])
    return replace(connection, settings=settings.model_copy(update=kept))


async def _layout(connection: Connection) -> dict[str, Any] | None:
    data = await connection.store.get(layout_key(connection.settings.run))
    return None if data is None else json.loads(data)


async def _definition(connection: Connection, options: argparse.Namespace) -> dict[str, Any]:
    """The definition that the options give; a run that is defined may leave out what stays, but not give other values.

    Raises
    ------
    PermanentError
        The run is new, and its references or stars are not given; or a setting is wrong.
    FatalError
        The run is defined otherwise.
    """
    known, settings = await connection.records.definition(), connection.settings
    if known is None and (options.references is None or options.gaia is None):
        known_as = f"the run {settings.run!r} is new"
        raise PermanentError(f"{known_as}: say its --references and its --gaia (TABLE, hats:URL or service)")
    references = None if options.references is None else await defined_references(options.references, settings)
    gaia = None if options.gaia is None else await defined_stars(options.gaia)
    if known is None or (references is not None and gaia is not None):
        definition = definition_of(settings, references, gaia)
    else:
        definition = {**known, **_given(settings, known)}
        definition |= {} if references is None else {"references": references}
        definition |= {} if gaia is None else {"gaia": gaia}
    if known is not None:
        await connection.records.require_definition(definition)
    return definition


def _given(settings: RunSettings, known: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a definition of which the settings say anything, as they say it."""
    _refuse_saved(settings)
    given: dict[str, Any] = {}
    if settings.stages:
        given["topology"] = build_pipeline(settings.model_copy(update={"parameters": {}})).definition()["topology"]
    if settings.parameters:
        given["parameters"] = settings.parameters
    if settings.references:
        given["pins"] = _pins(settings)
    if settings.associations.model_fields_set:
        given["associations"] = settings.associations.model_dump(mode="json")
    references = known["references"]
    if "parameter_references" in settings.model_fields_set and isinstance(references, Mapping) and "crds" in references:
        given["references"] = {**references, "parameters": settings.parameter_references}
    return given


def _refuse_saved(settings: RunSettings) -> None:
    if settings.save_results:
        raise PermanentError(
            f"save_results of {', '.join(settings.save_results)}: rampstream run alone keeps outputs of stages as "
            "files; in the distributed engine say keep_after, which stores results"
        )


def _pins(settings: RunSettings) -> dict[str, str]:
    return {kind: str(path) for kind, path in settings.references.items()}


def definition_of(settings: RunSettings, references: Any, gaia: Any, *, salt: str | None = None) -> dict[str, Any]:
    """Make a run's definition, from what `ops.run_inputs` found references and star table to be.

    Raises
    ------
    PermanentError
        A setting is wrong.
    """
    _refuse_saved(settings)
    definition = {
        **build_pipeline(settings).definition(),
        "references": references,
        "pins": _pins(settings),
        "gaia": gaia,
        "associations": settings.associations.model_dump(mode="json"),
    }
    return definition if salt is None else {**definition, "salt": salt}


def wanted_topics(settings: RunSettings, segments: Segments) -> list[TopicSpec]:
    """The topics of a run."""
    return run_topics(
        settings.run,
        segments,
        partitions=settings.partitions,
        retry_tiers=len(settings.retry_seconds),
        retention_ms=int(settings.retention_hours * 3_600_000),
    )


def group_topics(run: str, segments: Segments, retry_tiers: int) -> dict[str, list[str]]:
    """The topics that each consumer group of a run reads."""
    groups = {}
    for segment in segments:
        topic = topic_name(run, segment.name)
        tiers = 0 if segments.topology.row(segment.name).joint else retry_tiers
        groups[topic] = [topic, *(retry_topic_name(run, segment.name, tier) for tier in range(tiers))]
    return groups


async def plan(connection: Connection, definition: dict[str, Any], pipeline: Pipeline) -> dict[str, Any]:
    """What applying would do, and what stands in its way."""
    settings = connection.settings
    wanted = wanted_topics(settings, pipeline.segments)
    planned = await connection.broker.plan_topics(wanted)
    conflicts = [_conflict(difference) for difference in planned.conflicts]
    missing = {spec.name for spec in planned.create}
    layout, changes = await _layout(connection), []
    if layout is not None:
        changes = _changes(layout, settings)
        conflicts += await _undrained(connection, definition, layout, pipeline)
        if _moves(layout, settings):
            conflicts += await _served(connection, definition, layout)
    known = await connection.records.definition()
    return {
        "run": settings.run,
        "preset": settings.preset,
        "defined": known is not None,
        "create": [
            {
                "topic": spec.name,
                "partitions": spec.partitions,
                "compacted": spec.compacted,
                "replicas": spec.replicas,
                "config": dict(spec.config),
            }
            for spec in planned.create
        ],
        "keep": [spec.name for spec in wanted if spec.name not in missing],
        "changes": changes,
        "conflicts": conflicts,
        "differs": [
            {
                "topic": difference.topic,
                "setting": difference.setting,
                "found": difference.found,
                "wanted": difference.wanted,
                "remedy": difference.remedy,
            }
            for difference in planned.differences
            if not difference.conflict
        ],
        "notes": [],
        "applied": False,
    }


def _conflict(difference: TopicDifference) -> str:
    why = "keys would move" if difference.setting == "partitions" else "records would go, or be refused"
    return f"{difference}: a topic is never changed here, for {why}"


def _moves(layout: Mapping[str, Any], settings: RunSettings) -> bool:
    """Whether other groups, or groups with other topics, serve the run from now on."""
    return layout["preset"] != settings.preset or len(layout["retry_seconds"]) != len(settings.retry_seconds)


def _changes(layout: Mapping[str, Any], settings: RunSettings) -> list[str]:
    """How the layout of the run changes, in words."""
    found = []
    if layout["preset"] != settings.preset:
        found.append(
            f"preset {layout['preset']} -> {settings.preset}: stop all workers of the run before, and start those of "
            "the new segments after"
        )
    if layout["spread"] != settings.spread:
        found.append(f"spread {layout['spread']} -> {settings.spread}: workers take it up when they start")
    if tuple(layout["retry_seconds"]) != settings.retry_seconds:
        old, new = layout["retry_seconds"], list(settings.retry_seconds)
        found.append(f"retry_seconds {old} -> {new}: workers take it up when they start")
    return found


def _old_groups(connection: Connection, definition: dict[str, Any], layout: dict[str, Any]) -> dict[str, list[str]]:
    old = defined_pipeline(definition, connection.settings.model_copy(update={"preset": layout["preset"]}))
    return group_topics(connection.settings.run, old.segments, len(layout["retry_seconds"]))


async def _undrained(
    connection: Connection, definition: dict[str, Any], layout: dict[str, Any], pipeline: Pipeline
) -> list[str]:
    """Topics of the present layout that hold messages and would be read by nobody after the change."""
    settings = connection.settings
    served = group_topics(settings.run, pipeline.segments, len(settings.retry_seconds))
    found = []
    for group, topics in _old_groups(connection, definition, layout).items():
        dropped = [topic for topic in topics if topic not in served.get(group, ())]
        lags = {topic: await connection.broker.lag(group, topic) for topic in dropped}
        found += [
            f"topic {name} holds {lag} messages that the new layout would not read" for name, lag in lags.items() if lag
        ]
    return found


async def _served(connection: Connection, definition: dict[str, Any], layout: dict[str, Any]) -> list[str]:
    """Groups of the present layout that have workers, which would go on in it after the change."""
    groups = _old_groups(connection, definition, layout)
    found = [group for group in groups if await connection.broker.has_members(group)]
    if not found:
        return []
    return [f"the present layout has workers, stop them first: groups with members are {', '.join(found)}"]


async def apply(connection: Connection, definition: dict[str, Any], pipeline: Pipeline) -> list[str]:
    """Define the run, create its topics, and let its groups begin at the beginning; returns what to look at."""
    settings = connection.settings
    await connection.records.define(definition)
    await connection.broker.create_topics(wanted_topics(settings, pipeline.segments))
    groups = group_topics(settings.run, pipeline.segments, len(settings.retry_seconds))
    notes = await bootstrap(connection.broker, groups)
    await put_layout(
        connection.store,
        settings.run,
        {"preset": settings.preset, "spread": settings.spread, "retry_seconds": list(settings.retry_seconds)},
    )
    return notes


async def bootstrap(broker: Broker, groups: dict[str, list[str]]) -> list[str]:
    """Commit the beginning of each partition that a group has no position in.

    A cluster forgets the positions of a group without members after a time (``offsets.retention.minutes``), and records
    after another: what went between the two nobody can tell, and so it is noted where the beginning is gone.

    Raises
    ------
    PermanentError
        A group that lacks positions has members already.
    """
    notes = []
    for group, topics in groups.items():
        missing: dict[TopicPartition, Commit] = {}
        for topic in topics:
            committed = await broker.committed(group, topic)
            for number, (first, _) in (await broker.extents(topic)).items():
                if number not in committed:
                    missing[TopicPartition(topic, number)] = Commit(first)
                    if first:
                        notes.append(
                            f"group {group} had no position in {topic}[{number}] and begins at offset {first}: "
                            "what lay before is gone, read or not; ingest --again announces what has no products"
                        )
        if not missing:
            continue
        try:
            await broker.reset(group, missing)
        except RetriableError as error:
            raise PermanentError(f"group {group} lacks positions and has workers: stop them first ({error})") from error
    return notes


def _shown(report: dict[str, Any]) -> str:
    lines = [f"run {report['run']}, preset {report['preset']}, {'defined' if report['defined'] else 'new'}"]
    verb = "created" if report["applied"] else "to create"
    lines += [f"  {verb}: {t['topic']} ({_described(t)})" for t in report["create"]]
    lines += [f"  there already: {len(report['keep'])} topics"] if report["keep"] else []
    lines += [f"  {'changed' if report['applied'] else 'to change'}: {text}" for text in report["changes"]]
    lines += [f"  conflict: {text}" for text in report["conflicts"]]
    lines += [f"  note: {text}" for text in report["notes"]]
    for found in report["differs"]:
        text = f"topic {found['topic']} has {found['setting']} {found['found']}, wanted is {found['wanted']}"
        lines += [f"  differs: {text}", f"    left as it is; to change it: {found['remedy']}"]
    return "\n".join(lines) + "\n"


def _described(topic: dict[str, Any]) -> str:
    """A topic that is created, in words: only what the broker has is told."""
    replicas = [] if topic["replicas"] is None else [f"{topic['replicas']} replicas"]
    config = [f"{name}={value}" for name, value in sorted(topic["config"].items())] if replicas else []
    return ", ".join([f"{topic['partitions']} partitions", *replicas, *config])
