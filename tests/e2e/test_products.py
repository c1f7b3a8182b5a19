"""Products as the field's own library sees them, for every kind of exposure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import Simulated, run_in_process, simulate

VARIANTS = ("imaging", "grism", "prism", "saturated", "dark", "spectral_dark", "flat", "lolo", "wfsc", "wfi18")
ALL = {"_cal.asdf", "_cat.parquet", "_segm.asdf", "_wcs.asdf"}
EXPECTED = {
    "WFI_IMAGE": ALL,
    "WFI_LOLO": ALL,
    "WFI_WFSC": {"_cal.asdf", "_wcs.asdf"},
    "WFI_SPECTRAL": {"_cal.asdf", "_wcs.asdf"},
    "WFI_IM_DARK": {"_cal.asdf", "_wcs.asdf"},
    "WFI_SP_DARK": {"_cal.asdf", "_wcs.asdf"},
    "WFI_FLAT": {"_cal.asdf", "_wcs.asdf"},
}


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return simulate(tmp_path_factory.mktemp("kinds"), variants=VARIANTS)


@pytest.fixture(scope="module")
def products(every_kind: Simulated, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out")
    return out, run_in_process(every_kind, every_kind.exposures, out)


def suffixes(row: dict[str, Any]) -> set[str]:
    return {Path(name).name.removeprefix(row["exposure"]) for name in row["products"]}


def open_image(out: Path, exposure: str) -> Any:
    from roman_datamodels import datamodels

    return datamodels.open(out / f"{exposure}_cal.asdf")


def test_every_kind_has_the_products_of_its_type(products: tuple[Path, dict[str, Any]]) -> None:
    out, report = products
    assert report["exit"] == 0
    assert len(report["exposures"]) == len(VARIANTS)
    saturated = 0
    for row in report["exposures"]:
        with open_image(out, row["exposure"]) as image:
            if image.meta.cal_step.refpix == "SKIPPED":
                saturated += 1
                assert suffixes(row) == {"_cal.asdf"}
            else:
                assert suffixes(row) == EXPECTED[image.meta.exposure.type]
    assert saturated == 1


def test_every_product_opens_and_validates_with_the_fields_models(products: tuple[Path, dict[str, Any]]) -> None:
    from roman_datamodels import datamodels

    _, report = products
    kinds = set()
    for row in report["exposures"]:
        for name in row["products"]:
            if name.endswith(".parquet"):
                written = {key.decode(): text.decode() for key, text in pq.read_schema(name).metadata.items()}
                assert written["roman.meta.filename"] == Path(name).name
                kinds.add(written["roman.meta.model_type"])
                continue
            with datamodels.open(name) as model:
                assert model.validate() is None
                assert model.meta.filename == Path(name).name
                assert model.meta.calibration_software_name == "Rampstream"
                kinds.add(type(model).__name__)
    assert kinds == {"ImageModel", "WfiWcsModel", "SegmentationMapModel", "ImageSourceCatalogModel"}


def test_statuses_and_bookkeeping_of_an_image(products: tuple[Path, dict[str, Any]], every_kind: Simulated) -> None:
    out, report = products
    row = next(row for row in report["exposures"] if row["tweakreg"] == "COMPLETE")
    with open_image(out, row["exposure"]) as image:
        meta = image.meta
        done = {key for key, value in meta.cal_step.items() if value == "COMPLETE"}
        assert done >= {"dq_init", "saturation", "refpix", "dark_decay", "linearity", "ramp_fit", "dark", "assign_wcs"}
        assert done >= {"photom", "flat_field", "source_catalog", "tweakreg"}
        assert meta.cal_step.outlier_detection == "INCOMPLETE"
        assert meta.ref_file.flat.startswith(str(every_kind.references))
        assert 0.9 < meta.statistics.good_pixel_fraction <= 1
        assert any("stages.ramp_fit" in line for line in meta.cal_logs)
        assert meta.wcs_fit_results["status"] == "SUCCESS"
        assert meta.wcs.name == "FIT-LVL2-GAIADR3_S3"
        assert meta.product_type == "l2"


def test_a_saturated_exposure_is_written_as_zeros_and_read_back(products: tuple[Path, dict[str, Any]]) -> None:
    out, report = products
    row = next(row for row in report["exposures"] if suffixes(row) == {"_cal.asdf"})
    with open_image(out, row["exposure"]) as image:
        for name in ("data", "err", "var_poisson", "chisq", "dumo"):
            assert not image[name].any()
        assert ((image.dq & 2) == 2).all()
        assert image.meta.wcs is None
        assert image.meta.cal_step.saturation == "COMPLETE"
        assert {image.meta.cal_step[key] for key in ("refpix", "ramp_fit", "assign_wcs", "tweakreg")} == {"SKIPPED"}


@pytest.mark.parametrize(("rule", "status"), [("skip_association", "SKIPPED"), ("skip_member", "COMPLETE")])
def test_one_saturated_member_decides_for_its_association(
    rule: str, status: str, every_kind: Simulated, tmp_path: Path
) -> None:
    images = [path for path in every_kind.exposures if path.name[14:17] in {"001", "004"} and "wfi01" in path.name]
    assert len(images) == 2
    association = tmp_path / "both_asn.json"
    members = [{"expname": str(path), "exptype": "science"} for path in images]
    association.write_text(json.dumps({"products": [{"name": "both", "members": members}]}))
    report = run_in_process(every_kind, [association], tmp_path / "out", "--set", f'tweakreg.saturated_member="{rule}"')
    assert report["exit"] == 0
    assert sorted(row["tweakreg"] for row in report["exposures"]) == sorted(["SKIPPED", status])
    assert (tmp_path / "out" / "both" / f"{report['exposures'][0]['exposure']}_cal.asdf").is_file()
