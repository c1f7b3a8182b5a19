"""Input files are opened quickly, and refused by name, field and expectation when they are not what was expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.asdf_arrays import Tagged, write_asdf
from stages.asdf_container import ROMAN_TAG
from stages.exposure import Level
from stages.l1 import inspect_l1, open_l1
from stages.product_names import base_name, product_name
from stream.failure import PermanentError
from tests.stages.input_files import NAME, PATTERN, complete_meta, write_l1

OPENERS = pytest.mark.parametrize("opener", [open_l1, inspect_l1])


def test_an_l1_file_becomes_an_exposure(tmp_path: Path) -> None:
    extra = np.arange(5, dtype="i4")
    path = write_l1(
        tmp_path / NAME, rows=32, tag="wfi_science_raw-2.2.0", resultantdq=np.ones((3, 32, 4096), "u1"), extra=extra
    )
    exposure = open_l1(path)
    assert exposure.id == "r0000101001001001001_0001_wfi01"
    assert exposure.level is Level.RAW
    assert exposure.source_tag == f"{ROMAN_TAG}wfi_science_raw-2.2.0"
    assert exposure.arrays["data"].dtype == np.uint16
    assert exposure.arrays["data"].shape == (3, 32, 4096)
    assert exposure.arrays["amp33"].shape == (3, 32, 128)
    assert set(exposure.arrays) == {"data", "amp33", "resultantdq"}
    assert exposure.read_pattern == PATTERN
    assert exposure.meta["exposure"]["start_time"].isot == "2027-03-01T00:00:00.123"
    assert exposure.meta["visit"]["dither"] == {"primary_name": None, "subpixel_name": None, "executed_pattern": None}
    np.testing.assert_array_equal(exposure.extras["extra"], extra)


def test_metadata_are_plain_values(tmp_path: Path) -> None:
    def check(value: Any) -> None:
        assert type(value) in {dict, list, str, int, float, bool, type(None)} or hasattr(value, "isot"), type(value)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    check(open_l1(write_l1(tmp_path / NAME)).meta)


@pytest.fixture(scope="module")
def model() -> Any:
    """An L1 in the mission's own data model."""
    from roman_datamodels import datamodels as rdm

    model = rdm.ScienceRawModel.create_fake_data(shape=(3, 16, 4096))
    for key, value in complete_meta().items():
        if isinstance(value, dict):
            model.meta[key].update(value)
    model.data = np.random.default_rng(0).integers(0, 9, (3, 16, 4096), dtype="u2")
    model.amp33 = np.random.default_rng(1).integers(0, 9, (3, 16, 128), dtype="u2")
    return model


@pytest.mark.parametrize("compression", ["lz4", None])
def test_a_file_of_the_data_models_opens_the_same(tmp_path: Path, model: Any, compression: str | None) -> None:
    model.save(tmp_path / NAME, all_array_compression=compression)
    exposure = open_l1(tmp_path / NAME, threads=2)
    np.testing.assert_array_equal(exposure.arrays["data"], model.data)
    np.testing.assert_array_equal(exposure.arrays["amp33"], model.amp33)
    assert exposure.meta["wcsinfo"]["v2_ref"] == model.meta.wcsinfo.v2_ref
    assert exposure.meta["exposure"]["start_time"] == model.meta.exposure.start_time
    assert exposure.source_tag == model.tag


def test_a_ramp_file_becomes_a_ramp(tmp_path: Path) -> None:
    path = write_l1(
        tmp_path / "r_0001_wfi01_ramp.asdf",
        tag="ramp-2.1.0",
        data=np.zeros((3, 16, 4096), "f4"),
        pixeldq=np.zeros((16, 4096), "u4"),
        groupdq=np.zeros((3, 16, 4096), "u1"),
        **{f"border_ref_pix_{side}": np.zeros((3, 16, 4), "f4") for side in ("left", "right")},
        **{f"border_ref_pix_{side}": np.zeros((3, 4, 4096), "f4") for side in ("top", "bottom")},
        **{f"dq_border_ref_pix_{side}": np.zeros((16, 4), "u4") for side in ("left", "right")},
        **{f"dq_border_ref_pix_{side}": np.zeros((4, 4096), "u4") for side in ("top", "bottom")},
    )
    exposure = open_l1(path)
    assert exposure.level is Level.RAMP
    assert exposure.id == "r_0001_wfi01"
    with pytest.raises(PermanentError, match=r"roman\.pixeldq is missing"):
        open_l1(write_l1(tmp_path / "bad_ramp.asdf", tag="ramp-2.1.0", data=np.zeros((3, 16, 4096), "f4")))


