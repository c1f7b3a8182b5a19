"""Whole pipeline against romancal's ExposurePipeline on the same files: every array, column, WCS and status.

On frames of few rows dark_decay and wfi18_transient are skipped on both sides, for the oracle's read times are those of
4096 rows. One full frame of four resultants goes through with nothing skipped; at full length also one of the grism,
and an association of two detectors at two dither positions.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.asdf_container import open_container, plain
from tests.conftest import Simulated, run_in_process, simulate
from tests.oracle.compare import Differences, compare_products
from tests.parity.accepted import ACCEPTED
from tests.parity.record import at_full_length, full_length, note

pytestmark = pytest.mark.oracle

SKIPPED = {"dark_decay.skip": "true", "wfi18_transient.skip": "true"}
CATALOG_NAME = tuple(f"meta.{key}" for key in ACCEPTED["catalog-name"].meta)

MORE_VARIANTS = ("prism", "lolo", "spectral_dark", "reference_read", "resultantdq")
FEW_READS = ((1,), (3, 4), (6,), (9, 10))
"""Four resultants of few reads: each read of a full frame costs the oracle seconds in linearity and dark_decay."""

ROUNDED = 1e-6
"""Part of the values of a full frame that may be unequal."""

WCS_MAS = 0.01
COLUMN = 1e-5


def run_oracle(simulated: Simulated, inputs: Sequence[Path], out: Path, settings: dict[str, str]) -> None:
    words = [
        sys.executable,
        "-m",
        "tests.oracle.pipeline",
        *map(str, inputs),
        "--references",
        str(simulated.references),
    ]
    words += ["--gaia", str(simulated.gaia), "--out", str(out), "--cache", str(out.parent / "crds")]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr[-4000:]


def run_ours(simulated: Simulated, inputs: Sequence[Path], out: Path, settings: dict[str, str]) -> dict[str, Any]:
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    report = run_in_process(simulated, inputs, out, "--set", f"tweakreg.abs_refcat={simulated.gaia}", *options)
    assert report["exit"] == 0, report
    return report


def check(found: Differences, *, unequal: float = 0.0) -> None:
    """All arrays equal but for a fraction; metadata, catalogs and WCS as near as a user could want."""
    assert found.equal_fraction
    assert {name: 1 - equal for name, equal in found.equal_fraction.items() if 1 - equal > unequal} == {}
    assert found.outside["data"] <= 1e-4
    assert found.outside["dq"] <= 1e-5
    assert [line for line in found.meta if not line.startswith(CATALOG_NAME)] == []
    assert found.sources[0] == found.sources[1]
    assert {name: value for name, value in found.columns.items() if value > COLUMN} == {}
    assert found.wcs_mas < WCS_MAS
    keep(found, "equal" if unequal == 0 else f"equal but for {unequal:g}")


def keep(found: Differences, bar: str) -> None:
    """For the page: what was just asserted."""
    for name, size in found.sizes.items():
        what = f"`_segm` `{name[5:]}`" if name.startswith("segm.") else f"`_cal` `{name}`"
        note("end to end", what, bar, values=size, equal=round(found.equal_fraction[name] * size))
    for name, relative in found.columns.items():
        what = "`_cat`, columns of the PSF fit" if "psf" in name else "`_cat`, all other columns"
        equal = found.sources[0] if relative == 0 else 0
        note("end to end", what, f"{COLUMN:g} relative", values=found.sources[0], equal=equal, relative=relative)
    compared = {"values": 2 * 17 * 17, "equal": 0 if found.wcs_mas else 2 * 17 * 17, "absolute": found.wcs_mas}
    note("end to end", "WCS of `_cal` and `_wcs`, mas", f"{WCS_MAS:g} mas", **compared)


def test_an_association_of_two_detectors_and_two_dithers(simulated_association: Simulated, tmp_path: Path) -> None:
    joint = max(simulated_association.associations, key=lambda path: path.stat().st_size)
    run_oracle(simulated_association, [joint], tmp_path / "oracle", SKIPPED)
    report = run_ours(simulated_association, [joint], tmp_path / "ours", SKIPPED)
    assert len(report["exposures"]) == 4
    for row in report["exposures"]:
        assert row["tweakreg"] == "COMPLETE"
        found = compare_products(Path(row["products"][0]).parent, tmp_path / "oracle", row["exposure"])
        assert found.sources[0] > 30
        check(found)


def test_spectral_dark_flat_and_wavefront_exposures(tmp_path: Path) -> None:
    variants = ("grism", "dark", "flat", "wfsc", "wfi18")
    if full_length():
        variants += MORE_VARIANTS
    simulated = simulate(tmp_path / "simulated", variants=variants, rows=64)
    run_oracle(simulated, simulated.exposures, tmp_path / "oracle", SKIPPED)
    report = run_ours(simulated, simulated.exposures, tmp_path / "ours", SKIPPED)
    assert len(report["exposures"]) == len(variants)
    for row in report["exposures"]:
        check(compare_products(tmp_path / "ours", tmp_path / "oracle", row["exposure"]))


def test_a_full_frame_with_nothing_skipped(tmp_path: Path) -> None:
    simulated = simulate(tmp_path / "simulated", rows=4096, read_pattern=FEW_READS)
    run_oracle(simulated, simulated.exposures, tmp_path / "oracle", {})
    (row,) = run_ours(simulated, simulated.exposures, tmp_path / "ours", {})["exposures"]
    found = compare_products(tmp_path / "ours", tmp_path / "oracle", row["exposure"])
    assert found.sources[0] > 500
    check(found, unequal=ROUNDED)


@pytest.mark.slow
@at_full_length
def test_a_full_frame_of_the_grism(tmp_path: Path) -> None:
    simulated = simulate(tmp_path / "simulated", rows=4096, variants=("grism",), read_pattern=FEW_READS)
    run_oracle(simulated, simulated.exposures, tmp_path / "oracle", {})
    (row,) = run_ours(simulated, simulated.exposures, tmp_path / "ours", {})["exposures"]
    assert {Path(name).name.rpartition("_")[2] for name in row["products"]} == {"cal.asdf", "wcs.asdf"}
    check(compare_products(tmp_path / "ours", tmp_path / "oracle", row["exposure"]), unequal=ROUNDED)


@pytest.mark.slow
@at_full_length
def test_an_association_of_full_frames_with_wrong_pointings(tmp_path: Path) -> None:
    wanted = {"detectors": ("WFI01", "WFI02"), "dithers": 2, "pointing_error_mas": 300.0}
    simulated = simulate(tmp_path / "simulated", rows=4096, read_pattern=FEW_READS, **wanted)
    joint = max(simulated.associations, key=lambda path: path.stat().st_size)
    run_oracle(simulated, [joint], tmp_path / "oracle", {})
    report = run_ours(simulated, [joint], tmp_path / "ours", {})
    assert len(report["exposures"]) == 4
    for row in report["exposures"]:
        assert row["tweakreg"] == "COMPLETE"
        folder = Path(row["products"][0]).parent
        assert shift_mas(folder / f"{row['exposure']}_cal.asdf") > 1000 * WCS_MAS, "the pointing was wrong"
        found = compare_products(folder, tmp_path / "oracle", row["exposure"])
        assert found.sources[0] > 500
        check(found, unequal=ROUNDED)


def shift_mas(image: Path) -> float:
    """How far the alignment moved an image."""
    fit = plain(open_container(image).node("roman", "meta")["wcs_fit_results"])
    return math.hypot(*fit["shift"]) * 1e3
