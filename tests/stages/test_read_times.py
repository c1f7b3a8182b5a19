from __future__ import annotations

import numpy as np
import pytest

from stages.read_times import detector_number, frame_read_times, read_cycles


@pytest.fixture(scope="module")
def times() -> np.ndarray:
    """A detector whose rows are read from the first to the last, its first channel from the first column."""
    return frame_read_times(3.04, 3, 0)


def test_a_frame_is_read_within_the_frame_time(times: np.ndarray) -> None:
    assert times.shape == (4096, 4096)
    assert times.min() == 0
    assert times.max() == pytest.approx(3.0235042, abs=1e-7)


def test_rows_are_equally_spaced_but_for_the_guide_window(times: np.ndarray) -> None:
    steps = np.diff(times[:, 0])
    guide = np.arange(1, 16) * 256 - 1
    assert np.delete(steps, guide).std() < 1e-6
    assert np.all(steps[guide] > 20 * np.delete(steps, guide).mean())


def test_neighbouring_channels_are_read_in_opposite_directions(times: np.ndarray) -> None:
    first = times[0].reshape(32, 128)
    assert np.all(np.diff(first[0]) > 0)
    assert np.all(np.diff(first[1]) < 0)
    np.testing.assert_array_equal(first[0], first[1][::-1])


@pytest.mark.parametrize("sca", [1, 2, 4])
def test_other_detectors_are_read_from_the_last_row(sca: int, times: np.ndarray) -> None:
    np.testing.assert_array_equal(frame_read_times(3.04, sca, 0)[::-1, ::-1], times)


def test_earlier_frames_shift_all_times_alike(times: np.ndarray) -> None:
    np.testing.assert_allclose(frame_read_times(3.04, 3, 2.5) - times, 2.5 * 3.04, rtol=0, atol=1e-14)


def test_a_small_frame_is_the_first_rows_read(times: np.ndarray) -> None:
    np.testing.assert_array_equal(frame_read_times(3.04, 3, 0, rows=300), times[:300])


def test_cycles_of_rows_and_columns_add_up_to_the_times(times: np.ndarray) -> None:
    rows, columns, frame = read_cycles(3.04)
    np.testing.assert_allclose(times[:, :128], 3.04 / frame * (rows[:, None] + columns), rtol=0, atol=1e-14)


def test_detector_numbers_come_from_names() -> None:
    assert [detector_number(name) for name in ("WFI01", "WFI18")] == [1, 18]
    for name in ("WFI19", "WFI00", "WFIxx", "NRCA1", ""):
        with pytest.raises(ValueError, match="not a detector name"):
            detector_number(name)
