"""While a job computes, the payload of the next message is fetched already."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import anyio
import pytest
from obstore.store import MemoryStore

from ops.engine import Folders, status_of
from ops.pipeline_jobs import JobLimits, PipelineJobs
from ops.product_sets import ProductSets
from ops.settings import RunSettings
from ops.table import build_pipeline
from ops.work import PipelineWork
from stream.broker.embedded import EmbeddedBroker
from stream.clock import SystemClock
from stream.identity import root_identity
from stream.jobs import Job, JobOutcome, Progress
from stream.message import Message
from stream.results import Manifest, ObjectKind, Results, StoredObject, file_digest
from stream.router import Router
from stream.run_records import RunRecords
from stream.store.cache import ObjectCache
from stream.store.obstore_store import ObstoreObjectStore
from stream.worker import WorkFailedError

pytestmark = pytest.mark.anyio


class OneSlot:
    """A runner with one slot, on which the first execution stays until it is let go."""

    def __init__(self) -> None:
        self.slot = anyio.Semaphore(1)
        self.computing = anyio.Event()
        self.let_go = anyio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return

    async def run(self, job: Job, *, progress: Progress | None = None) -> JobOutcome:
        if job.light:
            recipes = [[name, "0" * 64] for name in job.arguments["stages"]]
            return JobOutcome(result={"recipes": recipes, "needed": {}, "error": None})
        async with self.slot:
            self.computing.set()
            await self.let_go.wait()
        return JobOutcome(failure={"class": "permanent", "message": "this runner computes nothing"})


async def test_the_next_payload_is_fetched_while_a_job_runs(tmp_path: Path) -> None:
    store = ObstoreObjectStore(MemoryStore(), "memory:")
    settings = RunSettings(preset="granular")
    segments = build_pipeline(settings).segments
    fetched: list[Any] = []
    runner = OneSlot()
    folders = Folders(tmp_path)
    async with EmbeddedBroker(tmp_path / "log") as broker:
        results = Results(store)
        router = Router(
            broker=broker, segments=segments, run="prompt", status_of=status_of, clock=SystemClock()
        )  # fmt: skip
        work = PipelineWork(
            jobs=PipelineJobs(runner=runner, environment={}, limits=JobLimits(1, 60.0, 10**9)),
            store=store,
            results=results,
            records=RunRecords(store, "prompt"),
            router=router,
            products=ProductSets(store=store, results=results, run="prompt", visible=_unseen, observe=fetched.append),
            cache=ObjectCache(store, folders.objects, max_bytes=10**9, digest=file_digest, observe=fetched.append),
            scratch=folders.scratch,
        )

        async def process(name: str) -> None:
            message = await ingested(store, results, name, tmp_path)
            with suppress(WorkFailedError):
                await work.process(message, segments.named("dq_init"), attempt=f"1-{name}", bigger_slot=False)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process, "first")
            await runner.computing.wait()
            tasks.start_soon(process, "second")
            with anyio.fail_after(20):
                while sum(event["event"] == "cache" for event in fetched) < 2:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            assert not runner.let_go.is_set()
            runner.let_go.set()


async def ingested(store: ObstoreObjectStore, results: Results, name: str, folder: Path) -> Message:
    payload = folder / name
    payload.write_bytes(random.randbytes(1000))
    digest = file_digest(payload)
    key = f"objects/{name}/ingest/1/input"
    await store.put(key, payload)
    manifest = await results.publish(
        Manifest(
            identity=root_identity(name, digest), exposure=name, stage="ingest", branch="WFI_IMAGE",
            objects=(StoredObject("input", key, digest, 1000, ObjectKind.INPUT),),
        )
    )  # fmt: skip
    return Message(
        run="prompt", exposure=name, stage="dq_init", branch="WFI_IMAGE", identity=manifest.identity,
        manifest=manifest.key,
    )  # fmt: skip


async def _unseen(_: Any) -> None:
    return
