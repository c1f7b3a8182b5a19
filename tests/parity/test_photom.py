"""The photometry recorded equals that of romancal's step."""

from __future__ import annotations

import pytest

from stages.photom import photometry_of

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

TABLE = {
    "F158": {"photmjsr": 0.4021, "uncertainty": 0.0123, "pixelareasr": 2.84e-13},
    "GRISM": {"photmjsr": None, "uncertainty": None, "pixelareasr": None},
}


@pytest.mark.parametrize("element", ["F158", "GRISM", "F062"])
def test_photometry_equals_romancal(element: str) -> None:
    from roman_datamodels import datamodels
    from romancal.photom import PhotomStep

    model = datamodels.ImageModel.create_fake_data(shape=(8, 8))
    model.meta.cal_step = {}
    model.meta.instrument.optical_element = element
    reference = datamodels.WfiImgPhotomRefModel.create_fake_data()
    reference.phot_table = TABLE
    before = dict(model.meta.photometry)
    step = PhotomStep()
    step.override_photom = reference
    theirs = step.process(model)

    ours = photometry_of(TABLE, element)
    expected = dict(theirs.meta.photometry)
    assert {**before, **(ours or {})} == expected
    assert theirs.meta.cal_step.photom == "COMPLETE"
