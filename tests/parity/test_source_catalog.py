"""The source catalog against romancal's SourceCatalogStep: every column, the segmentation and the detection image."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from tests.parity.record import EQUAL, Bar, compare
from tests.stages import catalog_scene as cs

pytestmark = pytest.mark.oracle

SKY = ("ra", "dec", "ra_centroid", "dec_centroid", "ra_centroid_win", "dec_centroid_win", "ra_psf", "dec_psf")
NOT_CONVERGED = 8
PSF_VALUES = Bar("1e-6 relative, or 1e-3 of the error", relative=1e-6)
PSF_ERRORS = Bar("1e-5 relative", relative=1e-5)
DUST: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The oracle asks CRDS for the dust maps and for the name of the context: answer from here."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from romancal.source_catalog import _source_catalog
        from stpipe import crds_client

        def dust_maps(parameters: dict[str, str], **_: Any) -> dict[str, str]:
            if not DUST:
                raise LookupError("no dust maps")
            return {"dustmap": DUST[parameters["roman.field"]]}

        patch.setattr(_source_catalog, "getreferences", dust_maps)
        patch.setattr(crds_client, "get_context_used", lambda *_, **__: "roman_0001.pmap")
        yield


def oracle(scene: cs.Scene, *, old_format: bool = False, **parameters: Any) -> tuple[Any, Any, Any]:
    """Image, catalog and segmentation model of the oracle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from roman_datamodels import datamodels
        from romancal.assign_wcs import AssignWcsStep
        from romancal.source_catalog import SourceCatalogStep

        from stages.exposure import CAL_STEP_KEYS

        image = datamodels.ImageModel.create_fake_data(shape=scene.data.shape)
        image.data, image.err, image.dq = scene.data.copy(), scene.err.copy(), scene.dq.copy()
        image.meta.wcsinfo.update(cs.WCSINFO)
        image.meta.photometry.update(cs.PHOTOMETRY)
        image.meta.guide_star.update(cs.GUIDE_STAR)
        image.meta.velocity_aberration.scale_factor = cs.SCALE_FACTOR
        image.meta.instrument.optical_element = cs.ELEMENT
        image.meta.exposure.type = "WFI_IMAGE"
        image.meta.cal_step = dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE")
        assign = AssignWcsStep()
        assign.override_distortion = datamodels.DistortionRefModel.create_fake_data()
        assign.override_distortion.coordinate_distortion_transform = cs.distortion()
        image = assign.process(image)
        step = SourceCatalogStep(**parameters)
        step.override_apcorr = datamodels.ApcorrRefModel.create_fake_data()
        step.override_apcorr.data = {cs.ELEMENT: cs.apcorr_curve()}
        step.override_epsf = datamodels.EpsfRefModel.create_fake_data()
        step.override_epsf.psf, meta = cs.epsf_contents(old_format=old_format)
        step.override_epsf.meta.update(meta)
        catalog, segmentation = step.process(image)
    return image, catalog, segmentation


def assert_same_table(ours: Any, theirs: Any) -> None:
    """Equal names, order, types, units and descriptions; equal values but for sky positions (rounding) and PSF fits.

    A fit stops once its steps are small: a last bit may decide for one step more or less, which moves it by far less
    than its error. Fits that used up their evaluations wander: of those only the flags are compared.
    """
    assert ours.colnames == theirs.colnames
    assert len(ours) == len(theirs)
    flags = next((np.asarray(theirs[c]) for c in theirs.colnames if c.endswith("psf_flags")), np.zeros(len(theirs)))
    converged = (flags.astype(int) & NOT_CONVERGED) == 0
    for name in theirs.colnames:
        a, b = ours[name], theirs[name]
        assert a.dtype == b.dtype, name
        assert str(a.unit) == str(b.unit), name
        assert a.description == b.description, name
        compare_column(theirs, name, np.asarray(a), np.asarray(b), converged)


