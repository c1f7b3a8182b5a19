"""The field's parameter files are read as the field means them; what cannot be done is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.asdf_arrays import write_asdf
from stages.crds_context import CrdsContext
from stages.parameter_files import STEP_CLASSES, read_parameter_file
from stages.parameter_references import ParameterReferences, parameter_types
from stages.pipeline import FINALIZE, stage_names
from stream.failure import PermanentError
from tests.stages.small_crds import CONTEXT, SmallCrds, facts, make_small_cache, write_parameters


@pytest.fixture
def small(tmp_path: Path) -> SmallCrds:
    return make_small_cache(tmp_path / "crds")


def test_every_stage_has_a_class_of_the_field_but_the_last() -> None:
    assert [*STEP_CLASSES, FINALIZE] == list(stage_names())


def test_a_step_is_known_by_its_class_whatever_its_name(tmp_path: Path) -> None:
    path = write_parameters(tmp_path / "p.asdf", "RampFitStep", {"rejection_threshold": 5.5, "skip": False})
    assert read_parameter_file(path).parameters == {"ramp_fit": {"rejection_threshold": 5.5, "skip": False}}


def test_a_pipeline_has_its_steps_parameters(tmp_path: Path) -> None:
    steps = [
        {"class": "romancal.x.FlatFieldStep", "name": "flatfield", "parameters": {"skip": True}},
        {"class": "romancal.x.TweakRegStep", "name": "tweakreg", "parameters": {"abs_minobj": 7}},
    ]
    own = {"save_results": True, "on_disk": False, "suffix": "cal", "pre_hooks": [], "output_dir": None}
    path = write_parameters(tmp_path / "p.asdf", "ExposurePipeline", own, steps=steps)
    assert read_parameter_file(path).parameters == {"flat_field": {"skip": True}, "tweakreg": {"abs_minobj": 7}}


def test_the_older_form_is_read(tmp_path: Path) -> None:
    inner = {"dark_current": {"skip": True}, "rampfit": {"class": "romancal.x.RampFitStep", "algorithm": "likely"}}
    path = tmp_path / "p.asdf"
    write_asdf(path, {"parameters": {"class": "romancal.x.ExposurePipeline", "name": "p", "steps": inner}})
    assert read_parameter_file(path).parameters == {"dark_current": {"skip": True}, "ramp_fit": {"algorithm": "likely"}}


def test_an_override_is_a_pinned_reference(tmp_path: Path) -> None:
    flat = tmp_path / "flat.asdf"
    flat.touch()
    parameters = {"override_flat": str(flat), "override_mask": None, "override_dark": "N/A"}
    path = write_parameters(tmp_path / "p.asdf", "FlatFieldStep", parameters)
    found = read_parameter_file(path)
    assert found.overrides == {"flat": str(flat), "dark": "N/A"}
    assert found.parameters == {"flat_field": {}}


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        (
            "ResampleStep",
            {},
            r"p\.asdf: 'romancal\.module\.ResampleStep' is no step of the exposure pipeline; .*DQInit",
        ),
        ("FlatFieldStep", {"pre_hooks": ["a.B"]}, r"flat_field\.pre_hooks = \['a\.B'\] has no meaning here"),
        ("FlatFieldStep", {"output_dir": "here"}, r"flat_field\.output_dir = 'here' has no meaning"),
        ("FlatFieldStep", {"override_flat": "none.asdf"}, r"override_flat: the file .*none\.asdf does not exist"),
        ("ExposurePipeline", {"skip": True}, r"the pipeline cannot be skipped"),
        ("ExposurePipeline", {"speed": 3}, r"speed: there is no such parameter of the pipeline"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path: Path, name: str, parameters: dict[str, Any], message: str) -> None:
    path = write_parameters(tmp_path / "p.asdf", name, parameters)
    with pytest.raises(PermanentError, match=message):
        read_parameter_file(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.asdf"
    write_asdf(path, {"roman": {"meta": {}}})
    with pytest.raises(PermanentError, match="not a step's parameter file"):
        read_parameter_file(path)
    path.write_text("[steps]\nskip = True\n")
    with pytest.raises(PermanentError, match="ASDF"):
        read_parameter_file(path)


# --- from CRDS --------------------------------------------------------------------------------------------------------


def test_the_pipelines_reference_wins_over_the_steps(small: SmallCrds) -> None:
    source = ParameterReferences(CrdsContext(small.cache, CONTEXT))
    assert source.parameters("ramp_fit", facts()) == {"rejection_threshold": 6.0, "include_var_rnoise": True}
    assert source.parameters("flat_field", facts()) == {"skip": True}
    assert source.parameters("photom", facts()) == {}
    assert source.parameters("my_stage", facts()) == {}


def test_a_look_up_that_fails_finds_nothing(small: SmallCrds) -> None:
    source = ParameterReferences(CrdsContext(small.cache, CONTEXT))
    early = facts(start="2026-01-01T00:00:00.000")
    assert source.parameters("ramp_fit", early) == {"rejection_threshold": 5.0, "include_var_rnoise": True}
    assert source.parameters("flat_field", early) == {}


def test_parameters_that_are_not_in_the_cache_are_an_error_and_not_a_default(small: SmallCrds) -> None:
    (small.references / "roman_wfi_pars-rampfitstep_0001.asdf").unlink()
    source = ParameterReferences(CrdsContext(small.cache, CONTEXT))
    with pytest.raises(PermanentError, match=r"pars-rampfitstep_0001\.asdf, .* is not in the CRDS cache"):
        source.parameters("ramp_fit", facts())


def test_a_parameter_reference_overrides_no_references(small: SmallCrds) -> None:
    path = small.references / "roman_wfi_pars-rampfitstep_0001.asdf"
    write_parameters(path, "RampFitStep", {"override_gain": "N/A"})
    source = ParameterReferences(CrdsContext(small.cache, CONTEXT))
    with pytest.raises(PermanentError, match="cannot override references"):
        source.parameters("ramp_fit", facts())


def test_types_are_named_by_class() -> None:
    assert parameter_types("wfi18_transient") == ("pars-wfi18transientstep", "pars-exposurepipeline")
    assert parameter_types("my_stage") == ()
