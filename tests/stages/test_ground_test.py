"""Exposures of the ground tests are read as L1: their own metadata over placeholders, counts out of quantities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.time import Time
from roman_datamodels import datamodels as rdm

from stages.asdf_container import ROMAN_TAG
from stages.exposure import Level
from stages.ground_test import is_ground_test, with_own_nodes
from stages.l1 import inspect_l1, open_l1
from stages.payload import ExposurePayload

MODELS = {"tvac": rdm.TvacModel, "fps": rdm.FpsModel}
SHAPE = (3, 16, 4096)
COUNTS = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)


def write_ground_test(path: Path, name: str) -> Path:
    model = MODELS[name].create_fake_data()
    arrays: dict[str, Any] = {
        "data": COUNTS,
        "amp33": np.zeros((3, 16, 128)),
        "reference_read": np.ones((1, 16, 4096)),
        "guidewindow": np.zeros((1, 2, 2)),
    }
    for key, array in arrays.items():
        model[key] = units.Quantity(array, units.DN, dtype=np.uint16)
    exposure = model.meta.exposure
    exposure.type, exposure.frame_time, exposure.data_problem = "WFI_IMAGE", 3.04, False
    exposure.start_time, exposure.read_pattern = Time("2024-03-01T00:00:00"), [[1], [2], [3]]
    model.meta.instrument.detector, model.meta.instrument.optical_element = "WFI07", "F158"
    model.save(path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_its_own_metadata_lie_over_placeholders(tmp_path: Path, name: str) -> None:
    exposure = open_l1(write_ground_test(tmp_path / "test_wfi07_uncal.asdf", name))
    meta = exposure.meta
    assert exposure.level is Level.RAW
    assert (exposure.id, exposure.detector, exposure.frame_time) == ("test_wfi07", "WFI07", 3.04)
    assert meta["wcsinfo"]["ra_ref"] == -999999
    assert meta["calibration_software_name"] == "RomanCAL"
    assert meta["exposure"]["ngroups"] == -999999
    assert meta["groundtest"]["detector_pixel_size"]["unit"] == "cm"
    assert isinstance(meta["file_date"], Time)
    assert "jump" not in meta["cal_step"]


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_out_of_their_quantities_and_nothing_else_is_kept(tmp_path: Path, name: str) -> None:
    exposure = open_l1(write_ground_test(tmp_path / "test_wfi07_uncal.asdf", name))
    assert exposure.arrays.keys() == {"data", "amp33"}
    assert exposure.extras == {}
    np.testing.assert_array_equal(exposure.arrays["data"], COUNTS)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_told_of_as_any_other(tmp_path: Path, name: str) -> None:
    facts = inspect_l1(write_ground_test(tmp_path / "test_wfi07_uncal.asdf", name))
    assert (facts["detector"], facts["rows"], facts["nresultants"]) == ("WFI07", 16, 3)
    assert facts["start_time"] == "2024-03-01T00:00:00.000"
    assert "done" not in facts


@pytest.mark.parametrize("name", MODELS)
def test_its_groups_have_their_own_tags_again_after_a_payload(tmp_path: Path, name: str) -> None:
    exposure = open_l1(write_ground_test(tmp_path / "test_wfi07_uncal.asdf", name))
    payload = ExposurePayload()
    payload.save_tree(exposure, tmp_path / "tree.asdf")
    arrays = {key: tmp_path / f"{key}.asdf" for key in payload.array_names(exposure)}
    for key, path in arrays.items():
        payload.save_array(exposure, key, path)
    back = payload.load(tmp_path / "tree.asdf", arrays)
    meta = with_own_nodes(back.meta, back.source_tag)
    whole = MODELS[name].create_fake_data().meta
    assert type(meta["groundtest"]) is type(whole.groundtest)
    assert type(meta["guidestar"]) is type(whole.guidestar)
    assert meta["groundtest"]["detector_pixel_size"].unit == units.cm


def test_an_exposure_of_the_mission_is_none() -> None:
    assert not is_ground_test(f"{ROMAN_TAG}wfi_science_raw-2.1.0")
    meta = {"groundtest": {"a": 1}}
    assert type(with_own_nodes(meta, f"{ROMAN_TAG}wfi_science_raw-2.1.0")["groundtest"]) is dict
