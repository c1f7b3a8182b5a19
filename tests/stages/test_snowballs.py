"""Guarantees of the snowball expansion."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.ramp_fit.snowballs import Ellipse, SnowballParameters, ellipse_mask, find_ellipses, flag_snowballs


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.indices(shape)
    return np.hypot(rows - y, columns - x) <= radius


def test_holes_count_towards_the_area_but_not_the_moments() -> None:
    ring = disc((30, 30), 14, 12, 6) & ~disc((30, 30), 14, 12, 4)
    assert find_ellipses(ring, disc((30, 30), 14, 12, 6).sum()) != []
    assert find_ellipses(ring, disc((30, 30), 14, 12, 6).sum() + 1) == []
    (ellipse,) = find_ellipses(ring, 1)
    assert (ellipse.y, ellipse.x) == pytest.approx((14, 12))
    assert ellipse.minor > 2 * 6  # a ring is wider than the disc by its moments


def test_pixels_that_touch_at_corners_are_one_region() -> None:
    assert len(find_ellipses(np.eye(7, dtype=bool), 7)) == 1


def test_orientation_is_measured_from_the_row_axis() -> None:
    tall = np.zeros((20, 20), bool)
    tall[3:17, 8:10] = True
    assert find_ellipses(tall, 1)[0].angle == pytest.approx(0)
    assert abs(find_ellipses(tall.T, 1)[0].angle) == pytest.approx(math.pi / 2)
    assert find_ellipses(np.eye(9, dtype=bool), 1)[0].angle == pytest.approx(math.pi / 4)


def test_drawn_ellipse_has_the_axes_and_the_tilt_asked_for() -> None:
    window, inside = ellipse_mask(Ellipse(20.4, 11.6, 6, 16, 0), (40, 40))
    frame = np.zeros((40, 40), bool)
    frame[window] = inside
    ys, xs = np.nonzero(frame)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (12 - 7, 12 + 7, 20 - 2, 20 + 2)
    window, inside = ellipse_mask(Ellipse(0, 39, 1, 30, 0.3), (40, 40))
    assert not inside.any()  # a semi-axis rounds to zero


def test_ellipse_is_clipped_at_the_frame() -> None:
    for x, y in [(0, 0), (39, 0), (39, 39), (-3, 20)]:
        window, inside = ellipse_mask(Ellipse(x, y, 20, 20, 0.5), (40, 40))
        assert inside.shape == np.zeros((40, 40))[window].shape
        assert inside.any()


def scene(*, core: bool) -> np.ndarray:
    groupdq = np.zeros((5, 60, 60), "u1")
    groupdq[2, disc((60, 60), 30, 30, 6)] = 4
    if core:
        groupdq[2:, disc((60, 60), 30, 30, 2)] = 2
    return groupdq


def test_jumps_without_a_saturated_core_stay_unless_told_otherwise() -> None:
    groupdq = scene(core=False)
    before = groupdq.copy()
    flag_snowballs(groupdq, SnowballParameters())
    np.testing.assert_array_equal(groupdq, before)
    flag_snowballs(groupdq, SnowballParameters(sat_required_snowball=False))
    assert (groupdq[2] == 4).sum() > (before[2] == 4).sum()
    np.testing.assert_array_equal(groupdq[3:], before[3:])


def test_snowball_grows_in_its_resultant_and_its_core_in_all_later_ones() -> None:
    groupdq = scene(core=True)
    before = groupdq.copy()
    flag_snowballs(groupdq, SnowballParameters())
    assert (groupdq[2] & 4 > 0).sum() > (before[2] & 4 > 0).sum()
    assert not (groupdq[2][before[2] == 2] & 4).any()  # never on saturated pixels
    for k in (2, 3, 4):
        assert (groupdq[k] == 2).sum() > (before[k] == 2).sum()
    assert not groupdq[:2].any()


def test_small_groups_and_small_cores_are_left_alone() -> None:
    groupdq = scene(core=True)
    before = groupdq.copy()
    flag_snowballs(groupdq, SnowballParameters(min_jump_area=1e4, min_sat_radius_extend=50))
    np.testing.assert_array_equal(groupdq, before)


def test_near_the_edge_no_core_is_needed() -> None:
    groupdq = np.zeros((3, 60, 60), "u1")
    groupdq[1, disc((60, 60), 5, 30, 4)] = 4
    before = groupdq.copy()
    flag_snowballs(groupdq, SnowballParameters(edge_size=3))
    np.testing.assert_array_equal(groupdq, before)
    flag_snowballs(groupdq, SnowballParameters(edge_size=8))
    assert (groupdq != before).any()


def test_axes_stop_at_two_hundred_pixels() -> None:
    assert Ellipse(0, 0, 150, 190, 0).grown(285, 325) == Ellipse(0, 0, 200, 200, 0)
