"""The joint alignment: who is aligned, what they are told, and that the stars end where they belong."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from stages.align import apply_alignment
from stages.gaia import StarList, StarMotion
from stages.tweakreg import Tweakreg, TweakregParameters, tie_points_bytes
from stages.tweakreg.matching import AlignmentError
from stages.tweakreg.relative import _first_pair, align_groups
from stages.wcs import build_wcs, s_region
from stream.failure import PermanentError
from stream.stage import JointStage, Member, Slot
from tests.stages.sky_scene import boresight, make_member, observe, sky_stars

ROTATION = np.array([[1.0, 1e-4], [-1e-4, 1.0]])


@pytest.fixture(scope="module")
def sky():
    return sky_stars(np.random.default_rng(3), 270.0, 66.0, 900.0, 2500)


def pair(sky, groups=("g1", "g1"), shifts=((0.8, -1.1), (0.8, -1.1)), empty=()):
    """Two detectors side by side, or one detector twice when they are of two groups."""
    rng = np.random.default_rng(5)
    members = []
    for k, (group, shift) in enumerate(zip(groups, shifts, strict=True)):
        step = 500.0 if groups[0] == groups[1] else 30.0
        member = make_member(f"m{k}", group, boresight(), 1300.0 + step * k, -900.0)
        if k not in empty:
            observe(member, *sky, rng, shift=shift, matrix=ROTATION)
        members.append(member)
    return members


def packed(scene):
    """Members as the engine hands them over."""
    members = []
    for one in scene:
        data = tie_points_bytes(one.exposure(), one.distortion)
        members.append(Member(one.id, "ok", {"observation_id": one.group}, data))
    return members


def stars(sky, count=None):
    return StarList(ra=sky[0][:count], dec=sky[1][:count], name="the table")


def solve(members, star_list, **parameters):
    parameters.setdefault("abs_refcat", "/tables/gaia.ecsv")
    document = Tweakreg().solve(members, star_list, TweakregParameters(**parameters), Slot())
    assert json.loads(json.dumps(document)) == document
    return document


def statuses(document):
    return {name: member["status"] for name, member in document["members"].items()}


def test_it_is_a_joint_stage_for_exposures_with_a_catalog():
    assert isinstance(Tweakreg(), JointStage)
    assert Tweakreg().aligns("WFI_IMAGE")
    assert Tweakreg().aligns("WFI_LOLO")
    assert not Tweakreg().aligns("WFI_SPECTRAL")
    assert not Tweakreg().aligns("WFI_WFSC")


@pytest.mark.parametrize("groups", [("g1", "g1"), ("g1", "g2")])
def test_sources_end_on_their_stars(sky, groups):
    scene = pair(sky, groups, ((0.8, -1.1), (0.8, -1.1)) if groups[0] == groups[1] else ((0.8, -1.1), (-0.4, 0.6)))
    document = solve(packed(scene), stars(sky))
    assert statuses(document) == {"m0": "COMPLETE", "m1": "COMPLETE"}
    assert document["summary"]["rms"] < 0.02
    for one in scene:
        exposure = one.exposure()
        wcs = apply_alignment(exposure, document["members"][one.id], one.distortion)
        ra, dec = wcs(one.x.astype(float), one.y.astype(float))
        offset = np.hypot((ra[:, None] - sky[0]) * np.cos(np.deg2rad(dec[:, None])), dec[:, None] - sky[1]).min(axis=1)
        assert np.median(offset) * 3600 < 0.02


def test_applying_a_solution_updates_wcs_footprint_status_and_catalog(sky):
    scene = pair(sky)
    result = solve(packed(scene), stars(sky))["members"]["m1"]
    exposure = scene[1].exposure()
    exposure.catalog["ra"].unit = "deg"
    wcs = apply_alignment(exposure, result, scene[1].distortion)
    assert exposure.meta["cal_step"]["tweakreg"] == "COMPLETE"
    assert exposure.meta["wcs_fit_results"]["n_detector"] == 2
    assert wcs.name == exposure.wcs["name"] == "FIT-LVL2-/tables/gaia.ecsv"
    assert exposure.meta["wcsinfo"]["s_region"] == s_region(wcs)
    ra, dec = wcs(exposure.catalog["x_psf"], exposure.catalog["y_psf"])
    for name in ("", "_centroid", "_centroid_win", "_psf"):
        np.testing.assert_array_equal(exposure.catalog[f"ra{name}"], ra)
        np.testing.assert_array_equal(exposure.catalog[f"dec{name}"], dec)
        assert exposure.catalog[f"ra{name}"].unit is None
        assert exposure.catalog[f"ra{name}"].dtype == np.float64


def test_applying_a_failure_keeps_wcs_footprint_and_catalog(sky):
    scene = pair(sky)
    result = solve(packed(scene), stars(sky, 5))["members"]["m0"]
    exposure = scene[0].exposure()
    wcs = apply_alignment(exposure, result, scene[0].distortion)
    assert exposure.meta["cal_step"]["tweakreg"] == "FAILED"
    assert exposure.meta["wcs_fit_results"] == {"status": "FAILED", "nmatches": 0, "n_detector": 2}
    assert exposure.wcs == scene[0].numbers
    assert exposure.meta["wcsinfo"]["s_region"] == "?"
    assert wcs(10.0, 10.0) == build_wcs(scene[0].numbers, scene[0].distortion)(10.0, 10.0)
    assert np.all(exposure.catalog["ra"] == 0)


def test_sky_columns_without_their_pixel_columns_stay(sky):
    scene = pair(sky)
    result = solve(packed(scene), stars(sky))["members"]["m0"]
    exposure = scene[0].exposure()
    exposure.catalog.remove_column("x_centroid_win")
    apply_alignment(exposure, result, scene[0].distortion)
    assert np.all(exposure.catalog["ra_centroid_win"] == 0)
    assert np.all(exposure.catalog["ra_centroid"] != 0)


def test_exposure_without_a_wcs_gets_its_status_alone(sky):
    exposure = pair(sky, empty=(0, 1))[0].exposure()
    exposure.wcs = None
    result = {"status": "SKIPPED", "reason": "x", "corrections": [], "wcs_fit_results": None, "name": None}
    assert apply_alignment(exposure, result, None) is None
    assert exposure.meta["cal_step"]["tweakreg"] == "SKIPPED"
    assert "wcs_fit_results" not in exposure.meta


def test_one_saturated_member_skips_the_association_by_default(sky):
    members = [*packed(pair(sky)), Member("m2", "saturated", {}, None)]
    document = solve(members, stars(sky))
    assert statuses(document) == dict.fromkeys(("m0", "m1", "m2"), "SKIPPED")
    assert "m2 is fully saturated" in document["members"]["m0"]["reason"]
    document = solve(members, stars(sky), saturated_member="skip_member")
    assert statuses(document) == {"m0": "COMPLETE", "m1": "COMPLETE", "m2": "SKIPPED"}


def test_members_without_a_catalog_are_skipped_and_the_others_aligned(sky):
    first, second = packed(pair(sky))
    members = [
        Member("a", "failed", {}, None),
        first,
        Member("b", "skipped", {}, None),
        Member("c", "ok", {}, None),
        second,
    ]
    document = solve(members, stars(sky))
    assert statuses(document) == {"a": "SKIPPED", "m0": "COMPLETE", "b": "SKIPPED", "c": "SKIPPED", "m1": "COMPLETE"}
    assert list(document["members"]) == ["a", "m0", "b", "c", "m1"]
    assert document["members"]["m0"]["wcs_fit_results"]["n_detector"] == 2


def test_nobody_with_a_catalog_is_no_error(sky):
    document = solve([Member("a", "skipped", {}, None)], stars(sky))
    assert statuses(document) == {"a": "SKIPPED"}
    assert document["summary"]["complete"] == 0


def test_skip_parameter_skips_everyone(sky):
    assert set(statuses(solve(packed(pair(sky)), stars(sky), skip=True)).values()) == {"SKIPPED"}


@pytest.mark.parametrize(
    ("count", "parameters", "status", "reason"),
    [
        (5, {}, "FAILED", "has 5 reference stars, fewer than abs_minobj = 10"),
        (0, {}, "FAILED", "has 0 reference stars"),
        (None, {"abs_minobj": 2000}, "FAILED: not enough matches", "not enough matches"),
        (None, {"abs_separation": 0.9}, "FAILED", "separation"),
    ],
)
def test_alignment_that_cannot_be_done_is_a_status_not_an_error(sky, count, parameters, status, reason):
    document = solve(packed(pair(sky)), stars(sky, count), **parameters)
    for member in document["members"].values():
        assert member["status"] == "FAILED"
        assert member["corrections"] == []
        assert member["name"] is None
        assert member["wcs_fit_results"] == {"status": status, "nmatches": 0, "n_detector": 2}
        assert reason in member["reason"]


def test_all_catalogs_empty_is_a_failure_and_one_empty_is_corrected_with_the_rest(sky):
    document = solve(packed(pair(sky, empty=(0, 1))), stars(sky))
    assert statuses(document) == {"m0": "FAILED", "m1": "FAILED"}
    document = solve(packed(pair(sky, empty=(0,))), stars(sky))
    assert statuses(document) == {"m0": "COMPLETE", "m1": "COMPLETE"}
    assert len(document["members"]["m0"]["corrections"]) == 1


def test_failed_absolute_alignment_reports_what_the_relative_one_found(sky):
    scene = pair(sky, ("g1", "g2"), ((0.8, -1.1), (-0.4, 0.6)))
    document = solve(packed(scene), stars(sky, 5))
    first, second = (document["members"][name]["wcs_fit_results"] for name in ("m0", "m1"))
    assert first == {"status": "FAILED", "nmatches": 0, "n_detector": 2}
    assert second["status"] == "FAILED"
    assert second["nmatches"] > 100
    assert document["members"]["m1"]["corrections"] == []


def test_bad_relative_parameters_leave_the_absolute_alignment_alone(sky):
    scene = pair(sky, ("g1", "g2"))
    document = solve(packed(scene), stars(sky), separation=0.5)
    assert statuses(document) == {"m0": "COMPLETE", "m1": "COMPLETE"}
    assert [len(m["corrections"]) for m in document["members"].values()] == [1, 1]


def test_catalog_without_usable_columns_fails_the_association_and_is_named(sky):
    scene = pair(sky)
    exposure = scene[0].exposure()
    exposure.catalog.remove_columns(["x_psf", "y_psf"])
    members = packed(scene)
    members[0] = replace(members[0], tie_points=tie_points_bytes(exposure, scene[0].distortion))
    with pytest.raises(PermanentError, match="m0: the source catalog cannot be aligned: expected columns x, y"):
        solve(members, stars(sky))


def test_member_without_a_group_is_named(sky):
    scene = pair(sky)
    exposure = scene[0].exposure()
    exposure.meta["observation"] = {}
    members = packed(scene)
    members[0] = replace(members[0], tie_points=tie_points_bytes(exposure, scene[0].distortion))
    with pytest.raises(PermanentError, match=r"m0: neither meta\.group_id"):
        solve(members, stars(sky))


def test_star_list_without_any_position_is_an_error(sky):
    nowhere = StarList(ra=np.full(20, np.nan), dec=np.full(20, np.nan), name="bad.ecsv")
    with pytest.raises(PermanentError, match=r"bad\.ecsv: none of the 20 reference stars has a position"):
        solve(packed(pair(sky)), nowhere)


def test_too_few_matches_for_the_geometry_is_a_failure(sky):
    scene = pair(sky)
    for one in scene:
        one.x, one.y = one.x[:1], one.y[:1]
    document = solve(packed(scene), stars(sky), abs_minobj=1)
    assert statuses(document) == {"m0": "FAILED", "m1": "FAILED"}
    assert "'general'" in document["members"]["m0"]["reason"]


def test_stars_are_taken_at_the_epoch_of_the_exposure(sky):
    n = len(sky[0])
    drift = 30.0  # mas/yr in declination, over eleven years
    motion = StarMotion(np.full(n, 2016.0), np.zeros(n), np.full(n, drift), np.zeros(n))
    years = 2027 + 59 / 365 - 2016
    moving = StarList(ra=sky[0], dec=sky[1] - years * drift / 3.6e6, motion=motion)
    fixed = solve(packed(pair(sky)), stars(sky))["summary"]["shift"]
    np.testing.assert_allclose(solve(packed(pair(sky)), moving)["summary"]["shift"], fixed, atol=1e-4)


@pytest.mark.parametrize("geometry", ["shift", "rshift", "rscale", "general"])
def test_every_geometry_recovers_what_it_can(sky, geometry):
    document = solve(packed(pair(sky)[:1]), stars(sky), abs_fitgeometry=geometry)
    fit = document["members"]["m0"]["wcs_fit_results"]
    assert fit["fitgeom"] == geometry
    assert fit["shift"] == pytest.approx([0.8, -1.1], abs=0.01)
    rotation = 0.0 if geometry == "shift" else np.rad2deg(1e-4)
    assert fit["<rot>"] == pytest.approx(rotation, abs=2e-4)


def test_weights_of_stars_count(sky):
    members = packed(pair(sky))
    rng = np.random.default_rng(1)
    plain = solve(members, stars(sky))["summary"]
    weighted = StarList(ra=sky[0], dec=sky[1], weight=rng.uniform(0.1, 10, len(sky[0])))
    other = solve(members, weighted)["summary"]
    assert other["nmatches"] == plain["nmatches"]
    assert other["shift"] != plain["shift"]
    np.testing.assert_allclose(other["shift"], plain["shift"], atol=0.01)


def test_stars_elsewhere_on_the_sky_change_nothing(sky):
    members = packed(pair(sky))
    rng = np.random.default_rng(2)
    everywhere = StarList(
        ra=np.concatenate([sky[0], rng.uniform(0, 360, 5000)]),
        dec=np.concatenate([sky[1], np.rad2deg(np.arcsin(rng.uniform(-1, 0.8, 5000)))]),
    )
    assert solve(members, everywhere) == solve(members, stars(sky))


def test_same_members_give_the_same_bytes(sky):
    members = packed(pair(sky, ("g1", "g2")))
    assert json.dumps(solve(members, stars(sky))) == json.dumps(solve(members, stars(sky)))


def test_averaged_sightings_end_on_their_stars_and_the_lowest_ones_beside_them(sky):
    rng = np.random.default_rng(9)
    scene = [observe(make_member(f"m{k}", f"g{k}", boresight(), 1300.0, -900.0), *sky, rng) for k in range(12)]
    members = packed(scene)
    lowest, mean = (
        solve(members, stars(sky), abs_repeats=repeats, searchrad=1.0)["summary"]["shift"]
        for repeats in ("lowest", "mean")
    )
    # 12 sightings with noise of 2.2 mas: the lowest is 1.6 sigma off, their mean 0.3, and 200 stars share that
    assert 0.0025 < lowest[1] < 0.005
    assert np.hypot(*mean) < 0.0006


def test_reference_list_grows_only_when_it_may(sky):
    assert TweakregParameters().expands is False
    assert TweakregParameters(expand_refcat=True).expands is True
    assert TweakregParameters(abs_refcat="GAIADR3").expands is True
    assert TweakregParameters(abs_refcat="").abs_refcat == "GAIADR3_S3"


@pytest.mark.parametrize(
    ("matrix", "in_order", "reference", "first", "noted", "rest"),
    [
        ([[0, 1], [1, 0]], False, 0, 1, 1, []),
        ([[0, 1, 2], [1, 0, 9], [2, 9, 0]], True, 0, 1, 1, [2]),
        # the pair of largest overlap; the larger sum is the reference; for i < j the noted one is A[i, j-1]
        ([[0, 5, 1, 1], [5, 0, 2, 3], [1, 2, 0, 0], [1, 3, 0, 0]], False, 1, 0, 5, [3, 2]),
        ([[0, 5, 3, 1], [5, 0, 1, 2], [3, 1, 0, 0], [1, 2, 0, 0]], False, 0, 1, 0, [2, 3]),
        ([[0, 1, 6, 1], [1, 0, 0, 1], [6, 0, 0, 1], [1, 1, 1, 0]], False, 0, 2, 1, [3, 1]),
        # nothing overlaps: the first two, the rest backwards
        ([[0] * 4] * 4, False, 0, 1, 0, [3, 2]),
    ],
)
def test_order_of_groups(matrix, in_order, reference, first, noted, rest):
    order = _first_pair(np.array(matrix, dtype=float), len(matrix), in_order=in_order)
    assert (order.reference, order.first, order.noted, order.rest) == (reference, first, noted, rest)


def test_fewer_than_two_groups_with_sources_cannot_be_aligned_to_each_other():
    with pytest.raises(AlignmentError, match="at least two groups"):
        align_groups([], TweakregParameters())
