"""Segments: identities and bytes do not depend on the cuts, only what changed is written, and nothing runs twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream.failure import PermanentError, RetriableError
from stream.identity import root_identity
from stream.jobs import Job, JobOutcome
from stream.process_runner import ProcessJobRunner
from stream.results import Manifest, ObjectKind, Results, StoredObject, file_digest
from stream.segment import execute_segment, plan_identities
from stream.stage import Slot
from stream.store.obstore_store import open_store
from tests.stream.toy_stages import Broken, ToyItem, ToyPayload, ToyReferences, ToyStage, toy_stages


class Bench:
    """A store, the toy pipeline, and a worker's part in short."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = open_store(folder / "store")
        self.results = Results(self.store)
        self.payload = ToyPayload()
        self.references = ToyReferences(gain=2.0)
        self.stages: list[ToyStage] = toy_stages()
        self.parameters: dict[str, dict[str, Any]] = {}
        self.reports: list[dict[str, Any]] = []
        self.attempts: Iterator[int] = iter(range(1, 1000))
        self.slot = Slot()

    def _typed(self) -> dict[str, Any]:
        return {s.name: s.parameters_type(**self.parameters.get(s.name, {})) for s in self.stages}

    async def ingest(self, value: float = 1.0, branch: str = "image") -> Manifest:
        source = self.folder / f"raw-{value}.npy"
        np.save(source, np.full((4, 5), value, np.float32))
        info = await self.store.put(f"objects/e1/ingest/{value}/raw.npy", source)
        digest = file_digest(source)
        return await self.results.publish(
            Manifest(
                identity=root_identity("e1", digest),
                exposure="e1",
                stage="ingest",
                branch=branch,
                facts={"detector": "WFI01"},
                objects=(StoredObject("raw", info.key, digest, info.size, ObjectKind.INPUT),),
            )
        )

    def planned(self, start: Manifest, *names: str) -> list[str]:
        return [p.identity for p in self.plan(start, *names)]

    def plan(self, start: Manifest, *names: str, salt: str | None = None) -> list[Any]:
        return plan_identities(
            start.identity,
            start.branch,
            dict(start.facts),
            stages=[s for s in self.stages if not names or s.name in names],
            parameters=self._typed(),
            references=self.references,
            salt=salt,
        )

    async def planned_job(self, start: Manifest, *names: str, **more: Any) -> dict[str, Any]:
        attempt = str(next(self.attempts))
        paths = await self.results.fetch(start, self.folder / "cache")
        staging = self.store.staging(attempt)
        assert staging is not None
        return {
            "manifest": start.document(),
            "paths": {name: str(path) for name, path in paths.items()},
            "stages": list(names) or [s.name for s in self.stages],
            "attempt": attempt,
            "staging": str(staging),
            **more,
        }

    async def execute(self, start: Manifest, *names: str, **more: Any) -> dict[str, Any]:
        return execute_segment(
            await self.planned_job(start, *names, **more),
            stages={s.name: s for s in self.stages},
            parameters=self._typed(),
            payload=self.payload,
            references=self.references,
            slot=self.slot,
            report=self.reports.append,
        )

    async def run(self, start: Manifest, *names: str, **more: Any) -> list[Manifest]:
        return await self.results.publish_made(await self.execute(start, *names, **more))

    async def item(self, manifest: Manifest) -> ToyItem:
        paths = await self.results.fetch(manifest, self.folder / "cache")
        arrays = {o.name: paths[o.name] for o in manifest.objects if o.kind is ObjectKind.ARRAY}
        return self.payload.load(paths["tree"], arrays)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def digests(manifest: Manifest) -> dict[str, str]:
    return {o.name: o.digest for o in manifest.objects if o.kind is not ObjectKind.TREE}


@pytest.mark.anyio
@pytest.mark.parametrize("threads", [1, 2])
async def test_a_segment_runs_its_stages_and_stores_the_last_result(bench: Bench, threads: int) -> None:
    bench.slot.threads = threads
    root = await bench.ingest()
    (manifest,) = await bench.run(root)
    item = await bench.item(manifest)
    assert (item.arrays["data"] == 1 + 1 * 2 + 1).all()
    assert manifest.stage == "catalog"
    assert manifest.exposure == "e1"
    assert manifest.facts == {"detector": "WFI01", "mean": 4.0}
    assert await bench.results.find(manifest.identity, check_digests=bench.folder / "cache") == manifest
    tie_points = manifest.object("tie_points")
    assert tie_points is not None
    assert len(await bench.store.get(tie_points.key) or b"") == 16
    assert bench.references.released == [2.0]


