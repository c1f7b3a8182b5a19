"""References and star table in object storage: such a run is that from a folder, and they cannot change under it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops import cli
from ops.reference_store import NEWEST, newest_index, push
from ops.run_inputs import RunInputs, defined_references
from ops.settings import RunSettings
from ops.star_sources import defined_stars
from stages.asdf_container import open_container
from stages.finalize.content_digest import content_digest
from stages.reference_index import describe
from stages.reference_selection import DirectoryReferences
from stream.failure import Failure, FatalError, PermanentError, RetriableError
from stream.metrics import Metrics
from stream.store.obstore_store import open_store
from tests.conftest import Simulated, run_in_process, share_warm_server
from tests.s3_server import server
from tests.servers import S3Server
from tests.stages.input_files import write_reference

__all__ = ["server"]

ROOT = Path(__file__).parents[2]

Said = Callable[..., dict[str, Any]]


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The server's variables, and a prefix of the test's own."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://rampstream/{tmp_path.name.replace('_', '-').strip('-')}"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Say a verb with --json in this process; returns what it printed."""

    def say(*words: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main([*map(str, words), "--json"]) == 0
        printed: dict[str, Any] = json.loads(capsys.readouterr().out)
        return printed

    return say


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three small reference files, one in a folder of its own."""
    write_reference(tmp_path / "refs" / "gain.asdf", "gain")
    write_reference(tmp_path / "refs" / "new" / "gain.asdf", "gain", useafter="2027-01-01")
    write_reference(tmp_path / "refs" / "flat.asdf", "flat", element="F158")
    return tmp_path / "refs"


def files_of(definition: dict[str, Any], index: Any) -> dict[str, str]:
    """URL of each file by its name."""
    return {file.name: f"{definition['references']['url']}/{file.key}" for file in index.files}


def content(path: str | Path) -> bytes:
    return Path(path).read_bytes()


# --- publishing -------------------------------------------------------------------------------------------------------


def test_the_index_of_a_published_set_is_that_of_the_folder(bucket: str, folder: Path, said: Said) -> None:
    (folder / "notes.txt").write_text("no reference")
    pushed = said("references", "push", folder, bucket)
    assert (pushed["files"], pushed["uploaded"]) == (3, 3)
    there, here = said("references", "list", bucket), said("references", "list", folder)
    assert there["index"] == here["index"] == pushed["index"]
    described = {file["name"]: file for file in there["files"]}
    assert described.keys() == {"gain.asdf", "new/gain.asdf", "flat.asdf"}
    flat = described["flat.asdf"]
    assert (flat["reference_type"], flat["optical_element"], flat["detector"]) == ("flat", ["F158"], ["WFI01"])
    assert described["new/gain.asdf"]["useafter"].startswith("2027-01-01T")
    assert all(file["where"].startswith(f"{bucket}/files/") for file in there["files"])


def test_an_unchanged_file_is_not_sent_again(bucket: str, folder: Path, said: Said) -> None:
    said("references", "push", folder, bucket)
    assert said("references", "push", folder, bucket)["uploaded"] == 0
    write_reference(folder / "flat.asdf", "flat", element="F158", useafter="2026-01-01")
    pushed = said("references", "push", folder, bucket)
    assert (pushed["files"], pushed["uploaded"]) == (3, 1)


def test_a_push_that_fails_leaves_the_newest_set_as_it_was(server: S3Server, bucket: str, folder: Path) -> None:
    async def scenario() -> None:
        before = await push(folder, bucket)
        write_reference(folder / "flat.asdf", "flat", element="F062")
        flat = next(file for _, file in describe(folder, DirectoryReferences(folder)) if file.name == "flat.asdf")
        in_the_way = server.root / bucket.removeprefix("s3://rampstream/") / flat.key / "a-folder"
        in_the_way.mkdir(parents=True)
        with pytest.raises(Failure):
            await push(folder, bucket)
        assert (await newest_index(bucket)).digest == before.index.digest

    anyio.run(scenario)


def test_a_file_that_changes_while_it_is_sent_is_refused(bucket: str, folder: Path) -> None:
    def change(_: str) -> None:
        for path in folder.rglob("*.asdf"):
            path.touch()

    async def scenario() -> None:
        with pytest.raises(PermanentError, match=r"asdf: the reference file changed while it was in use"):
            await push(folder, bucket, tell=change)
        with pytest.raises(PermanentError, match=f"there is no {NEWEST}"):
            await newest_index(bucket)

    anyio.run(scenario)


def test_a_place_that_other_machines_cannot_reach_is_refused(folder: Path, tmp_path: Path) -> None:
    assert cli.main(["references", "push", str(folder), str(tmp_path / "elsewhere")]) == cli.USAGE_ERROR
    assert not (tmp_path / "elsewhere").exists()


# --- what a run is defined with ---------------------------------------------------------------------------------------


def test_a_run_keeps_its_references_whatever_is_published_later(bucket: str, folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        definition = {"references": (await defined(bucket, folder)), "gaia": "stars"}
        first = await newest_index(bucket)
        write_reference(folder / "gain.asdf", "gain", useafter="2027-02-01")
        await push(folder, bucket)
        assert (await newest_index(bucket)).digest != first.digest
        inputs = await RunInputs.opened(definition, tmp_path / "cache", RunSettings())
        names = list(files_of(definition, first).values())
        async with inputs.lease(names) as lent:
            assert lent["files"].keys() == set(names)

    anyio.run(scenario)


async def defined(bucket: str, folder: Path) -> Any:
    await push(folder, bucket)
    return await defined_references(bucket, RunSettings())


@pytest.mark.parametrize("other", [b"", b"{}", None])
def test_an_index_that_is_not_the_runs_is_refused_by_a_worker(
    bucket: str, folder: Path, tmp_path: Path, other: bytes | None
) -> None:
    async def scenario() -> None:
        references = await defined(bucket, folder)
        store, key = open_store(bucket), f"indexes/{references['index']}.json"
        await (store.delete(key) if other is None else store.put(key, other))
        with pytest.raises(FatalError, match=f"{bucket}: the .*{references['index'][:16]}.*define a new run"):
            await RunInputs.opened({"references": references, "gaia": "x"}, tmp_path / "cache", RunSettings())

    anyio.run(scenario)


def test_a_file_or_a_table_with_another_content_is_refused(bucket: str, folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        store = open_store(bucket)
        await store.put("tables/gaia.csv", b"ra,dec\n1,2\n")
        stars = await defined_stars(f"{bucket}/tables/gaia.csv")
        definition = {"references": await defined(bucket, folder), "gaia": stars}
        inputs = await RunInputs.opened(definition, tmp_path / "cache", RunSettings())
        async with inputs.lease(stars=True) as lent:
            assert content(lent["stars"]) == b"ra,dec\n1,2\n"
        await store.put("tables/gaia.csv", b"ra,dec\n1,3\n")
        again = await RunInputs.opened(definition, tmp_path / "other", RunSettings())
        with pytest.raises(RetriableError, match=r"gaia\.csv is damaged"):
            async with again.lease(stars=True):
                pass
        index = await newest_index(bucket)
        flat = next(file for file in index.files if file.name == "flat.asdf")
        await store.put(flat.key, b"x" * flat.size)
        with pytest.raises(RetriableError, match=r"flat\.asdf is damaged"):
            async with inputs.lease([f"{bucket}/{flat.key}"]):
                pass

    anyio.run(scenario)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_reference_is_fetched_once_and_goes_when_room_is_needed_but_not_from_under_a_job(
    bucket: str, folder: Path, tmp_path: Path
) -> None:
    events: list[dict[str, Any]] = []

    async def scenario() -> None:
        definition = {"references": await defined(bucket, folder), "gaia": "stars"}
        index = await newest_index(bucket)
        size = max(file.size for file in index.files)
        settings = RunSettings(reference_cache_gb=1.5 * size / 1e9)
        inputs = await RunInputs.opened(definition, tmp_path / "cache", settings, events.append)
        old, new, flat = (files_of(definition, index)[name] for name in ("gain.asdf", "new/gain.asdf", "flat.asdf"))
        kept = tmp_path / "cache" / "fetched" / "checked"
        async with inputs.lease([old]) as first:
            async with inputs.lease([new]), inputs.lease([old]):
                pass
            async with inputs.lease([flat]):
                assert (kept / old.removeprefix(f"{bucket}/")).exists(), "a job has it"
            assert content(first["files"][old]) == content(folder / "gain.asdf")
        async with inputs.lease([new]):
            assert not (kept / old.removeprefix(f"{bucket}/")).exists()

    anyio.run(scenario)
    outcomes = [event["outcome"] for event in events if event["event"] == "reference_cache"]
    assert outcomes == ["miss", "miss", "hit", "miss", "miss"]
    metrics = Metrics()
    for event in events:
        metrics.observe(event)
    assert metrics.registry.get_sample_value("rampstream_reference_cache_requests_total", {"outcome": "miss"}) == 4


# --- whole runs -------------------------------------------------------------------------------------------------------


class Distributed:
    """Runs on one store of the server, with a broker in a local folder; the worker is a process of its own."""

    def __init__(self, folder: Path, bucket: str, say: Said) -> None:
        self.folder = folder
        self.bucket = bucket
        self._say = say

    def __call__(self, *words: str | Path) -> dict[str, Any]:
        return self._say(*words)

    def run(self, name: str, simulated: Simulated, references: str | Path, gaia: str | Path) -> Path:
        """Take the exposures through a run of their own; returns the folder with its products."""
        engine = ("--run", name, "--store", self.bucket, "--broker", f"embedded:{self.folder / 'log'}")
        engine += ("--work", str(self.folder / name))
        inputs = ("--references", references, "--gaia", gaia)
        self("topics", "apply", "--preset", "fused", "--partitions", "1", *inputs, *engine)
        self("ingest", *simulated.associations, *engine)
        share_warm_server()
        worker = subprocess.Popen([sys.executable, "-m", "ops.cli", "worker", *engine], cwd=ROOT)
        try:
            self("status", "--wait", 300, *engine)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        finally:
            worker.kill()
            worker.wait()
        self("products", "--out", self.folder / f"{name}-products", *engine)
        return self.folder / f"{name}-products"


@pytest.fixture
def distributed(tmp_path: Path, bucket: str, said: Said) -> Distributed:
    return Distributed(tmp_path, f"{bucket}-store", said)


def products_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("r*_*.*") if ".rampstream" not in path.parts)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: content_digest(path) for path in products_in(folder)}


def recorded(folder: Path) -> dict[str, Any]:
    """What the image says of its references."""
    (image,) = [path for path in products_in(folder) if path.name.endswith("_cal.asdf")]
    return dict(open_container(image).node("roman", "meta", "ref_file"))


async def results_in(store: str) -> set[str]:
    """Identities of all results: runs that share a store share equal ones."""
    return {info.key async for info in open_store(store).list("results/")}


def test_a_run_from_the_store_has_the_products_and_the_identities_of_one_from_the_folder(
    simulated: Simulated, bucket: str, distributed: Distributed, tmp_path: Path
) -> None:
    stars = distributed("references", "push", simulated.references, bucket, "--gaia", simulated.gaia)["gaia"]
    alone = tmp_path / "alone"
    run_in_process(simulated, simulated.associations, alone)
    products = distributed.run("from-store", simulated, bucket, stars)
    assert len(digests(products)) == 4
    assert digests(products) == digests(alone)
    urls, paths = recorded(products), recorded(alone)
    assert urls["flat"].startswith(f"{bucket}/files/")
    assert paths["flat"].startswith(f"{simulated.references}/")
    assert urls.keys() == paths.keys()
    for kind in set(urls) - {"crds"}:
        assert urls[kind].rpartition("/")[2] == paths[kind].rpartition("/")[2], kind

    identities = anyio.run(results_in, distributed.bucket)
    assert len(identities) == 4, "the exposure as it came, its catalog, the joint solution, the finalized exposure"
    assert anyio.run(results_in, str(alone / ".rampstream" / "store")) == identities


def test_a_run_is_not_defined_twice_with_other_references(
    bucket: str, folder: Path, distributed: Distributed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "gaia.csv"
    table.write_text("ra,dec\n1,2\n")
    engine = ["--store", distributed.bucket, "--broker", f"embedded:{tmp_path / 'log'}", "--partitions", "1"]
    stars = distributed("references", "push", folder, bucket, "--gaia", table)["gaia"]
    words = ["topics", "apply", "--references", bucket, "--gaia", stars, *engine]
    distributed(*words)
    distributed(*words)
    write_reference(folder / "flat.asdf", "flat", element="F062")
    distributed("references", "push", folder, bucket)
    assert cli.main(words) == cli.STOPPED
    assert "references" in capsys.readouterr().err
