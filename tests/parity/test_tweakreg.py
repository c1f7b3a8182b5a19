"""The joint alignment against the mission's software: statuses, fit results and final WCS.

Accepted difference: 0.001 mas in the final WCS and 1e-7 in the fit results (the library takes every position through
degrees on the sky and back, which costs 1e-10 arcsec).
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.table import Table

from stages.align import apply_alignment
from stages.gaia import read_star_table
from stages.tweakreg import Tweakreg, TweakregParameters, tie_points_bytes
from stages.tweakreg.tangent_plane import TangentPlane, sky_degrees
from stream.stage import Member, Slot
from tests.parity import record
from tests.stages.sky_scene import SIZE, boresight, distortion, make_member, observe, oracle_image, sky_stars

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

POSITION = record.Bar("1e-3 mas", absolute=1e-3)
FIT = record.Bar("1e-7", absolute=1e-7)


@pytest.fixture(scope="module")
def sky():
    return sky_stars(np.random.default_rng(11), 270.0, 66.0, 1000.0, 2500)


def mosaic(sky, groups=4, detectors=2, *, seed=1, dither=150.0, error=0.8, empty=(), outliers=0, limit=None):
    """Exposures of several detectors each, dithered and rolled, each exposure with a pointing error of its own."""
    rng = np.random.default_rng(seed)
    scene = []
    for g in range(groups):
        pointing = boresight()
        ra, dec = sky_degrees(TangentPlane.of(pointing).sky(rng.uniform(-1.5, 1.5, (1, 2)) * dither))
        pointing |= {"ra_ref": float(ra[0]), "dec_ref": float(dec[0]), "roll_ref": 30.0 + rng.uniform(-3, 3)}
        shift, angle = tuple(rng.uniform(-error, error, 2)), rng.normal(0, 3e-5)
        matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        for k in range(detectors):
            v3, turn = -900.0 + 60 * (k % 2), 60.0 if k % 2 else -120.0
            member = make_member(f"g{g}d{k}", f"g{g}", pointing, 1300.0 + 480 * k, v3, angle=turn)
            if (g, k) not in empty:
                observe(member, *sky, rng, shift=shift, matrix=matrix, limit=limit)
                wrong = rng.choice(len(member.x), outliers, replace=False)
                member.x[wrong] += rng.uniform(-5, 5, outliers).astype("f4")
            scene.append(member)
    return scene


def by_romancal(scene, table, **parameters):
    from romancal.datamodels import ModelLibrary
    from romancal.tweakreg import TweakRegStep

    step = TweakRegStep()
    for name, value in ({"abs_refcat": str(table)} | parameters).items():
        setattr(step, name, value)
    images = []
    with step.process(ModelLibrary([oracle_image(one) for one in scene])) as library:
        for image in library:
            images.append(image)
            library.shelve(image, modify=False)
    return images


def by_rampstream(scene, table, **parameters):
    members = [Member(one.id, "ok", {}, tie_points_bytes(one.exposure(), one.distortion)) for one in scene]
    settings = TweakregParameters(**({"abs_refcat": str(table)} | parameters))
    document = json.loads(json.dumps(Tweakreg().solve(members, read_star_table(table), settings, Slot())))
    outcome = []
    for one in scene:
        exposure = one.exposure()
        outcome.append((exposure, apply_alignment(exposure, document["members"][one.id], one.distortion)))
    return outcome


def assert_equal(scene, images, outcome):
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(0, SIZE - 1, 5), np.linspace(0, SIZE - 1, 5)))
    for _, image, (exposure, wcs) in zip(scene, images, outcome, strict=True):
        record.compare_same(
            "tweakreg", "status", exposure.meta["cal_step"]["tweakreg"], str(image.meta.cal_step.tweakreg)
        )
        expected, found = dict(image.meta.wcs_fit_results), exposure.meta["wcs_fit_results"]
        assert list(found) == list(expected)
        for key, value in expected.items():
            if isinstance(value, str | bool | int):
                record.compare_same("tweakreg", "`wcs_fit_results`, texts and counts", found[key], value)
            else:
                fitted = np.asarray(found[key], "f8"), np.asarray(value, "f8")
                record.compare("tweakreg", "`wcs_fit_results`, numbers", *fitted, bar=FIT)
        assert wcs.name == image.meta.wcs.name
        assert [s.frame.name for s in wcs.pipeline] == [s.frame.name for s in image.meta.wcs.pipeline]
        (ra, dec), (expected_ra, expected_dec) = wcs(x, y), image.meta.wcs(x, y)
        record.compare("tweakreg", "declination, mas", dec * 3.6e6, expected_dec * 3.6e6, bar=POSITION)
        scale = 3.6e6 * np.cos(np.deg2rad(dec))
        record.compare("tweakreg", "right ascension, mas", ra * scale, expected_ra * scale, bar=POSITION)
        if image.meta.cal_step.tweakreg == "COMPLETE":
            region, expected_region = exposure.meta["wcsinfo"]["s_region"], image.meta.wcsinfo.s_region
            assert region.split()[:2] == expected_region.split()[:2]
            # one unit of the last of nine decimals where the number lies on the edge of rounding
            for a, b in zip(region.split()[2:], expected_region.split()[2:], strict=True):
                assert abs(float(a) - float(b)) < 1.5e-9


def compare(tmp_path, scene, sky, *, weight=None, **parameters):
    table = tmp_path / "stars.ecsv"
    columns = {"ra": sky[0], "dec": sky[1]} | ({} if weight is None else {"weight": weight})
    Table(columns).write(table, overwrite=True)
    images = by_romancal(scene, table, **parameters)
    outcome = by_rampstream(scene, table, **parameters)
    assert_equal(scene, images, outcome)
    return images


@pytest.mark.parametrize("geometry", ["shift", "rshift", "rscale", "general"])
def test_one_exposure_with_every_geometry(tmp_path, sky, geometry):
    images = compare(tmp_path, mosaic(sky, 1, 2), sky, abs_fitgeometry=geometry, fitgeometry=geometry)
    assert images[0].meta.cal_step.tweakreg == "COMPLETE"


def test_one_member_alone(tmp_path, sky):
    compare(tmp_path, mosaic(sky, 1, 1), sky)


def test_clipping(tmp_path, sky):
    compare(tmp_path, mosaic(sky, 1, 2, outliers=15), sky)
    compare(tmp_path, mosaic(sky, 1, 1, outliers=15), sky, abs_nclip=1, abs_sigma=1.5)


def test_weights(tmp_path, sky):
    weight = np.random.default_rng(0).uniform(0.1, 10, len(sky[0]))
    compare(tmp_path, mosaic(sky, 1, 2), sky, weight=weight)


def test_two_groups(tmp_path, sky):
    compare(tmp_path, mosaic(sky, 2, 1), sky)


def test_several_groups_chosen_by_overlap(tmp_path, sky):
    compare(tmp_path, mosaic(sky, 4, 1, seed=1), sky)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3] if record.full_length() else [1])
def test_several_groups_of_several_detectors_chosen_by_overlap(tmp_path, sky, seed):
    compare(tmp_path, mosaic(sky, 4, 2, seed=seed, dither=120.0 * seed), sky)


@pytest.mark.slow
def test_several_groups_in_the_order_of_the_user(tmp_path, sky):
    compare(tmp_path, mosaic(sky, 4, 1, seed=4), sky, enforce_user_order=True)


@pytest.mark.slow
def test_groups_that_fail_to_match_each_other(tmp_path, sky):
    compare(tmp_path, mosaic(sky, 4, 1, seed=5, error=3.0), sky, searchrad=0.5, tolerance=0.3)


def test_groups_with_empty_members(tmp_path, sky):
    compare(tmp_path, mosaic(sky, 3, 1, seed=6, empty=((1, 0),)), sky)
    compare(tmp_path, mosaic(sky, 1, 2, seed=6, empty=((0, 0),)), sky)


@pytest.mark.slow
def test_many_groups_with_empty_members(tmp_path, sky):
    compare(tmp_path, mosaic(sky, 3, 2, seed=6, empty=((0, 1), (1, 1), (2, 1))), sky)


@pytest.mark.slow
def test_without_histogram_and_without_inverse(tmp_path, sky):
    scene = mosaic(sky, 2, 2, seed=7, error=0.1)
    compare(tmp_path, scene, sky, use2dhist=False, abs_use2dhist=False, abs_tolerance=0.5)
    for one in scene:
        one.distortion = distortion(
            one.numbers["v2_ref"], one.numbers["v3_ref"], angle=60.0 if one.id.endswith("1") else -120.0, inverse=False
        )
    compare(tmp_path, scene, sky)


def test_large_pointing_errors(tmp_path, sky):
    compare(tmp_path, mosaic(sky, 2, 1, seed=8, error=40.0), sky, searchrad=120.0, abs_searchrad=60.0)


@pytest.mark.parametrize(
    ("count", "parameters"),
    [(5, {}), (None, {"abs_minobj": 5000}), (None, {"abs_separation": 0.5}), (None, {"separation": 0.5})],
)
@pytest.mark.parametrize("groups", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_failures(tmp_path, sky, groups, count, parameters):
    compare(tmp_path, mosaic(sky, groups, 3 - groups, seed=9), (sky[0][:count], sky[1][:count]), **parameters)


def test_failures_without_matches_or_sources(tmp_path, sky):
    compare(tmp_path, mosaic(sky, 2, 1, seed=9), (sky[0] + 1.0, sky[1]))
    compare(tmp_path, mosaic(sky, 2, 1, seed=9, limit=4), sky)
    compare(tmp_path, mosaic(sky, 1, 2, seed=9, empty=((0, 0), (0, 1))), sky)
    compare(tmp_path, mosaic(sky, 2, 1, seed=9, limit=2), sky, abs_minobj=2, abs_fitgeometry="rshift")


def test_static_reference_list_with_the_default_catalog(tmp_path, sky, monkeypatch):
    import stcal.tweakreg.tweakreg

    def catalog(*args, **kwargs):
        return Table({"RA": sky[0], "DEC": sky[1], "mag": np.zeros(len(sky[0]))})

    monkeypatch.setattr(stcal.tweakreg.tweakreg, "create_astrometric_catalog", catalog)
    images = compare(tmp_path, mosaic(sky, 3, 1, seed=10), sky, abs_refcat="GAIADR3_S3")
    assert images[0].meta.wcs.name == "FIT-LVL2-GAIADR3_S3"


def test_matching_is_equal_in_a_crowded_field(tmp_path):
    crowded = sky_stars(np.random.default_rng(12), 270.0, 66.0, 350.0, 60000)
    compare(tmp_path, mosaic(crowded, 1, 1, seed=11, error=0.3), crowded, abs_tolerance=0.2, abs_separation=0.3)
