"""Steps' options as the field's users write them: overrides, saving of results, the pipeline's names of steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.cli import parse
from ops.run_options import RunOptions
from ops.settings import load_settings
from ops.table import build_pipeline
from ops.topics import definition_of
from stages.finalize.step_output import STEP_SUFFIXES
from stages.parameter_files import STEP_CLASSES
from stages.product_names import IN_PRODUCTS
from stream.failure import PermanentError
from tests.stages.small_crds import write_parameters


def options(tmp_path: Path, *words: str) -> RunOptions:
    (tmp_path / "gaia.csv").write_text("ra,dec\n")
    given = ["run", "x_uncal.asdf", "--references", str(tmp_path), "--gaia", str(tmp_path / "gaia.csv")]
    return RunOptions(parse([*given, "--out", str(tmp_path / "out"), *words]))


def test_every_stage_has_the_suffix_of_its_step_or_is_in_the_products() -> None:
    assert {*STEP_SUFFIXES, "source_catalog"} == set(STEP_CLASSES)
    assert "source_catalog" in IN_PRODUCTS


def test_an_option_may_use_the_pipeline_s_name_of_a_step(tmp_path: Path) -> None:
    found = options(tmp_path, "--set", "rampfit.algorithm=likely", "--set", "flatfield.skip=true").settings
    assert found.parameters == {"ramp_fit": {"algorithm": "likely"}, "flat_field": {"skip": True}}


def test_an_override_among_parameters_is_a_pinned_reference_that_reference_wins_over(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.asdf", tmp_path / "other.asdf"
    mine.touch()
    other.touch()
    words = ["--set", f"flatfield.override_flat={mine}", "--set", "dark_current.override_dark=N/A"]
    found = options(tmp_path, *words).settings
    assert found.references == {"flat": mine, "dark": Path("N/A")}
    assert found.parameters == {}
    assert options(tmp_path, *words, "--reference", f"flat={other}").settings.references["flat"] == other


def test_an_override_in_a_settings_file_counts_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "flat.asdf").touch()
    config = tmp_path / "c.toml"
    config.write_text('[parameters.flatfield]\noverride_flat = "flat.asdf"\noverride_mask = ""\n')
    assert load_settings(config, {}).references == {"flat": tmp_path / "flat.asdf"}


def test_an_override_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"flatfield\.override_flat: the file .*none\.asdf does not exist"):
        options(tmp_path, "--set", "flatfield.override_flat=none.asdf")


def test_save_results_is_no_parameter_and_so_no_part_of_the_run(tmp_path: Path) -> None:
    words = ["--set", "rampfit.save_results=true", "--save-results", "flatfield", "--set", "photom.save_results=false"]
    found = options(tmp_path, *words).settings
    assert found.save_results == ("ramp_fit", "flat_field")
    assert build_pipeline(found).definition() == build_pipeline(options(tmp_path).settings).definition()


def test_save_results_of_a_parameter_file_counts_unless_a_setting_says_no(tmp_path: Path) -> None:
    steps = [
        {"class": "romancal.x.RampFitStep", "name": "rampfit", "parameters": {"save_results": True}},
        {"class": "romancal.x.RefPixStep", "name": "refpix", "parameters": {"save_results": True}},
        {"class": "romancal.x.PhotomStep", "name": "photom", "parameters": {"save_results": False}},
    ]
    path = write_parameters(tmp_path / "p.asdf", "ExposurePipeline", {"save_results": True}, steps=steps)
    words = ["--parameters", str(path)]
    assert options(tmp_path, *words).settings.save_results == ("ramp_fit", "refpix")
    assert options(tmp_path, *words, "--set", "refpix.save_results=false").settings.save_results == ("ramp_fit",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--save-results", "resample"], "save_results: there is no stage 'resample'; stages are dq_init"),
        (["--set", "refpix.save_results=maybe"], "refpix.save_results is 'maybe'; expected true or false"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        build_pipeline(options(tmp_path, *words).settings)


def test_the_distributed_engine_refuses_to_save_results(tmp_path: Path) -> None:
    found = options(tmp_path, "--save-results", "refpix").settings
    with pytest.raises(PermanentError, match=r"save_results of refpix: rampstream run alone .* keep_after"):
        definition_of(found, "references", "gaia")
