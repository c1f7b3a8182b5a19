"""Catalogs of reference stars against the mission's software: the same question, the same stars, the same alignment.

Both sides ask the same stand-in of the service on the loopback, and read the same HATS catalog; the field's reader is
pointed from its bucket to a folder. Accepted difference: 1e-6 arcsec in the cone, 1e-4 mas in the moved positions.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest

from ops.star_service import query_url
from ops.star_sources import stars_in
from stages.gaia import read_star_table, write_star_table
from stages.tweakreg import Tweakreg, TweakregParameters, tie_points_bytes
from stages.tweakreg.cone import SearchCone
from stream.stage import Member
from tests.ops.star_catalogs import moved, standing_in, star_columns, write_hats
from tests.parity.test_tweakreg import assert_equal, by_rampstream, by_romancal, mosaic
from tests.stages.sky_scene import sky_stars

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

EPOCH = 2027.1616438356164
"""Of the scene's exposures."""


@pytest.fixture(scope="module")
def stars():
    return star_columns(3, *sky_stars(np.random.default_rng(11), 270.0, 66.0, 1000.0, 2500), incomplete=150)


@pytest.fixture(scope="module")
def hats(stars, tmp_path_factory):
    return write_hats(tmp_path_factory.mktemp("catalogs") / "hats", stars, order=6, most=300)


@pytest.fixture
def their_hats(hats, monkeypatch):
    """The field's reader of the S3 catalog, which reads the folder instead."""
    import pyarrow.fs
    import stcal.tweakreg._s3_catalog as reader

    folder = pyarrow.fs.SubTreeFileSystem(str(hats.parent), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(pyarrow.fs, "S3FileSystem", lambda *_, **__: folder)
    monkeypatch.setitem(reader.S3_NAMES_TO_CATALOGS, "GAIADR3_S3", f"s3://{hats.name}/")


@pytest.fixture
def service(stars, monkeypatch):
    import stcal.tweakreg.astrometric_utils as client

    with standing_in(stars) as running:
        monkeypatch.setattr(client, "SERVICELOCATION", running.url)
        yield running


def cone_of(tmp_path, scene, **parameters):
    members = [Member(one.id, "ok", {}, tie_points_bytes(one.exposure(), one.distortion)) for one in scene]
    return Tweakreg().cone(members, TweakregParameters(**parameters))


def by_rampstream_from(source, tmp_path, scene, **parameters):
    table = tmp_path / "answer.parquet"
    write_star_table(table, stars_in(source, cone_of(tmp_path, scene, **parameters), timeout=30.0))
    return by_rampstream(scene, table, **parameters)


def in_order(ra, dec, mag):
    order = np.argsort(ra)
    return [np.asarray(column, dtype=float)[order] for column in (ra, dec, np.ma.filled(mag, np.nan))]


def assert_same_stars(found, expected):
    assert len(found[0]) == len(expected[0]) > 10
    for a, b in zip(in_order(*found), in_order(*expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 / 3.6e6)


SCENES = {
    "one detector": lambda sky: mosaic(sky, 1, 1),
    "two detectors": lambda sky: mosaic(sky, 1, 2, outliers=10),
    "two groups": lambda sky: mosaic(sky, 2, 1),
    "three groups, one empty": lambda sky: mosaic(sky, 3, 1, seed=6, empty=((1, 0),)),
}


@pytest.mark.parametrize("name", SCENES)
def test_the_service_is_asked_the_same_question(tmp_path, stars, service, name):
    scene = SCENES[name](moved(stars, EPOCH)[1:])
    by_romancal(scene, "GAIADR3")
    (theirs,) = service.asked
    cone = cone_of(tmp_path, scene, abs_refcat="GAIADR3")
    asked = dict(parse_qsl(urlsplit(theirs).query))
    assert float(asked["EPOCH"]) == cone.epoch
    for key, value in {"RA": cone.ra, "DEC": cone.dec, "SR": cone.radius}.items():
        assert abs(float(asked[key]) - value) < 1e-6 / 3600, key
    exactly = SearchCone(*(float(asked[key]) for key in ("RA", "DEC", "SR", "EPOCH")))
    assert query_url(service.url, "GAIADR3", exactly) == f"http://127.0.0.1:{service.port}{theirs}"


@pytest.mark.parametrize("cone", [SearchCone(270.0, 66.0, 0.2, EPOCH), SearchCone(270.3, 66.1, 0.03, 2030.5)])
def test_both_catalogs_answer_with_the_same_stars(tmp_path, stars, hats, their_hats, service, cone):
    from stcal.tweakreg.astrometric_utils import get_catalog, get_s3_catalog

    place = {"epoch": cone.epoch, "search_radius": cone.radius}
    theirs = get_s3_catalog(cone.ra, cone.dec, **place)
    write_star_table(
        tmp_path / "s.parquet", stars_in({"hats": str(hats), "version": _version(hats)}, cone, timeout=9.0)
    )
    ours = read_star_table(tmp_path / "s.parquet").at(cone.epoch)
    assert_same_stars((ours.ra, ours.dec, ours.mag), (theirs["ra"], theirs["dec"], theirs["mag"]))

    theirs = get_catalog(cone.ra, cone.dec, **place, catalog="GAIADR3")
    ours = stars_in({"service": service.url, "catalog": "GAIADR3"}, cone, timeout=9.0)
    kept = [ours[name] for name in ("ra", "dec", "mag")]
    assert_same_stars(kept, (theirs["ra"], theirs["dec"], theirs["mag"]))
    assert sorted(map(int, ours["objID"])) == sorted(map(int, theirs["objID"]))


def _version(hats):
    from ops.star_hats import HatsCatalog

    return HatsCatalog.open(str(hats)).version


@pytest.mark.parametrize("refcat", ["GAIADR3_S3", "GAIADR3"])
def test_exposures_are_aligned_alike_to_the_catalogs(tmp_path, stars, hats, their_hats, service, refcat):
    scene = mosaic(moved(stars, EPOCH)[1:], 2, 1, seed=3)
    images = by_romancal(scene, refcat)
    source = {"hats": str(hats), "version": _version(hats)}
    if refcat == "GAIADR3":
        source = {"service": service.url, "catalog": refcat}
    assert_equal(scene, images, by_rampstream_from(source, tmp_path, scene, abs_refcat=refcat))
    assert {image.meta.cal_step.tweakreg for image in images} == {"COMPLETE"}
    assert images[0].meta.wcs.name == f"FIT-LVL2-{refcat}"


def test_a_field_without_stars_fails_alike(tmp_path, stars, service):
    scene = mosaic(moved(stars, EPOCH)[1:], 1, 1)
    service.body = b"No data records for this region\n"
    images = by_romancal(scene, "GAIADR3")
    source = {"service": service.url, "catalog": "GAIADR3"}
    assert_equal(scene, images, by_rampstream_from(source, tmp_path, scene, abs_refcat="GAIADR3"))
    assert images[0].meta.cal_step.tweakreg == "FAILED"
