"""``rampstream resume``: lets segments be served again that a breaker stopped."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import anyio

from ops.connect import add_engine_arguments, connected, engine_settings, view_run
from stream.clock import SystemClock
from stream.failure import PermanentError
from stream.stopped_segments import StoppedSegments

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    parser.add_argument("segments", nargs="+", metavar="SEGMENT", help="by its first stage, as status names it")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_engine_arguments(parser)
    parser.set_defaults(handle=run_verb)


def run_verb(options: argparse.Namespace) -> int:
    """Resume; 0 also for what was not stopped, so that it can be said again."""
    report = anyio.run(_run, options)
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        for segment, was in report["segments"].items():
            sys.stdout.write(f"{segment}: {'resumed, start its workers' if was else 'was not stopped'}\n")
    return 0


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    settings = engine_settings(options)
    async with connected(settings) as connection:
        known = [segment.name for segment in (await view_run(connection)).pipeline.segments]
        unknown = [name for name in options.segments if name not in known]
        if unknown:
            raise PermanentError(f"run {settings.run} has no segment {', '.join(unknown)}; it has {', '.join(known)}")
        stopped = StoppedSegments(connection.store, settings.run, SystemClock())
        return {"run": settings.run, "segments": {name: await stopped.resume(name) for name in options.segments}}
