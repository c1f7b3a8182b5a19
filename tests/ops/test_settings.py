"""Settings come from a file, variables and options, in rising order; what is wrong is told with where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ops.settings import load_settings, parse_assignment, parse_reference_pin
from ops.table import build_pipeline
from stream.failure import PermanentError
from tests.stages.small_crds import write_parameters


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_options_win_over_variables_and_variables_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(
        tmp_path / "c.toml", "slots = 2\nthreads = 2\njob_seconds = 2\n[parameters.saturation]\nskip = true\nbackup = 3"
    )
    monkeypatch.setenv("RAMPSTREAM_THREADS", "3")
    monkeypatch.setenv("RAMPSTREAM_SLOTS", "3")
    found = load_settings(config, {"slots": 4, "parameters": {"saturation": {"backup": 5}}})
    assert (found.job_seconds, found.threads, found.slots) == (2, 3, 4)
    assert found.parameters == {"saturation": {"skip": True, "backup": 5}}


def test_references_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    flat = write(tmp_path / "f.asdf", "")
    found = load_settings(write(tmp_path / "c.toml", '[references]\nFLAT = "f.asdf"'), {})
    assert found.references == {"flat": flat}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sloots = 3", r"sloots: there is no such setting; expected one of preset, slots, threads"),
        ("slots = x", r"not valid TOML: .*line 1"),
        ("slots = 0", r"slots: Input should be greater than or equal to 1 \(got 0\)"),
        ('slots = "many"', r"slots: Input should be a valid integer.* \(got 'many'\)"),
        ('preset = "coarse"', r"preset: Input should be 'fused', 'balanced' or 'granular' \(got 'coarse'\)"),
        ("[parameters]\nsaturation = 3", r"parameters\.saturation: Input should be a valid dictionary"),
        ('references = "x"', r"references: Input should be a valid dictionary"),
        ("[references]\nflat = 3", r"references\.flat: .*path"),
        ('[references]\nflat = "none.asdf"', r"references\.flat: the file .*none\.asdf does not exist"),
        (
            '[stages.mine]\nentry = "a:B"\nfoo = 1',
            r"stages\.mine\.foo: there is no such setting; expected one",
        ),
        ("[stages.mine]\nafter = 'photom'", r"stages\.mine\.entry: Field required"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    config = write(tmp_path / "c.toml", text)
    with pytest.raises(PermanentError, match=message) as caught:
        load_settings(config, {})
    assert str(caught.value).startswith(f"{config}: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"none\.toml: cannot be read: No such file"):
        load_settings(tmp_path / "none.toml", {})
    with pytest.raises(PermanentError, match="cannot be read: Is a directory"):
        load_settings(tmp_path, {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PermanentError, match=r"binary\.toml: not valid TOML"):
        load_settings(tmp_path / "binary.toml", {})


def test_a_wrong_option_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    config = write(tmp_path / "c.toml", "slots = 2")
    with pytest.raises(PermanentError, match=r"^the command line: threads: .* \(got 0\)$"):
        load_settings(config, {"threads": 0})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RAMPSTREAM_SLOTS", "many", r"^the environment: slots: Input should be a valid integer"),
        ("RAMPSTREAM_PARAMETERS", "{", r"^environment variables RAMPSTREAM_\*: .*parameters"),
    ],
)
def test_a_wrong_variable_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(PermanentError, match=message):
        load_settings(write(tmp_path / "c.toml", ""), {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1", 1), ("a.b=1.5", 1.5), ("a.b=true", True), ("a.b=False", False), ("a.b=[1, 2]", [1, 2]),
        ('a.b="1"', "1"), ("a.b=GAIADR3", "GAIADR3"), ("a.b=[1", "[1"), (" a.b = x = y ", "x = y"), ("a.b=", ""),
    ],
)  # fmt: skip
def test_a_value_is_read_as_toml_where_it_can_be(text: str, value: Any) -> None:
    assert parse_assignment(text) == ("a", "b", value)


@pytest.mark.parametrize("text", ["saturation", "saturation.skip", "=1", ".skip=1", "saturation.=1", "skip=1"])
def test_an_assignment_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(PermanentError, match=r"expected stage\.parameter=value, for example") as caught:
        parse_assignment(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["flat", "=x", "flat="])
def test_a_pin_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(PermanentError, match="expected TYPE=FILE"):
        parse_reference_pin(text)


def test_a_pinned_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"the file none\.asdf does not exist"):
        parse_reference_pin("flat=none.asdf")
    assert parse_reference_pin(f" FLAT ={write(tmp_path / 'f', '')}") == ("flat", tmp_path / "f")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": {"saturatoin": {}}}, "parameters: there is no stage 'saturatoin'; stages are dq_init, "),
        ({"keep_after": ("photo",)}, "keep_after: there is no stage 'photo'; stages are dq_init, "),
        ({"stages": {"mine": {"entry": "no.where:Stage", "after": "photom"}}}, "stages.mine.entry: 'no.where:Stage'"),
        ({"stages": {"mine": {"entry": "nobody", "after": "photom"}}}, "stages.mine.entry: there is no entry point"),
        (
            {"stages": {"mine": {"entry": "stages.photom:Photom", "after": "dq_init"}}},
            "own name is 'photom'",
        ),
        ({"stages": {"photom": {"entry": "stages.photom:Photom"}}}, "say either after or replaces, and one of them"),
    ],
)
def test_stages_that_do_not_exist_or_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        build_pipeline(load_settings(None, options))


def test_a_reference_can_be_done_without(tmp_path: Path) -> None:
    assert parse_reference_pin("Mask=N/A") == ("mask", Path("N/A"))
    found = load_settings(write(tmp_path / "c.toml", '[references]\nmask = "N/A"'), {})
    assert found.references == {"mask": Path("N/A")}


def test_parameter_files_give_way_to_every_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"n_pix_grow_sat": 1, "backup": 1, "skip": True}
    write_parameters(tmp_path / "p.asdf", "SaturationStep", known)
    text = 'parameter_files = ["p.asdf"]\n[parameters.saturation]\nbackup = 2'
    monkeypatch.setenv("RAMPSTREAM_PARAMETERS", '{"saturation": {"n_pix_grow_sat": 3}}')
    found = load_settings(write(tmp_path / "c.toml", text), {})
    assert found.parameters == {"saturation": {"n_pix_grow_sat": 3, "backup": 2, "skip": True}}