def test_the_input_is_mapped_and_never_changed(tmp_path: Path) -> None:
    path = write_l1(tmp_path / NAME)
    before = path.read_bytes()
    exposure = open_l1(path)
    exposure.arrays["data"][:] = 7
    assert path.read_bytes() == before
    assert not exposure.arrays["data"].flags.owndata


def test_facts_come_from_the_header_alone(tmp_path: Path) -> None:
    path = write_l1(tmp_path / NAME)
    container_size = path.stat().st_size
    with path.open("r+b") as file:  # the pixels' bytes play no part
        file.seek(container_size - 200_000)
        file.write(b"\xff" * 100_000)
    facts = inspect_l1(path)
    assert facts["id"] == "r0000101001001001001_0001_wfi01"
    assert facts["detector"] == "WFI01"
    assert facts["exposure_type"] == "WFI_IMAGE"
    assert facts["optical_element"] == "F158"
    assert facts["start_time"] == "2027-03-01T00:00:00.123"
    assert facts["observation_id"] == "00001010010010010010001"
    assert (facts["rows"], facts["nresultants"]) == (16, 3)
    assert facts["wcsinfo"]["v2_ref"] == 1312.949
    assert facts["meta"]["instrument.detector"] == "WFI01"
    assert json.loads(json.dumps(facts)) == facts


def test_the_id_may_be_given_when_the_file_lies_elsewhere(tmp_path: Path) -> None:
    assert open_l1(write_l1(tmp_path / "blob"), exposure_id="mine").id == "mine"


@OPENERS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": np.zeros((3, 16, 4096), "f4")}, r"roman\.data has dtype float32; expected uint16"),
        (
            {"data": np.zeros((16, 4096), "u2")},
            r"roman\.data has 2 dimensions \(16, 4096\); expected \(resultants, rows, 4096\)",
        ),
        ({"data": np.zeros((3, 16, 2048), "u2")}, r"roman\.data has shape \(3, 16, 2048\); .* 4096 along axis 2"),
        ({"data": None}, r"roman\.data is missing"),
        ({"amp33": None}, r"roman\.amp33 is missing"),
        ({"amp33": np.zeros((3, 15, 128), "u2")}, r"roman\.amp33 has shape \(3, 15, 128\); .* 16 along axis 1"),
        ({"amp33": np.zeros((2, 16, 128), "u2")}, r"roman\.amp33 has shape .* 3 along axis 0"),
        ({"amp33": np.zeros((3, 16, 64), "u2")}, r"roman\.amp33 has shape .* 128 along axis 2"),
        ({"resultantdq": np.zeros((3, 16, 4096), "u2")}, r"roman\.resultantdq has dtype uint16; expected uint8"),
        ({"reference_read": np.zeros((9, 4096), "u2")}, r"roman\.reference_read has shape"),
        ({"data": np.zeros((3, 8, 4096), "u2"), "amp33": np.zeros((3, 8, 128), "u2")}, "more than 8 rows"),
        ({"tag": "wfi_mosaic-2.1.0"}, r"'roman' is a wfi_mosaic; expected wfi_science_raw \(L1\), tvac, fps, ramp or"),
        ({"tag": "tvac/wfi_science_raw-1.0.0"}, r"'roman' is a tvac/wfi_science_raw"),
        ({"meta": None}, r"roman\.meta is missing"),
    ],
)
def test_wrong_content_is_refused(tmp_path: Path, opener: Any, change: dict[str, Any], message: str) -> None:
    path = tmp_path / NAME
    if change == {"meta": None}:
        write_asdf(
            path, {"roman": Tagged(f"{ROMAN_TAG}wfi_science_raw-2.1.0", {"data": np.zeros((3, 16, 4096), "u2")})}
        )
    else:
        write_l1(path, **change)
    with pytest.raises(PermanentError, match=message) as caught:
        opener(path)
    assert str(path) in str(caught.value)


@OPENERS
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ([[1], [2]], "has 2 resultants, the data have 3"),
        ([[1], [2], [3], [4]], "has 4 resultants, the data have 3"),
        ([[1], [], [2]], r"\[1\] is \[\]; expected a list with at least one read number"),
        ([[1], [3], [2]], r"\[2\] holds read 2 after read 3; expected increasing"),
        ([[1], [2, 2], [3]], r"\[1\] holds read 2 after read 2"),
        ([[0], [1], [2]], r"\[0\] holds read 0 after read 0; expected increasing numbers from 1 on"),
        ([[1], [2.5], [3]], r"\[1\] holds 2\.5; expected whole read numbers"),
        ([[1], [True], [3]], r"\[1\] holds True"),
        ([1, 2, 3], r"\[0\] is 1; expected a list"),
        ([], r"is \[\]; expected one list"),
        ("1,2,3", "is '1,2,3'; expected one list"),
    ],
)
def test_a_wrong_read_pattern_is_refused(tmp_path: Path, opener: Any, pattern: Any, message: str) -> None:
    path = write_l1(tmp_path / NAME, meta=complete_meta(exposure__read_pattern=pattern))
    with pytest.raises(PermanentError, match=rf"{NAME}: meta\.exposure\.read_pattern.*{message}"):
        opener(path)