@pytest.mark.anyio
async def test_cuts_change_neither_identities_nor_bytes(tmp_path: Path) -> None:
    fused, split = Bench(tmp_path / "fused"), Bench(tmp_path / "split")
    root = await fused.ingest()
    *_, whole = await fused.run(root)
    current = await split.ingest()
    assert current.identity == root.identity
    identities = []
    for stage in split.stages:
        (current,) = await split.run(current, stage.name)
        identities.append(current.identity)
    assert identities == fused.planned(root)
    assert current.identity == whole.identity
    assert digests(current) == digests(whole)
    assert current.content_digest == whole.content_digest
    assert (await split.item(current)).logs == (await fused.item(whole)).logs
    assert (await split.item(current)).meta == (await fused.item(whole)).meta


@pytest.mark.anyio
async def test_a_stage_writes_only_the_arrays_it_changed(bench: Bench) -> None:
    root = await bench.ingest()
    (first,) = await bench.run(root, "offset")
    bench.payload.saved.clear()
    (second,) = await bench.run(first, "flag")
    assert bench.payload.saved == ["dq"]
    assert second.object("data") == first.object("data")
    (third,) = await bench.run(second, "shift")
    assert bench.payload.saved == ["dq", "data"]
    assert third.object("dq") == second.object("dq"), "referred to directly, not through a chain"
    assert (await bench.item(third)).arrays["data"][0, 0] == 4
    assert (await bench.item(first)).arrays["data"][0, 0] == 3, "earlier results stay as they were"


@pytest.mark.anyio
async def test_kept_stages_inside_a_segment_are_stored_and_written_once(bench: Bench) -> None:
    root = await bench.ingest()
    manifests = await bench.run(root, keep=["flag"])
    assert [m.stage for m in manifests] == ["flag", "catalog"]
    assert bench.payload.saved == ["data", "dq", "data"]
    assert manifests[1].object("dq") == manifests[0].object("dq")
    assert [m.identity for m in manifests] == [bench.planned(root)[1], bench.planned(root)[3]]


@pytest.mark.anyio
async def test_a_segment_can_start_in_the_middle(bench: Bench) -> None:
    root = await bench.ingest()
    kept, last = await bench.run(root, keep=["flag"])
    (again,) = await bench.run(kept, "shift", "catalog")
    assert again == last, "the first writer wins and its result is adopted"
    assert [s.runs for s in bench.stages] == [1, 1, 2, 2]


@pytest.mark.anyio
async def test_a_second_run_can_find_everything_and_compute_nothing(bench: Bench) -> None:
    root = await bench.ingest()
    (manifest,) = await bench.run(root)
    assert await bench.results.find(bench.planned(root)[-1]) == manifest


@pytest.mark.anyio
async def test_what_decides_a_result_changes_its_identity_and_those_after_it(bench: Bench) -> None:
    root = await bench.ingest()
    before = bench.planned(root)
    bench.parameters = {"shift": {"by": 2.0}}
    assert [a == b for a, b in zip(bench.planned(root), before, strict=True)] == [True, True, False, False]
    bench.parameters = {}
    bench.references = ToyReferences(gain=3.0)
    assert not set(bench.planned(root)) & set(before)
    bench.references = ToyReferences(gain=2.0)
    bench.stages[1].version = "2"
    assert [a == b for a, b in zip(bench.planned(root), before, strict=True)] == [True, False, False, False]
    bench.stages[1].version = "1"
    assert not {p.identity for p in bench.plan(root, salt="reproc")} & set(before)
    assert bench.planned(root) == before


@pytest.mark.anyio
async def test_known_recipes_are_taken_as_they_are(bench: Bench) -> None:
    root = await bench.ingest()
    planned = bench.plan(root, salt="run-2")
    made = await bench.execute(root, recipes={p.stage: p.recipe for p in planned})
    assert made["manifests"][-1]["identity"] == planned[-1].identity


