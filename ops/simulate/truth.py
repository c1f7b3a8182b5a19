"""What went into an exposure, kept so that products can be judged: sources, rates, cosmic rays, pointing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ops.simulate.files import write_json, write_table, write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ops.simulate.cosmic_rays import CosmicRays
    from ops.simulate.plan import PlannedExposure
    from ops.simulate.scene import Sources
    from ops.simulate.sky import Galaxies, Stars

__all__ = ["cosmic_ray_columns", "source_columns", "write_pointing", "write_rate", "write_sources"]


def source_columns(objects: Stars | Galaxies, places: Sources, inside: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Columns of the sources on the frame: true sky position, pixel, magnitude, electrons and DN per second."""
    from ops.simulate.bandpass import MEAN_GAIN

    return {
        "id": objects.id[inside],
        "ra": objects.ra[inside],
        "dec": objects.dec[inside],
        "mag": objects.mag[inside],
        "x": places.x[inside],
        "y": places.y[inside],
        "electrons_per_s": places.rate[inside],
        "dn_per_s": places.rate[inside] / MEAN_GAIN,
    }


def cosmic_ray_columns(
    rays: CosmicRays,
    *,
    gain: NDArray[np.float32],
    read_noise: NDArray[np.float32],
    rate: NDArray[np.float32],
    read_pattern: tuple[tuple[int, ...], ...],
    frame_time: float,
) -> dict[str, NDArray[Any]]:
    """Columns of the hit pixels.

    ``row`` and ``column`` count in the science frame, ``read`` from 1; ``resultant`` (from 0) is the first with the
    charge, -1 where no read comes after it; ``dn`` is the step in linear DN, and ``sigma`` the step over the noise of
    the difference between that resultant and the one before (0 in the first resultant, where there is none). ``whole``
    tells that the resultant has the charge in all of its reads.

    Parameters
    ----------
    rate : ndarray, float32, (R, 4096)
        True DN per second, dark included.
    """
    row, read, column, electrons = rays.hits.T
    firsts = np.array([reads[0] for reads in read_pattern])
    lasts = np.array([reads[-1] for reads in read_pattern])
    counts = np.array([len(reads) for reads in read_pattern], dtype=np.float64)
    means = np.array([float(np.mean(reads)) for reads in read_pattern])
    resultant = np.searchsorted(lasts, read + 1)
    seen = resultant < len(read_pattern)
    current = np.minimum(resultant, len(read_pattern) - 1)
    before = np.maximum(current - 1, 0)
    dn = electrons / gain[row, column]
    poisson = rate[row, column] * frame_time * (means[current] - means[before]) / gain[row, column]
    white = read_noise[row, column] ** 2 * (1 / counts[current] + 1 / counts[before])
    sigma = np.where(seen & (resultant > 0), dn / np.sqrt(np.maximum(poisson, 0) + white), 0.0)
    return {
        "event": rays.event,
        "row": row - 4,
        "column": column - 4,
        "read": read + 1,
        "resultant": np.where(seen, resultant, -1),
        "whole": seen & (firsts[current] >= read + 1),
        "electrons": electrons,
        "dn": dn,
        "sigma": sigma,
    }


def write_sources(folder: Path, name: str, tables: dict[str, dict[str, NDArray[Any]]]) -> None:
    """Write ``<name>_<table>.parquet`` for each table."""
    for table, columns in tables.items():
        write_table(folder / f"{name}_{table}.parquet", columns)


def write_rate(folder: Path, name: str, rate: NDArray[np.float32]) -> None:
    """Write the rate image that a perfect calibration would give: float32 (R - 8, 4088), DN/s."""
    write_tree(folder / f"{name}_rate.asdf", {"rate": rate, "unit": "DN / s"})


def write_pointing(folder: Path, name: str, exposure: PlannedExposure, v2_ref: float, v3_ref: float) -> None:
    """Write recorded and true pointing of the detector's reference point (degrees), and their difference."""
    document: dict[str, Any] = {"variant": str(exposure.variant), "aberration_scale": exposure.aberration[2]}
    for key, attitude in (("recorded", exposure.recorded_attitude), ("true", exposure.true_attitude)):
        ra, dec, roll = attitude.at(v2_ref, v3_ref)
        document[key] = {"ra_ref": ra, "dec_ref": dec, "roll_ref": roll}
    document["error"] = {
        "east_mas": exposure.error.east_mas,
        "north_mas": exposure.error.north_mas,
        "roll_arcsec": exposure.error.roll_arcsec,
    }
    write_json(folder / f"{name}_pointing.json", document)
