"""``references sync|list|check`` of a CRDS context: what is fetched is whole, and what is not is told before a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ops import cli
from stages.crds_context import CrdsContext
from tests.ops.crds_server import CrdsServer, crds_server
from tests.stages.input_files import write_l1
from tests.stages.small_crds import CONTEXT, SmallCrds, make_small_cache, rmap_name

ONE = ("--detectors", "WFI01", "--elements", "F158", "--date", "2027-03-01")
FLAT = "roman_wfi_flat_0002.asdf"

Said = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CrdsServer]:
    """A server, and a client in this process that remembers nothing of other tests."""
    from crds.core import config, utils

    for name in ("CRDS_READONLY_CACHE", "CRDS_CONTEXT", "CRDS_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    monkeypatch.setattr(config, "CRDS_REF_SUBDIR_MODE", "None")
    utils.clear_function_caches()
    with crds_server(make_small_cache(tmp_path / "served")) as served:
        yield served
    utils.clear_function_caches()


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallCrds:
    """Where the local cache is to be; nothing is there."""
    monkeypatch.setenv("CRDS_PATH", str(tmp_path / "local"))
    return SmallCrds(tmp_path / "local")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Say a verb with --json in this process; returns its exit status and what it printed."""

    def say(*words: str | Path) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        status = cli.main(["references", *map(str, words), "--json"])
        printed = capsys.readouterr()
        return status, json.loads(printed.out) if printed.out else {"error": printed.err}

    return say


def test_sync_fetches_what_exposures_need_and_no_more(server: CrdsServer, local: SmallCrds, said: Said) -> None:
    status, report = said("sync", "crds:", *ONE, "--server", server.url)
    assert (status, report["problems"], report["context"]) == (0, [], CONTEXT)
    assert FLAT in report["fetched"]
    assert "roman_wfi_pars-rampfitstep_0001.asdf" in report["fetched"]
    assert "roman_wfi_flat_0001.asdf" not in report["fetched"]
    assert (local.references / FLAT).read_bytes() == (server.source.references / FLAT).read_bytes()
    assert CrdsContext(local.cache, CONTEXT).digest() == CrdsContext(server.source.cache, CONTEXT).digest()
    assert said("check", f"crds://{CONTEXT}", *ONE)[0] == 0
    asked = len(server.asked)
    status, report = said("sync", f"crds://{CONTEXT}", *ONE, "--server", server.url)
    assert (status, report["fetched"], len(server.asked)) == (0, [], asked)


def test_sync_goes_by_the_inputs_that_are_named(
    server: CrdsServer, local: SmallCrds, said: Said, tmp_path: Path
) -> None:
    exposure = write_l1(tmp_path / "r0000101001001001001_0001_wfi01_uncal.asdf")
    assert said("sync", "crds:", exposure, "--server", server.url)[0] == 0
    assert (local.references / FLAT).is_file()
    status, listed = said("list", "crds:", exposure)
    found = {row["reference_type"]: row for row in listed["files"]}
    assert (status, listed["context"]) == (0, CONTEXT)
    assert found["flat"]["name"] == FLAT
    assert found["flat"]["path"] == str(local.references / FLAT)
    assert (found["linearity"]["name"], found["linearity"]["error"]) == (None, None)
    assert {row["exposure"] for row in listed["files"]} == {"r0000101001001001001_0001_wfi01"}


def test_sync_replaces_what_is_damaged(server: CrdsServer, local: SmallCrds, said: Said) -> None:
    said("sync", "crds:", *ONE, "--server", server.url)
    for path in (local.references / FLAT, local.mappings / rmap_name("gain")):
        data = path.read_bytes()
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    status, report = said("sync", "crds:", *ONE, "--server", server.url)
    assert (status, sorted(report["fetched"])) == (0, [FLAT, rmap_name("gain")])
    assert said("check", "crds:", *ONE)[0] == 0


def test_a_bad_download_is_not_kept(server: CrdsServer, local: SmallCrds, said: Said) -> None:
    server.spoilt.add(FLAT)
    status, report = said("sync", "crds:", *ONE, "--server", server.url)
    assert status == 1
    assert FLAT in report["error"]
    assert not (local.references / FLAT).exists()
    server.spoilt.clear()
    assert said("sync", "crds:", *ONE, "--server", server.url)[0] == 0


