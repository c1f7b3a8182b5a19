"""``rampstream status``: how far a run is: lag of each segment, dead letters, associations, products. Reads only."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from typing import Any

import anyio
from rich.console import Console
from rich.table import Table

from ops.association_state import AssociationView, association_views
from ops.connect import Connection, add_engine_arguments, connected, engine_settings, view_run
from ops.dead_letters import dead_letters
from ops.product_sets import ProductSets
from ops.topics import group_topics
from stream.clock import SystemClock
from stream.close import MISSING
from stream.stopped_segments import StoppedSegments

POLL_SECONDS = 1.0

__all__ = ["add_arguments", "report"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    add_engine_arguments(parser)
    parser.add_argument(
        "--wait", type=float, metavar="SECONDS", help="first wait until every exposure has products, or failed"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(handle=run_verb)


def run_verb(options: argparse.Namespace) -> int:
    """Show; 1 when what was waited for did not come."""
    found, done = anyio.run(_read, options)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        _show(found)
    return 0 if done else 1


async def _read(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    async with connected(engine_settings(options)) as connection:
        gives_up = time.monotonic() + (options.wait or 0.0)
        while True:
            found = await report(connection)
            exposures = found["exposures"]
            done = exposures["ended"] >= exposures["expected"]
            if options.wait is None or done or time.monotonic() > gives_up:
                return found, done or options.wait is None
            await anyio.sleep(POLL_SECONDS)


async def report(connection: Connection) -> dict[str, Any]:
    """Everything that ``status --json`` tells."""
    view = await view_run(connection)
    run = connection.settings.run
    topics = await connection.broker.topics()
    segments = []
    for group, names in group_topics(run, view.pipeline.segments, view.retry_tiers).items():
        waiting = {name: await connection.broker.lag(group, name) for name in names}
        segments.append(
            {
                "segment": group.removeprefix(f"{run}."),
                "stages": list(view.pipeline.segments.named(group.removeprefix(f"{run}.")).stages),
                "lag": waiting[names[0]],
                "retrying": sum(waiting.values()) - waiting[names[0]],
                "partitions": topics[names[0]].partitions,
            }
        )
    stopped = await StoppedSegments(connection.store, run, SystemClock()).all()
    for row in segments:
        row["stopped"] = stopped.get(str(row["segment"]), {}).get("reason")
    buried = [letter for letter in await dead_letters(connection) if not letter["redriven"]]
    associations = await association_views(connection, view, statuses=False)
    given_up = {letter["exposure"] for letter in buried if letter["exposure"]}
    return {
        "run": run,
        "preset": view.layout["preset"],
        "segments": segments,
        "dead_letters": {
            "count": len(buried),
            "exposures": len(given_up),
            "by_stage": dict(Counter(letter["stage"] for letter in buried)),
            "by_class": dict(Counter(letter["class"] for letter in buried)),
        },
        "associations": {
            "count": len(associations),
            "open": sum(known.is_open for known in associations),
            "complete": sum(known.complete for known in associations),
        },
        "exposures": await _exposures(connection, associations, given_up),
    }


async def _exposures(connection: Connection, associations: list[AssociationView], given_up: set[str]) -> dict[str, int]:
    """Exposures that are expected, that have products, and of which nothing more will come unless somebody acts."""
    sets = ProductSets(store=connection.store, results=connection.results, run=connection.settings.run, visible=_unseen)
    expected, finished, ended = set[str](), set[str](), set(given_up)
    for known in associations:
        expected.update(known.members.members)
        products = await sets.current(known.id) if known.complete else None
        if products is not None:
            finished.update(products.members)
            ended.update(member for member, reason in products.failed.items() if reason != MISSING)
    ended |= finished
    return {"expected": len(expected), "with_products": len(finished), "ended": len(expected & ended)}


async def _unseen(_: Any) -> None:
    return


def _show(found: dict[str, Any]) -> None:
    table = Table(title=f"run {found['run']}, preset {found['preset']}")
    for column in ("segment", "stages", "partitions", "lag", "retrying", "stopped"):
        table.add_column(column, justify="left" if column in {"segment", "stages", "stopped"} else "right")
    for row in found["segments"]:
        stages = row["stages"]
        shown = stages[0] if len(stages) == 1 else f"{stages[0]} … {stages[-1]}"
        numbers = [str(row[name]) for name in ("partitions", "lag", "retrying")]
        table.add_row(row["segment"], shown, *numbers, row["stopped"] or "")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    associations, exposures = found["associations"], found["exposures"]
    console.print(
        f"associations: {associations['count']} announced, {associations['open']} open, "
        f"{associations['complete']} complete; exposures: {exposures['with_products']} of {exposures['expected']} "
        f"with products; dead letters: {found['dead_letters']['count']}"
    )