def compare_column(theirs: Any, name: str, a: Any, b: Any, converged: Any) -> None:
    """PSF columns, sky positions and all others have bars of their own."""
    if "psf" in name and not name.endswith("flags"):
        allowance = 0.0
        if f"{name}_err" in theirs.colnames and not name.startswith(("ra", "dec", "forced_ra", "forced_dec")):
            allowance = 1e-3 * np.asarray(theirs[f"{name}_err"])
        what, bar = ("PSF fit, errors", PSF_ERRORS) if name.endswith("_err") else ("PSF fit, values", PSF_VALUES)
        unconstrained = {"psf-unconstrained": ~converged}
        compare("source_catalog", what, a, b, bar=bar, allowance=allowance, accepted=unconstrained)
    elif name.removeprefix("forced_") in SKY:
        compare("source_catalog", "sky positions", a, b, bar=Bar("3e-15 relative", relative=3e-15))
    else:
        compare("source_catalog", "all other columns", a, b, bar=EQUAL)


def assert_same(scene: cs.Scene, *, old_format: bool = False, **parameters: Any) -> Any:
    ours = cs.catalog_of(scene, cs.references(old_format=old_format), **parameters)
    image, catalog, segmentation = oracle(scene, old_format=old_format, **parameters)
    compare("source_catalog", "segmentation", ours.arrays["segmentation"], np.asarray(segmentation.data))
    detection = np.asarray(segmentation.detection_image)
    compare("source_catalog", "detection image", ours.arrays["detection_image"], detection, bar=EQUAL)
    assert ours.meta["cal_step"]["source_catalog"] == image.meta.cal_step.source_catalog
    assert_same_table(ours.catalog, catalog.source_catalog)
    meta = catalog.source_catalog.meta
    for key in meta.keys() - {"date", "versions", "aperture_radii"}:
        np.testing.assert_array_equal(ours.catalog.meta[key], meta[key])
    for key, radii in meta.get("aperture_radii", {}).items():
        np.testing.assert_allclose(ours.catalog.meta["aperture_radii"][key], radii, rtol=1e-14)
    return ours.catalog


def test_boxes_with_gaps_flagged_pixels_and_a_gradient_give_romancals_catalog() -> None:
    scene = cs.scene(2, (260, 300), 120, bad=0.01, gradient=0.3)
    assert len(assert_same(scene, bkg_boxsize=60)) > 40


def test_a_box_larger_than_the_image_falls_back_to_the_whole_image_as_in_romancal() -> None:
    scene = cs.scene(3, (130, 300), 60, bad=0.004)
    scene.dq[:, :60] = 1
    assert len(assert_same(scene, npixels=9, kernel_fwhm=3.1, snr_threshold=2.2)) > 20


def test_crowded_field_is_deblended_and_fitted_in_groups_as_in_romancal() -> None:
    scene = cs.scene(5, (150, 150), 90, bad=0.005)
    assert len(assert_same(scene, npixels=5, deblend=True)) > 40


def test_stamps_of_the_old_format_are_integrated_over_the_pixel_as_in_romancal() -> None:
    assert_same(cs.scene(11, (100, 120), 25), old_format=True, npixels=5)


def test_without_psf_photometry_the_psf_columns_are_missing_as_in_romancal() -> None:
    assert not [name for name in assert_same(cs.scene(4, (100, 100), 20), fit_psf=False).colnames if "psf" in name]


def test_nothing_detected_gives_romancals_empty_catalog() -> None:
    assert len(assert_same(cs.scene(6, (60, 70), 0))) == 0


def test_all_pixels_masked_gives_romancals_empty_catalog_and_no_detection_image() -> None:
    scene = cs.scene(6, (60, 70), 0)
    scene.data[:] = np.nan
    ours = cs.catalog_of(scene)
    image, catalog, segmentation = oracle(scene)
    assert_same_table(ours.catalog, catalog.source_catalog)
    assert "detection_image" not in ours.arrays
    assert "detection_image" not in segmentation
    assert ours.meta["cal_step"]["source_catalog"] == image.meta.cal_step.source_catalog == "INCOMPLETE"


