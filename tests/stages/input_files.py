"""Small input and reference files for tests, written without the data models (which take seconds to import)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
from astropy.time import Time

from stages.asdf_arrays import Tagged, write_asdf
from stages.asdf_container import ROMAN_TAG

NAME = "r0000101001001001001_0001_wfi01_uncal.asdf"
PATTERN = [[1], [2, 3], [4, 5, 6]]


def complete_meta(**changes: Any) -> dict[str, Any]:
    """Metadata with all that the schemas require; ``group__key=value`` changes one (``...`` removes it)."""
    meta: dict[str, Any] = {
        "calibration_software_name": "RomanCAL", "calibration_software_version": "1", "product_type": "l1",
        "filename": NAME, "file_date": Time("2027-03-02T00:00:00.000"), "model_type": "ScienceRawModel",
        "origin": "STSCI/SOC", "prd_version": "1", "sdf_software_version": "1", "telescope": "ROMAN",
        "coordinates": {"reference_frame": "ICRS"},
        "ephemeris": {
            "ephemeris_reference_frame": "EME2000", "type": "DEFINITIVE", "time": 60000.5,
            **{f"{kind}_{axis}": 1.5 for kind in ("spatial", "velocity") for axis in "xyz"},
        },
        "exposure": {
            "type": "WFI_IMAGE", "start_time": Time("2027-03-01T00:00:00.123"),
            "end_time": Time("2027-03-01T00:03:00.000"), "engineering_quality": "OK", "ma_table_id": "SCI0001",
            "nresultants": len(PATTERN), "data_problem": None, "frame_time": 3.04, "exposure_time": 18.24,
            "effective_exposure_time": 18.24, "ma_table_name": "High Latitude", "ma_table_number": 1,
            "read_pattern": copy.deepcopy(PATTERN), "truncated": False, "hga_move": False,
        },
        "guide_star": {
            "guide_window_id": "1", "guide_mode": "WIM-ACQ", "window_xstart": -1, "window_ystart": -1,
            "window_xstop": 15, "window_ystop": 15, "guide_star_id": "1", "epoch": "J2000",
        },
        "instrument": {"name": "WFI", "detector": "WFI01", "optical_element": "F158"},
        "observation": {
            "observation_id": "00001010010010010010001", "visit_id": "0000101001001001001", "program": 1,
            "execution_plan": 1, "pass": 1, "segment": 1, "observation": 1, "visit": 1, "visit_file_group": 1,
            "visit_file_sequence": 1, "visit_file_activity": "01", "exposure": 1, "wfi_parallel": False,
        },
        "pointing": {
            "pa_aperture": 10.0, "pointing_engineering_source": "CALCULATED", "ra_v1": 270.0, "dec_v1": 66.0,
            "pa_v3": 10.0, "target_aperture": "WFI_CEN", "target_ra": 270.0, "target_dec": 66.0,
        },
        "program": {
            "title": "t", "investigator_name": "n", "category": "GO", "subcategory": "None", "science_category": "s",
        },
        "rcs": {"active": False, "electronics": "A", "bank": "1", "led": None, "counts": 0},
        "ref_file": {
            "crds": {"version": "13.0", "context": "roman_0001.pmap"},
            **dict.fromkeys(
                (
                    "apcorr", "area", "dark", "darkdecaysignal", "distortion", "epsf", "mask", "flat", "gain",
                    "readnoise", "linearity", "inverselinearity", "integralnonlinearity", "photom", "saturation",
                    "refpix",
                ), "N/A",
            ),
        },
        "velocity_aberration": {"ra_reference": 270.0, "dec_reference": 66.0, "scale_factor": 1.00001},
        "visit": {
            "dither": {"primary_name": None, "subpixel_name": None, "executed_pattern": None}, "type": "PRIME_TARGETED",
            "start_time": Time("2027-03-01T00:00:00.000"), "nexposures": 1, "internal_target": False,
        },
        "wcsinfo": {
            "aperture_name": "WFI01_FULL", "v2_ref": 1312.949, "v3_ref": -1040.785, "vparity": -1, "v3yangle": -60.0,
            "ra_ref": 270.0, "dec_ref": 66.0, "roll_ref": 10.0, "s_region": "?",
        },
    }  # fmt: skip
    for name, value in changes.items():
        *groups, key = name.split("__")
        node = meta
        for group in groups:
            node = node[group]
        if value is ...:
            del node[key]
        else:
            node[key] = value
    return meta


def write_l1(
    path: Path, *, rows: int = 16, meta: dict[str, Any] | None = None, tag: str = "wfi_science_raw-2.1.0", **arrays: Any
) -> Path:
    """An L1 file; arrays given as None are left out."""
    n = len(PATTERN)
    rng = np.random.default_rng(1)
    content: dict[str, Any] = {
        "meta": complete_meta() if meta is None else meta,
        "data": rng.integers(0, 60000, (n, rows, 4096), dtype=np.uint16),
        "amp33": rng.integers(0, 60000, (n, rows, 128), dtype=np.uint16),
        **arrays,
    }
    content = {key: value for key, value in content.items() if value is not None}
    write_asdf(path, {"roman": Tagged(ROMAN_TAG + tag, content)})
    return path


def write_reference(
    path: Path,
    reftype: str,
    *,
    detector: str | None = "WFI01",
    useafter: str = "2020-01-01T00:00:00.000",
    element: str | None = None,
    exposure: dict[str, str] | None = None,
    **content: Any,
) -> Path:
    """A reference file with the metadata by which it is selected."""
    instrument = {"name": "WFI"} | ({"detector": detector} if detector else {})
    if element:
        instrument["optical_element"] = element
    meta: dict[str, Any] = {"reftype": reftype.upper(), "useafter": Time(useafter), "instrument": instrument}
    if exposure:
        meta["exposure"] = exposure
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = f"{ROMAN_TAG}reference_files/{reftype.lower()}-2.0.0"
    write_asdf(path, {"roman": Tagged(tag, {"meta": meta, **content})})
    return path
