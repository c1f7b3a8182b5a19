"""Guarantees of the dark subtraction."""

from __future__ import annotations

import numpy as np
import pytest

from stages.dark_current import DarkCurrent
from stages.exposure import Exposure, Level
from stream.failure import PermanentError
from stream.stage import Slot, StageParameters


class FakeReference:
    path = "dark.asdf"
    recorded_name = "/references/dark.asdf"

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays

    def array(self, *keys: str) -> np.ndarray:
        (key,) = keys
        return self.arrays[key]


def make_exposure() -> Exposure:
    return Exposure(
        id="r1",
        level=Level.IMAGE,
        meta={"ref_file": {"dark": "?"}},
        arrays={"data": np.full((12, 20), 5, "f4"), "dq": np.ones((12, 20), "u4"), "err": np.ones((12, 20), "f2")},
    )


def make_dark() -> FakeReference:
    slope = np.arange(20 * 28, dtype="f4").reshape(20, 28) / 100
    flags = np.zeros((20, 28), "u4")
    flags[4, 4], flags[0, 0], flags[15, 23] = 2048, 1, 1 << 23
    slope.flags.writeable = flags.flags.writeable = False
    return FakeReference(dark_slope=slope, dq=flags)


def test_rate_and_flags_of_the_dark_are_taken_without_its_border() -> None:
    exposure, dark = make_exposure(), make_dark()
    DarkCurrent().run(exposure, {"dark": dark}, StageParameters(), Slot(threads=2))  # type: ignore[dict-item]
    np.testing.assert_array_equal(exposure.arrays["data"], np.float32(5) - dark.arrays["dark_slope"][4:-4, 4:-4])
    expected = np.ones((12, 20), "u4")
    expected[0, 0], expected[11, 19] = 2049, 1 | 1 << 23
    np.testing.assert_array_equal(exposure.arrays["dq"], expected)
    np.testing.assert_array_equal(exposure.arrays["err"], 1)
    assert exposure.meta["cal_step"]["dark"] == "COMPLETE"
    assert exposure.meta["ref_file"]["dark"] == "/references/dark.asdf"
    assert exposure.versions == {"data": 1, "dq": 1}


def test_without_a_dark_the_stage_is_skipped_and_nothing_changes() -> None:
    exposure = make_exposure()
    DarkCurrent().run(exposure, {"dark": None}, StageParameters(), Slot())
    np.testing.assert_array_equal(exposure.arrays["data"], 5)
    assert exposure.meta["cal_step"]["dark"] == "SKIPPED"
    assert exposure.meta["ref_file"]["dark"] == "N/A"
    assert not exposure.versions


def test_dark_of_another_size_is_refused() -> None:
    dark = FakeReference(dark_slope=np.zeros((12, 20), "f4"), dq=np.zeros((12, 20), "u4"))
    with pytest.raises(PermanentError, match=r"dark.asdf: dark_slope has shape \(12, 20\); expected \(20, 28\)"):
        DarkCurrent().run(make_exposure(), {"dark": dark}, StageParameters(), Slot())  # type: ignore[dict-item]
