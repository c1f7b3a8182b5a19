"""Guarantees of the flat field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.exposure import Exposure, Level
from stages.flat_field import FlatField, FlatFieldParameters
from stream.failure import PermanentError
from stream.stage import Slot

SHAPE = (20, 30)
NO_FLAT_FIELD = 1 << 18


class FakeReference:
    path = "flat.asdf"
    recorded_name = "/references/flat.asdf"

    def __init__(self, value: float = 2, **arrays: Any) -> None:
        self.arrays = {
            "data": np.full(SHAPE, value, "f4"),
            "dq": np.zeros(SHAPE, "u4"),
            "err": np.full(SHAPE, 0.1, "f4"),
        } | arrays

    def array(self, *keys: str) -> np.ndarray:
        (key,) = keys
        return self.arrays[key]


def make_exposure(*, var_rnoise: bool = False) -> Exposure:
    arrays: dict[str, np.ndarray] = {"data": np.full(SHAPE, 8, "f4"), "dq": np.ones(SHAPE, "u4")}
    for name in ("err", "var_poisson", "chisq", "dumo", *(["var_rnoise"] if var_rnoise else [])):
        arrays[name] = np.full(SHAPE, 4, "f2")
    return Exposure(id="r1", level=Level.IMAGE, meta={"ref_file": {"flat": "?"}}, arrays=arrays)


def run(exposure: Exposure, flat: FakeReference | None, **parameters: Any) -> Exposure:
    FlatField().run(exposure, {"flat": flat}, FlatFieldParameters(**parameters), Slot(threads=2))  # type: ignore[dict-item]
    return exposure


def test_flat_of_two_halves_rates_and_quarters_variances() -> None:
    exposure = run(make_exposure(var_rnoise=True), FakeReference(2))
    expected = {"data": 4, "dumo": 2, "err": 2, "var_poisson": 1, "var_rnoise": 1, "chisq": 4, "dq": 1}
    assert {name: set(array.ravel().tolist()) for name, array in exposure.arrays.items()} == {
        name: {value} for name, value in expected.items()
    }
    assert exposure.meta["cal_step"]["flat_field"] == "COMPLETE"
    assert exposure.meta["ref_file"]["flat"] == "/references/flat.asdf"
    assert set(exposure.versions) == set(expected) - {"chisq"}


def test_pixels_without_a_flat_are_flagged_and_left_as_they_are() -> None:
    flat = FakeReference(2)
    flat.arrays["data"][0, :3] = [0, np.nan, -2]
    flat.arrays["dq"][0, 3:5] = [NO_FLAT_FIELD, 1 << 13]
    exposure = run(make_exposure(), flat)
    np.testing.assert_array_equal(exposure.arrays["data"][0, :6], [8, 8, -4, 8, 4, 4])
    np.testing.assert_array_equal(
        exposure.arrays["dq"][0, :6], [NO_FLAT_FIELD | 1, NO_FLAT_FIELD | 1, 1, NO_FLAT_FIELD | 1, (1 << 13) | 1, 1]
    )
    assert flat.arrays["data"][0, 0] == 0  # the reference itself is not touched


def test_variance_of_the_flat_is_stored_and_enters_the_error() -> None:
    exposure = run(make_exposure(), FakeReference(2), include_var_flat=True)
    var_flat = 4.0**2 / 2.0**2 * 0.1**2
    assert exposure.arrays["var_flat"].dtype == np.float16
    assert exposure.arrays["err"].dtype == np.float16
    np.testing.assert_allclose(exposure.arrays["var_flat"], var_flat, rtol=1e-3)
    np.testing.assert_allclose(exposure.arrays["err"], np.sqrt(2.0**2 + var_flat), rtol=1e-3)
    assert "var_flat" not in run(make_exposure(), FakeReference(2)).arrays


@pytest.mark.parametrize("flat", [None, FakeReference(data=np.full((2, 2), 2, "f4"))], ids=["none", "of another shape"])
def test_without_a_fitting_flat_the_stage_is_skipped_and_nothing_changes(flat: FakeReference | None) -> None:
    exposure = run(make_exposure(), flat)
    np.testing.assert_array_equal(exposure.arrays["data"], 8)
    np.testing.assert_array_equal(exposure.arrays["dq"], 1)
    assert exposure.meta["cal_step"]["flat_field"] == "SKIPPED"
    assert not exposure.versions


def test_inconsistent_flat_is_refused() -> None:
    flat = FakeReference(dq=np.zeros((3, 3), "u4"))
    with pytest.raises(PermanentError, match=r"flat.asdf: dq has shape \(3, 3\); expected \(20, 30\)"):
        run(make_exposure(), flat)


def test_flat_field_is_for_imaging_types_only() -> None:
    assert FlatField.branches == {"WFI_IMAGE", "WFI_LOLO", "WFI_WFSC"}
