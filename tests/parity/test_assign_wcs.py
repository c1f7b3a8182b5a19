"""assign_wcs and its relatives against the mission's software."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from stages.align import apply_alignment
from stages.velocity_aberration import velocity_aberration
from stages.wcs import build_l1_wcs, build_wcs, s_region, wcs_numbers
from tests.stages.sky_scene import SIZE, boresight, distortion, make_member, oracle_image

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


def serialised(wcs: Any) -> bytes:
    import asdf

    buffer = io.BytesIO()
    asdf.AsdfFile({"wcs": wcs}).write_to(buffer)
    return buffer.getvalue()


CASES = {
    "plain": {},
    "no aberration": {"scale_factor": 1.0},
    "aberration unknown": {"scale_factor": None},
    "unusable aberration": {"scale_factor": -1.0},
    "reference point at zero": {"v2_ref": 0.0, "v3_ref": 0.0},
    "across RA zero": {"ra_ref": 0.01, "dec_ref": 0.0},
    "near the pole": {"dec_ref": 89.95},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("inverse", [True, False])
def test_wcs_and_footprint_are_equal(case, inverse):
    member = make_member("m", "g", boresight(), 1300.0, -900.0, inverse=inverse)
    member.numbers |= CASES[case]
    image = oracle_image(member)
    wcs = build_wcs(wcs_numbers(member.meta(), (4, 4)), member.distortion)
    assert serialised(wcs) == serialised(image.meta.wcs)
    assert s_region(wcs) == image.meta.wcsinfo.s_region
    grid = np.linspace(-0.5, SIZE - 0.5, 17)
    x, y = (g.ravel() for g in np.meshgrid(grid, grid))
    np.testing.assert_allclose(wcs(x, y), image.meta.wcs(x, y), rtol=0, atol=1e-12)


def test_frame_without_a_box_in_the_distortion_is_equal():
    member = make_member("m", "g", boresight(), 1300.0, -900.0, box=False)
    image = oracle_image(member)
    wcs = build_wcs(wcs_numbers(member.meta(), (4, 4)), member.distortion)
    assert serialised(wcs) == serialised(image.meta.wcs)
    assert s_region(wcs) == image.meta.wcsinfo.s_region


def test_box_of_unequal_sides_keeps_its_axes():
    member = make_member("m", "g", boresight(), 1300.0, -900.0)
    member.distortion.bounding_box = ((-0.5, 99.5), (2.5, 299.5))  # y, x
    image = oracle_image(member)
    wcs = build_wcs(wcs_numbers(member.meta(), (4, 4)), member.distortion)
    assert wcs.bounding_box.bounding_box(order="F") == ((2.5, 299.5), (-0.5, 99.5))
    assert serialised(wcs) == serialised(image.meta.wcs)
    assert s_region(wcs) == image.meta.wcsinfo.s_region


@pytest.mark.parametrize("corrected", [False, True])
def test_wcs_product_is_equal(corrected):
    from roman_datamodels.datamodels import WfiWcsModel

    member = make_member("m", "g", boresight(), 1300.0, -900.0)
    exposure = member.exposure()
    if corrected:
        result = {"status": "COMPLETE", "reason": None, "wcs_fit_results": {}, "name": "FIT"}
        result["corrections"] = [{"matrix": [[1.0001, 1e-4], [-1e-4, 1.0]], "shift": [0.5, -0.25]}]
        wcs = apply_alignment(exposure, result, member.distortion)
    else:
        wcs = build_wcs(member.numbers, member.distortion)
    image = oracle_image(member)
    image.meta.wcs = wcs
    product = WfiWcsModel.from_model_with_wcs(image)
    l1 = build_l1_wcs(wcs)
    assert serialised(l1) == serialised(product.wcs_l1)
    assert serialised(wcs) == serialised(product.wcs_l2)


@pytest.mark.parametrize("velocity", [(10.0, -25.0, 3.0), (0.0, 0.0, 30.0), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("target", [(10.0, 20.0), (359.999999, -89.0), (0.0, 0.0)])
def test_velocity_aberration_is_equal(velocity, target):
    from stcal.velocity_aberration import compute_va_effects

    expected = compute_va_effects(*velocity, *target)
    scale, ra, dec = velocity_aberration(velocity, *target)
    assert scale == pytest.approx(expected[0], abs=1e-15)
    assert ra == pytest.approx(expected[1], abs=1e-12)
    assert dec == pytest.approx(expected[2], abs=1e-12)


def test_distortion_is_not_shared_with_the_wcs():
    model = distortion(1300.0, -900.0)
    wcs = build_wcs(boresight(), model)
    assert wcs.pipeline[0].transform is not model
