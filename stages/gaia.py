"""Reference stars from a local table, and their places at an epoch. Not the catalogs that are asked for a cone of sky.

A table is used whole; what such a catalog answers is kept as a table (`write_star_table`) and read as any other. Column
names, in any case: ``ra`` and ``dec`` (taken as degrees whatever their unit), else ``sky_centroid``; ``mag`` (or
``phot_g_mean_mag``), ``weight``; and for the motion ``pmra`` (with cos dec), ``pmdec`` (mas/yr), ``parallax`` (mas) and
``ref_epoch`` or ``epoch`` (decimal year). A table that lacks any of the latter four is taken as it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stream.failure import PermanentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = [
    "NO_STARS",
    "StarList",
    "StarMotion",
    "barycentric_earth",
    "decimal_year",
    "propagate",
    "read_star_table",
    "star_table_digest",
    "write_star_table",
]

PARQUET_MAGIC = b"PAR1"

MAS_PER_RADIAN = 180.0 * 3600.0 * 1000.0 / np.pi


@dataclass(frozen=True, slots=True)
class StarMotion:
    """Astrometric parameters, each an f8 array of shape (n,); NaN where a star lacks them."""

    epoch: NDArray[np.float64]
    """Epoch of the position, decimal year."""
    pmra: NDArray[np.float64]
    """Proper motion in RA times cos(dec), mas/yr."""
    pmdec: NDArray[np.float64]
    """mas/yr."""
    parallax: NDArray[np.float64]
    """mas."""


@dataclass(frozen=True, slots=True)
class StarList:
    """Reference stars.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,), f8
        ICRS degrees. NaN for a row without a position: it is never matched, but counts as a row.
    mag : ndarray or None
        Magnitude, for display alone.
    weight : ndarray or None
        Weight of each star in the fit.
    motion : StarMotion or None
        What is needed to move the stars to another epoch; None when they stay as they are.
    name : str
        Where the stars come from, for messages.
    digest : str
        Of the content: part of the recipe of a solution.
    """

    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    mag: NDArray[np.float64] | None = None
    weight: NDArray[np.float64] | None = None
    motion: StarMotion | None = None
    name: str = "stars"
    digest: str = ""

    def __len__(self) -> int:
        return len(self.ra)

    def at(self, epoch: float) -> StarList:
        """The stars at an epoch (decimal year, UTC); the same list when they have no motions.

        Rows that lack a proper motion or a parallax are dropped.
        """
        if self.motion is None:
            return self
        keep = np.isfinite(self.motion.pmra) & np.isfinite(self.motion.pmdec) & np.isfinite(self.motion.parallax)
        motion = StarMotion(
            *(getattr(self.motion, name)[keep] for name in ("epoch", "pmra", "pmdec", "parallax")),
        )
        ra, dec = propagate(self.ra[keep], self.dec[keep], motion, epoch)
        return StarList(
            ra=ra,
            dec=dec,
            mag=None if self.mag is None else self.mag[keep],
            weight=None if self.weight is None else self.weight[keep],
            name=self.name,
            digest=self.digest,
        )


NO_STARS = StarList(ra=np.zeros(0), dec=np.zeros(0), name="nothing")
"""Where nobody is aligned, nobody is asked for stars."""


def decimal_year(start_time: Any) -> float:
    """Decimal year (UTC) of an astropy ``Time`` or an ISO text."""
    from astropy.time import Time

    return float(Time(start_time, scale="utc").decimalyear)


def barycentric_earth(epoch: float) -> NDArray[np.float64]:
    """Barycentric position of the Earth, au, ICRS axes, from ERFA's analytic ephemeris, at a decimal year (UTC)."""
    import erfa  # type: ignore[import-untyped]
    from astropy.time import Time

    tdb = Time(epoch, format="decimalyear", scale="utc").tdb
    _, barycentric = erfa.epv00(tdb.jd1, tdb.jd2)
    return np.asarray(barycentric["p"], dtype=float)


