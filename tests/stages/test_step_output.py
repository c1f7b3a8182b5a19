"""Outputs of stages as files: named by the step, of the field's models, readable as input again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from roman_datamodels import datamodels as rdm

from stages.exposure import Exposure
from stages.finalize.step_output import rename_image, write_step_output
from stages.l1 import inspect_l1, open_l1
from stream.failure import PermanentError
from tests.stages.final_exposures import distortion_model, image_exposure, saturated_exposure

SOFTWARE = {"name": "Rampstream", "version": "0.1.0"}


def ramp_exposure() -> Exposure:
    exposure = saturated_exposure()
    exposure.arrays["groupdq"] = np.zeros_like(exposure.arrays["groupdq"])
    return exposure


def write(folder: Path, exposure: Exposure, stage: str) -> Path:
    return folder / write_step_output(folder, exposure, stage, distortion=distortion_model(), software=SOFTWARE)


def test_a_ramp_is_the_field_s_ramp_with_the_columns_that_it_has_now(tmp_path: Path) -> None:
    exposure = ramp_exposure()
    path = write(tmp_path, exposure, "saturation")
    assert path.name == f"{exposure.id}_saturation.asdf"
    with rdm.open(path) as model:
        assert type(model) is rdm.RampModel
        assert model.validate() is None
        assert (model.meta.filename, model.meta.model_type) == (path.name, "RampModel")
        np.testing.assert_array_equal(model.border_ref_pix_right, exposure.arrays["data"][..., -4:])
        np.testing.assert_array_equal(model.border_ref_pix_top, exposure.arrays["border_ref_pix_top"])


def test_a_ramp_goes_on_where_it_stands_with_what_it_holds(tmp_path: Path) -> None:
    exposure = ramp_exposure()
    path = write(tmp_path, exposure, "saturation")
    back = open_l1(path)
    assert back.done == {"dq_init", "saturation"}
    assert inspect_l1(path)["done"] == ["dq_init", "saturation"]
    assert back.id == exposure.id
    for name in ("data", "pixeldq", "groupdq", "amp33", "border_ref_pix_top"):
        np.testing.assert_array_equal(back.arrays[name], exposure.arrays[name])


def test_an_image_has_its_wcs_and_its_statistics(tmp_path: Path) -> None:
    path = write(tmp_path, image_exposure(), "flat_field")
    assert path.name.endswith("_flat.asdf")
    with rdm.open(path) as model:
        assert type(model) is rdm.ImageModel
        assert model.validate() is None
        assert model.meta.wcs is not None
        assert 0 < model.meta.statistics.good_pixel_fraction < 1


def test_an_image_before_its_wcs_is_valid_without_one(tmp_path: Path) -> None:
    exposure = image_exposure()
    exposure.wcs = None
    with rdm.open(write(tmp_path, exposure, "ramp_fit")) as model:
        assert model.validate() is None
        assert model.meta.wcs is None


def test_an_image_goes_on_with_the_wcs_of_its_pointing(tmp_path: Path) -> None:
    exposure = image_exposure()
    for key in ("dark", "assign_wcs", "photom", "flat_field"):
        exposure.meta["cal_step"][key] = "COMPLETE"
    back = open_l1(write(tmp_path, exposure, "flat_field"))
    assert "flat_field" in back.done
    assert back.wcs == exposure.wcs
    assert back.logs == exposure.logs
    for name in ("data", "dq", "err", "amp33"):
        np.testing.assert_array_equal(back.arrays[name], exposure.arrays[name])
    assert "wcs" not in back.meta
    assert back.meta["photometry"] == exposure.meta["photometry"]


def test_an_image_of_nothing_but_saturation_is_final(tmp_path: Path) -> None:
    exposure = image_exposure()
    exposure.meta["cal_step"]["ramp_fit"] = "SKIPPED"
    with pytest.raises(PermanentError, match="ramp_fit is SKIPPED: the image of a fully saturated exposure"):
        inspect_l1(write(tmp_path, exposure, "flat_field"))


def test_the_aligned_image_gets_the_name_of_its_step(tmp_path: Path) -> None:
    image = write(tmp_path, image_exposure(), "flat_field")
    (tmp_path / "again").mkdir()
    name = rename_image(tmp_path / "again", image, image.name, "tweakreg")
    assert name == image.name.replace("_flat", "_tweakreg")
    with rdm.open(tmp_path / "again" / name) as model, rdm.open(image) as before:
        assert model.meta.filename == name
        np.testing.assert_array_equal(model.data, before.data)
