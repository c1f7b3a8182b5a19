"""Run romancal's ExposurePipeline in a process of its own on L1 files or an association. Not part of the product.

``python -m tests.oracle.pipeline INPUT… --references DIR --gaia TABLE --out DIR --cache DIR [--set step.name=value]``
prints one JSON object: seconds (wall and CPU) and peak RSS by step and in all.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from tests.oracle.crds_cache import make_cache

STEP_LINE = re.compile(r"Step (\w+) (running with args|done)")


class StepClock(logging.Handler):
    """Notes when each step starts and ends, from the log that the oracle keeps anyway."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.started: dict[str, tuple[float, float]] = {}
        self.steps: dict[str, dict[str, float]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        match = STEP_LINE.search(record.getMessage())
        if match is None:
            return
        name, what = match.groups()
        now = (time.perf_counter(), time.process_time())
        if what != "done":
            self.started[name] = now
        elif name in self.started:
            wall, cpu = self.started.pop(name)
            entry = self.steps.setdefault(name, {"wall_seconds": 0.0, "cpu_seconds": 0.0, "peak_rss_bytes": 0.0})
            entry["wall_seconds"] += now[0] - wall
            entry["cpu_seconds"] += now[1] - cpu
            entry["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def run_pipeline(
    sources: list[Path], *, references: Path, gaia: Path, out: Path, cache: Path, steps: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Run the oracle; products go to ``out``."""
    os.environ.update(make_cache(references, cache))
    out.mkdir(parents=True, exist_ok=True)
    from romancal.pipeline import ExposurePipeline

    clock = StepClock()
    logging.getLogger().addHandler(clock)
    logging.getLogger("stpipe").addHandler(clock)
    steps.setdefault("tweakreg", {}).setdefault("abs_refcat", str(gaia))
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for source in sources:
        ExposurePipeline.call(str(source), save_results=True, output_dir=str(out), steps=steps)
    return {
        "wall_seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - begin_cpu,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "steps": clock.steps,
    }


def step_parameters(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """Parameters by step from ``step.parameter=value``, values as TOML has them."""
    steps: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        target, _, value = assignment.partition("=")
        step, _, parameter = target.partition(".")
        steps.setdefault(step, {})[parameter] = tomllib.loads(f"v = {value}")["v"]
    return steps


def main(arguments: list[str] | None = None) -> int:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--gaia", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="step.parameter=value")
    options = parser.parse_args(arguments)
    report = run_pipeline(
        [source.resolve() for source in options.sources],
        references=options.references.resolve(),
        gaia=options.gaia.resolve(),
        out=options.out.resolve(),
        cache=options.cache.resolve(),
        steps=step_parameters(options.set),
    )
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
