from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.dq_init import DQInitParameters, DQInitStage, counts_to_ramp, flag_guide_window
from stages.exposure import CAL_STEP_KEYS, Exposure, Level
from stream.failure import PermanentError
from stream.stage import Slot
from tests.stages.ramp_frames import FakeReference

N, ROWS, COLUMNS = 2, 20, 32
NO_WINDOW = {f"window_{edge}": -999999 for edge in ("xstart", "xstop", "ystart", "ystop")}


def _raw(**arrays: Any) -> Exposure:
    meta = {
        "instrument": {"detector": "WFI01"},
        "exposure": {"type": "WFI_IMAGE", "data_problem": False},
        "guide_star": dict(NO_WINDOW),
        "ref_file": {"mask": "?"},
    }
    defaults = {
        "data": np.full((N, ROWS, COLUMNS), 100, np.uint16),
        "amp33": np.full((N, ROWS, 128), 20, np.uint16),
    }
    for array in (defaults | arrays).values():
        array.flags.writeable = False  # as mapped from a file
    return Exposure("r1", Level.RAW, meta, defaults | arrays, extras={"note": "kept"})


def _run(exposure: Exposure, mask: Any = None, **parameters: Any) -> Exposure:
    references = {"mask": None if mask is None else FakeReference(dq=mask)}
    return DQInitStage().run(exposure, references, DQInitParameters(**parameters), Slot()).item


def test_raw_counts_become_a_ramp_with_dq_and_borders() -> None:
    exposure = _run(_raw(), mask=np.zeros((ROWS, COLUMNS), np.uint32))
    arrays = exposure.arrays
    assert exposure.level is Level.RAMP
    assert exposure.meta["model_type"] == "RampModel"
    assert exposure.meta["exposure"]["data_problem"] is None
    assert exposure.meta["cal_step"] == dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE") | {"dq_init": "COMPLETE"}
    assert exposure.extras == {"note": "kept"}
    assert (arrays["data"].dtype, arrays["groupdq"].dtype, arrays["pixeldq"].dtype) == ("f4", "u1", "u4")
    assert not arrays["groupdq"].any()
    for prefix, lead, dtype in (("", (N,), "f4"), ("dq_", (), "u4")):
        for side in ("left", "right"):
            assert arrays[f"{prefix}border_ref_pix_{side}"].shape == (*lead, ROWS, 4)
        for side in ("top", "bottom"):
            border = arrays[f"{prefix}border_ref_pix_{side}"]
            assert border.shape == (*lead, 4, COLUMNS)
            assert border.dtype == dtype
    changed = {"data", "groupdq", "pixeldq", "amp33", *(name for name in arrays if "border" in name)}
    assert changed <= exposure.versions.keys()


def test_top_is_the_first_rows_and_borders_hold_the_masked_flags() -> None:
    data = np.arange(N * ROWS * COLUMNS, dtype=np.uint16).reshape(N, ROWS, COLUMNS)
    mask = np.arange(ROWS * COLUMNS, dtype=np.uint32).reshape(ROWS, COLUMNS)
    arrays = _run(_raw(data=data), mask=mask).arrays
    np.testing.assert_array_equal(arrays["border_ref_pix_top"], data[:, :4])
    np.testing.assert_array_equal(arrays["border_ref_pix_bottom"], data[:, -4:])
    np.testing.assert_array_equal(arrays["dq_border_ref_pix_left"], mask[:, :4])
    np.testing.assert_array_equal(arrays["dq_border_ref_pix_right"], mask[:, -4:])


def test_resultantdq_becomes_groupdq_and_leaves() -> None:
    resultantdq = np.random.default_rng(0).integers(0, 256, (N, ROWS, COLUMNS), dtype=np.uint8)
    arrays = _run(_raw(resultantdq=resultantdq)).arrays
    np.testing.assert_array_equal(arrays["groupdq"], resultantdq)
    assert "resultantdq" not in arrays


def test_encodings_are_undone_and_amp33_wraps_around() -> None:
    exposure = _raw(
        reference_read=np.full((ROWS, COLUMNS), 7, np.uint16), reference_amp33=np.full((ROWS, 128), 30, np.uint16)
    )
    exposure.meta["instrument"]["data_encoding_offset"] = 100
    arrays = _run(exposure).arrays
    assert np.all(arrays["data"] == 7)
    assert np.all(arrays["amp33"] == 65486)
    assert not {"reference_read", "reference_amp33"} & arrays.keys()