def test_a_server_that_does_not_answer_is_named(server: CrdsServer, local: SmallCrds, said: Said) -> None:
    status, report = said("sync", "crds:", *ONE, "--server", "http://localhost:9")
    assert status == 1
    assert "the CRDS server http://localhost:9" in report["error"]
    assert not local.cache.exists() or not list(local.cache.rglob("*.asdf"))


def test_a_cache_that_is_only_read_is_not_synced(
    server: CrdsServer, local: SmallCrds, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRDS_READONLY_CACHE", "1")
    status, report = said("sync", "crds:", *ONE, "--server", server.url)
    assert status == 2
    assert "CRDS_READONLY_CACHE is set" in report["error"]
    assert server.asked == []


def test_sync_tells_what_no_file_is_for(server: CrdsServer, local: SmallCrds, said: Said) -> None:
    other = ("--detectors", "WFI02", "--elements", "F129", "--date", "2027-03-01")
    status, report = said("sync", "crds:", *other, "--server", server.url)
    assert status == 1
    assert any("type gain is N/A" in problem for problem in report["problems"])
    assert (local.references / "roman_wfi_flat_0005.asdf").is_file()


def test_a_context_that_the_server_does_not_know_is_refused(server: CrdsServer, local: SmallCrds, said: Said) -> None:
    status, report = said("sync", "crds://roman_0999.pmap", *ONE, "--server", server.url)
    assert status == 2
    assert "does not know the context roman_0999.pmap" in report["error"]


# --- check ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def synced(server: CrdsServer, local: SmallCrds, said: Said) -> SmallCrds:
    assert said("sync", "crds:", *ONE, "--server", server.url)[0] == 0
    return local


def test_check_tells_missing_cut_off_and_damaged_files(synced: SmallCrds, said: Said) -> None:
    (synced.references / FLAT).unlink()
    gain = synced.references / "roman_wfi_gain_0001.asdf"
    gain.write_bytes(gain.read_bytes()[:-1])
    mask = synced.references / "roman_wfi_mask_0001.asdf"
    data = mask.read_bytes()
    mask.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    status, report = said("check", "crds:", *ONE)
    assert status == 1
    assert [problem.split()[0] for problem in report["problems"]] == [FLAT, gain.name, mask.name]
    assert report["without_checksum"] == 0
    _, quick = said("check", "crds:", *ONE, "--quick")
    assert [problem.split()[0] for problem in quick["problems"]] == [FLAT, gain.name]
    status, listed = said("list", "crds:", *ONE)
    assert (status, [row["name"] for row in listed["files"] if row["name"] and not row["path"]]) == (1, [FLAT])


@pytest.mark.parametrize("name", [CONTEXT, rmap_name("pars-rampfitstep")])
def test_check_tells_a_missing_mapping(synced: SmallCrds, said: Said, name: str) -> None:
    (synced.mappings / name).unlink()
    status, report = said("check", f"crds://{CONTEXT}", *ONE)
    assert status == 1
    assert name in report["problems"][0]


def test_check_of_a_cache_without_checksums_says_so(synced: SmallCrds, said: Said) -> None:
    synced.tell()
    status, report = said("check", "crds:", *ONE)
    assert (status, report["without_checksum"]) == (0, report["references"])
    gain = synced.references / "roman_wfi_gain_0001.asdf"
    gain.write_bytes(gain.read_bytes()[:300])
    status, report = said("check", "crds:", *ONE)
    assert status == 1
    assert gain.name in report["problems"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check", "crds:"), "there is no such folder; expected a CRDS cache"),
        (("check", "roman_0001.pmap"), "expected crds://CONTEXT"),
        (("check", "crds:", "--date", "soon"), "expected a time like"),
        (("check", "crds:", "--detectors", "WFI19"), "there is no detector WFI19"),
        (("list", "crds:", "x_uncal.asdf", "--date", "2027-01-01"), "not both"),
        (("list", ".", "--date", "2027-01-01"), "belong to crds:"),
    ],
)
def test_wrong_usage_is_told(
    words: tuple[str, ...], message: str, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRDS_PATH", str(tmp_path / "none"))
    if message != "there is no such folder; expected a CRDS cache":
        (tmp_path / "none").mkdir()
        make_small_cache(tmp_path / "none" / "x").cache.rename(tmp_path / "crds")
        monkeypatch.setenv("CRDS_PATH", str(tmp_path / "crds"))
    status, report = said(*words)
    assert status == 2
    assert message in report["error"]


def test_a_cache_must_be_named(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRDS_PATH", raising=False)
    status, report = said("list", "crds:")
    assert status == 2
    assert "say where with CRDS_PATH" in report["error"]
