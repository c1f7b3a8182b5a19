"""The content digest is the measure of identical products: it tells every difference but when and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.time import Time

from stages.asdf_arrays import Tagged, write_asdf
from stages.asdf_container import ROMAN_TAG
from stages.exposure import Exposure
from stages.finalize.catalog_product import write_catalog
from stages.finalize.content_digest import array_digest, array_digests, content_digest
from stages.finalize.product_file import required_metadata
from tests.stages.final_exposures import FLAT_PATH, image_exposure


def products(
    out: Path, change: Callable[[Exposure], Any] = lambda _: None, digests: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Digests of files with the content of the products, written without the models' slow validation."""
    exposure = image_exposure()
    change(exposure)
    out.mkdir(exist_ok=True)
    meta, arrays = exposure.meta, exposure.arrays
    image = {name: array for name, array in arrays.items() if name not in {"segmentation", "detection_image"}}
    image["meta"] = meta | {
        "cal_logs": exposure.logs,
        "wcs": Tagged("tag:stsci.edu:gwcs/wcs-1.4.0", exposure.wcs or {}),
    }
    maps = {"data": arrays["segmentation"], "detection_image": arrays["detection_image"]}
    maps["meta"] = required_metadata(meta, "SegmentationMapModel", "segmentation_map", exposure.source_tag)
    write_asdf(out / "cal.asdf", {"history": [str(out)], "roman": Tagged(f"{ROMAN_TAG}wfi_image-2.1.0", image)})
    write_asdf(out / "segm.asdf", {"roman": Tagged(f"{ROMAN_TAG}segmentation_map-2.1.0", maps)})
    write_catalog(out / "cat.parquet", exposure.catalog, meta, exposure.source_tag)
    return {path.name: content_digest(path, reference_digests=digests) for path in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return products(tmp_path_factory.mktemp("reference"))


def at(array: str, index: Any, value: Any) -> Callable[[Exposure], Any]:
    return lambda exposure: exposure.arrays[array].__setitem__(index, value)


def meta(*keys: str, value: Any) -> Callable[[Exposure], Any]:
    def change(exposure: Exposure) -> None:
        node = exposure.meta
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda exposure: exposure.logs.append("x"),
        meta("file_date", value=Time("2028-01-01")),
        meta("ref_file", "flat", value="/elsewhere/roman_flat.asdf"),
        lambda exposure: exposure.catalog.meta.update(date="2028-01-01 00:00:00 UTC"),
    ],
    ids=["logs", "file_date", "reference_folder", "catalog_date"],
)
def test_when_and_where_do_not_count(tmp_path: Path, reference: dict[str, str], change: Any) -> None:
    assert products(tmp_path, change) == reference


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        (at("data", (3, 5), np.float32(1.0000001)), {"cal.asdf"}),
        (at("dq", (0, 0), 1 << 20), {"cal.asdf"}),
        (at("border_ref_pix_left", (0, 0, 0), 9), {"cal.asdf"}),
        (at("segmentation", (0, 0), 77), {"segm.asdf"}),
        (at("detection_image", (0, 0), 77), {"segm.asdf"}),
        (lambda exposure: exposure.catalog["kron_flux"].__setitem__(0, 7.5), {"cat.parquet"}),
        (lambda exposure: setattr(exposure.catalog["kron_flux"], "unit", "Jy"), {"cat.parquet"}),
        (lambda exposure: exposure.catalog.meta.update(kron_params=(2.5, 1.4, 1.0)), {"cat.parquet"}),
        (meta("photometry", "pixel_area", value=1e-13), {"cal.asdf", "cat.parquet", "segm.asdf"}),
        (meta("cal_step", "refpix", value="SKIPPED"), {"cal.asdf"}),
        (meta("exposure", "start_time", value=Time("2027-03-01T00:00:00.124")), None),
        (meta("ref_file", "flat", value="/elsewhere/other.asdf"), {"cal.asdf", "cat.parquet", "segm.asdf"}),
        (lambda exposure: exposure.wcs.update(ra_ref=270.0 + 1e-13 * 3), {"cal.asdf"}),
    ],
)
def test_every_change_of_content_counts(
    tmp_path: Path, reference: dict[str, str], change: Any, touched: set[str] | None
) -> None:
    found = products(tmp_path, change)
    assert {name for name in reference if found[name] != reference[name]} == (touched or set(reference))


def test_references_count_by_content_where_it_is_known(tmp_path: Path, reference: dict[str, str]) -> None:
    known = products(tmp_path / "a", digests={FLAT_PATH: "abc"})
    moved = products(
        tmp_path / "b", meta("ref_file", "flat", value="/x/renamed.asdf"), digests={"/x/renamed.asdf": "abc"}
    )
    changed = products(tmp_path / "c", digests={FLAT_PATH: "def"})
    assert known == moved
    assert known["cal.asdf"] != changed["cal.asdf"] != reference["cal.asdf"]


def test_arrays_still_in_memory_need_not_be_read_again(tmp_path: Path, reference: dict[str, str]) -> None:
    products(tmp_path)
    known = array_digests(image_exposure().arrays)
    assert content_digest(tmp_path / "cal.asdf", known_arrays=known) == reference["cal.asdf"]
    known["data"] = "other"
    assert content_digest(tmp_path / "cal.asdf", known_arrays=known) != reference["cal.asdf"]


def test_array_digests_tell_dtype_shape_and_values_and_not_the_layout() -> None:
    array = np.arange(12, dtype="f4").reshape(3, 4)
    assert array_digest(array) == array_digest(np.asfortranarray(array)) == array_digest(array.astype(">f4"))
    different = [array, array.astype("f8"), array.reshape(4, 3), array + 1, array[:2], -0.0 * array]
    assert len({array_digest(one) for one in different}) == len(different)
    named = {str(n): one for n, one in enumerate(different)}
    assert array_digests(named, threads=2) == array_digests(named, threads=1)
