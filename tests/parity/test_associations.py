"""Associations of which not every member can be aligned, against the mission's software.

Four members, 2 detectors at 2 dither positions, some of them fully saturated, spectral, or without sources; the joint
stage on small catalogs, and then a whole pipeline to its products. The reference cannot save what is fully saturated,
so it runs in memory. That one saturated member skips its whole association is the mission's rule and not the
reference's: `tests.stages.test_tweakreg` shows it.

Accepted difference: 0.01 mas in WCS and sky columns, 1e-7 in the fit results, 1e-5 relative in other columns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from stages.align import apply_alignment
from stages.gaia import read_star_table
from stages.tweakreg import Tweakreg, TweakregParameters, tie_points_bytes
from stream.stage import Member, Slot
from tests.conftest import Simulated, run_in_process, simulate
from tests.oracle.association import grid
from tests.parity.record import at_full_length
from tests.parity.test_tweakreg import assert_equal, mosaic
from tests.stages.sky_scene import SIZE, oracle_image, sky_stars

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

MAS = 3.6e6
WCS_MAS = 0.01
SATURATED, SPECTRAL, EMPTY, FEW = "saturated", "spectral", "empty", "few"
WITHOUT_CATALOG = {SATURATED: "saturated", SPECTRAL: "skipped"}
"""Status for the joint stage of members that have no catalog."""

SKY_COLUMNS = [f"{axis}{kind}" for kind in ("", "_centroid", "_centroid_win", "_psf") for axis in ("ra", "dec")]

CASES: dict[str, tuple[dict[int, str], dict[str, Any], list[str]]] = {
    "all have a catalog": ({}, {}, ["COMPLETE"] * 4),
    "the first is saturated": ({0: SATURATED}, {}, ["SKIPPED", *["COMPLETE"] * 3]),
    "the last is saturated": ({3: SATURATED}, {}, [*["COMPLETE"] * 3, "SKIPPED"]),
    "one is spectral": ({1: SPECTRAL}, {}, ["COMPLETE", "SKIPPED", "COMPLETE", "COMPLETE"]),
    "one has no sources": ({2: EMPTY}, {}, ["COMPLETE"] * 4),
    "one of each": ({0: EMPTY, 1: SATURATED, 2: SPECTRAL}, {}, ["COMPLETE", "SKIPPED", "SKIPPED", "COMPLETE"]),
    "one dither has too few matches": ({2: FEW, 3: FEW}, {}, ["COMPLETE"] * 4),
    "too few matches": ({1: SATURATED}, {"abs_minobj": 5000}, ["FAILED", "SKIPPED", "FAILED", "FAILED"]),
    "all are empty": (dict.fromkeys(range(4), EMPTY), {}, ["FAILED"] * 4),
    "nobody has a catalog": ({0: SATURATED, 1: SPECTRAL, 2: SPECTRAL, 3: SATURATED}, {}, ["SKIPPED"] * 4),
}


@pytest.fixture(scope="module")
def sky() -> Any:
    return sky_stars(np.random.default_rng(21), 270.0, 66.0, 1000.0, 2500)


def reference_image(one: Any, role: str | None) -> Any:
    """A member as romancal's pipeline hands it to the joint step."""
    image = oracle_image(one)
    if role in WITHOUT_CATALOG:
        del image.meta["source_catalog"]
        image.meta.cal_step.source_catalog = "SKIPPED"
    if role == SATURATED:
        image.meta["wcs"] = None
    return image


def by_romancal(scene: list[Any], roles: dict[int, str], table: Path, parameters: dict[str, Any]) -> list[Any]:
    """The members after the joint step, each with its catalog as the pipeline refreshes it."""
    from romancal.datamodels import ModelLibrary
    from romancal.tweakreg import TweakRegStep

    step = TweakRegStep()
    for name, value in ({"abs_refcat": str(table)} | parameters).items():
        setattr(step, name, value)
    found = []
    with step.process(ModelLibrary([reference_image(one, roles.get(i)) for i, one in enumerate(scene)])) as library:
        for image, one in zip(library, scene, strict=True):
            catalog = one.catalog()
            if image.meta.cal_step.tweakreg == "COMPLETE":
                step._update_catalog_coordinates(catalog, image.meta.wcs)
            found.append((image, catalog))
            library.shelve(image, modify=False)
    return found


def by_rampstream(scene: list[Any], roles: dict[int, str], table: Path, parameters: dict[str, Any]) -> list[Any]:
    members, exposures = [], []
    for i, one in enumerate(scene):
        exposure, role = one.exposure(), roles.get(i)
        exposures.append(exposure)
        if role in WITHOUT_CATALOG:
            exposure.catalog = None
            members.append(Member(one.id, WITHOUT_CATALOG[role], {"observation_id": one.group}, None))
        else:
            data = tie_points_bytes(exposure, one.distortion)
            members.append(Member(one.id, "ok", {"observation_id": one.group}, data))
    settings = TweakregParameters(abs_refcat=str(table), saturated_member="skip_member", **parameters)
    document = json.loads(json.dumps(Tweakreg().solve(members, read_star_table(table), settings, Slot())))
    return [
        (exposure, apply_alignment(exposure, document["members"][one.id], one.distortion))
        for exposure, one in zip(exposures, scene, strict=True)
    ]


