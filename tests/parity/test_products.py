"""The products have the layout of romancal's: keys, dtypes, units, metadata, key by key."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.stats import mad_std
from roman_datamodels import datamodels as rdm

from stages.asdf_container import ROMAN_TAG, ArrayNode, open_container, plain
from stages.exposure import CAL_STEP_KEYS, Exposure, Level
from stages.finalize import finalize_exposure
from stages.finalize.catalog_product import write_catalog
from stages.finalize.statistics import image_statistics
from stages.wcs import build_wcs, wcs_numbers
from tests.oracle.crds_cache import make_cache
from tests.parity.record import EQUAL, compare, compare_same
from tests.stages.final_exposures import SOURCE_TAG, VERSIONS, distortion_model, image_exposure, references
from tests.stages.input_files import complete_meta

SHAPE = (101, 101)
BASE = "r0000101001001001001_0001_wfi01"
ELEMENTS = "F062 F087 F106 F129 F146 F158 F184 F213 GRISM PRISM DARK".split()  # noqa: SIM905
OUR_OWN = ("file_date", "filename", "calibration_software_name", "calibration_software_version", "crds.version")
"""Who wrote the file and when; and the input's CRDS version, which stays where references are from a directory."""


@dataclass
class Oracle:
    """What romancal made of a small image, and the same content as an exposure of ours."""

    catalog: Path
    segmentation: Path
    image: Path
    wcs: Path
    exposure: Exposure


@pytest.fixture(scope="module", params=["own", "forced"])
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """With sources of the image's own, and with those of another image's segmentation map."""
    folder = tmp_path_factory.mktemp("oracle")
    meta = complete_meta(product_type="l2")
    meta["cal_step"] = dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE")
    meta["photometry"] = {
        "conversion_megajanskys": 0.3,
        "conversion_megajanskys_uncertainty": 0.0,
        "pixel_area": 2.8e-13,
    }
    model = _image_model(meta)
    before = copy.deepcopy({name: np.array(model[name]) for name in model if name != "meta"})
    catalog, segmentation = _run_source_catalog(model, folder)
    if request.param == "forced":
        path = folder / "other_segm.asdf"
        segmentation.save(path)
        model = _image_model(meta)
        model.data += np.random.default_rng(1).normal(0, 0.05, SHAPE).astype("f4")
        before = copy.deepcopy({name: np.array(model[name]) for name in model if name != "meta"})
        catalog, segmentation = _run_source_catalog(model, folder, forced_segmentation=str(path))
        meta["image"] = {"forced_segmentation": str(path)}
    catalog.save(folder / f"{BASE}_cat.parquet")
    segmentation.save(folder / f"{BASE}_segm.asdf")
    model.save(folder / f"{BASE}_cal.asdf")
    rdm.WfiWcsModel.from_model_with_wcs(model).save(folder / f"{BASE}_wcs.asdf")
    arrays = before | {
        "segmentation": np.array(segmentation.data),
        "detection_image": np.array(segmentation.detection_image),
    }
    exposure = Exposure(BASE, Level.IMAGE, meta, arrays, catalog=catalog.source_catalog.copy(), source_tag=SOURCE_TAG)
    exposure.wcs = wcs_numbers(meta, SHAPE)
    meta["ref_file"]["apcorr"] = str(model.meta.ref_file.apcorr)
    meta["cal_step"]["source_catalog"] = "COMPLETE"
    paths = {name: folder / f"{BASE}_{suffix}" for name, suffix in _SUFFIXES.items()}
    return Oracle(**paths, exposure=exposure)


_SUFFIXES = {"catalog": "cat.parquet", "segmentation": "segm.asdf", "image": "cal.asdf", "wcs": "wcs.asdf"}


