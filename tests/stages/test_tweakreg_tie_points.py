"""The side object: what goes in, what comes out, and that it is small and reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from stages.tweakreg.tangent_plane import TangentPlane, unit_vectors
from stages.tweakreg.tie_points import read_tie_points, tie_points_bytes
from stages.wcs import build_wcs
from stream.failure import PermanentError
from tests.stages.sky_scene import SIZE, boresight, distortion, make_member, observe, sky_stars

CORRECTION = {"matrix": [[1.001, 2e-4], [-1e-4, 0.999]], "shift": [2.0, -3.0]}


@pytest.fixture(scope="module")
def member():
    rng = np.random.default_rng(0)
    member = make_member("m", "obs1", boresight(), 1300.0, -900.0)
    return observe(member, *sky_stars(rng, 270.0, 66.0, 300.0, 400), rng)


def written(exposure, model):
    return read_tie_points(tie_points_bytes(exposure, model))


def test_positions_are_those_of_the_wcs(member):
    exposure = member.exposure()
    points = written(exposure, member.distortion)
    ra, dec = build_wcs(exposure.wcs, member.distortion)(member.x.astype(float), member.y.astype(float))
    sky = TangentPlane.of(points.numbers).detector_to_sky(points.positions)
    np.testing.assert_allclose(sky / np.linalg.norm(sky, axis=0), unit_vectors(ra, dec), atol=1e-14)
    assert points.group == "obs1"
    assert points.error is None


def test_equal_input_gives_equal_bytes_of_modest_size(member):
    first = tie_points_bytes(member.exposure(), member.distortion)
    assert first == tie_points_bytes(member.exposure(), member.distortion)
    assert len(first) < 10_000 + 32 * len(member.x)


def test_where_the_references_lie_changes_no_byte(member):
    here, there = member.exposure(), member.exposure()
    here.meta["ref_file"] = {"distortion": "/here/distortion.asdf"}
    there.meta["ref_file"] = {"distortion": "s3://there/distortion.asdf"}
    assert tie_points_bytes(here, member.distortion) == tie_points_bytes(there, member.distortion)


def test_numbers_and_positions_come_back_bit_for_bit(member):
    exposure = member.exposure()
    exposure.wcs["ra_ref"] = 269.99999999999994
    points = written(exposure, member.distortion)
    assert points.numbers == exposure.wcs


def test_flagged_and_outside_sources_and_those_without_a_fit_are_left_out(member):
    exposure = member.exposure()
    exposure.catalog["warning_flags"][0] = 1
    exposure.catalog["warning_flags"][1] = 2
    exposure.catalog["x_psf"][2] = np.nan
    exposure.catalog["y_psf"][3] = SIZE - 0.5  # on the edge is not inside
    points = written(exposure, member.distortion)
    assert len(points.positions) == len(member.x) - 3


def test_plain_x_and_y_are_preferred(member):
    exposure = member.exposure()
    exposure.catalog["x"], exposure.catalog["y"] = np.float32(5.0), np.float32(6.0)
    points = written(exposure, member.distortion)
    assert len(np.unique(points.positions, axis=0)) == 1


def test_empty_catalog_gives_an_empty_object_without_an_error(member):
    exposure = member.exposure()
    exposure.catalog = exposure.catalog[:0]
    exposure.catalog.remove_columns(["x_psf", "y_psf"])
    points = written(exposure, member.distortion)
    assert points.positions.shape == (0, 2)
    assert points.hull.shape == (4, 2)
    assert points.error is None


def test_catalog_without_psf_positions_says_what_is_missing(member):
    exposure = member.exposure()
    exposure.catalog.remove_columns(["x_psf", "y_psf"])
    points = written(exposure, member.distortion)
    assert "expected columns x, y or x_psf, y_psf" in points.error
    assert len(points.positions) == 0


def test_exposure_without_a_catalog_is_refused(member):
    exposure = member.exposure()
    exposure.catalog = None
    with pytest.raises(PermanentError, match="m: tie points need a WCS and a source catalog"):
        tie_points_bytes(exposure, member.distortion)


@pytest.mark.parametrize("corrections", [[], [CORRECTION]])
def test_pixel_scale_is_that_of_the_field_s_corrector(member, corrections):
    from tweakwcs.correctors import RomanWCSCorrector

    points = written(member.exposure(), member.distortion)
    numbers = {**member.numbers, "corrections": corrections}
    corrector = RomanWCSCorrector(build_wcs(numbers, member.distortion), _wcsinfo(member))
    if corrections:
        corrector = RomanWCSCorrector(build_wcs(member.numbers, member.distortion), _wcsinfo(member))
        corrector.set_correction(CORRECTION["matrix"], CORRECTION["shift"])
    assert points.pixel_scale(TangentPlane.of(numbers)) == pytest.approx(corrector.tanp_center_pixel_scale, rel=2e-9)


def _wcsinfo(member):
    return {key: member.numbers[key] for key in ("v2_ref", "v3_ref", "roll_ref")}


def test_distortion_without_an_inverse_has_unit_bins(member):
    points = written(member.exposure(), distortion(1300.0, -900.0, inverse=False))
    assert points.pixel_scale(TangentPlane.of(member.numbers)) == 1.0


def test_other_objects_are_refused():
    with pytest.raises(PermanentError, match="m1: no tie points"):
        read_tie_points(b"not an arrow file", "m1")