def test_forced_mode_measures_the_given_segments_as_romancal_does(tmp_path: Any) -> None:
    first, second = cs.scene(1, sources=30), cs.scene(1, sources=30)
    _, _, segmentation = oracle(first)
    path = str(tmp_path / "first_segm.asdf")
    segmentation.save(path)
    labels = np.array(segmentation.data)
    second.data += np.random.default_rng(5).normal(0, 0.05, second.data.shape).astype(np.float32)
    second.dq[labels == 3] = 1  # a segment that is gone here
    rows, columns = np.nonzero(labels == 5)
    second.dq[rows[:15], columns[:15]] = 1  # one that is partly masked
    rows, columns = np.nonzero(labels == 6)  # and one with its two ends alone, whose fit region is fully masked
    second.dq[rows[0] : rows[-1] + 1, columns.min() - 3 : columns.max() + 4] = 1
    second.dq[rows[[0, -1]], columns[[0, -1]]] = 0
    catalog = assert_same(second, forced_segmentation=path)
    assert 3 not in catalog["label"]
    assert 128 & int(catalog["forced_psf_flags"][catalog["label"] == 6][0])


def test_reddening_is_sampled_from_the_maps_of_both_hemispheres_as_romancal_does(tmp_path: Any) -> None:
    from astropy.io import fits

    y, x = np.mgrid[:256, :256]
    maps = {}
    for name, sign in (("north", 1), ("south", -1)):
        header = fits.Header()
        header.update(CTYPE1="GLON-ZEA", CTYPE2="GLAT-ZEA", CRPIX1=128.5, CRPIX2=128.5, CRVAL1=0.0, CRVAL2=90.0 * sign)
        header.update(CDELT1=-1.0, CDELT2=1.0, LONPOLE=180.0)
        maps[name] = tmp_path / f"{name}.fits"
        fits.writeto(maps[name], (0.1 + 0.05 * np.sin(sign * x / 9) + 0.03 * np.cos(y / 7)).astype(">f4"), header)
    from stages.source_catalog.dust import dust_reddening

    scene = cs.scene(4, (100, 100), 20)
    DUST.update({name: str(path) for name, path in maps.items()})
    try:
        _, catalog, _ = oracle(scene, fit_psf=False)
    finally:
        DUST.clear()
    refs = cs.references()
    for name, path in maps.items():
        refs[f"dustmap_{name}"] = cs.FakeReference(name, {})
        refs[f"dustmap_{name}"].path = path
    ours = cs.catalog_of(scene, refs, fit_psf=False).catalog
    assert_same_table(ours, catalog.source_catalog)
    assert np.isfinite(ours["dust_ebv"]).all()
    below = dust_reddening(np.array([0.0]), np.array([-60.0]), maps["north"], maps["south"])
    assert np.isfinite(below).all()


def test_column_descriptions_and_types_are_those_of_the_schema() -> None:
    import re
    from importlib.resources import files

    import yaml

    from stages.source_catalog.columns import COLUMNS

    schema = files("rad") / "resources/schemas/tables/source_catalog_columns-2.0.0.yaml"
    definitions = yaml.safe_load(schema.read_text())["definitions"]
    codes = {"int32": "i4", "int64": "i8", "float32": "f4", "float64": "f8", "bool8": "b1"}
    patterns = {
        re.sub(r"~radius~", r"\\d\\d", key.replace("_~band~", "")): node
        for key, node in definitions.items()
        if "~band~m~band~" not in key
    }
    for column in COLUMNS:
        node = next(node for pattern, node in patterns.items() if re.fullmatch(pattern, column.name))
        assert column.description == node["description"]
        assert [column.dtype] == [codes[code] for code in node["properties"]["data"]["properties"]["datatype"]["enum"]]