def _image_model(meta: dict[str, Any]) -> Any:
    model = rdm.ImageModel.create_fake_data(shape=(3, *SHAPE))
    for key, value in copy.deepcopy(meta).items():
        model.meta[key] = value
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    data = np.random.default_rng(0).normal(0, 0.1, SHAPE)
    for x0, y0 in ((20, 30), (60, 70), (80, 20)):
        data += 50 * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * 1.5**2))
    shapes = {"data": "f4", "dq": "u4", "err": "f2", "var_poisson": "f2", "chisq": "f2", "dumo": "f2"}
    for name, dtype in shapes.items():
        model[name] = np.zeros(SHAPE, dtype)
    model.data, model.err = data.astype("f4"), np.full(SHAPE, 0.1, "f2")
    model.meta.wcs = build_wcs(wcs_numbers(meta, SHAPE), distortion_model())
    return model


def _run_source_catalog(model: Any, folder: Path, **parameters: Any) -> tuple[Any, Any]:
    apcorr = rdm.ApcorrRefModel.create_fake_data()
    entry = {
        "ap_corrections": np.ones(10), "ee_fractions": np.linspace(0.1, 1, 10), "ee_radii": np.linspace(0.5, 20, 10),
        "sky_background_rin": 1.0, "sky_background_rout": 2.0,
    }  # fmt: skip
    apcorr.data = {element: dict(entry) for element in ELEMENTS}
    apcorr.meta.instrument.detector = "WFI01"
    (folder / "references").mkdir(exist_ok=True)
    apcorr.save(folder / "references" / "apcorr.asdf")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in make_cache(folder / "references", folder / f"crds{len(parameters)}").items():
            patch.setenv(name, value)
        from romancal.source_catalog import SourceCatalogStep

        override = str(folder / "references" / "apcorr.asdf")
        own = {"override_apcorr": override, "fit_psf": False, "bkg_boxsize": 50}
        result: tuple[Any, Any] = SourceCatalogStep.call(model, **own, **parameters)
    return result


@pytest.fixture(scope="module")
def ours(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("ours")
    finalize_exposure(copy.deepcopy(oracle.exposure), None, {}, references(), VERSIONS, out)
    return {name: out / f"{BASE}_{suffix}" for name, suffix in _SUFFIXES.items()}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {name: leaf for key, inner in value.items() for name, leaf in leaves(inner, f"{path}.{key}").items()}
    return {path.removeprefix("."): value}


def asdf_leaves(path: Path) -> dict[str, Any]:
    return leaves(plain(open_container(path).tree["roman"]))


@pytest.mark.oracle
def test_the_catalog_file_has_the_same_metadata(oracle: Oracle, ours: dict[str, Path]) -> None:
    theirs, found = pq.read_schema(oracle.catalog).metadata, pq.read_schema(ours["catalog"]).metadata
    assert set(theirs) - set(found) == set()
    assert set(found) - set(theirs) == set()
    for key, value in theirs.items():
        if not key.decode().endswith(OUR_OWN):
            compare_same("products", "`_cat` metadata", found[key], value)


@pytest.mark.oracle
def test_the_catalog_columns_have_the_same_types_units_and_values(oracle: Oracle, ours: dict[str, Path]) -> None:
    theirs, found = pq.read_table(oracle.catalog), pq.read_table(ours["catalog"])
    assert found.schema.names == theirs.schema.names
    for field in theirs.schema:
        own = found.schema.field(field.name)
        assert own.type == field.type
        assert own.metadata == field.metadata
        compare("products", "`_cat` columns", found[field.name].to_numpy(), theirs[field.name].to_numpy(), bar=EQUAL)
    for path in (oracle.catalog, ours["catalog"]):
        assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "UNCOMPRESSED"


@pytest.mark.oracle
def test_the_segmentation_map_is_the_same(oracle: Oracle, ours: dict[str, Path]) -> None:
    theirs, found = asdf_leaves(oracle.segmentation), asdf_leaves(ours["segmentation"])
    assert found.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, ArrayNode):
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        elif not key.endswith(OUR_OWN):
            compare_same("products", "`_segm` metadata", found[key], value)
    with rdm.open(oracle.segmentation) as one, rdm.open(ours["segmentation"]) as other:
        for name in ("data", "detection_image"):
            compare("products", f"`_segm` `{name}`", np.asarray(other[name]), np.asarray(one[name]), bar=EQUAL)