@pytest.mark.parametrize("key", ["tvac", "fps"])
def test_ground_tests_keep_their_reference_read(key: str) -> None:
    exposure = _raw(
        reference_read=np.full((ROWS, COLUMNS), 7, np.uint16), reference_amp33=np.full((ROWS, 128), 30, np.uint16)
    )
    exposure.extras[key] = {}
    arrays = _run(exposure).arrays
    assert np.all(arrays["data"] == 100)
    assert np.all(arrays["amp33"] == 20)


@pytest.mark.parametrize("mask", [None, np.ones((3, 3), np.uint32)])
def test_without_a_fitting_mask_the_step_is_skipped_but_the_ramp_made(mask: Any) -> None:
    exposure = _run(_raw(), mask=mask)
    assert exposure.meta["cal_step"]["dq_init"] == "SKIPPED"
    assert exposure.level is Level.RAMP
    assert not exposure.arrays["pixeldq"].any()
    assert "border_ref_pix_left" in exposure.arrays


def test_flags_of_a_ramp_survive_and_the_mask_comes_on_top() -> None:
    ramp = _run(_raw())
    ramp.arrays["pixeldq"] = np.full((ROWS, COLUMNS), 4, np.uint32)
    ramp.arrays["groupdq"] = np.full((N, ROWS, COLUMNS), 8, np.uint8)
    again = _run(ramp, mask=np.full((ROWS, COLUMNS), 1025, np.uint32))
    assert np.all(again.arrays["pixeldq"] == 1029)
    assert np.all(again.arrays["groupdq"] == 8)
    assert np.all(again.arrays["data"] == 100)


def test_guide_window_flags_whole_columns_and_the_expanded_rectangle() -> None:
    exposure = _raw()
    exposure.meta["guide_star"] = {"window_xstart": 10, "window_xstop": 14, "window_ystart": 5, "window_ystop": 8}
    flags = _run(exposure, expand_gw_flagging=2).arrays["pixeldq"]
    expected = np.zeros((ROWS, COLUMNS), np.uint32)
    expected[:, 10:14] = 16
    expected[3:10, 8:16] = 17
    np.testing.assert_array_equal(flags, expected)


@pytest.mark.parametrize("window", [(-999999, 3, 2, 4), (2, 4, -1, 4), (ROWS, 30, 2, 4)])
def test_a_window_that_starts_outside_flags_nothing(window: tuple[int, int, int, int]) -> None:
    flags = np.zeros((ROWS, COLUMNS), np.uint32)
    assert not flag_guide_window(flags, window)
    assert not flags.any()


@pytest.mark.parametrize("offset", [None, -1, 65536, 2.5])
def test_an_impossible_offset_is_refused_by_name(offset: Any) -> None:
    exposure = _raw()
    exposure.meta["instrument"]["data_encoding_offset"] = offset
    with pytest.raises(PermanentError, match=r"r1: meta\.instrument\.data_encoding_offset"):
        _run(exposure)


def test_counts_of_the_wrong_type_are_refused_by_name() -> None:
    with pytest.raises(PermanentError, match="r1: data must be a 3-D uint16 array, found float32"):
        _run(_raw(data=np.zeros((N, ROWS, COLUMNS), np.float32)))


def test_a_reference_read_of_another_shape_is_refused() -> None:
    with pytest.raises(PermanentError, match="reference_read has shape"):
        _run(_raw(reference_read=np.zeros((3, 3), np.uint16)))


def test_a_missing_guide_window_is_refused_by_name() -> None:
    exposure = _raw()
    del exposure.meta["guide_star"]["window_ystop"]
    with pytest.raises(PermanentError, match="window_xstart"):
        _run(exposure)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), offset=st.integers(0, 65535), threads=st.sampled_from([1, 2]))
def test_counts_come_back_exactly_whatever_the_offset_and_threads(seed: int, offset: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 65536, (2, 130, 16), dtype=np.uint16)
    reference = rng.integers(0, 65536, (130, 16), dtype=np.uint16)
    data = np.empty(counts.shape, np.float32)
    counts_to_ramp(counts, data, reference_read=reference, offset=offset, threads=threads)
    np.testing.assert_array_equal(data, counts.astype(np.int64) + reference - offset)