QUICK = ("the first is saturated", "one of each", "too few matches")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else (pytest.mark.slow, at_full_length)) for case in CASES]
)
def test_members_of_all_kinds_are_told_what_the_reference_tells_them(tmp_path: Path, sky: Any, case: str) -> None:
    roles, parameters, statuses = CASES[case]
    places = tuple((i // 2, i % 2) for i, role in roles.items() if role == EMPTY)
    scene = mosaic(sky, 2, 2, seed=13, empty=places)
    for i in (i for i, role in roles.items() if role == FEW):
        scene[i].x, scene[i].y = scene[i].x[:3], scene[i].y[:3]
    table = tmp_path / "stars.ecsv"
    Table({"ra": sky[0], "dec": sky[1]}).write(table)
    theirs, ours = (solve(scene, roles, table, parameters) for solve in (by_romancal, by_rampstream))
    assert [image.meta.cal_step.tweakreg for image, _ in theirs] == statuses
    for i, (one, (image, catalog), (exposure, wcs)) in enumerate(zip(scene, theirs, ours, strict=True)):
        if roles.get(i) not in WITHOUT_CATALOG:
            assert_equal([one], [image], [(exposure, wcs)])
            for name in SKY_COLUMNS:
                difference = np.asarray(exposure.catalog[name]) - np.asarray(catalog[name])
                assert np.all(np.abs(difference) * MAS < WCS_MAS), name
            continue
        assert exposure.meta["cal_step"]["tweakreg"] == image.meta.cal_step.tweakreg == "SKIPPED"
        assert "wcs_fit_results" not in exposure.meta
        assert image.meta.get("wcs_fit_results") is None
        if image.meta.wcs is not None:
            assert wcs.name == image.meta.wcs.name
            x, y = grid((SIZE, SIZE))
            np.testing.assert_allclose(wcs(x, y), image.meta.wcs(x, y), rtol=0, atol=WCS_MAS / MAS)


SKIPPED_STEPS = {"dark_decay.skip": "true", "wfi18_transient.skip": "true"}


def mixed_association(simulated: Simulated, *detectors: str) -> Path:
    """Imaging exposures with one grism and one fully saturated one in one list."""
    names = [path.name for path in simulated.exposures]
    kinds = {"001001_": detectors, "002001_": detectors[:1], "004001_": detectors[-1:]}
    chosen = [name for kind, wanted in kinds.items() for name in names if kind in name and name.split("_")[2] in wanted]
    document = json.loads(simulated.associations[0].read_text())
    document["products"] = [
        {"name": "mixed", "members": [{"expname": f"../l1/{name}", "exptype": "science"} for name in chosen]}
    ]
    path = simulated.associations[0].parent / "mixed.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.slow
@at_full_length
def test_an_association_with_a_spectral_and_a_saturated_member_to_its_products(tmp_path: Path) -> None:
    simulated = simulate(
        tmp_path / "simulated", detectors=("WFI01", "WFI02"), variants=("imaging", "grism", "saturated")
    )
    joint = mixed_association(simulated, "wfi01", "wfi02")
    words = [sys.executable, "-m", "tests.oracle.association", str(joint), "--references", str(simulated.references)]
    words += ["--gaia", str(simulated.gaia), "--out", str(tmp_path / "oracle"), "--cache", str(tmp_path / "crds")]
    words += [word for name, value in SKIPPED_STEPS.items() for word in ("--set", f"{name}={value}")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr[-4000:]
    settings = SKIPPED_STEPS | {"tweakreg.abs_refcat": str(simulated.gaia)}
    reported = {}
    for rule in ("skip_member", "skip_association"):
        options = [
            w for n, v in (settings | {"tweakreg.saturated_member": rule}).items() for w in ("--set", f"{n}={v}")
        ]
        reported[rule] = run_in_process(
            simulated, [joint], tmp_path / "ours", *options, "--work", str(tmp_path / "work")
        )
        statuses = [row["tweakreg"] for row in reported[rule]["exposures"]]
        aligned = ["COMPLETE" if rule == "skip_member" else "SKIPPED"] * 2
        assert statuses == [*aligned, "SKIPPED", "SKIPPED"]
        if rule == "skip_member":
            for row in reported[rule]["exposures"]:
                compare_with_memory(tmp_path / "ours" / "mixed", tmp_path / "oracle", row["exposure"])


def compare_with_memory(ours: Path, theirs: Path, exposure: str) -> None:
    """Products of one member with what the oracle had in memory: statuses, image, WCS, fit results, catalog."""
    oracle = np.load(theirs / f"{exposure}.npz")
    told = json.loads(str(oracle["told"]))
    with asdf.open(ours / f"{exposure}_cal.asdf", memmap=False) as file:
        image = file["roman"]
        meta = image["meta"]
        assert {key: str(value) for key, value in meta["cal_step"].items()} == told["cal_step"]
        assert meta["wcsinfo"].get("s_region") == told["s_region"]
        fit, expected = dict(meta.get("wcs_fit_results") or {}), told["wcs_fit_results"]
        assert fit.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, str | bool | int):
                assert fit[key] == value, key
            else:
                np.testing.assert_allclose(np.asarray(fit[key], float), value, rtol=0, atol=1e-7, err_msg=key)
        np.testing.assert_array_equal(image["data"], oracle["data"])
        np.testing.assert_array_equal(image["dq"], oracle["dq"])
        assert (meta["wcs"] is None) == ("ra" not in oracle)
        if "ra" in oracle:
            assert meta["wcs"].name == told["name"]
            ra, dec = meta["wcs"](*grid(image["data"].shape))
            apart = np.hypot((ra - oracle["ra"]) * np.cos(np.deg2rad(dec)), dec - oracle["dec"])
            assert apart.max() * MAS < WCS_MAS
    columns = [name.removeprefix("column ") for name in oracle.files if name.startswith("column ")]
    assert (ours / f"{exposure}_cat.parquet").exists() == bool(columns)
    if columns:
        table = pq.read_table(ours / f"{exposure}_cat.parquet")
        assert table.column_names == columns
        for name in SKY_COLUMNS:
            apart = np.abs(table[name].to_numpy() - oracle[f"column {name}"])
            assert np.nanmax(apart) * MAS < WCS_MAS, name
