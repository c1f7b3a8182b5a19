"""What comes in and goes out besides L1 and products, as romancal has it: outputs of steps, ramps, ground tests.

One process of the oracle makes everything that is compared here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest
from astropy import units
from astropy.time import Time
from roman_datamodels import datamodels as rdm

from stages.dq_init import border_copies
from stages.exposure import CAL_STEP_KEYS
from stages.finalize.product_file import write_product
from stages.finalize.step_output import STEP_SUFFIXES
from stages.l1 import open_l1
from tests.conftest import Simulated, run_in_process, simulate
from tests.oracle.compare import compare_meta, compare_products, wcs_difference
from tests.parity.record import full_length
from tests.parity.test_end_to_end import SKIPPED, check, run_oracle

pytestmark = pytest.mark.oracle

SAVED = ("dq_init", "saturation", "refpix", "linearity", "assign_wcs", "photom", "flatfield", "tweakreg")
"""Steps of the oracle whose outputs are saved. Those of rampfit and dark_current cannot be: their image has no ``wcs``,
not even null, and the schema asks for one."""

UNSAVABLE = ("ramp_fit", "dark_current")

GROUND_TESTS = {"tvac": rdm.TvacModel, "fps": rdm.FpsModel}


@dataclass(frozen=True)
class Both:
    """Folders of the oracle's files and of ours, and our report by exposure."""

    simulated: Simulated
    oracle: Path
    ours: Path
    exposure: str
    rows: Mapping[str, dict[str, Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    root = tmp_path_factory.mktemp("inputs")
    simulated = simulate(root / "simulated", rows=64)
    (l1,) = simulated.exposures
    ground = [ground_test(name, l1, root) for name in GROUND_TESTS]
    saved = {f"{step}.save_results": "true" for step in SAVED}
    run_oracle(simulated, [l1, ground[0]], root / "oracle", SKIPPED | saved)
    asked = [word for name in (*SAVED, *UNSAVABLE, "dark_decay") for word in ("--save-results", name)]
    rows = {}
    for inputs, words in (([l1], asked), (ground, ["--save-results", "dq_init"])):
        report = run_ours(simulated, inputs, root / "ours", *words)
        assert report["exit"] == 0, report
        rows |= {row["exposure"]: row for row in report["exposures"]}
    return Both(simulated, root / "oracle", root / "ours", l1.name.removesuffix("_uncal.asdf"), rows)


def run_ours(simulated: Simulated, inputs: list[Path], out: Path, *options: str) -> dict[str, Any]:
    settings = SKIPPED | {"tweakreg.abs_refcat": str(simulated.gaia)}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return run_in_process(simulated, inputs, out, *words, *options)


def untouched_ramp(l1: Path, path: Path) -> Path:
    """A raw exposure as a ramp that no step has touched."""
    raw = open_l1(l1)
    data = raw.arrays["data"].astype(np.float32)
    arrays = {
        "data": data,
        "amp33": raw.arrays["amp33"],
        "pixeldq": np.zeros(data.shape[1:], np.uint32),
        "groupdq": np.zeros(data.shape, np.uint8),
    }
    meta = raw.meta | {"model_type": "RampModel", "cal_step": dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE")}
    content = {"meta": meta, **arrays, **border_copies(data, arrays["pixeldq"])}
    write_product(path, "RampModel", "ramp", raw.source_tag, content)
    return path


def ground_test(name: str, l1: Path, folder: Path) -> Path:
    """The counts of an exposure in the layout of a ground test, with what these have besides."""
    path = folder / f"{name}_0001_wfi01_uncal.asdf"
    model = GROUND_TESTS[name].create_fake_data()
    with rdm.open(l1) as raw:
        resultants, rows, columns = raw.data.shape
        exposure = model.meta.exposure
        exposure.type, exposure.frame_time = "WFI_IMAGE", float(raw.meta.exposure.frame_time)
        exposure.start_time = Time(raw.meta.exposure.start_time)
        exposure.read_pattern = [list(reads) for reads in raw.meta.exposure.read_pattern]
        exposure.data_problem, exposure.ngroups = True, resultants
        model.meta.instrument.detector, model.meta.instrument.optical_element = "WFI01", "F158"
        arrays = {
            "data": raw.data, "amp33": raw.amp33, "reference_read": np.full((1, rows, columns), 7),
            "amp33_reference_read": np.full((1, rows, 128), 7), "guidewindow": np.zeros((1, 2, 2)),
        }  # fmt: skip
        for key, array in arrays.items():
            model[key] = units.Quantity(np.array(array), units.DN, dtype=np.uint16)
        model.save(path)
    return path


def compare_files(ours: Path, theirs: Path) -> list[str]:
    """What differs between two files of the field: kind, keys, arrays, metadata, WCS."""
    found: list[str] = []
    with asdf.open(ours, memmap=False) as a, asdf.open(theirs, memmap=False) as b:
        mine, oracle = a["roman"], b["roman"]
        if type(mine) is not type(oracle):
            found.append(f"{type(mine).__name__} instead of {type(oracle).__name__}")
        found += [f"key {key}" for key in sorted(mine.keys() ^ oracle.keys())]
        for key in sorted((mine.keys() & oracle.keys()) - {"meta"}):
            x, y = np.asarray(mine[key]), np.asarray(oracle[key])
            if x.dtype != y.dtype or not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
                found.append(f"array {key}")
        compare_meta("meta", mine["meta"], oracle["meta"], found)
        if wcs_difference(mine["meta"].get("wcs"), oracle["meta"].get("wcs"), (56, 4088)) > 0.01:
            found.append("wcs")
    with rdm.open(ours) as model:
        model.validate()
    return found


@pytest.mark.parametrize("step", SAVED)
def test_the_output_of_a_step_is_the_file_that_the_field_s_step_saves(both: Both, step: str) -> None:
    name = f"{both.exposure}_{STEP_SUFFIXES[{'flatfield': 'flat_field'}.get(step, step)]}.asdf"
    assert str(both.ours / name) in both.rows[both.exposure]["outputs"]
    assert compare_files(both.ours / name, both.oracle / name) == []


@pytest.mark.parametrize("stage", UNSAVABLE)
def test_what_the_oracle_cannot_save_opens_and_validates_without_a_wcs(both: Both, stage: str) -> None:
    path = both.ours / f"{both.exposure}_{STEP_SUFFIXES[stage]}.asdf"
    with rdm.open(path) as model, rdm.open(both.oracle / f"{both.exposure}_assignwcs.asdf") as later:
        assert model.validate() is None
        assert model.meta.wcs is None
        assert model.meta.cal_step.ramp_fit == "COMPLETE"
        if stage == "dark_current":  # the step after it changes no array
            np.testing.assert_array_equal(model.data, later.data)
            np.testing.assert_array_equal(model.err, later.err)


def test_a_stage_that_is_skipped_leaves_no_output(both: Both) -> None:
    for folder in (both.oracle, both.ours):
        assert not list(folder.glob("*_dark_decay.asdf"))


UNTOUCHED = "untouched"


@pytest.fixture(scope="module")
def continued(both: Both) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Files that the oracle's steps saved, and a ramp without any step, under names of their own; our run of them."""
    folder, out = both.ours.parent / "continued", both.ours.parent / "products"
    folder.mkdir()
    inputs = [folder / f"from_{suffix}_ramp.asdf" for suffix in STANDING]
    for path, suffix in zip(inputs, STANDING, strict=True):
        if suffix == UNTOUCHED:
            untouched_ramp(both.simulated.exposures[0], path)
        else:
            path.symlink_to(both.oracle / f"{both.exposure}_{suffix}.asdf")
    report = run_ours(both.simulated, inputs, out)
    return out, {row["exposure"]: row for row in report["exposures"]}


STANDING = {UNTOUCHED: "dq_init", "linearity": "saturation", "cal": "source_catalog"}
"""The first stage that is visited; saturation is also where it was done, for it tells whether anything is left."""

if full_length():
    STANDING |= {"dqinit": "saturation", "saturation": "saturation", "assignwcs": "photom", "flat": "source_catalog"}


@pytest.mark.parametrize("suffix", STANDING)
def test_a_file_of_the_field_goes_on_where_it_stands_to_the_same_products(
    both: Both, continued: tuple[Path, dict[str, dict[str, Any]]], suffix: str
) -> None:
    out, rows = continued
    row = rows[f"from_{suffix}"]
    assert row["reason"] is None
    assert next(iter(row["stages"])) == STANDING[suffix]
    check(compare_products(out, both.oracle, both.exposure, named=row["exposure"]))


@pytest.mark.parametrize("name", GROUND_TESTS)
def test_exposures_of_ground_tests_have_the_same_products(both: Both, name: str) -> None:
    # The two layouts are one but for their tags, so one run of the oracle serves both.
    check(compare_products(both.ours, both.oracle, "tvac_0001_wfi01", named=f"{name}_0001_wfi01"))
    path = both.ours / f"{name}_0001_wfi01_cal.asdf"
    with rdm.open(path) as ours, rdm.open(both.oracle / "tvac_0001_wfi01_cal.asdf") as theirs:
        for group in ("groundtest", "guidestar"):
            own = GROUND_TESTS[name].create_fake_data().meta[group]
            assert type(ours.meta[group]) is type(own)
            assert ours.meta[group].keys() == theirs.meta[group].keys()
        assert (ours.meta.groundtest.detector_pixel_size == theirs.meta.groundtest.detector_pixel_size).all()
        assert ours.meta.exposure.data_problem == "True"


def test_the_ramp_of_a_ground_test_is_the_same_but_for_its_reset_and_reference_reads(both: Both) -> None:
    found = compare_files(both.ours / "tvac_0001_wfi01_dqinit.asdf", both.oracle / "tvac_0001_wfi01_dqinit.asdf")
    assert found == ["key amp33_reference_read", "key guidewindow", "key reference_read"]
