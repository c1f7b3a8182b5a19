"""The WCS built from numbers: what it maps, what corrections do to it, and its footprint."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tweakreg.tangent_plane import TangentPlane, plane_to_v2v3, sky_degrees, v2v3_to_plane
from stages.wcs import build_l1_wcs, build_wcs, footprint, s_region, wcs_numbers
from stream.failure import PermanentError
from tests.stages.sky_scene import SIZE, boresight, distortion, make_member

CORRECTIONS = [
    {"matrix": [[1.0001, 2e-4], [-1e-4, 0.9999]], "shift": [0.7, -1.3]},
    {"matrix": [[0.9998, -3e-4], [2e-4, 1.0002]], "shift": [-0.2, 0.4]},
]


@pytest.fixture(scope="module")
def member():
    return make_member("m", "g", boresight(), 1300.0, -900.0)


def plane_positions(member, x, y):
    """Plane coordinates of pixels by the closed formulas, without a GWCS."""
    v2, v3 = member.distortion(x, y)
    s = member.numbers["scale_factor"]
    numbers = member.numbers
    return v2v3_to_plane(numbers, s * v2 + (1 - s) * numbers["v2_ref"], s * v3 + (1 - s) * numbers["v3_ref"])


def test_reference_point_of_the_detector_lies_at_its_sky_position(member):
    wcs = build_wcs(member.numbers, member.distortion)
    to_sky = wcs.get_transform("v2v3vacorr", "world")
    ra, dec = to_sky(np.array([member.numbers["v2_ref"]]), np.array([member.numbers["v3_ref"]]))
    assert ra[0] == pytest.approx(member.numbers["ra_ref"], abs=1e-12)
    assert dec[0] == pytest.approx(member.numbers["dec_ref"], abs=1e-12)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_wcs_equals_the_closed_formulas_with_any_number_of_corrections(member, count):
    numbers = {**member.numbers, "corrections": CORRECTIONS[:count]}
    x, y = np.linspace(0, SIZE - 1, 9), np.linspace(SIZE - 1, 10, 9)
    ra, dec = build_wcs(numbers, member.distortion)(x, y)
    expected_ra, expected_dec = sky_degrees(TangentPlane.of(numbers).detector_to_sky(plane_positions(member, x, y)))
    np.testing.assert_allclose(ra, expected_ra, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dec, expected_dec, rtol=0, atol=1e-12)


def test_corrections_add_one_frame_and_the_transform_the_archive_knows(member):
    wcs = build_wcs({**member.numbers, "corrections": CORRECTIONS, "name": "FIT-LVL2-X"}, member.distortion)
    assert [step.frame.name for step in wcs.pipeline] == ["detector", "v2v3", "v2v3vacorr", "v2v3corr", "world"]
    assert wcs.pipeline[2].transform.name == "Roman V2-V3 tangent-plane linear correction. v1"
    assert wcs.name == "FIT-LVL2-X"
    x, y = wcs.invert(*wcs(1000.0, 2000.0))
    assert (x, y) == pytest.approx((1000, 2000), abs=1e-3)


def test_numbers_survive_json_bit_for_bit(member):
    numbers = {**member.numbers, "corrections": CORRECTIONS}
    a = build_wcs(numbers, member.distortion)(100.5, 3000.25)
    b = build_wcs(json.loads(json.dumps(numbers)), member.distortion)(100.5, 3000.25)
    assert a == b


def test_points_outside_the_bounding_box_have_no_sky_position(member):
    wcs = build_wcs(member.numbers, member.distortion)
    assert np.isnan(wcs(-1.0, 5.0)[0])
    assert np.isfinite(wcs(-0.5, -0.5)).all()


def test_distortion_without_a_box_gets_the_frame_of_the_image(member):
    bare = distortion(1300.0, -900.0, box=False)
    wcs = build_wcs({**member.numbers, "shape": [20, 30]}, bare)
    assert wcs.bounding_box.bounding_box(order="F") == ((-0.5, 29.5), (-0.5, 19.5))
    with pytest.raises(NotImplementedError):
        _ = bare.bounding_box  # the reference's own model is left alone
    assert bare.inputs == distortion(1300.0, -900.0, box=False).inputs


def test_l1_wcs_counts_the_border(member):
    for numbers in (member.numbers, {**member.numbers, "corrections": CORRECTIONS}):
        l2 = build_wcs(numbers, member.distortion)
        l1 = build_l1_wcs(l2)
        assert l1(104.0, 204.0) == l2(100.0, 200.0)
        assert l1.bounding_box.bounding_box(order="F") == ((-0.5, 4095.5), (-0.5, 4095.5))
        assert np.isfinite(l1(0.0, 4095.0)).all()
        assert np.isnan(l2(4090.0, 0.0)[0])  # and the L2 one is unchanged


def test_l1_wcs_without_a_bounding_box_has_none(member):
    l2 = build_wcs(member.numbers, distortion(1300.0, -900.0, box=False))
    l2.bounding_box = None
    assert build_l1_wcs(l2).bounding_box is None


def test_s_region_runs_over_the_corners_of_the_box(member):
    wcs = build_wcs(member.numbers, member.distortion)
    text = s_region(wcs)
    assert text is not None
    assert text.startswith("POLYGON ICRS  ")
    values = np.array([float(v) for v in text.split()[2:]]).reshape(4, 2)
    np.testing.assert_allclose(values, footprint(wcs), atol=5.1e-10)
    np.testing.assert_allclose(values[2], wcs(SIZE - 0.5, SIZE - 0.5), atol=5.1e-10)
    np.testing.assert_allclose(values[1], wcs(-0.5, SIZE - 0.5), atol=5.1e-10)


def test_corner_without_a_sky_position_leaves_s_region_alone(member):
    from astropy.modeling import models

    nowhere = models.Const1D(np.nan) & models.Const1D(np.nan)
    assert s_region(build_wcs(member.numbers, nowhere)) is None


@pytest.mark.parametrize("value", [None, np.nan, "x"])
def test_missing_pointing_number_is_named(value):
    wcsinfo = {"v2_ref": 1.0, "v3_ref": 2.0, "ra_ref": 3.0, "dec_ref": 4.0, "roll_ref": value}
    with pytest.raises(PermanentError, match=r"r001.*meta\.wcsinfo\.roll_ref must be a finite number"):
        wcs_numbers({"wcsinfo": wcsinfo}, (8, 8), source="r001")


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 359.99), st.floats(-89, 89), st.floats(0, 360), st.floats(-1500, 1500), st.floats(-1500, 1500))
def test_plane_and_v2v3_are_inverse_everywhere(ra, dec, roll, v2, v3):
    numbers = {"ra_ref": ra, "dec_ref": dec, "roll_ref": roll, "v2_ref": v2, "v3_ref": v3}
    xy = np.array([[0.0, 0.0], [200.0, -300.0], [-250.0, 40.0]])
    np.testing.assert_allclose(v2v3_to_plane(numbers, *plane_to_v2v3(numbers, xy)), xy, atol=1e-9)
    plane = TangentPlane.of({**numbers, "corrections": CORRECTIONS})
    np.testing.assert_allclose(plane.from_sky(plane.sky(xy)), xy, atol=1e-9)