@pytest.mark.oracle
def test_the_image_has_the_same_keys_and_dtypes(oracle: Oracle, ours: dict[str, Path]) -> None:
    theirs, found = asdf_leaves(oracle.image), asdf_leaves(ours["image"])
    allowed = ("meta.cal_logs", "meta.statistics")  # romancal's pipeline adds them at its end, a lone step does not
    for key in theirs.keys() ^ found.keys():
        assert key.startswith(allowed), key
    for key, value in theirs.items():
        if isinstance(value, ArrayNode):
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)


@pytest.mark.oracle
def test_the_wcs_product_has_the_same_keys_and_the_same_wcs(oracle: Oracle, ours: dict[str, Path]) -> None:
    theirs, found = asdf_leaves(oracle.wcs), asdf_leaves(ours["wcs"])
    assert {key for key in theirs if key.startswith("meta")} == {key for key in found if key.startswith("meta")}
    x, y = np.array([0.0, 50.0, 104.0]), np.array([0.0, 40.0, 104.0])
    with rdm.open(oracle.wcs) as one, rdm.open(ours["wcs"]) as other:
        compare("products", "`_wcs` positions", other.wcs_l1(x, y), one.wcs_l1(x, y), bar=EQUAL)
        compare("products", "`_wcs` positions", other.wcs_l2(x[:2], y[:2]), one.wcs_l2(x[:2], y[:2]), bar=EQUAL)
        assert one.wcs_l1.bounding_box == other.wcs_l1.bounding_box
        assert one.wcs_l1.available_frames == other.wcs_l1.available_frames


@pytest.mark.oracle
def test_tags_and_compression_are_the_same(oracle: Oracle, ours: dict[str, Path]) -> None:
    for name in ("image", "segmentation", "wcs"):
        theirs, found = open_container(getattr(oracle, name)), open_container(ours[name])
        assert getattr(found.tree["roman"], "_tag", None) == getattr(theirs.tree["roman"], "_tag", None)
        assert {block.compression for block in found.blocks} == {block.compression for block in theirs.blocks}


def test_the_data_models_would_write_the_same_parquet_and_find_it_valid(tmp_path: Path) -> None:
    exposure = image_exposure()
    write_catalog(tmp_path / "x_cat.parquet", exposure.catalog, exposure.meta, SOURCE_TAG)
    model = rdm.ImageSourceCatalogModel.create_minimal(tag=f"{ROMAN_TAG}image_source_catalog-2.1.0")
    image = {"filename": exposure.meta["filename"], "file_date": exposure.meta["file_date"]}
    for key, value in ({**exposure.meta, "image": image}).items():
        model.meta[key] = value
    for key in ("guide_star", "rcs", "ephemeris", "velocity_aberration", "cal_step"):
        del model.meta[key]
    model.meta.model_type = "ImageSourceCatalogModel"
    model.source_catalog = exposure.catalog
    (tmp_path / "models").mkdir()
    model.save(tmp_path / "models" / "x_cat.parquet")
    theirs, found = pq.read_table(tmp_path / "models" / "x_cat.parquet"), pq.read_table(tmp_path / "x_cat.parquet")
    without_date = [
        {key: value for key, value in table.schema.metadata.items() if key != b"roman.meta.file_date"}
        for table in (theirs, found)
    ]
    assert without_date[0] == without_date[1]
    same: list[pa.Table] = [table.replace_schema_metadata(None) for table in (theirs, found)]
    assert same[0].equals(same[1], check_metadata=True)


@pytest.mark.parametrize("size", [(50, 51), (50, 50)])
def test_statistics_equal_the_field_s_estimator(size: tuple[int, int]) -> None:
    data = np.random.default_rng(0).normal(3, 2, size).astype("f4")
    found = image_statistics(data, np.zeros(size, "u4"), np.ones(size, "f2"))
    assert found["image_median"] == float(np.median(data))
    assert found["image_rms"] == float(mad_std(data))
