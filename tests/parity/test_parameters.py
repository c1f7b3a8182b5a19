"""Parameters come to the stages in the field's order: defaults, CRDS, a parameter file, explicit settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ops.settings import load_settings
from ops.table import build_pipeline
from ops.workbench import Workbench
from stages.l1 import inspect_l1
from stages.parameter_files import STEP_CLASSES
from stream.failure import PermanentError
from stream.stage import Slot
from tests.stages.input_files import write_l1, write_reference
from tests.stages.small_crds import CONTEXT, SmallCrds, make_small_cache, write_parameters

pytestmark = pytest.mark.oracle

THEIRS = {"ramp_fit": "rampfit", "flat_field": "flatfield"}
"""Names of steps in the field's pipeline."""

EXPLICIT = {"ramp_fit": {"min_sat_area": 2.5}, "flat_field": {"include_var_flat": True}}

ORACLE = """
import json, pathlib, sys
import roman_datamodels.datamodels as rdm
from romancal.pipeline import ExposurePipeline
from romancal.dq_init.dq_init_step import DQInitStep
from romancal.ramp_fitting.ramp_fit_step import RampFitStep

l1, config_file, explicit, out = json.loads(sys.argv[1])
config, _ = ExposurePipeline.build_config(l1, config_file=config_file, steps=explicit)
config.pop("class", None)
pipeline = ExposurePipeline.from_config_section(config)
step = RampFitStep()
step.rejection_threshold = 3.25
step.export_config(pathlib.Path(out) / "step.asdf")
pipeline.export_config(pathlib.Path(out) / "pipeline.asdf", include_metadata=False)
masking, model = DQInitStep(), rdm.open(l1)
masking.get_reference_file(model, "mask")
masking.finalize_result(model, masking._reference_files_used)
print("ANSWER" + json.dumps({
    "parameters": {name: step.get_pars() for name in pipeline.step_defs if (step := getattr(pipeline, name))},
    "ref_file": {"mask": model.meta.ref_file.mask, "crds": dict(model.meta.ref_file.crds.items())},
}, default=str))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallCrds:
    return make_small_cache(tmp_path_factory.mktemp("small") / "crds")


@pytest.fixture(scope="module")
def l1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_l1(tmp_path_factory.mktemp("l1") / "r0000101001001001001_0001_wfi01_uncal.asdf")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parameter file that contradicts CRDS in one place, and the explicit settings in another."""
    steps = [
        {"class": "romancal.x.RampFitStep", "name": "rampfit",
         "parameters": {"include_var_rnoise": False, "min_sat_area": 1.5, "edge_size": 3}},
        {"class": "romancal.x.SourceCatalogStep", "name": "source_catalog", "parameters": {"npixels": 9}},
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("config")
    return write_parameters(folder / "pipeline.asdf", "ExposurePipeline", {}, steps=steps)


@pytest.fixture(scope="module")
def oracle(small: SmallCrds, l1: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("exported")
    words = [str(l1), str(config_file), {THEIRS.get(n, n): dict(v) for n, v in EXPLICIT.items()}, str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "STPIPE_DISABLE_CRDS_STEPPARS"}
    process = subprocess.run(
        [sys.executable, "-c", ORACLE, json.dumps(words)],
        env={**environment, **small.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    answer: dict[str, Any] = json.loads(process.stdout.rpartition("ANSWER")[2])
    return {**answer, "out": out}


def workbench(small: SmallCrds, tmp_path: Path, options: dict[str, Any], *, crds_parameters: bool = True) -> Workbench:
    settings = load_settings(None, options)
    return Workbench(
        {
            "entries": build_pipeline(settings).entries,
            "parameters": settings.parameters,
            "references": {"crds": CONTEXT, "path": str(small.cache), "parameters": crds_parameters},
            "pins": {kind: str(path) for kind, path in settings.references.items()},
            "cache": str(tmp_path / "cache"),
            "gaia": "none",
        },
        Slot(),
    )


def test_every_parameter_of_every_step_is_the_fields(
    small: SmallCrds, l1: Path, config_file: Path, oracle: dict[str, Any], tmp_path: Path
) -> None:
    bench = workbench(small, tmp_path, {"parameter_files": (config_file,), "parameters": EXPLICIT})
    facts = inspect_l1(l1)
    compared = 0
    for stage in STEP_CLASSES:
        theirs = oracle["parameters"][THEIRS.get(stage, stage)]
        ours = bench.parameters(stage, facts).model_dump(mode="json")
        shared = ours.keys() & theirs.keys()
        assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}, stage
        compared += len(shared)
    assert compared > 60
    fitted = bench.parameters("ramp_fit", facts)
    assert (fitted.rejection_threshold, fitted.include_var_rnoise, fitted.min_sat_area, fitted.edge_size) == (
        6.0, False, 2.5, 3,
    )  # fmt: skip
    assert bench.parameters("flat_field", facts).skip


def test_parameters_from_crds_can_be_left_out(small: SmallCrds, l1: Path, tmp_path: Path) -> None:
    bench = workbench(small, tmp_path, {}, crds_parameters=False)
    assert not bench.parameters("flat_field", inspect_l1(l1)).skip


def test_the_recipe_tells_of_parameters_from_crds(small: SmallCrds, l1: Path, tmp_path: Path) -> None:
    facts = inspect_l1(l1)
    with_crds = workbench(small, tmp_path, {})
    said = workbench(
        small,
        tmp_path,
        {"parameters": {"ramp_fit": {"rejection_threshold": 6.0, "include_var_rnoise": True}}},
        crds_parameters=False,
    )
    without = workbench(small, tmp_path, {}, crds_parameters=False)
    recipe = with_crds.recipe("ramp_fit", facts)
    assert recipe == said.recipe("ramp_fit", facts)  # where they come from makes no difference
    assert recipe != without.recipe("ramp_fit", facts)


def test_files_that_the_field_exports_are_read(
    small: SmallCrds, l1: Path, oracle: dict[str, Any], tmp_path: Path
) -> None:
    facts = inspect_l1(l1)
    step = workbench(small, tmp_path, {"parameter_files": (oracle["out"] / "step.asdf",)})
    assert step.parameters("ramp_fit", facts).rejection_threshold == 3.25
    # An exported file has every parameter, and so wins over CRDS everywhere in its step.
    assert not step.parameters("ramp_fit", facts).include_var_rnoise
    pipeline = workbench(small, tmp_path, {"parameter_files": (oracle["out"] / "pipeline.asdf",)})
    for stage in STEP_CLASSES:
        theirs = oracle["parameters"][THEIRS.get(stage, stage)]
        ours = pipeline.parameters(stage, facts).model_dump(mode="json")
        assert {name: ours[name] for name in ours.keys() & theirs.keys()} == {
            name: theirs[name] for name in ours.keys() & theirs.keys()
        }


def test_unknown_parameters_are_refused_by_stage_and_name(small: SmallCrds, tmp_path: Path) -> None:
    path = write_parameters(tmp_path / "p.asdf", "SaturationStep", {"n_pix_grow": 1})
    bench = workbench(small, tmp_path, {"parameter_files": (path,)})
    with pytest.raises(PermanentError, match=r"saturation\.n_pix_grow: there is no such parameter; .*n_pix_grow_sat"):
        bench.parameters("saturation")


def test_the_oracle_names_references_as_we_do(
    small: SmallCrds, l1: Path, oracle: dict[str, Any], tmp_path: Path
) -> None:
    bench = workbench(small, tmp_path, {})
    assert oracle["ref_file"] == {"mask": bench.references.select("mask", inspect_l1(l1)), "crds": bench.crds}


def test_later_files_and_settings_win_also_for_overrides(tmp_path: Path) -> None:
    flats = [write_reference(tmp_path / f"flat{n}.asdf", "flat", element="F158") for n in range(3)]
    files = tuple(
        write_parameters(tmp_path / f"p{n}.asdf", "FlatFieldStep", {"override_flat": str(flats[n]), "skip": bool(n)})
        for n in range(2)
    )
    found = load_settings(None, {"parameter_files": files})
    assert (found.references, found.parameters) == ({"flat": flats[1]}, {"flat_field": {"skip": True}})
    given = {"references": {"flat": flats[2]}, "parameters": {"flat_field": {"skip": False}}}
    found = load_settings(None, {"parameter_files": files, **given})
    assert (found.references, found.parameters) == ({"flat": flats[2]}, {"flat_field": {"skip": False}})
