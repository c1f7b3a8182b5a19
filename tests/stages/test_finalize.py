"""The last stage writes the products of each exposure type, valid, complete and under their names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roman_datamodels import datamodels as rdm

from stages.asdf_container import open_container, plain
from stages.cal_logs import collect_logs
from stages.exposure import Exposure, Level
from stages.finalize import Finalize, finalize_exposure
from stages.finalize.schema_tags import product_tag
from stages.finalize.statistics import image_statistics, median_of
from stages.payload import ExposurePayload
from stream.failure import PermanentError
from stream.stage import Slot, Stage
from tests.stages.final_exposures import (
    COLUMNS,
    ROWS,
    SOURCE_TAG,
    VERSIONS,
    image_exposure,
    references,
    saturated_exposure,
    solution,
)

BASE = "r0000101001001001001_0001_wfi01"


def finalize(exposure: Exposure, out: Path, **options: Any) -> dict[str, Any]:
    arguments = {"solution": None, "association": {}, "references": references(), "versions": VERSIONS} | options
    return finalize_exposure(exposure, out_dir=out, **arguments)


@pytest.mark.parametrize(
    ("exposure_type", "suffixes"),
    [
        ("WFI_IMAGE", ["cal.asdf", "wcs.asdf", "cat.parquet", "segm.asdf"]),
        ("WFI_LOLO", ["cal.asdf", "wcs.asdf", "cat.parquet", "segm.asdf"]),
        ("WFI_WFSC", ["cal.asdf", "wcs.asdf"]),
        ("WFI_SPECTRAL", ["cal.asdf", "wcs.asdf"]),
        ("WFI_IM_DARK", ["cal.asdf", "wcs.asdf"]),
        ("WFI_SP_DARK", ["cal.asdf", "wcs.asdf"]),
        ("WFI_FLAT", ["cal.asdf", "wcs.asdf"]),
    ],
)
def test_each_type_gets_its_products_and_nothing_else(tmp_path: Path, exposure_type: str, suffixes: list[str]) -> None:
    result = finalize(image_exposure(exposure_type), tmp_path)
    assert result["files"] == [f"{BASE}_{suffix}" for suffix in suffixes]
    assert {path.name for path in tmp_path.iterdir()} == set(result["files"]) == set(result["digests"])
    for name in result["files"]:
        if name.endswith(".asdf"):
            assert plain(open_container(tmp_path / name).tree["roman"]["meta"])["filename"] == name


@pytest.mark.parametrize(
    ("exposure_type", "flat_field", "source_catalog"),
    [
        ("WFI_SPECTRAL", "SKIPPED", "SKIPPED"), ("WFI_FLAT", "SKIPPED", "SKIPPED"),
        ("WFI_IM_DARK", "SKIPPED", "SKIPPED"), ("WFI_SP_DARK", "SKIPPED", "SKIPPED"),
        ("WFI_WFSC", "INCOMPLETE", "SKIPPED"),
    ],
)  # fmt: skip
def test_stages_that_a_type_does_not_visit_are_skipped(
    exposure_type: str, flat_field: str, source_catalog: str
) -> None:
    exposure = image_exposure(exposure_type)
    Finalize().run(exposure, references(), Finalize.parameters_type(), Slot())
    steps = exposure.meta["cal_step"]
    assert (steps["flat_field"], steps["source_catalog"], steps["tweakreg"]) == (flat_field, source_catalog, "SKIPPED")
    assert steps["ramp_fit"] == "COMPLETE"


def test_the_image_holds_the_arrays_and_the_metadata(tmp_path: Path) -> None:
    exposure = image_exposure()
    exposure.set_array("jump_indices", np.zeros((2, 3), "i2"))
    exposure.extras["leftover"] = 1
    finalize(exposure, tmp_path)
    with rdm.open(tmp_path / f"{BASE}_cal.asdf") as model:
        assert type(model) is rdm.ImageModel
        for name in ("data", "dq", "err", "chisq", "dumo", "amp33", "border_ref_pix_top", "jump_indices"):
            assert model[name].dtype == exposure.arrays[name].dtype
            np.testing.assert_array_equal(model[name], exposure.arrays[name])
        assert "segmentation" not in model
        assert "leftover" not in model
        meta = model.meta
        assert meta.calibration_software_name == "Rampstream"
        assert meta.calibration_software_version == "0.1.0"
        assert (meta.model_type, meta.product_type) == ("ImageModel", "l2")
        assert list(meta.cal_logs) == exposure.logs
        assert meta.ref_file.crds.context == "roman_0001.pmap"
        assert meta.statistics.good_pixel_fraction == exposure.meta["statistics"]["good_pixel_fraction"]
        assert meta.file_date != exposure.meta["file_date"]
        assert meta.wcs.name is None or not str(meta.wcs.name).startswith("FIT")
        assert "asn" not in meta
    assert exposure.meta["filename"].endswith("_uncal.asdf"), "the name in memory stays the input's"


def test_the_alignment_moves_wcs_catalog_and_footprint(tmp_path: Path) -> None:
    exposure = image_exposure()
    before = image_exposure()
    region = exposure.meta["wcsinfo"]["s_region"]
    result = finalize(exposure, tmp_path, solution=solution(exposure))
    with rdm.open(tmp_path / f"{BASE}_cal.asdf") as cal, rdm.open(tmp_path / f"{BASE}_segm.asdf") as segm:
        assert cal.meta.cal_step.tweakreg == "COMPLETE"
        assert cal.meta.wcs.name == "FIT-LVL2-GAIADR3_S3"
        assert "v2v3corr" in cal.meta.wcs.available_frames
        assert cal.meta.wcsinfo.s_region != region
        assert cal.meta.wcs_fit_results["nmatches"] == 4
        assert cal.meta.source_catalog.tweakreg_catalog_name == f"{BASE}_cat.parquet"
        assert segm.meta.wcsinfo.s_region == region, "catalog and map were made before the alignment"
        table = pq.read_table(tmp_path / f"{BASE}_cat.parquet")
        assert table.schema.metadata[b"roman.meta.image.filename"] == f"{BASE}_uncal.asdf".encode()
        assert table.schema.metadata[b"roman.meta.filename"] == f"{BASE}_cat.parquet".encode()
        ra, dec = cal.meta.wcs(np.asarray(table["x_centroid"]), np.asarray(table["y_centroid"]))
        np.testing.assert_allclose(table["ra_centroid"], ra, rtol=0, atol=1e-12)
        np.testing.assert_allclose(table["dec_centroid"], dec, rtol=0, atol=1e-12)
    assert before.catalog is not None
    np.testing.assert_array_equal(table["x_centroid"], before.catalog["x_centroid"])
    assert result["summary"]["shift"] == [0.25, -0.5]
    assert result["summary"]["rms"] == 0.01
    assert result["summary"]["sources"] == 5


def test_a_failed_alignment_leaves_the_wcs_alone(tmp_path: Path) -> None:
    exposure = image_exposure()
    finalize(exposure, tmp_path, solution=solution(exposure, status="FAILED"))
    with rdm.open(tmp_path / f"{BASE}_cal.asdf") as cal:
        assert cal.meta.cal_step.tweakreg == "FAILED"
        assert cal.meta.wcs_fit_results["status"] == "FAILED"
        assert "v2v3corr" not in cal.meta.wcs.available_frames
        assert dict(cal.meta["source_catalog"]) == {}, "as the reference has it"


def test_the_wcs_product_is_the_image_s_in_both_frames(tmp_path: Path) -> None:
    exposure = image_exposure()
    finalize(exposure, tmp_path, solution=solution(exposure))
    with rdm.open(tmp_path / f"{BASE}_wcs.asdf") as wcs, rdm.open(tmp_path / f"{BASE}_cal.asdf") as cal:
        x, y = np.array([0.0, 100.5, 4087.0]), np.array([0.0, 11.5, 23.0])
        np.testing.assert_array_equal(wcs.wcs_l2(x, y), cal.meta.wcs(x, y))
        np.testing.assert_allclose(wcs.wcs_l1(x + 4, y + 4), cal.meta.wcs(x, y), rtol=0, atol=1e-12)
        assert np.isfinite(wcs.wcs_l1(0.0, 0.0)).all(), "border pixels are inside the box"
        header = plain(open_container(tmp_path / f"{BASE}_wcs.asdf").tree["roman"]["meta"])
        assert header["model_type"] == "ImageModel", "as the mission writes it"
        assert "wcs_fit_results" in wcs.meta
        assert "ref_file" not in wcs.meta


def test_without_a_distortion_reference_the_wcs_product_has_no_wcs(tmp_path: Path) -> None:
    exposure = image_exposure("WFI_FLAT")
    exposure.wcs = None
    finalize(exposure, tmp_path, references={"distortion": None})
    with rdm.open(tmp_path / f"{BASE}_wcs.asdf") as wcs, rdm.open(tmp_path / f"{BASE}_cal.asdf") as cal:
        assert "wcs_l2" not in wcs
        assert cal.meta.wcs is None


def test_a_saturated_exposure_gets_a_zero_image_alone(tmp_path: Path) -> None:
    exposure = saturated_exposure()
    pixeldq = exposure.arrays["pixeldq"].copy()
    result = finalize(exposure, tmp_path, solution=solution(exposure, status="SKIPPED"), references={})
    assert result["files"] == [f"{BASE}_cal.asdf"]
    with rdm.open(tmp_path / f"{BASE}_cal.asdf") as cal:
        cal.validate()
        for name, dtype in {"data": "f4", "err": "f2", "var_poisson": "f2", "chisq": "f2", "dumo": "f2"}.items():
            assert cal[name].dtype == np.dtype(dtype)
            assert cal[name].shape == (ROWS, COLUMNS)
            assert not np.any(cal[name])
        np.testing.assert_array_equal(cal.dq, pixeldq[4:-4, 4:-4] | 2)
        assert cal.meta.wcs is None
        steps = cal.meta.cal_step
        assert (steps.dq_init, steps.saturation) == ("COMPLETE", "COMPLETE")
        for key in (
            "refpix",
            "linearity",
            "ramp_fit",
            "assign_wcs",
            "photom",
            "flat_field",
            "source_catalog",
            "tweakreg",
        ):
            assert steps[key] == "SKIPPED"
        assert cal.meta.statistics.good_pixel_fraction == 0
        assert np.isnan(cal.meta.statistics.image_median)
    assert result["summary"]["median"] is None


def test_a_ramp_that_is_not_saturated_cannot_be_finalized(tmp_path: Path) -> None:
    exposure = saturated_exposure()
    exposure.arrays["groupdq"][0, 0, 0] = 0
    exposure.arrays["pixeldq"][:] = 0
    with pytest.raises(PermanentError, match="at level ramp; expected an image"):
        finalize(exposure, tmp_path)
    assert exposure.level is Level.RAMP


def test_an_exposure_with_a_wcs_needs_its_distortion(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="expected the distortion reference"):
        finalize(image_exposure(), tmp_path, references={})


def test_products_of_an_association_say_which(tmp_path: Path) -> None:
    association = {"table_name": "x_asn.json", "pool_name": "none", "expected": [BASE, "other"], "used": [BASE]}
    finalize(image_exposure("WFI_FLAT"), tmp_path, association=association)
    with rdm.open(tmp_path / f"{BASE}_cal.asdf") as cal:
        assert cal.meta.asn.table_name == "x_asn.json"
        assert cal.meta.asn.pool_name == "none"
        assert list(cal.meta.asn.expected_members) == [BASE, "other"]
        assert list(cal.meta.asn.used_members) == [BASE]


def test_a_product_that_breaks_its_schema_is_refused_by_name(tmp_path: Path) -> None:
    exposure = image_exposure("WFI_FLAT")
    exposure.set_array("err", exposure.arrays["err"].astype("f4"))
    with pytest.raises(PermanentError, match=r"_cal\.asdf: the product does not follow the schema of wfi_image"):
        finalize(exposure, tmp_path)
    assert not (tmp_path / f"{BASE}_cal.asdf").exists()


def test_a_catalog_that_breaks_its_schema_is_refused_by_name(tmp_path: Path) -> None:
    exposure = image_exposure()
    assert exposure.catalog is not None
    exposure.catalog["kron_flux"] = exposure.catalog["kron_flux"].astype("f8")
    exposure.catalog.remove_columns(
        ["label", *(name for name in exposure.catalog.colnames if name.startswith("aper0"))]
    )
    exposure.catalog.remove_column("aper16_flux_err")
    with pytest.raises(PermanentError, match=r"_cat\.parquet: .* label \(int32, missing\)") as caught:
        finalize(exposure, tmp_path)
    assert "kron_flux (float32, found kron_flux float64)" in str(caught.value)
    assert "_flux_err (float32, missing)" in str(caught.value)
    assert "_flux (float32, missing)" not in str(caught.value), "aper16_flux is there"


def test_products_are_written_in_the_input_s_generation(tmp_path: Path) -> None:
    finalize(image_exposure(), tmp_path)
    for suffix, name in (("cal", "wfi_image"), ("wcs", "wfi_wcs"), ("segm", "segmentation_map")):
        with rdm.open(tmp_path / f"{BASE}_{suffix}.asdf") as model:
            assert model.tag == f"asdf://stsci.edu/datamodels/roman/tags/{name}-2.1.0"


def test_an_unknown_generation_is_left_to_the_library() -> None:
    assert product_tag(SOURCE_TAG, "wfi_image") == "asdf://stsci.edu/datamodels/roman/tags/wfi_image-2.1.0"
    assert product_tag("asdf://stsci.edu/datamodels/roman/tags/wfi_science_raw-1.0.0", "wfi_image") is None
    assert product_tag("", "wfi_image") is None


def test_segments_do_not_change_the_products(tmp_path: Path) -> None:
    fused = image_exposure()
    expected = finalize(fused, tmp_path / "fused", solution=solution(fused), slot=Slot(threads=1))
    payload, stored = ExposurePayload(), image_exposure()
    payload.save_tree(stored, tmp_path / "tree")
    arrays = {name: tmp_path / name for name in payload.array_names(stored)}
    for name, path in arrays.items():
        payload.save_array(stored, name, path)
    loaded = payload.load(tmp_path / "tree", arrays)
    loaded.logs.append("another line")
    found = finalize(loaded, tmp_path / "elsewhere", solution=solution(loaded), slot=Slot(threads=2))
    assert found["digests"] == expected["digests"]
    assert found["summary"] == expected["summary"]


def test_finalize_is_a_stage() -> None:
    stage: Stage = Finalize()
    assert stage.references_for({}, stage.parameters_type()) == ("distortion",)


# --- statistics --------------------------------------------------------------------------------------------------


def test_statistics_use_good_pixels_only() -> None:
    data = np.array([[1, 2, 3, 4, 100, np.nan, 7, 8]], "f4")
    dq = np.array([[0, 4, 0, 0, 1, 0, 0, 0]], "u4")
    err = np.array([[1, 1, 1, 1, 1, 1, 0, np.nan]], "f2")
    found = image_statistics(data, dq, err)
    assert found["image_median"] == 2.5
    assert found["image_rms"] == pytest.approx(1.4826022)
    assert found["good_pixel_fraction"] == 0.5
    assert found["zodiacal_light"] == -1.0
    np.testing.assert_array_equal(data[0, :4], [1, 2, 3, 4])


VALUES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


@settings(deadline=None, max_examples=200)
@given(values=VALUES, extra=st.integers(0, 3))
def test_the_median_is_numpy_s(values: list[float], extra: int) -> None:
    data = np.array([[*values, *values[:extra]]], "f4")
    good = np.ones(data.shape, bool)
    with np.errstate(over="ignore"):
        median = np.median(data)
        np.testing.assert_array_equal(median_of(data, good, data.size), median)
        deviation = np.median(np.abs(data - median))
        np.testing.assert_array_equal(median_of(data, good, data.size, center=median), deviation)


@pytest.mark.parametrize("spoil", ["nan", "dq", "err"])
def test_statistics_without_a_good_pixel_are_nan(spoil: str) -> None:
    data, dq, err = np.ones((2, 2), "f4"), np.zeros((2, 2), "u4"), np.ones((2, 2), "f2")
    if spoil == "nan":
        data[:] = np.nan
    elif spoil == "dq":
        dq[:] = 5
    else:
        err[:] = 0
    found = image_statistics(data, dq, err)
    assert np.isnan(found["image_median"])
    assert np.isnan(found["image_rms"])
    assert found["good_pixel_fraction"] == 0.0


# --- log lines ---------------------------------------------------------------------------------------------------


def test_log_lines_of_the_stages_are_collected() -> None:
    exposure = image_exposure(with_catalog=False)
    exposure.logs = []
    with collect_logs(exposure):
        logging.getLogger("stages.refpix").info("switch %s", "on")
        logging.getLogger("stages.refpix").debug("not this")
        logging.getLogger("stream.worker").warning("nor this")
    logging.getLogger("stages.refpix").warning("nor what comes later")
    (line,) = exposure.logs
    time, name, level, text = line.split(" :: ")
    assert (name, level, text) == ("stages.refpix", "INFO", "switch on")
    assert len(time) == len("2027-03-01T00:00:00.000Z")
    assert time.endswith("Z")


@pytest.mark.parametrize(
    ("tag", "expected"), [(None, False), ("x/wfi_image-2.1.0", False), ("x/wfi_image-2.2.0", True)]
)
def test_only_the_newer_generation_has_a_second_dq_array(tag: str | None, expected: bool) -> None:
    from stages.finalize.image_product import _has_second_dq

    assert _has_second_dq(tag) is expected
