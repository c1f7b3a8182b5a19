"""A CRDS context in object storage: workers without a CRDS cache choose as those with one, and it cannot change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops import cli
from ops.job_references import reference_source
from ops.reference_store import newest_index
from ops.run_inputs import RunInputs, defined_references
from ops.settings import RunSettings
from stages.crds_context import CrdsContext
from stages.crds_references import CrdsReferences
from stages.indexed_references import IndexedContextReferences
from stages.parameter_references import ParameterReferences
from stream.failure import FatalError, PermanentError
from stream.store.obstore_store import open_store
from tests.s3_server import server
from tests.servers import S3Server
from tests.stages.small_crds import CONTEXT, SmallCrds, facts, make_small_cache

__all__ = ["server"]

ONE = ("--detectors", "WFI01", "--elements", "F158", "--date", "2027-03-01")
FLAT = "roman_wfi_flat_0002.asdf"

Said = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://rampstream/{tmp_path.name.replace('_', '-').strip('-')}"


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallCrds:
    """The cache of the machine that publishes."""
    monkeypatch.setenv("CRDS_PATH", str(tmp_path / "crds"))
    monkeypatch.delenv("CRDS_CONTEXT", raising=False)
    return make_small_cache(tmp_path / "crds")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Say a verb with --json in this process; returns its exit status and what it printed."""

    def say(*words: str | Path) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        status = cli.main(["references", *map(str, words), "--json"])
        printed = capsys.readouterr()
        return status, json.loads(printed.out) if printed.out else {"error": printed.err}

    return say


async def opened(bucket: str, folder: Path) -> tuple[RunInputs, IndexedContextReferences]:
    """What a worker has of a run that is defined with what was published."""
    definition = {"references": await defined_references(bucket, RunSettings()), "gaia": "stars"}
    inputs = await RunInputs.opened(definition, folder, RunSettings())
    source = reference_source({**inputs.environment, "pins": {}})
    assert isinstance(source, IndexedContextReferences)
    return inputs, source


def test_a_worker_without_a_cache_chooses_and_reads_what_one_with_it_does(
    bucket: str, local: SmallCrds, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, pushed = said("push", "crds:", bucket, *ONE)
    assert (status, pushed["context"], pushed["problems"]) == (0, CONTEXT, [])
    status, listed = said("list", bucket)
    names = {row["name"] for row in listed["files"]}
    assert (status, listed["context"], listed["index"]) == (0, CONTEXT, pushed["index"])
    assert FLAT in names
    assert "roman_wfi_flat_0001.asdf" not in names, "no exposure needs it"
    monkeypatch.delenv("CRDS_PATH")
    theirs = CrdsReferences(CrdsContext(local.cache, CONTEXT))

    async def scenario() -> None:
        inputs, ours = await opened(bucket, tmp_path / "work")
        chosen = {kind: theirs.select(kind, facts()) for kind in ("flat", "gain", "mask", "epsf", "dustmap_north")}
        assert {kind: ours.select(kind, facts()) for kind in chosen} == chosen
        assert ours.select("dustmap_south", facts()) is theirs.select("dustmap_south", facts()) is None
        assert chosen["flat"] == f"crds://{FLAT}"
        assert {name: ours.digest(name) for name in chosen.values()} == {n: theirs.digest(n) for n in chosen.values()}
        async with inputs.lease([f"crds://{FLAT}"]) as lent:
            ours.lend(lent["files"])
            found = ours.open(f"crds://{FLAT}")
            assert found.recorded_name == f"crds://{FLAT}"
            assert (found.array("data") == theirs.open(f"crds://{FLAT}").array("data")).all()
        for stage in ("ramp_fit", "flat_field"):
            told = ParameterReferences(ours.context).parameters(stage, facts())
            assert told == ParameterReferences(theirs.context).parameters(stage, facts()) != {}

    anyio.run(scenario)


def test_what_was_published_for_other_exposures_is_asked_for_by_name(
    bucket: str, local: SmallCrds, said: Said, tmp_path: Path
) -> None:
    assert said("push", f"crds://{CONTEXT}", bucket, *ONE)[0] == 0

    async def scenario() -> None:
        _, ours = await opened(bucket, tmp_path / "work")
        with pytest.raises(
            PermanentError, match=rf"flat_0003\.asdf is not in {bucket}.*references push crds://{CONTEXT}"
        ):
            ours.select("flat", facts(element="F062"))

    anyio.run(scenario)


def test_a_type_that_the_context_lacks_is_told_and_the_rest_is_published(
    bucket: str, local: SmallCrds, said: Said
) -> None:
    status, pushed = said("push", "crds:", bucket, "--detectors", "WFI01,WFI04", *ONE[2:])
    assert status == 1
    assert any("WFI04" in problem for problem in pushed["problems"])
    assert FLAT in {row["name"] for row in said("list", bucket)[1]["files"]}


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_cache_that_is_not_whole_is_not_published(bucket: str, local: SmallCrds, said: Said, damage: str) -> None:
    before = said("push", "crds:", bucket, *ONE)[1]["index"]
    flat = local.references / FLAT
    data = flat.read_bytes()
    flat.unlink()
    if damage == "cut off":
        flat.write_bytes(data[: len(data) // 2])
    status, refused = said("push", "crds:", bucket, *ONE)
    assert status != 0
    assert FLAT in refused["error"]
    assert anyio.run(newest_index, bucket).digest == before


def test_rules_that_were_changed_in_the_store_stop_a_worker(
    bucket: str, local: SmallCrds, said: Said, tmp_path: Path
) -> None:
    said("push", "crds:", bucket, *ONE)

    async def scenario() -> None:
        index = await newest_index(bucket)
        assert index.context is not None
        rule = next(rule for rule in index.context.rules if "flat" in rule.name)
        await open_store(bucket).put(rule.key, b"x" * rule.size)
        with pytest.raises(FatalError, match=f"{rule.name} of the CRDS context .* was changed"):
            await opened(bucket, tmp_path / "work")
        await open_store(bucket).delete(rule.key)
        with pytest.raises(FatalError, match=f"{rule.name} of the CRDS context .* is gone"):
            await opened(bucket, tmp_path / "work")

    anyio.run(scenario)


def test_what_the_server_marked_as_invalid_stays_refused(
    bucket: str, local: SmallCrds, said: Said, tmp_path: Path
) -> None:
    local.tell(bad_files_list=["roman_wfi_gain_0001.asdf"])
    assert said("push", "crds:", bucket, *ONE)[0] == 1

    async def scenario() -> None:
        _, ours = await opened(bucket, tmp_path / "work")
        with pytest.raises(PermanentError, match="scientifically invalid"):
            ours.select("gain", facts())

    anyio.run(scenario)


def test_options_for_exposures_do_not_go_with_a_folder(bucket: str, local: SmallCrds, said: Said) -> None:
    status, refused = said("push", local.references, bucket, *ONE)
    assert status == cli.USAGE_ERROR
    assert "belong to crds:[CONTEXT]" in refused["error"]
