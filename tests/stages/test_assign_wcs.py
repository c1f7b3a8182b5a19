"""assign_wcs: numbers, footprint and status."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.assign_wcs import AssignWcs, AssignWcsParameters
from stages.exposure import Exposure, Level
from stages.step import ALL_TYPES
from stages.wcs import build_wcs, s_region
from stream.failure import PermanentError
from stream.stage import Slot, Stage
from tests.stages.sky_scene import boresight, distortion, make_member


class FakeDistortion:
    """Reference double: one model."""

    path = Path("/references/distortion.asdf")
    recorded_name = "/references/distortion.asdf"

    def __init__(self, model):
        self.model = model

    def value(self, *keys):
        assert keys == ("coordinate_distortion_transform",)
        return self.model


def raw_exposure():
    member = make_member("r001", "g", boresight(), 1300.0, -900.0)
    return Exposure("r001", Level.IMAGE, member.meta(), {"data": np.zeros((20, 30), dtype="f4")})


def run(exposure, model, **parameters):
    references = {"distortion": None if model is None else FakeDistortion(model)}
    return AssignWcs().run(exposure, references, AssignWcsParameters(**parameters), Slot())


def test_it_is_a_stage_for_every_exposure_type():
    assert isinstance(AssignWcs(), Stage)
    assert AssignWcs.branches == ALL_TYPES


def test_wcs_numbers_footprint_and_status_are_set():
    model = distortion(1300.0, -900.0, box=False)
    exposure = run(raw_exposure(), model).item
    assert exposure.meta["cal_step"]["assign_wcs"] == "COMPLETE"
    assert exposure.wcs["shape"] == [20, 30]
    assert exposure.wcs["corrections"] == []
    assert exposure.meta["wcsinfo"]["s_region"] == s_region(build_wcs(exposure.wcs, model))
    assert exposure.meta["ref_file"]["distortion"] == "/references/distortion.asdf"


def test_without_a_distortion_it_is_skipped_and_there_is_no_wcs():
    exposure = run(raw_exposure(), None).item
    assert exposure.meta["cal_step"]["assign_wcs"] == "SKIPPED"
    assert exposure.wcs is None
    assert exposure.meta["wcsinfo"]["s_region"] == "?"


def test_skipped_by_parameter_changes_nothing_else():
    exposure = run(raw_exposure(), distortion(1300.0, -900.0), skip=True).item
    assert exposure.meta["cal_step"]["assign_wcs"] == "SKIPPED"
    assert exposure.wcs is None


def test_reference_that_holds_no_model_is_named():
    with pytest.raises(PermanentError, match=r"/references/distortion\.asdf: coordinate_distortion_transform"):
        run(raw_exposure(), "not a model")


def test_missing_pointing_fails_and_names_the_exposure():
    exposure = raw_exposure()
    exposure.meta["wcsinfo"].pop("ra_ref")
    with pytest.raises(PermanentError, match=r"r001: meta\.wcsinfo\.ra_ref"):
        run(exposure, distortion(1300.0, -900.0))
