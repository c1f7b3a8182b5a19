"""What an input file's metadata must hold: the keys that every product's schema requires, so that a gap shows at once.

The list is that of RAD's common metadata, required alike of L1, ramp and L2 files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from numbers import Number
from typing import Any

from stages.exposure import ExposureType
from stream.failure import PermanentError

__all__ = ["check_metadata", "check_read_pattern"]

_REQUIRED: dict[str, tuple[str, ...]] = {
    "": (
        "calibration_software_name", "calibration_software_version", "product_type", "filename", "file_date",
        "model_type", "origin", "prd_version", "sdf_software_version", "telescope",
    ),
    "coordinates": ("reference_frame",),
    "ephemeris": (
        "ephemeris_reference_frame", "type", "time", "spatial_x", "spatial_y", "spatial_z", "velocity_x", "velocity_y",
        "velocity_z",
    ),
    "exposure": (
        "type", "start_time", "end_time", "engineering_quality", "ma_table_id", "nresultants", "data_problem",
        "frame_time", "exposure_time", "effective_exposure_time", "ma_table_name", "ma_table_number", "read_pattern",
        "truncated", "hga_move",
    ),
    "guide_star": (
        "guide_window_id", "guide_mode", "window_xstart", "window_ystart", "window_xstop", "window_ystop",
        "guide_star_id", "epoch",
    ),
    "instrument": ("name", "detector", "optical_element"),
    "observation": (
        "observation_id", "visit_id", "program", "execution_plan", "pass", "segment", "observation", "visit",
        "visit_file_group", "visit_file_sequence", "visit_file_activity", "exposure", "wfi_parallel",
    ),
    "pointing": (
        "pa_aperture", "pointing_engineering_source", "ra_v1", "dec_v1", "pa_v3", "target_aperture", "target_ra",
        "target_dec",
    ),
    "program": ("title", "investigator_name", "category", "subcategory", "science_category"),
    "rcs": ("active", "electronics", "bank", "led", "counts"),
    "ref_file": (
        "crds", "apcorr", "area", "dark", "darkdecaysignal", "distortion", "epsf", "mask", "flat", "gain", "readnoise",
        "linearity", "inverselinearity", "integralnonlinearity", "photom", "saturation", "refpix",
    ),
    "velocity_aberration": ("ra_reference", "dec_reference", "scale_factor"),
    "visit": ("dither", "type", "start_time", "nexposures", "internal_target"),
    "wcsinfo": (
        "aperture_name", "v2_ref", "v3_ref", "vparity", "v3yangle", "ra_ref", "dec_ref", "roll_ref", "s_region",
    ),
}  # fmt: skip

_NUMBERS = (
    "exposure.frame_time", "velocity_aberration.scale_factor", "wcsinfo.v2_ref", "wcsinfo.v3_ref", "wcsinfo.ra_ref",
    "wcsinfo.dec_ref", "wcsinfo.roll_ref", "wcsinfo.vparity", "wcsinfo.v3yangle", "guide_star.window_xstart",
    "guide_star.window_xstop", "guide_star.window_ystart", "guide_star.window_ystop",
)  # fmt: skip
_TIMES = ("exposure.start_time", "exposure.end_time")
_DETECTORS = frozenset(f"WFI{n:02}" for n in range(1, 19))
_ELEMENTS = frozenset(
    "F062 F087 F106 F129 F146 F158 F184 F213 GRISM PRISM DARK NOT_CONFIGURED".split()  # noqa: SIM905
)


def check_metadata(source: str, meta: Mapping[str, Any]) -> None:
    """Check that the metadata are complete and that the values which decide the processing make sense.

    Raises
    ------
    PermanentError
        Names the file, every missing key, or the field with what was expected and found.
    """
    missing = []
    for group, keys in _REQUIRED.items():
        node = meta.get(group) if group else meta
        if not isinstance(node, Mapping):
            missing.append(f"meta.{group}")
            continue
        missing += [f"meta.{group + '.' if group else ''}{key}" for key in keys if key not in node]
    if missing:
        raise PermanentError(f"{source}: {len(missing)} required metadata are missing: {', '.join(missing)}")
    _one_of(source, "exposure.type", meta["exposure"]["type"], frozenset(str(t) for t in ExposureType))
    _one_of(source, "instrument.detector", meta["instrument"]["detector"], _DETECTORS)
    _one_of(source, "instrument.optical_element", meta["instrument"]["optical_element"], _ELEMENTS)
    for name in _NUMBERS:
        group, key = name.split(".")
        value = meta[group][key]
        if value is None and name == "velocity_aberration.scale_factor":
            continue
        if type(value) not in {int, float} or not math.isfinite(value):
            raise PermanentError(f"{source}: meta.{name} is {value!r}; expected a number")
    if not meta["exposure"]["frame_time"] > 0:
        raise PermanentError(
            f"{source}: meta.exposure.frame_time is {meta['exposure']['frame_time']!r} s; expected more than 0"
        )
    for name in _TIMES:
        group, key = name.split(".")
        if isinstance(meta[group][key], str | Number | list | datetime) or meta[group][key] is None:
            raise PermanentError(f"{source}: meta.{name} is {meta[group][key]!r}; expected a time")


def check_read_pattern(source: str, read_pattern: Any, *, resultants: int | None) -> None:
    """Check that the read pattern lists increasing read numbers from 1 on, one non-empty list a resultant.

    Raises
    ------
    PermanentError
        Names the file, the resultant and what is wrong.
    """
    where = f"{source}: meta.exposure.read_pattern"
    if not isinstance(read_pattern, list) or not read_pattern:
        raise PermanentError(f"{where} is {read_pattern!r}; expected one list of read numbers for each resultant")
    if resultants is not None and len(read_pattern) != resultants:
        raise PermanentError(f"{where} has {len(read_pattern)} resultants, the data have {resultants}")
    last = 0
    for number, reads in enumerate(read_pattern):
        if not isinstance(reads, list) or not reads:
            raise PermanentError(f"{where}[{number}] is {reads!r}; expected a list with at least one read number")
        for read in reads:
            if not isinstance(read, int) or isinstance(read, bool):
                raise PermanentError(f"{where}[{number}] holds {read!r}; expected whole read numbers")
            if read <= last:
                raise PermanentError(
                    f"{where}[{number}] holds read {read} after read {last}; expected increasing numbers from 1 on"
                )
            last = read


def _one_of(source: str, field: str, value: Any, allowed: frozenset[str]) -> None:
    if value not in allowed:
        raise PermanentError(f"{source}: meta.{field} is {value!r}; expected one of {', '.join(sorted(allowed))}")
