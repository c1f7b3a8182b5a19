"""One association through the aggregator's solver, in a process of its own whose memory can be measured. No science.

``python -m bench.association_solve CONFIGURATION.json``: members lie in the store; prints what the solution took, as
JSON. A worker that has solved before stands for the one that is there when the last member comes: its job process is
forked and its kernels are compiled.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ops.engine import Folders, job_environment, job_limits
from ops.joint import JointSolver
from ops.pipeline_jobs import PipelineJobs
from ops.run_inputs import RunInputs
from ops.settings import RunSettings
from ops.table import build_pipeline
from stream.association import Close, ClosedMember, CloseOutcome, CloseReason
from stream.identity import canonical_json
from stream.message import MemberMessage
from stream.process_end import run_process
from stream.process_runner import ProcessJobRunner
from stream.results import Results, file_digest
from stream.store.cache import ObjectCache
from stream.store.obstore_store import open_store

__all__ = ["Configuration", "Solution"]


@dataclass
class Configuration:
    """What is to be solved."""

    association: str
    members: str
    """File of the member messages, one a line, gzipped."""
    store: str
    stars: str
    work: str
    threads: int
    parameters: dict[str, Any]


@dataclass
class Solution:
    """What it took, and where the solution lies."""

    seconds: float
    """From the close on: reading tie points, solving, writing the solution."""
    cpu_seconds: float
    """Of the worker, without its job processes."""
    job_seconds: float
    job_cpu_seconds: float
    job_peak_rss_bytes: int
    key: str


async def solve(config: Configuration) -> Solution:
    """Solve."""
    work = Path(config.work)
    settings = RunSettings(store=config.store, work=work, threads=config.threads, slots=1)
    definition = {
        **build_pipeline(settings).definition(),
        "parameters": {"tweakreg": config.parameters},
        "references": str(work),
        "pins": {},
        "gaia": config.stars,
    }
    folders = Folders(work)
    told: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        runner = await stack.enter_async_context(
            ProcessJobRunner(slots=1, preload=("ops.preload:warm",), log_dir=work / "jobs")
        )
        store = open_store(config.store)
        inputs = RunInputs(definition, folders.references)
        jobs = PipelineJobs(
            runner=runner, environment=job_environment(definition, inputs), limits=job_limits(settings),
            observe=told.append, inputs=inputs,
        )  # fmt: skip
        cache = ObjectCache(store, folders.objects, max_bytes=int(settings.cache_gb * 1e9), digest=file_digest)
        solver = JointSolver(jobs=jobs, store=store, results=Results(store), cache=cache, scratch=folders.scratch)
        messages = _messages(Path(config.members))
        await jobs.run_patiently("solve", {"members": [], "facts": {}}, label="warm", stars=True)
        close = _close(config.association, messages)
        began, cpu = time.monotonic(), time.process_time()
        solved = await solver.solve(close, messages)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        assert solved is not None
        parts = (await Results(store).read(solved.manifest)).objects
        whole: dict[str, Any] = {"members": {}}
        for part in parts:
            document = json.loads(await store.get(part.key) or b"{}")
            whole = {**document, "members": whole["members"] | document["members"]}
        await store.put(f"{parts[0].key}.whole", canonical_json(whole))
    done = [event for event in told if event.get("event") == "job_done" and event["entry"] == "solve"][-1]
    return Solution(seconds, cpu, done["seconds"], done["cpu_seconds"], done["peak_rss_bytes"], f"{parts[0].key}.whole")


def _messages(path: Path) -> dict[str, MemberMessage]:
    with gzip.open(path, "rb") as file:
        found = [MemberMessage.model_validate_json(line) for line in file]
    return {message.member: message for message in found}


def _close(association: str, messages: dict[str, MemberMessage]) -> Close:
    members = tuple(ClosedMember(name, message.status.value, message.digest) for name, message in messages.items())
    return Close(association, 1, CloseReason.COMPLETE, CloseOutcome.ALIGN, members)


def main() -> int:
    found = asyncio.run(solve(Configuration(**json.loads(Path(sys.argv[1]).read_text()))))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_process(main))
