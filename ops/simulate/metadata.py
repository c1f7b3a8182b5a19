"""Metadata of an L1 exposure: every field that the schema asks for, with consistent values. Not its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ops.simulate.detector import ENCODING_OFFSET
from ops.simulate.focal_plane import (
    CENTER_V2,
    CENTER_V3,
    V3_IDEAL_ANGLE,
    Attitude,
    DetectorGeometry,
    angles,
    pixels_to_sky,
    unit_vector,
)
from ops.simulate.optics import JITTER_MAS
from ops.simulate.options import SCIENCE_COLUMNS
from ops.simulate.sky import TARGET_DEC, TARGET_RA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.time import Time
    from numpy.typing import NDArray

    from ops.simulate.plan import PlannedExposure

__all__ = ["Ephemeris", "ephemeris", "fill_metadata"]

_LIGHT_KM_S = 299_792.458
_GUIDE_WINDOW = 16


@dataclass(frozen=True)
class Ephemeris:
    """Where the observatory is and how fast it moves: km and km/s, ICRS axes about the Solar System's barycentre."""

    mjd: float
    position: NDArray[np.float64]
    velocity: NDArray[np.float64]

    def aberration(self, ra: float, dec: float) -> tuple[float, float, float]:
        """Apparent (ra, dec) in degrees and the scale factor of differential aberration for a target."""
        beta = self.velocity / _LIGHT_KM_S
        square = float(beta @ beta)
        root = np.sqrt(1 - square)
        target = unit_vector(ra, dec)
        along = float(target @ beta)
        apparent = (root * target + beta * (1 + (1 - root) * along / square)) / (1 + along)
        seen_ra, seen_dec = angles(apparent)
        return float(seen_ra) % 360.0, float(seen_dec), float((1 + along) / root)


def ephemeris(time: Time) -> Ephemeris:
    """Ephemeris of the Earth, from which the observatory at L2 differs by too little to matter here."""
    from astropy.coordinates import get_body_barycentric_posvel, solar_system_ephemeris

    with solar_system_ephemeris.set("builtin"):
        position, velocity = get_body_barycentric_posvel("earth", time)
    return Ephemeris(
        float(time.mjd),
        np.array(position.xyz.to_value("km"), dtype=np.float64),
        np.array(velocity.xyz.to_value("km/s"), dtype=np.float64),
    )


def _footprint(attitude: Attitude, geometry: DetectorGeometry, scale: float) -> str:
    x = np.array([-0.5, -0.5, SCIENCE_COLUMNS - 0.5, SCIENCE_COLUMNS - 0.5])
    y = np.array([-0.5, geometry.science_rows - 0.5, geometry.science_rows - 0.5, -0.5])
    ra, dec = pixels_to_sky(attitude, geometry, scale, x, y)
    numbers = " ".join(f"{value:.9f}" for pair in zip(ra, dec, strict=True) for value in pair)
    return f"POLYGON ICRS  {numbers}"


def _observation(exposure: PlannedExposure) -> dict[str, Any]:
    return {
        "observation_id": exposure.observation_id,
        "visit_id": exposure.visit_id,
        "program": 1,
        "execution_plan": 1,
        "pass": 1,
        "segment": 1,
        "observation": exposure.observation,
        "visit": 1,
        "visit_file_group": 2,
        "visit_file_sequence": 1,
        "visit_file_activity": "01",
        "exposure": exposure.number,
        "wfi_parallel": False,
    }


