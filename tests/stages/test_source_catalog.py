"""The source_catalog stage as a whole, without the oracle."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from stages.source_catalog import SourceCatalogParameters, SourceCatalogStage
from stages.source_catalog.columns import EMPTY_COLUMNS
from stream.failure import PermanentError
from stream.stage import Slot
from tests.stages import catalog_scene as cs


@pytest.fixture(scope="module")
def measured() -> Any:
    return cs.catalog_of(cs.scene(1))


def same_bits(a: Any, b: Any) -> bool:
    return all(np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f") for name in a.colnames)


def test_two_threads_give_the_bits_of_one() -> None:
    scene = cs.scene(2, (200, 220), 90, bad=0.01)
    one, two = (cs.catalog_of(scene, threads=threads, bkg_boxsize=50, npixels=5) for threads in (1, 2))
    assert same_bits(one.catalog, two.catalog)
    for name in ("segmentation", "detection_image"):
        np.testing.assert_array_equal(one.arrays[name], two.arrays[name])


def test_image_arrays_are_left_as_they_were(measured: Any) -> None:
    scene = cs.scene(1)
    for name in ("data", "err", "dq"):
        np.testing.assert_array_equal(measured.arrays[name], getattr(scene, name))
    assert set(measured.versions) == {"segmentation", "detection_image"}


def test_scratch_of_an_earlier_job_does_not_leak_into_the_next(measured: Any) -> None:
    slot = Slot()
    stage = SourceCatalogStage()
    for seed in (5, 1):
        item = cs.exposure(cs.scene(seed))
        stage.run(item, cs.references(), SourceCatalogParameters(), slot)
    assert same_bits(item.catalog, measured.catalog)
    np.testing.assert_array_equal(item.arrays["detection_image"], measured.arrays["detection_image"])


def test_references_are_recorded_and_the_distortion_is_not_recorded_again(measured: Any) -> None:
    assert measured.meta["cal_step"]["source_catalog"] == "COMPLETE"
    assert measured.meta["ref_file"] == {
        "apcorr": "/references/apcorr.asdf",
        "epsf": "/references/epsf.asdf",
        "distortion": "crds://distortion.asdf",
    }


def test_tie_points_are_made_for_the_alignment(measured: Any) -> None:
    from stages.tweakreg.tie_points import read_tie_points

    assert len(read_tie_points(measured.tie_points).positions) == len(measured.catalog)


def test_nothing_detected_leaves_status_and_references_alone() -> None:
    item = cs.catalog_of(cs.scene(1, (60, 70), 0))
    assert item.catalog.colnames == list(EMPTY_COLUMNS)
    assert (len(item.catalog), dict(item.catalog.meta)) == (0, {})
    assert item.meta["cal_step"]["source_catalog"] == "INCOMPLETE"
    assert item.meta["ref_file"]["apcorr"] == "?"
    assert not item.arrays["segmentation"].any()


def test_a_higher_threshold_or_more_pixels_find_fewer_sources() -> None:
    scene = cs.scene(3)
    counts = [
        len(cs.catalog_of(scene, snr_threshold=snr, npixels=npixels, fit_psf=False).catalog)
        for snr, npixels in ((3, 5), (3, 25), (30, 25), (300, 25))
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[3] == 0


def test_injected_stars_are_found_where_they_were_put() -> None:
    rng = np.random.default_rng(8)
    scene = cs.scene(8, (200, 200), 0)
    stamps, meta = cs.epsf_contents()
    truth = np.array([(x, y) for x in range(25, 190, 30) for y in range(25, 190, 30)]) + rng.uniform(-0.5, 0.5, (36, 2))
    yy, xx = np.mgrid[:200, :200]
    from stages.source_catalog.psf_model import build_psf, psf_values

    psf = build_psf(stamps[0, 1], 4, np.array(meta["pixel_x"]), np.array(meta["pixel_y"]), cs.GUIDE_STAR, meta)
    model = np.empty(200 * 200)
    for x, y in truth:
        psf_values(
            psf.coefficients, psf.knots_x, psf.knots_y, psf.grid_x, psf.grid_y, psf.oversample,
            40.0, x, y, xx.ravel(), yy.ravel(), model,
        )  # fmt: skip
        scene.data += model.reshape(200, 200).astype(np.float32)
    scene.err[:] = 0.1
    catalog = cs.catalog_of(scene).catalog
    assert len(catalog) == len(truth)
    found = np.stack([catalog["x_psf"], catalog["y_psf"]], axis=1)
    errors = np.stack([catalog["x_psf_err"], catalog["y_psf_err"]], axis=1)
    nearest = np.argmin(np.hypot(*(found[:, None] - truth).transpose(2, 0, 1)), axis=1)
    pulls = (found - truth[nearest]) / errors
    assert 0.7 < pulls.std() < 1.3
    flux = 40.0 * 0.78 * 2.8083e-13 * 1e15
    assert abs(np.median(catalog["psf_flux"]) / flux - 1) < 0.01


def test_missing_reddening_maps_give_nan_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="stages.source_catalog"):
        catalog = cs.catalog_of(cs.scene(1), fit_psf=False).catalog
    assert np.isnan(catalog["dust_ebv"]).all()
    assert "dust_ebv" in caplog.text


def test_a_broken_reddening_map_does_not_cost_the_catalog(tmp_path: Any) -> None:
    refs = cs.references()
    for name in ("dustmap_north", "dustmap_south"):
        refs[name] = cs.FakeReference(name, {})
        refs[name].path = tmp_path / "no.fits"
    catalog = cs.catalog_of(cs.scene(1), refs, fit_psf=False).catalog
    assert len(catalog) > 0
    assert np.isnan(catalog["dust_ebv"]).all()


def test_reddening_refuses_positions_of_different_shapes(tmp_path: Any) -> None:
    from stages.source_catalog.dust import dust_reddening

    with pytest.raises(ValueError, match="same shape"):
        dust_reddening(np.zeros(2), np.zeros(3), tmp_path, tmp_path)


def test_without_a_curve_of_enclosed_energy_nothing_is_called_extended() -> None:
    refs = cs.references()
    refs["apcorr"].tree["data"][cs.ELEMENT].update(ee_radii=None, ee_fractions=None)
    catalog = cs.catalog_of(cs.scene(1), refs, fit_psf=False).catalog
    assert not catalog["is_extended"].any()
    assert len(catalog.meta["ee_fractions"]) == len(catalog.meta["aperture_radii"]["circle_pix"])


def test_the_psf_reference_is_asked_for_only_when_it_is_fitted() -> None:
    stage = SourceCatalogStage()
    assert "epsf" in stage.references_for({}, SourceCatalogParameters())
    assert "epsf" not in stage.references_for({}, SourceCatalogParameters(fit_psf=False))
    assert not stage.references_for({}, SourceCatalogParameters(skip=True))


def broken(change: Any) -> tuple[Any, dict[str, Any]]:
    item, refs = cs.exposure(cs.scene(1)), cs.references()
    change(item, refs)
    return item, refs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda item, refs: refs.update(apcorr=None), "type 'apcorr'"),
        (lambda item, refs: refs.update(epsf=None), "type 'epsf'"),
        (lambda item, refs: refs.update(distortion=None), "type 'distortion'"),
        (lambda item, refs: setattr(item, "wcs", None), "assign_wcs"),
        (lambda item, refs: item.meta["photometry"].update(conversion_megajanskys=None), "conversion_megajanskys"),
        (lambda item, refs: item.meta["photometry"].update(conversion_megajanskys=-999999.0), "a positive number"),
        (lambda item, refs: refs["epsf"].tree.update(psf=np.zeros((1, 1, 4, 9, 9), np.float32)), "spectral type"),
        (lambda item, refs: refs["epsf"].tree["meta"].update(pixel_x=[0.0, 0.0, 1.0, 2.0]), "rectangular grid"),
    ],
)
def test_input_that_cannot_be_used_is_refused_by_name(change: Any, words: str) -> None:
    item, refs = broken(change)
    with pytest.raises(PermanentError, match=words):
        SourceCatalogStage().run(item, refs, SourceCatalogParameters(), Slot())


def test_a_forced_segmentation_that_is_none_is_refused_by_name(tmp_path: Any) -> None:
    path = tmp_path / "missing_segm.asdf"
    with pytest.raises(PermanentError, match=r"missing_segm\.asdf"):
        cs.catalog_of(cs.scene(1), forced_segmentation=str(path))
