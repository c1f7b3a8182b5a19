"""Polygons around sources and their common solid angle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tweakreg.hull import SkyPolygon, bounding_hull, common_solid_angle, convex_hull, hull_of_stars
from stages.tweakreg.tangent_plane import unit_vectors

BOX = [[-0.5, 99.5], [-0.5, 99.5]]


def square(ra, dec, half):
    return SkyPolygon(
        unit_vectors(ra + np.array([-half, half, half, -half]), dec + np.array([-half, -half, half, half]))
    )


def test_octant_has_an_eighth_of_the_sphere():
    octant = SkyPolygon(np.eye(3))
    assert octant.area == pytest.approx(np.pi / 2, rel=1e-14)
    assert common_solid_angle(octant, octant) == pytest.approx(np.pi / 2, rel=1e-14)


def test_small_squares_overlap_by_their_common_rectangle():
    a, b = square(0.0, 0.0, 0.05), square(0.06, 0.02, 0.05)
    expected = np.deg2rad(0.04) * np.deg2rad(0.08)
    assert common_solid_angle(a, b) == pytest.approx(expected, rel=1e-5)
    assert common_solid_angle(b, a) == pytest.approx(expected, rel=1e-5)


def test_polygon_inside_another_counts_whole_and_one_apart_not_at_all():
    outer, inner = square(120.0, 60.0, 0.5), square(120.1, 60.05, 0.1)
    assert common_solid_angle(outer, inner) == inner.area
    assert common_solid_angle(inner, outer) == inner.area
    assert common_solid_angle(outer, square(125.0, 60.0, 0.5)) == 0.0
    assert common_solid_angle(outer, square(300.0, -60.0, 0.5)) == 0.0


@settings(deadline=None, max_examples=50)
@given(st.floats(-0.12, 0.12), st.floats(-0.12, 0.12), st.floats(-80, 80))
def test_overlap_is_symmetric_and_never_larger_than_either(dx, dy, dec):
    a, b = square(40.0, dec, 0.05), square(40.0 + dx, dec + dy, 0.04)
    ab, ba = common_solid_angle(a, b), common_solid_angle(b, a)
    assert ab == pytest.approx(ba, rel=1e-8, abs=1e-18)
    assert 0.0 <= ab <= min(a.area, b.area) * (1 + 1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(3, 600))
def test_every_point_lies_in_the_convex_hull_and_every_vertex_is_a_point(seed, count):
    points = np.random.default_rng(seed).normal(size=(count, 2))
    hull = convex_hull(points)
    edges = np.roll(hull, -1, axis=0) - hull
    for start, edge in zip(hull, edges, strict=True):
        side = edge[0] * (points[:, 1] - start[1]) - edge[1] * (points[:, 0] - start[0])
        assert side.min() >= -1e-12
    assert {tuple(v) for v in hull} <= {tuple(p) for p in points}


def test_hull_of_few_or_collinear_sources_is_a_box_around_them():
    assert bounding_hull(np.array([[20.0, 30.0]]), BOX).tolist() == [
        [19.5, 29.5],
        [20.5, 29.5],
        [20.5, 30.5],
        [19.5, 30.5],
    ]
    line = np.column_stack([np.arange(10.0, 20.0), np.arange(10.0, 20.0)])
    box = bounding_hull(line, BOX)
    assert len(box) == 4
    sides = np.linalg.norm(np.diff(box, axis=0), axis=1)
    assert min(sides) == pytest.approx(1.0)
    assert max(sides) == pytest.approx(9 * np.sqrt(2) + 1)


def test_box_around_a_source_at_the_edge_stays_on_the_detector():
    box = bounding_hull(np.array([[99.4, 99.4], [99.45, 2.0]]), BOX)
    assert box.min() >= -0.5
    assert box.max() <= 99.5
    assert (np.ptp(box, axis=0) >= 1).all()


def test_hull_without_sources_is_the_detector():
    assert bounding_hull(np.zeros((0, 2)), BOX).tolist() == [[0.0, 0.0], [99.0, 0.0], [99.0, 99.0], [0.0, 99.0]]


def test_hull_of_stars_holds_them_all():
    rng = np.random.default_rng(2)
    stars = unit_vectors(rng.uniform(10, 12, 500), rng.uniform(70, 72, 500))
    hull = hull_of_stars(stars)
    assert (hull.normals @ stars).min() > -1e-12
    # and the hull of its own vertices is itself: how a growing list of stars is followed
    assert hull_of_stars(hull.vectors).area == pytest.approx(hull.area, rel=1e-12)


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_stars_get_a_huge_box_as_in_the_field_s_library(count):
    assert hull_of_stars(unit_vectors(np.array([10.0, 11.0])[:count], np.array([5.0, 6.0])[:count])).area > 0.5
