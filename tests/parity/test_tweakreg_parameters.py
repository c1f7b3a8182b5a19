"""Every parameter of tweakreg away from its default against the mission's software, and catalogs from files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.table import Table
from pydantic import ValidationError

from stages.align import apply_alignment
from stages.gaia import read_star_table
from stages.tweakreg import Tweakreg, TweakregParameters, tie_points_bytes
from stream.stage import Member, Slot
from tests.parity.record import at_full_length
from tests.parity.test_tweakreg import assert_equal, by_rampstream, compare, mosaic
from tests.stages.sky_scene import oracle_image, sky_stars

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]


ALONE = {
    "searchrad": 4.3,
    "separation": 1.6,
    "tolerance": 0.3,
    "use2dhist": False,
    "minobj": 5000,
    "fitgeometry": "rshift",
    "nclip": 0,
    "sigma": 1.5,
    "enforce_user_order": True,
    "expand_refcat": True,
    "abs_searchrad": 2.7,
    "abs_separation": 1.6,
    "abs_tolerance": 0.3,
    "abs_use2dhist": False,
    "abs_minobj": 5000,
    "abs_fitgeometry": "rscale",
    "abs_nclip": 0,
    "abs_sigma": 1.5,
}

TOGETHER = [
    {"searchrad": 3.1, "separation": 1.3, "tolerance": 0.5, "minobj": 12, "fitgeometry": "rscale", "nclip": 1,
     "sigma": 2.2, "expand_refcat": True, "abs_searchrad": 4.4, "abs_separation": 1.2, "abs_tolerance": 0.6,
     "abs_minobj": 25, "abs_fitgeometry": "rshift", "abs_nclip": 2, "abs_sigma": 2.0},
    {"use2dhist": False, "tolerance": 1.5, "separation": 2.5, "minobj": 40, "fitgeometry": "shift", "nclip": 5,
     "sigma": 1.8, "enforce_user_order": True, "abs_use2dhist": False, "abs_tolerance": 1.4, "abs_separation": 2.2,
     "abs_nclip": 1, "abs_sigma": 4.0},
]  # fmt: skip

ELSEWHERE = {
    "skip": "the pipeline's, in test_parameters",
    "abs_refcat": "tables, in test_tweakreg; catalogs, in test_star_sources",
    "vo_timeout": "no number depends on it; tests of the service's client",
    "saturated_member": "of this pipeline alone",
    "abs_repeats": "of this pipeline alone",
    "update_source_catalog_coordinates": "without effect here",
    "save_abs_catalog": "refused",
    "catalog_format": "refused",
    "catalog_path": "refused",
}


@pytest.fixture(scope="module")
def sky():
    return sky_stars(np.random.default_rng(11), 270.0, 66.0, 1000.0, 2500)


@pytest.fixture
def default_catalog(sky, monkeypatch):
    """The default reference catalog is the sky's stars: with another one the reference list always grows."""
    import stcal.tweakreg.tweakreg

    def catalog(*args, **kwargs):
        return Table({"RA": sky[0], "DEC": sky[1], "mag": np.zeros(len(sky[0]))})

    monkeypatch.setattr(stcal.tweakreg.tweakreg, "create_astrometric_catalog", catalog)


def test_no_parameter_is_left_out():
    fields = TweakregParameters.model_fields
    assert set(fields) == set(ALONE) | set(ELSEWHERE)
    assert not [name for name, value in ALONE.items() if fields[name].default == value]
    together = {name for values in TOGETHER for name, value in values.items() if fields[name].default != value}
    assert together == set(ALONE)


@pytest.mark.parametrize("parameters", TOGETHER, ids=["one", "other"])
def test_all_parameters_together(tmp_path, sky, default_catalog, parameters):
    images = compare(
        tmp_path, mosaic(sky, 3, 1, seed=12, error=0.4, outliers=10), sky, **parameters, abs_refcat="GAIADR3_S3"
    )
    assert {image.meta.cal_step.tweakreg for image in images} == {"COMPLETE"}


@at_full_length
@pytest.mark.parametrize("refcat", ["default", "table"])
@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(("groups", "detectors"), [(1, 2), (2, 1), (4, 1)])
def test_each_parameter_alone(tmp_path, sky, default_catalog, name, refcat, groups, detectors):
    own = {"abs_refcat": "GAIADR3_S3"} if refcat == "default" else {}
    scene = mosaic(sky, groups, detectors, seed=13, error=0.6, outliers=10)
    compare(tmp_path, scene, sky, **{name: ALONE[name]}, **own)


@at_full_length
@pytest.mark.parametrize("geometry", ["shift", "rshift", "rscale", "general"])
@pytest.mark.parametrize("absolute", ["shift", "rshift", "rscale", "general"])
def test_every_pair_of_geometries(tmp_path, sky, geometry, absolute):
    compare(tmp_path, mosaic(sky, 2, 1, seed=14), sky, fitgeometry=geometry, abs_fitgeometry=absolute)


@pytest.mark.parametrize("form", ["ascii.ecsv", pytest.param("fits", marks=at_full_length)])
def test_catalogs_from_files_align_as_those_in_memory(tmp_path, sky, form):
    from romancal.datamodels import ModelLibrary
    from romancal.tweakreg import TweakRegStep

    scene, table = mosaic(sky, 1, 2, seed=15), tmp_path / "stars.ecsv"
    Table({"ra": sky[0], "dec": sky[1]}).write(table)
    images = [oracle_image(one) for one in scene]
    for image, one in zip(images, scene, strict=True):
        path = tmp_path / f"{one.id}_cat.{form}"
        one.catalog().write(path, format=form)
        image.meta["source_catalog"] = {"tweakreg_catalog_name": str(path)}
    step = TweakRegStep()
    step.abs_refcat, step.catalog_format = str(table), form
    with step.process(ModelLibrary(images)) as library:
        aligned = list(library)
        for image in aligned:
            library.shelve(image, modify=False)
    assert_equal(scene, aligned, by_rampstream(scene, table))

    members, exposures = [], []
    for one in scene:
        exposure = one.exposure()
        exposure.catalog = Table.read(tmp_path / f"{one.id}_cat.{form}", format=form)
        members.append(Member(one.id, "ok", {}, tie_points_bytes(exposure, one.distortion)))
        exposures.append(exposure)
    document = Tweakreg().solve(members, read_star_table(table), TweakregParameters(abs_refcat=str(table)), Slot())
    document = json.loads(json.dumps(document))
    outcome = [
        (exposure, apply_alignment(exposure, document["members"][one.id], one.distortion))
        for one, exposure in zip(scene, exposures, strict=True)
    ]
    assert_equal(scene, aligned, outcome)


@pytest.mark.parametrize(
    ("name", "value"), [("save_abs_catalog", True), ("catalog_format", "fits"), ("catalog_path", "catalogs")]
)
def test_what_would_have_no_effect_is_refused(name, value):
    with pytest.raises(ValidationError, match="nothing here reads or writes such a catalog; expected"):
        TweakregParameters(**{name: value})
