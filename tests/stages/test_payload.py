"""An exposure comes back from its payload as it went in, so that segments change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Column, Table
from astropy.time import Time
from astropy.units import Unit

from stages.asdf_arrays import write_asdf
from stages.exposure import Exposure, Level, StepStatus
from stages.payload import LARGE, ExposurePayload
from stream.failure import PermanentError
from stream.stage import PayloadFormat
from tests.stages.input_files import NAME, complete_meta, write_l1

FORMAT = ExposurePayload()


def make_exposure() -> Exposure:
    rng = np.random.default_rng(0)
    catalog = Table(
        [
            Column(np.arange(1, 5, dtype="i4"), name="label", description="Label"),
            Column(rng.normal(size=4).astype("f4"), name="x_centroid", unit="pix"),
            Column(rng.normal(size=4).astype("f4"), name="kron_abmag", unit=Unit("mag(AB)")),
            Column(np.array([True, False, True, False]), name="is_extended", unit="none"),
            Column(rng.normal(size=4), name="cxx", unit="1 / arcsec2"),
        ],
        meta={
            "date": "2027-03-01 00:00:00 UTC",
            "kron_params": (2.5, 1.4, 0.0),
            "aperture_radii": {"circle_pix": np.array([0.9, 1.8])},
            "ee_fractions": np.array([0.1, 0.2], "f4"),
            "one": np.float32(0.1),
            "versions": {"numpy": "2.4"},
        },
    )
    arrays = {
        "data": rng.normal(size=(64, 4096)).astype("f4"),
        "dq": rng.integers(0, 9, (64, 4096), dtype="u4"),
        "err": rng.normal(size=(64, 4096)).astype("f2"),
        "jump_indices": np.zeros((0, 3), "i2"),
    }
    meta = complete_meta(exposure__start_time=Time("2027-03-01T00:00:00.123456789"))
    exposure = Exposure("r1_0001_wfi01", Level.IMAGE, meta, arrays, source_tag="tag-2.1.0")
    exposure.extras = {"extra": {"numbers": [1, 2.5, float("nan")]}}
    exposure.catalog = catalog
    exposure.wcs = {
        "v2_ref": 1.1,
        "corrections": [{"matrix": [[1.0, 0.0], [0.0, 1.0]], "shift": [0.1, 1 / 3]}],
        "name": None,
    }
    exposure.logs = ["2027-03-01T00:00:00.000Z :: stages :: INFO :: déjà: vu"]
    exposure.tie_points = b"\x00\xff tie points"
    exposure.set_step("dq_init", StepStatus.COMPLETE)
    return exposure


def round_trip(exposure: Exposure, folder: Path) -> Exposure:
    FORMAT.save_tree(exposure, folder / "tree.asdf")
    paths = {}
    for name in FORMAT.array_names(exposure):
        paths[name] = folder / f"{name}.asdf"
        FORMAT.save_array(exposure, name, paths[name])
    return FORMAT.load(folder / "tree.asdf", paths)


def test_it_is_a_payload_format() -> None:
    checked: PayloadFormat = FORMAT
    assert checked is FORMAT


def test_everything_comes_back(tmp_path: Path) -> None:
    exposure, expected = make_exposure(), make_exposure()
    found = round_trip(exposure, tmp_path)
    for field in ("id", "level", "extras", "wcs", "logs", "tie_points", "source_tag"):
        assert repr(getattr(found, field)) == repr(getattr(expected, field)), field
    assert list(found.arrays) == list(expected.arrays)
    for name, array in expected.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    start = found.meta["exposure"].pop("start_time"), expected.meta["exposure"].pop("start_time")
    assert abs((start[0] - start[1]).to_value("ns")) < 0.01
    assert repr(found.meta) == repr(expected.meta)


def test_the_catalog_comes_back_with_units_descriptions_and_metadata(tmp_path: Path) -> None:
    expected = make_exposure().catalog
    found = round_trip(make_exposure(), tmp_path).catalog
    assert found is not None
    assert expected is not None
    assert found.colnames == expected.colnames
    for name in expected.colnames:
        assert found[name].dtype == expected[name].dtype
        assert str(found[name].unit) == str(expected[name].unit)
        assert found[name].info.description == expected[name].info.description
        np.testing.assert_array_equal(found[name], expected[name])
    assert repr(found.meta) == repr(expected.meta)
    assert isinstance(found.meta["kron_params"], tuple)
    assert str(found.meta["one"]) == "0.1"


def test_only_large_arrays_are_objects_of_their_own(tmp_path: Path) -> None:
    exposure = make_exposure()
    assert list(FORMAT.array_names(exposure)) == ["data", "dq"]
    FORMAT.save_tree(exposure, tmp_path / "tree.asdf")
    assert (tmp_path / "tree.asdf").stat().st_size < LARGE


def test_loaded_arrays_may_be_changed_without_touching_the_payload(tmp_path: Path) -> None:
    found = round_trip(make_exposure(), tmp_path)
    before = (tmp_path / "data.asdf").read_bytes()
    for array in found.arrays.values():
        array[...] = 1
    assert (tmp_path / "data.asdf").read_bytes() == before


def test_the_token_changes_with_every_declared_change() -> None:
    exposure = make_exposure()
    tokens = [FORMAT.array_token(exposure, "data")]
    exposure.touch(("data",))
    tokens.append(FORMAT.array_token(exposure, "data"))
    exposure.drop_arrays(("data",))
    exposure.set_array("data", np.zeros(3))
    tokens.append(FORMAT.array_token(exposure, "data"))
    assert len(set(tokens)) == 3
    assert FORMAT.array_token(exposure, "dq") is None


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    FORMAT.save_tree(make_exposure(), tmp_path / "tree.asdf")
    with pytest.raises(PermanentError, match="arrays data, dq are missing"):
        FORMAT.load(tmp_path / "tree.asdf", {})


def test_another_file_is_not_a_payload(tmp_path: Path) -> None:
    write_asdf(tmp_path / "x.asdf", {"roman": {}})
    with pytest.raises(PermanentError, match=r"x\.asdf: not a payload"):
        FORMAT.load(tmp_path / "x.asdf", {})


def test_input_is_opened_under_the_id_of_its_facts(tmp_path: Path) -> None:
    path = write_l1(tmp_path / NAME)
    assert FORMAT.load_input(path, {"id": "given"}).id == "given"
    assert FORMAT.load_input(path, {}).id == "r0000101001001001001_0001_wfi01"


def test_facts_say_what_the_joint_stage_needs(tmp_path: Path) -> None:
    exposure = make_exposure()
    facts: dict[str, Any] = FORMAT.facts(exposure)
    assert facts["group_id"] == exposure.meta["observation"]["observation_id"]
    assert facts["sources"] == 4
    assert facts["start_time"] == "2027-03-01T00:00:00.123"
    assert facts["rows"] == 72
    assert facts["cal_step"]["dq_init"] == "COMPLETE"
    assert facts["wcs"] == exposure.wcs
    raw = FORMAT.load_input(write_l1(tmp_path / NAME), {})
    assert FORMAT.facts(raw)["sources"] is None
    assert FORMAT.facts(raw)["rows"] == 16


def test_side_objects_are_the_tie_points() -> None:
    exposure = make_exposure()
    assert FORMAT.side_objects(exposure) == {"tie_points": b"\x00\xff tie points"}
    exposure.tie_points = None
    assert FORMAT.side_objects(exposure) == {}