def test_a_resultant_count_that_contradicts_the_data_is_refused(tmp_path: Path) -> None:
    path = write_l1(tmp_path / NAME, meta=complete_meta(exposure__nresultants=5))
    with pytest.raises(PermanentError, match=r"nresultants is 5, the data have 3"):
        open_l1(path)


def test_every_missing_key_is_named_at_once(tmp_path: Path) -> None:
    meta = complete_meta(exposure__frame_time=..., wcsinfo=..., instrument__detector=..., telescope=...)
    with pytest.raises(PermanentError) as caught:
        open_l1(write_l1(tmp_path / NAME, meta=meta))
    for name in (
        "meta.exposure.frame_time",
        "meta.wcsinfo",
        "meta.instrument.detector",
        "meta.telescope",
        "4 required",
    ):
        assert name in str(caught.value)


@OPENERS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exposure__type": "WFI_VIDEO"}, r"meta\.exposure\.type is 'WFI_VIDEO'; expected one of WFI_FLAT"),
        ({"instrument__detector": "WFI19"}, r"meta\.instrument\.detector is 'WFI19'; expected one of WFI01"),
        ({"instrument__optical_element": "F999"}, r"meta\.instrument\.optical_element is 'F999'"),
        ({"exposure__frame_time": "3"}, r"meta\.exposure\.frame_time is '3'; expected a number"),
        ({"exposure__frame_time": 0.0}, r"meta\.exposure\.frame_time is 0\.0 s; expected more than 0"),
        ({"wcsinfo__ra_ref": float("nan")}, r"meta\.wcsinfo\.ra_ref is nan; expected a number"),
        ({"exposure__start_time": "yesterday"}, r"meta\.exposure\.start_time is 'yesterday'; expected a time"),
    ],
)
def test_values_that_decide_the_processing_are_checked(
    tmp_path: Path, opener: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PermanentError, match=rf"{NAME}: {message}"):
        opener(write_l1(tmp_path / NAME, meta=complete_meta(**change)))


@OPENERS
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("compression", ["lz4", None])
def test_a_cut_off_file_is_refused(
    tmp_path: Path, model: Any, opener: Any, keep: float, compression: str | None
) -> None:
    path = tmp_path / NAME
    model.save(path, all_array_compression=compression)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(PermanentError, match=f"{NAME}: truncated"):
        opener(path)


@OPENERS
def test_what_is_no_roman_file_is_refused(tmp_path: Path, opener: Any) -> None:
    write_asdf(tmp_path / "a.asdf", {"other": 1})
    with pytest.raises(PermanentError, match="no key 'roman'"):
        opener(tmp_path / "a.asdf")
    (tmp_path / "b.asdf").write_text("hello")
    with pytest.raises(PermanentError, match="not an ASDF file"):
        opener(tmp_path / "b.asdf")


@pytest.mark.parametrize(
    ("filename", "base", "cal"),
    [
        ("r1_0001_wfi01_uncal.asdf", "r1_0001_wfi01", "r1_0001_wfi01_cal.asdf"),
        ("r1_0001_wfi01-uncal.asdf", "r1_0001_wfi01", "r1_0001_wfi01-cal.asdf"),
        ("r1_0001_wfi01_assign_wcs.asdf", "r1_0001_wfi01", "r1_0001_wfi01_cal.asdf"),
        ("r1_tweakregstep.asdf", "r1", "r1_cal.asdf"),
        ("r1_foo.asdf", "r1_foo", "r1_foo_cal.asdf"),
        ("/data/r1.2_cal.asdf", "r1.2", "r1.2_cal.asdf"),
        ("uncal.asdf", "uncal", "uncal_cal.asdf"),
    ],
)
def test_names_follow_the_suffix_rules(filename: str, base: str, cal: str) -> None:
    assert base_name(filename) == base
    assert product_name(filename, "cal") == cal
    assert product_name(filename, "cat") == cal.replace("cal.asdf", "cat.parquet")
