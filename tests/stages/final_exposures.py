"""Small exposures as the last stage gets them, and the reference and solution that go with them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from stages.asdf_container import ROMAN_TAG
from stages.exposure import CAL_STEP_KEYS, Exposure, Level
from stages.wcs import wcs_numbers
from tests.stages.input_files import complete_meta
from tests.stages.ramp_frames import FakeReference

ROWS, COLUMNS = 24, 4088
SOURCE_TAG = f"{ROMAN_TAG}wfi_science_raw-2.1.0"
VERSIONS = {"rampstream": "0.1.0"}
FLAT_PATH = "/somewhere/roman_flat.asdf"


@functools.cache
def distortion_model() -> Any:
    from tests.stages.sky_scene import distortion

    return distortion(1312.949, -1040.785)


def references() -> dict[str, Any]:
    return {"distortion": FakeReference("/refs/distortion.asdf", coordinate_distortion_transform=distortion_model())}


def catalog(n: int = 5) -> Any:
    """A catalog with all columns of the schema; positions inside the image."""
    from astropy.table import Column, Table
    from roman_datamodels import datamodels as rdm

    empty = rdm.ImageSourceCatalogModel.create_minimal().create_empty_catalog()
    rng = np.random.default_rng(3)
    columns = []
    for name in empty.colnames:
        unit = None if str(empty[name].unit) == "none" else empty[name].unit
        for aperture in ("01", "02", "04", "08", "16") if "aper00" in name else ("",):
            values = rng.uniform(1, ROWS - 2, n).astype(empty[name].dtype)
            own = name.replace("aper00", f"aper{aperture}")
            columns.append(Column(values, name=own, unit=unit, description=empty[name].info.description))
    table = Table(columns)
    table.meta |= {
        "date": "2027-03-01 00:00:00 UTC", "versions": {"numpy": "2"}, "kron_params": (2.5, 1.4, 0.0),
        "ee_fractions": np.array([0.1, 0.2], "f4"),
    }  # fmt: skip
    return table


def image_exposure(exposure_type: str = "WFI_IMAGE", *, with_catalog: bool = True, seed: int = 0) -> Exposure:
    """An exposure after the last stage that its type visits."""
    rng = np.random.default_rng(seed)
    shape = (ROWS, COLUMNS)
    arrays: dict[str, Any] = {
        "data": rng.normal(1, 0.1, shape).astype("f4"),
        "dq": (rng.random(shape) < 0.1).astype("u4"),
        "amp33": rng.integers(0, 9, (3, ROWS + 8, 128), dtype="u2"),
        **{name: rng.uniform(0.1, 1, shape).astype("f2") for name in ("err", "var_poisson", "chisq", "dumo")},
        **_borders(rng),
    }
    meta = complete_meta(exposure__type=exposure_type, product_type="l2", ref_file__flat=FLAT_PATH)
    meta["cal_step"] = dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE") | dict.fromkeys(("dq_init", "ramp_fit"), "COMPLETE")
    meta["photometry"] = {
        "conversion_megajanskys": 0.5,
        "conversion_megajanskys_uncertainty": 0.0,
        "pixel_area": 2.8e-13,
    }
    exposure = Exposure("r0000101001001001001_0001_wfi01", Level.IMAGE, meta, arrays, source_tag=SOURCE_TAG)
    exposure.wcs = wcs_numbers(meta, shape)
    exposure.logs = ["2027-03-01T00:00:00.000Z :: stages.dq_init :: INFO :: done"]
    if with_catalog and exposure_type in {"WFI_IMAGE", "WFI_LOLO"}:
        exposure.catalog = catalog()
        exposure.arrays["segmentation"] = rng.integers(0, 5, shape, dtype="u4")
        exposure.arrays["detection_image"] = rng.normal(size=shape).astype("f4")
        exposure.meta["cal_step"]["source_catalog"] = "COMPLETE"
    return exposure


def saturated_exposure() -> Exposure:
    """A ramp with every element saturated, as saturation leaves it."""
    rng = np.random.default_rng(0)
    shape = (ROWS + 8, COLUMNS + 8)
    arrays: dict[str, Any] = {
        "data": np.full((3, *shape), 60000, "f4"),
        "groupdq": np.full((3, *shape), 2, "u1"),
        "pixeldq": rng.integers(0, 2, shape, dtype="u4") * np.uint32(1 << 30),
        "amp33": rng.integers(0, 9, (3, ROWS + 8, 128), dtype="u2"),
        **_borders(rng),
    }
    meta = complete_meta()
    meta["cal_step"] = dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE") | dict.fromkeys(("dq_init", "saturation"), "COMPLETE")
    return Exposure("r0000101001001001001_0001_wfi01", Level.RAMP, meta, arrays, source_tag=SOURCE_TAG)


def solution(exposure: Exposure, *, status: str = "COMPLETE") -> dict[str, Any]:
    """The joint alignment's answer: a small shift."""
    complete = status == "COMPLETE"
    correction = {"matrix": [[1.0, 0.0], [0.0, 1.0]], "shift": [0.25, -0.5]}
    fit = {
        "status": "SUCCESS" if complete else "FAILED",
        "nmatches": 4,
        "shift": [0.25, -0.5],
        "rmse": 0.01,
        "n_detector": 1,
    }
    member = {
        "status": status,
        "reason": None,
        "corrections": [correction] if complete else [],
        "wcs_fit_results": None if status == "SKIPPED" else fit,
        "name": "FIT-LVL2-GAIADR3_S3" if complete else None,
    }
    return {"members": {exposure.id: member}, "summary": {}}


def _borders(rng: np.random.Generator) -> dict[str, Any]:
    sides = {"left": (ROWS + 8, 4), "right": (ROWS + 8, 4), "top": (4, COLUMNS + 8), "bottom": (4, COLUMNS + 8)}
    borders: dict[str, Any] = {}
    for side, shape in sides.items():
        borders[f"border_ref_pix_{side}"] = rng.normal(size=(3, *shape)).astype("f4")
        borders[f"dq_border_ref_pix_{side}"] = rng.integers(0, 9, shape, dtype="u4")
    return borders