@pytest.mark.anyio
async def test_a_branch_set_by_a_stage_ends_the_segment_where_nothing_applies(bench: Bench) -> None:
    root = await bench.ingest(value=10.0)
    made = await bench.execute(root)
    assert made["branch"] == "saturated"
    (manifest,) = await bench.results.publish_made(made)
    assert (manifest.stage, manifest.branch) == ("flag", "saturated")
    assert manifest.identity == bench.planned(root)[1]
    assert [s.runs for s in bench.stages] == [1, 1, 0, 0]


@pytest.mark.anyio
async def test_stages_of_other_branches_are_passed_over(bench: Bench) -> None:
    root = await bench.ingest(branch="dark")
    (manifest,) = await bench.run(root)
    assert manifest.stage == "flag"
    assert len(bench.planned(root)) == 2


@pytest.mark.anyio
async def test_a_segment_without_an_applicable_stage_makes_nothing(bench: Bench) -> None:
    root = await bench.ingest(branch="dark")
    assert await bench.execute(root, "shift", "catalog") == {"manifests": [], "files": {}, "branch": "dark"}


@pytest.mark.anyio
async def test_a_reference_that_does_not_apply_is_none_and_part_of_the_recipe(bench: Bench) -> None:
    root = await bench.ingest()
    with_gain = bench.planned(root)
    bench.references = ToyReferences(gain=None)
    assert bench.planned(root)[0] != with_gain[0]
    (manifest,) = await bench.run(root, "offset")
    assert (await bench.item(manifest)).arrays["data"][0, 0] == 2


@pytest.mark.anyio
async def test_a_missing_reference_fails_before_the_stage_runs(bench: Bench) -> None:
    root = await bench.ingest()
    bench.references = ToyReferences()
    with pytest.raises(PermanentError, match="no gain for WFI01"):
        await bench.execute(root)
    assert bench.stages[0].runs == 0


@pytest.mark.anyio
async def test_a_stage_that_raises_leaves_no_files_and_is_named(bench: Bench) -> None:
    bench.stages.insert(2, Broken("broken"))
    root = await bench.ingest()
    with pytest.raises(PermanentError, match=r"meta\.exposure\.type") as caught:
        await bench.execute(root, keep=["flag"])
    assert caught.value.__notes__ == ["in stage broken of e1"]
    staging = bench.store.staging("x")
    assert staging is not None
    assert list(staging.parent.iterdir()) == []


@pytest.mark.anyio
async def test_an_input_that_is_gone_or_cut_short_is_retriable(bench: Bench) -> None:
    root = await bench.ingest()
    (first,) = await bench.run(root, "offset")
    data = first.object("data")
    assert data is not None
    path = await bench.store.fetch(data.key, bench.folder / "cache")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RetriableError, match=data.key):
        await bench.execute(first, "flag")


@pytest.mark.anyio
async def test_progress_and_lineage_are_told(bench: Bench) -> None:
    root = await bench.ingest()
    (manifest,) = await bench.run(root)
    events = [(r["event"], r["stage"]) for r in bench.reports]
    names = [s.name for s in bench.stages]
    assert events == [
        *((event, name) for name in names for event in ("stage_started", "stage")),
        ("stored", "catalog"),
    ]
    assert all(r["rss"] > 1_000_000 and r["seconds"] >= 0 for r in bench.reports if r["event"] == "stage")
    steps = manifest.extra["steps"]
    assert [step["stage"] for step in steps] == names
    assert steps[0]["references"] == {"gain": "2.0"}
    assert steps[-1]["identity"] == manifest.identity
    assert manifest.extra["input"] == root.key


@pytest.mark.anyio
async def test_a_job_process_killed_before_it_is_done_leaves_nothing_visible_and_can_be_repeated(bench: Bench) -> None:
    root = await bench.ingest()
    before = [info.key async for info in bench.store.list("")]
    async with ProcessJobRunner(slots=1, log_dir=bench.folder / "logs") as runner:

        async def attempt(*, die: bool) -> JobOutcome:
            plan = await bench.planned_job(root)
            return await runner.run(Job("tests.stream.toy_jobs:run_segment", {"plan": plan, "die": die}))

        died = await attempt(die=True)
        assert died.failure is not None
        assert died.failure["signal"] == "SIGKILL"
        assert [info.key async for info in bench.store.list("")] == before
        (manifest,) = await bench.results.publish_made((await attempt(die=False)).result)
    assert manifest.identity == bench.planned(root)[-1]
    (here,) = await bench.run(root)
    assert here == manifest, "the same numbers as without a process"
