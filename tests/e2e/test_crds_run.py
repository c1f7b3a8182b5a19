"""A run from a pinned CRDS context: the products of a folder's run, labelled as the mission labels them.

Also by workers on Kafka and S3, where the context was published and no worker has a CRDS cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.asdf_container import open_container, plain
from stages.crds_context import client_version
from tests.conftest import Simulated, digests, run_in_process
from tests.e2e.site import Servers, Site
from tests.oracle.crds_cache import CONTEXT, make_cache
from tests.stages.small_crds import write_parameters

REFERENCES = ("--references", f"crds://{CONTEXT}")


@pytest.fixture(scope="module")
def cache(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("crds") / "cache"
    make_cache(simulated.references, folder)
    return folder


@dataclass(frozen=True)
class Alone:
    """What a run from the context on one machine made, and whether the cache is as it was."""

    out: Path
    report: dict[str, Any]
    cache_untouched: bool
    recorded: dict[str, Any]
    products: dict[str, str]


@pytest.fixture(scope="module")
def alone(simulated: Simulated, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    out = tmp_path_factory.mktemp("alone") / "out"
    before = state(cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRDS_PATH", str(cache))
        report = run_in_process(simulated, simulated.exposures, out, *REFERENCES, "--keep")
    return Alone(out, report, state(cache) == before, meta_of(out, "cal")["ref_file"], digests(out))


@pytest.fixture(autouse=True)
def _named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRDS_PATH", str(cache))


def state(cache: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file of the cache."""
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in cache.rglob("*")}


def meta_of(out: Path, suffix: str) -> dict[str, Any]:
    (path,) = out.glob(f"*_{suffix}.asdf")
    found: dict[str, Any] = plain(
        {key: open_container(path).node("roman", "meta")[key] for key in ("ref_file", "cal_step")}
    )
    return found


def test_a_run_from_a_context_shares_results_with_one_from_a_folder(
    simulated: Simulated, cache: Path, alone: Alone
) -> None:
    assert alone.report["exit"] == 0, alone.report
    assert alone.cache_untouched
    recorded = dict(alone.recorded)
    assert recorded.pop("crds") == {"version": client_version(), "context": CONTEXT}
    used = {kind: name for kind, name in recorded.items() if name != "N/A"}
    assert {"flat", "gain", "readnoise", "dark", "distortion", "epsf", "apcorr", "mask"} <= used.keys()
    assert all(name.startswith("crds://roman_wfi_") for name in used.values())
    assert all((cache / "references/roman/wfi" / name.removeprefix("crds://")).is_file() for name in used.values())

    again = run_in_process(simulated, simulated.exposures, alone.out)
    (row,) = again["exposures"]
    assert again["run"] != alone.report["run"]
    # The files are the same. Products are made anew, for they name the context; what was found keeps the names that it
    # was made with.
    assert list(row["stages"]) == ["finalize"]
    recorded = meta_of(alone.out, "cal")["ref_file"]
    assert recorded["flat"] == used["flat"]
    assert recorded["crds"]["context"] == "simulated"


def test_workers_without_a_cache_make_the_products_of_a_run_from_one(
    simulated: Simulated, cache: Path, alone: Alone, servers: Servers, tmp_path: Path
) -> None:
    url = "s3://rampstream/references"
    without = {name: value for name, value in os.environ.items() if not name.startswith("CRDS_")}
    site = Site(tmp_path, "without-cache", servers, without)
    site("references", "push", REFERENCES[1], url, *simulated.exposures, "--crds-path", cache)
    site("topics", "apply", "--preset", "fused", "--references", url, "--gaia", simulated.gaia)
    site.ingest_and_wait(*simulated.exposures)
    products = site.products()
    assert len(alone.products) == 4
    assert digests(products) == alone.products
    assert meta_of(products, "cal")["ref_file"] == alone.recorded


def test_a_missing_file_fails_the_exposures_that_need_it_by_name(
    simulated: Simulated, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "cache"
    make_cache(simulated.references, own)
    (gain,) = (own / "references/roman/wfi").glob("*gain*")
    gain.unlink()
    monkeypatch.setenv("CRDS_PATH", str(own))
    report = run_in_process(simulated, simulated.exposures, tmp_path / "out", *REFERENCES)
    assert report["exit"] == 1
    (row,) = report["exposures"]
    assert f"{gain.name} is not in the CRDS cache" in row["reason"]


def test_parameter_files_and_settings_reach_the_stages(simulated: Simulated, tmp_path: Path) -> None:
    steps = [
        {"class": "romancal.x.FlatFieldStep", "name": "flatfield", "parameters": {"skip": True}},
        {"class": "romancal.x.SourceCatalogStep", "name": "source_catalog", "parameters": {"skip": False}},
    ]
    path = write_parameters(tmp_path / "p.asdf", "ExposurePipeline", {"suffix": "cal"}, steps=steps)
    words = ("--parameters", str(path), "--set", "source_catalog.skip=true")
    report = run_in_process(simulated, simulated.exposures, tmp_path / "out", *REFERENCES, *words)
    assert report["exit"] == 0, report
    statuses = meta_of(tmp_path / "out", "cal")["cal_step"]
    assert (statuses["flat_field"], statuses["source_catalog"], statuses["photom"]) == (
        "SKIPPED",
        "SKIPPED",
        "COMPLETE",
    )