def _exposure(exposure: PlannedExposure, read_pattern: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    frame_time = exposure.kind.frame_time
    return {
        "type": exposure.kind.exposure_type,
        "start_time": exposure.start,
        "end_time": exposure.end,
        "engineering_quality": "OK",
        "ma_table_id": "SIM-1",
        "nresultants": len(read_pattern),
        "data_problem": None,
        "frame_time": frame_time,
        "exposure_time": frame_time * read_pattern[-1][-1],
        "effective_exposure_time": frame_time * float(np.mean(read_pattern[-1]) - np.mean(read_pattern[0])),
        "ma_table_name": "SIMULATED",
        "ma_table_number": 1,
        "read_pattern": [list(reads) for reads in read_pattern],
        "truncated": False,
        "hga_move": False,
    }


def _guide_star(rows: int) -> dict[str, Any]:
    # The pipeline asks that both starts lie within the number of rows.
    start_x, start_y = rows // 3, rows // 2
    return {
        "guide_window_id": "SIM-GW-1",
        "guide_mode": "WIM-TRACK",
        "window_xstart": start_x,
        "window_ystart": start_y,
        "window_xstop": start_x + _GUIDE_WINDOW,
        "window_ystop": start_y + _GUIDE_WINDOW,
        "guide_star_id": "SIM-1",
        "epoch": "2016.0",
        "jitter_major": JITTER_MAS,
        "jitter_minor": JITTER_MAS,
        "jitter_position_angle": 0.0,
    }


def _pointing(attitude: Attitude) -> dict[str, Any]:
    ra_v1, dec_v1, pa_v3 = attitude.at(0.0, 0.0)
    roll = attitude.at(CENTER_V2, CENTER_V3)[2]
    return {
        "pa_aperture": (roll + V3_IDEAL_ANGLE) % 360.0,
        "pointing_engineering_source": "CALCULATED",
        "ra_v1": ra_v1,
        "dec_v1": dec_v1,
        "pa_v3": pa_v3,
        "target_aperture": "WFI_CEN",
        "target_ra": TARGET_RA,
        "target_dec": TARGET_DEC,
    }


def _ephemeris_node(where: Ephemeris) -> dict[str, Any]:
    node: dict[str, Any] = {"ephemeris_reference_frame": "ICRS", "type": "PREDICTED", "time": where.mjd}
    for axis, position, velocity in zip("xyz", where.position, where.velocity, strict=True):
        node[f"spatial_{axis}"] = float(position)
        node[f"velocity_{axis}"] = float(velocity)
    return node


def fill_metadata(
    meta: Any, exposure: PlannedExposure, geometry: DetectorGeometry, read_pattern: tuple[tuple[int, ...], ...]
) -> None:
    """Fill the metadata of a raw model.

    Parameters
    ----------
    meta : node of the data model
        With placeholders for all that the schema asks for; changed in place.
    exposure : PlannedExposure
        What is exposed, when, and where the telescope believes to point.
    geometry : DetectorGeometry
        Of the detector.
    read_pattern : tuple of tuples
        Reads of each resultant.
    """
    attitude = exposure.recorded_attitude
    ra_ref, dec_ref, roll_ref = attitude.at(geometry.v2_ref, geometry.v3_ref)
    seen_ra, seen_dec, scale = exposure.aberration
    flat_lamp = exposure.kind.light == "lamp"
    groups: Mapping[str, dict[str, Any]] = {
        "coordinates": {"reference_frame": "ICRS"},
        "ephemeris": _ephemeris_node(exposure.ephemeris),
        "exposure": _exposure(exposure, read_pattern),
        "guide_star": _guide_star(geometry.science_rows + 8),
        "instrument": {
            "name": "WFI",
            "detector": geometry.detector,
            "optical_element": exposure.element,
            "data_encoding_offset": ENCODING_OFFSET,
        },
        "observation": _observation(exposure),
        "pointing": _pointing(attitude),
        "program": {
            "title": "Simulated exposures",
            "investigator_name": "Rampstream",
            "category": "CAL",
            "subcategory": "None",
            "science_category": "None",
        },
        "rcs": {
            "active": flat_lamp,
            "electronics": "A" if flat_lamp else None,
            "bank": "1" if flat_lamp else None,
            "led": "3" if flat_lamp else None,
            "counts": 30000 if flat_lamp else 0,
        },
        "velocity_aberration": {"ra_reference": seen_ra, "dec_reference": seen_dec, "scale_factor": scale},
        "visit": {
            "dither": {"primary_name": None, "subpixel_name": None, "executed_pattern": None},
            "type": "PRIME_TARGETED_FIXED",
            "start_time": exposure.visit_start,
            "nexposures": exposure.exposures_in_visit,
            "internal_target": exposure.kind.light not in {"sky", "dispersed", "defocused"},
        },
        "wcsinfo": {
            "aperture_name": f"{geometry.detector}_FULL",
            "v2_ref": geometry.v2_ref,
            "v3_ref": geometry.v3_ref,
            "vparity": -1,
            "v3yangle": V3_IDEAL_ANGLE,
            "ra_ref": ra_ref,
            "dec_ref": dec_ref,
            "roll_ref": roll_ref,
            "s_region": _footprint(attitude, geometry, scale),
        },
    }
    for group, values in groups.items():
        for key, value in values.items():
            meta[group][key] = value
    for key in meta["ref_file"]:
        if key != "crds":
            meta["ref_file"][key] = "N/A"
    meta["ref_file"]["crds"]["version"] = "0.0.0"
    meta["ref_file"]["crds"]["context"] = "simulated"
    basic = {
        "calibration_software_name": "rampstream simulate",
        "calibration_software_version": "1",
        "product_type": "l1",
        "filename": exposure.file_name(geometry.detector),
        "file_date": exposure.end,
        "origin": "STSCI/SOC",
        "prd_version": "0.0.0",
        "sdf_software_version": "0.0.0",
        "telescope": "ROMAN",
    }
    for key, value in basic.items():
        meta[key] = value