def propagate(
    ra: NDArray[np.float64], dec: NDArray[np.float64], motion: StarMotion, epoch: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Move stars to an epoch, parallax included.

    Parameters
    ----------
    ra, dec : ndarray, shape (n,)
        Degrees, at ``motion.epoch``.
    motion : StarMotion
        Of the same length.
    epoch : float
        Decimal year (UTC).

    Returns
    -------
    ra, dec : ndarray, shape (n,)
        Degrees, RA in [0, 360), as seen from the Earth at that epoch.

    Notes
    -----
    x' = x + k dt (pmra E + pmdec N) - k plx ((e.E) E + (e.N) N), renormalised, with the local unit vectors E and N, the
    Earth's barycentric position e in au, and k = radians per mas.
    """
    lon, lat = np.deg2rad(ra), np.deg2rad(dec)
    zero = np.zeros_like(lon)
    east = np.stack([-np.sin(lon), np.cos(lon), zero])
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    x = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    earth = barycentric_earth(epoch)
    years = epoch - motion.epoch
    moved = x + (years * motion.pmra - motion.parallax * (earth @ east)) / MAS_PER_RADIAN * east
    moved += (years * motion.pmdec - motion.parallax * (earth @ north)) / MAS_PER_RADIAN * north
    new_ra = np.rad2deg(np.arctan2(moved[1], moved[0])) % 360.0
    return new_ra, np.rad2deg(np.arctan2(moved[2], np.hypot(moved[0], moved[1])))


def star_table_digest(path: Path) -> str:
    """SHA-256 of the table's file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_star_table(path: Path | str) -> StarList:
    """Read a local star table (ECSV, CSV, FITS, Parquet: whatever astropy recognises).

    Raises
    ------
    PermanentError
        The file is missing or no table, has no position columns or two spellings of one, or text where numbers belong.
    """
    path = Path(path)
    if not path.is_file():
        raise PermanentError(f"Star table {path} does not exist")
    try:
        table = _read_table(path)
    except Exception as error:
        raise PermanentError(f"Star table {path} cannot be read as ECSV, CSV, FITS or Parquet: {error}") from error
    columns = _columns_by_lower_case_name(table, path)
    ra, dec = _positions(table, columns, path)

    def floats(name: str) -> NDArray[np.float64]:
        return _floats(table[name], path)

    magnitude = columns.get("mag", columns.get("phot_g_mean_mag"))
    return StarList(
        ra=ra,
        dec=dec,
        mag=None if magnitude is None else floats(magnitude),
        weight=floats(columns["weight"]) if "weight" in columns else None,
        motion=_motion(floats, columns),
        name=str(path),
        digest=star_table_digest(path),
    )


def write_star_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write stars as Parquet under the column names that `read_star_table` knows; equal stars give equal bytes.

    The faintest come first, those without a magnitude before all, as the mission's own lists have them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    mag = np.asarray(columns["mag"], dtype=float)
    order = np.lexsort((np.asarray(columns["objID"]), -np.where(np.isnan(mag), np.inf, mag)))
    pq.write_table(pa.table({name: np.asarray(values)[order] for name, values in columns.items()}), path)


def _read_table(path: Path) -> Any:
    """Any table that astropy recognises; Parquet through pyarrow, for which astropy wants pandas besides."""
    from astropy.table import Table

    with path.open("rb") as file:
        parquet = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
    if not parquet:
        return Table.read(path)
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return Table({name: table[name].to_numpy() for name in table.column_names})


def _columns_by_lower_case_name(table: Any, path: Path) -> dict[str, str]:
    columns: dict[str, str] = {}
    for name in table.colnames:
        lower = name.lower()
        if lower in columns and lower in {"ra", "dec", "sky_centroid"}:
            raise PermanentError(f"Star table {path} has two columns {columns[lower]!r} and {name!r}; expected one")
        columns.setdefault(lower, name)
    return columns


def _positions(table: Any, columns: dict[str, str], path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if "ra" in columns and "dec" in columns:
        return _floats(table[columns["ra"]], path), _floats(table[columns["dec"]], path)
    if "sky_centroid" in columns:
        sky = table[columns["sky_centroid"]].icrs
        return np.asarray(sky.ra.deg, dtype=float), np.asarray(sky.dec.deg, dtype=float)
    raise PermanentError(
        f"Star table {path} must have the columns ra and dec, or sky_centroid; found {', '.join(table.colnames)}"
    )


def _motion(floats: Callable[[str], NDArray[np.float64]], columns: dict[str, str]) -> StarMotion | None:
    epoch = columns.get("ref_epoch", columns.get("epoch"))
    if epoch is None or not {"pmra", "pmdec", "parallax"} <= columns.keys():
        return None
    pmra, pmdec, parallax = (floats(columns[name]) for name in ("pmra", "pmdec", "parallax"))
    return StarMotion(epoch=floats(epoch), pmra=pmra, pmdec=pmdec, parallax=parallax)


def _floats(column: Any, path: Path) -> NDArray[np.float64]:
    """Values as f8 with NaN for what is masked; a unit is ignored."""
    try:
        values: Any = np.ma.asarray(getattr(column, "value", column), dtype=float)
    except (TypeError, ValueError) as error:
        raise PermanentError(f"Star table {path}: column {column.name}: {error}; expected numbers") from error
    return np.ascontiguousarray(np.ma.filled(values, np.nan), dtype=float)
