"""Guarantees of the photometric calibration."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from stages.exposure import Exposure, Level
from stages.photom import Photom, photometry_of
from stream.stage import Slot, StageParameters

TABLE = {
    "F158": {"photmjsr": 0.4, "uncertainty": 0.01, "pixelareasr": 2.8e-13, "collecting_area": 1.0},
    "GRISM": {"photmjsr": None, "uncertainty": None, "pixelareasr": None},
}
PLACEHOLDERS = {"conversion_megajanskys": -999999, "conversion_megajanskys_uncertainty": -999999, "pixel_area": -999999}


class FakeReference:
    path = "photom.asdf"
    recorded_name = "/references/photom.asdf"

    def value(self, *keys: str) -> Any:
        return {("phot_table",): TABLE}[keys]


def run(element: str, reference: Any) -> dict[str, Any]:
    meta = {"instrument": {"optical_element": element}, "photometry": dict(PLACEHOLDERS), "ref_file": {"photom": "?"}}
    exposure = Exposure(id="r1", level=Level.IMAGE, meta=meta, arrays={})
    Photom().run(exposure, {"photom": reference}, StageParameters(), Slot())
    return exposure.meta


@pytest.mark.parametrize("element", ["F158", "f158"])
def test_numbers_of_the_optical_element_are_recorded(element: str) -> None:
    meta = run(element, FakeReference())
    assert meta["photometry"] == {
        "conversion_megajanskys": 0.4,
        "conversion_megajanskys_uncertainty": 0.01,
        "pixel_area": 2.8e-13,
    }
    assert meta["cal_step"]["photom"] == "COMPLETE"
    assert meta["ref_file"]["photom"] == "/references/photom.asdf"


def test_dispersers_have_none() -> None:
    assert set(run("GRISM", FakeReference())["photometry"].values()) == {None}


def test_unknown_element_is_logged_and_leaves_the_placeholders(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        meta = run("F999", FakeReference())
    assert meta["photometry"] == PLACEHOLDERS
    assert meta["cal_step"]["photom"] == "COMPLETE"
    assert "no flux calibration for F999" in caplog.text
    assert photometry_of(TABLE, "F999") is None


def test_without_a_reference_the_stage_is_skipped() -> None:
    meta = run("F158", None)
    assert meta["photometry"] == PLACEHOLDERS
    assert meta["cal_step"]["photom"] == "SKIPPED"
    assert meta["ref_file"]["photom"] == "N/A"
