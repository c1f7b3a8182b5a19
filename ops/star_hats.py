"""Reads the stars in a cone from a catalog in the HATS layout: Parquet files by HEALPix pixel. Keeps nothing.

::

    properties (or hats.properties)              NAME=VALUE lines
    partition_info.csv                           Norder,Npix of every partition
    dataset/Norder=K/Dir=D/Npix=P.parquet        D = P rounded down to ten thousands

Only partitions that the cone touches are opened, and of those only the row groups whose range of ``_healpix_29`` (the
pixel of order 29, by which rows are sorted) it touches. The catalog lies in a folder, in an object store, or behind
a web server that answers requests for ranges.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore
from numpy.typing import NDArray
from obstore.exceptions import BaseError
from obstore.store import HTTPStore, LocalStore

from stream.failure import Failure, PermanentError
from stream.store.failures import failure_from, is_absent
from stream.store.locations import StoreLimits, open_remote

if TYPE_CHECKING:
    from stages.tweakreg.cone import SearchCone

__all__ = ["HatsCatalog", "touched_partitions"]

_PROPERTIES = ("properties", "hats.properties")

_ORDER = 29

_INDEX = f"_healpix_{_ORDER}"

_MOTION = ("pmra", "pmdec", "parallax", "ref_epoch")

_PIXEL_DEGREES = 58.6
"""Side of a pixel of order 0; each order halves it."""

_PIXELS_ACROSS = 16
"""Pixels across the radius of a cone, at the most: a thousand in all, whatever the order of the partitions, and at most
an eighth more sky than the cone's to each side."""

_READ_AHEAD = 1 << 20
"""Bytes: what the reader of a file asks a distant store for at least."""


@dataclass(frozen=True, slots=True)
class HatsCatalog:
    """A catalog, opened.

    Parameters
    ----------
    location : str
        Folder, ``s3://…``, ``gs://…``, ``az://…`` or ``https://…``.
    properties : mapping
        What the catalog says of itself.
    partitions : ndarray (n, 2), i8
        Order and pixel of each.
    version : str
        Digest of properties and partitions: what a run is pinned to.
    """

    location: str
    properties: Mapping[str, str]
    partitions: NDArray[np.int64]
    version: str
    _store: Any

    @classmethod
    def open(cls, location: str) -> HatsCatalog:
        """Read what the catalog says of itself and of its partitions; no stars.

        Raises
        ------
        PermanentError
            There is no such catalog at the location, or it is laid out in another way.
        RetriableError, FatalError
            The store does not answer, or refuses.
        """
        store = _open_store(location)
        found = [(name, data) for name in _PROPERTIES if (data := _read(store, location, name)) is not None]
        if not found:
            raise PermanentError(f"--gaia {location}: no catalog in the HATS layout: there is no {_PROPERTIES[0]}")
        properties = _parsed_properties(found[0][1])
        if (suffix := properties.get("hats_npix_suffix", ".parquet")) != ".parquet":
            raise PermanentError(f"--gaia {location}: expected partitions in files .parquet, found {suffix!r}")
        listed = _read(store, location, "partition_info.csv")
        if listed is None:
            raise PermanentError(f"--gaia {location}: the HATS catalog has no partition_info.csv")
        version = hashlib.sha256(found[0][1] + b"\0" + listed).hexdigest()
        return cls(location, properties, _parsed_partitions(listed, location), version, store)

    def stars(self, cone: SearchCone) -> dict[str, Any]:
        """Columns of the stars in a cone at the catalog's own epoch, motions included, under the names of a star table.

        Raises
        ------
        PermanentError
            A partition is missing, damaged, or lacks a column.
        RetriableError, FatalError
            The store does not answer, or refuses.
        """
        import pyarrow as pa

        pixels, order = _touched_pixels(self.partitions, cone)
        parts = [
            self._partition(int(norder), int(npix), pixels, order)
            for norder, npix in touched_partitions(self.partitions, pixels, order)
        ]
        table = pa.concat_tables(parts) if parts else None
        return _columns(table, cone, self._positions)

    @property
    def _positions(self) -> tuple[str, str]:
        return self.properties.get("hats_col_ra", "ra"), self.properties.get("hats_col_dec", "dec")

    def _partition(self, norder: int, npix: int, pixels: NDArray[np.int64], order: int) -> Any:
        """Rows of one partition whose row groups touch the pixels (of an order)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        key = f"dataset/Norder={norder}/Dir={npix // 10000 * 10000}/Npix={npix}.parquet"
        with _failures(self.location, key):
            file = pq.ParquetFile(pa.PythonFile(_Ranges(self._store, key), mode="r"))
            wanted = self._wanted(file.schema_arrow.names, key)
            groups = [
                index for index in range(file.num_row_groups) if _touches(file.metadata.row_group(index), pixels, order)
            ]
            return file.read_row_groups(groups, columns=wanted).select(wanted)

    def _wanted(self, names: list[str], key: str) -> list[str]:
        """Columns to read, in one order for all partitions."""
        lacking = [name for name in self._positions if name not in names]
        if lacking:
            raise PermanentError(f"--gaia {self.location}: {key} has no column {', '.join(lacking)}")
        optional = [*(_MOTION if set(_MOTION) <= set(names) else ()), "phot_g_mean_mag", "source_id"]
        return [*self._positions, *(name for name in optional if name in names)]


def touched_partitions(partitions: NDArray[np.int64], pixels: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """Those of the partitions (order, pixel) that overlap one of the pixels, which are of one order."""
    keep = np.zeros(len(partitions), dtype=bool)
    for own in np.unique(partitions[:, 0]):
        same = partitions[:, 0] == own
        coarse = min(int(own), order)
        keep[same] = np.isin(partitions[same, 1] >> 2 * (own - coarse), pixels >> 2 * (order - coarse))
    return partitions[keep]


def _touched_pixels(partitions: NDArray[np.int64], cone: SearchCone) -> tuple[NDArray[np.int64], int]:
    """The pixels that overlap the cone, sorted, and their order: fine enough for the cone, and for the partitions."""
    from astropy import units
    from astropy_healpix import HEALPix

    fine = int(np.ceil(np.log2(_PIXEL_DEGREES / max(cone.radius, 1e-6) * _PIXELS_ACROSS)))
    order = max(0, min(fine, int(partitions[:, 0].max(initial=0))))
    grid = HEALPix(nside=2**order, order="nested")
    pixels = grid.cone_search_lonlat(cone.ra * units.deg, cone.dec * units.deg, radius=cone.radius * units.deg)
    return np.unique(np.asarray(pixels, dtype=np.int64)), order


def _touches(group: Any, pixels: NDArray[np.int64], order: int) -> bool:
    """Whether a row group may have rows in the pixels; it may, where it does not tell."""
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == _INDEX:
            if column.statistics is None or not column.statistics.has_min_max:
                return True
            shift = 2 * (_ORDER - order)
            low, high = int(column.statistics.min) >> shift, int(column.statistics.max) >> shift
            return bool(np.searchsorted(pixels, high, side="right") > np.searchsorted(pixels, low, side="left"))
    return True


def _columns(table: Any, cone: SearchCone, positions: tuple[str, str]) -> dict[str, Any]:
    """Columns of a star table from rows of partitions, cut to the cone."""

    def floats(name: str) -> NDArray[np.float64]:
        if table is None:
            return np.zeros(0)
        return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)

    names = [] if table is None else table.column_names
    ra, dec = floats(positions[0]), floats(positions[1])
    inside = cone.holds(ra, dec)
    columns: dict[str, Any] = {"ra": ra[inside], "dec": dec[inside]}
    mag = floats("phot_g_mean_mag") if "phot_g_mean_mag" in names else np.full(len(ra), np.nan)
    columns["mag"] = mag[inside]
    columns |= {name: floats(name)[inside] for name in _MOTION if name in names}
    known = "source_id" in names
    columns["objID"] = np.asarray(table["source_id"].to_numpy() if known else np.arange(len(ra)))[inside]
    return columns


def _parsed_properties(data: bytes) -> dict[str, str]:
    lines = [line.strip() for line in data.decode("utf-8", errors="replace").splitlines()]
    pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith("#")]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _parsed_partitions(data: bytes, location: str) -> NDArray[np.int64]:
    rows = csv.DictReader(data.decode("utf-8", errors="replace").splitlines(), skipinitialspace=True)
    try:
        listed = np.array([[int(row["Norder"]), int(row["Npix"])] for row in rows], dtype=np.int64).reshape(-1, 2)
    except (KeyError, TypeError, ValueError) as error:
        raise PermanentError(
            f"--gaia {location}: partition_info.csv: expected the columns Norder and Npix with numbers: {error}"
        ) from None
    if not ((listed[:, 0] >= 0) & (listed[:, 0] <= _ORDER)).all():
        raise PermanentError(f"--gaia {location}: partition_info.csv: expected Norder from 0 to {_ORDER}")
    return listed


class _Ranges(io.RawIOBase):
    """A stored object as a file that is read by ranges."""

    def __init__(self, store: Any, key: str) -> None:
        self._reader = obstore.open_reader(store, key, buffer_size=_READ_AHEAD)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        return bytes(self._reader.read(None if size is None or size < 0 else size))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())


def _open_store(location: str) -> Any:
    limits = StoreLimits()
    if location.startswith(("http://", "https://")):
        options: Any = {**limits.client_options(), "allow_http": location.startswith("http://")}
        retries: Any = limits.retry_config()
        return HTTPStore.from_url(location, client_options=options, retry_config=retries)
    if "://" in location:
        return open_remote(location, limits)
    if not Path(location).is_dir():
        raise PermanentError(f"--gaia {location}: there is no such folder")
    return LocalStore(Path(location))


def _read(store: Any, location: str, key: str) -> bytes | None:
    """A small object; None when there is none."""
    try:
        return bytes(obstore.get(store, key).bytes())
    except FileNotFoundError as error:
        if is_absent(error):
            return None
        raise failure_from(error, f"cannot read {key} of {location}") from None
    except (BaseError, OSError, ValueError) as error:
        raise failure_from(error, f"cannot read {key} of {location}") from None


@contextmanager
def _failures(location: str, key: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except Failure:
        raise
    except FileNotFoundError:
        raise PermanentError(f"--gaia {location}: {key} is gone, although partition_info.csv lists it") from None
    except pa.ArrowInvalid as error:
        raise PermanentError(f"--gaia {location}: {key} is no whole Parquet file: {error}") from None
    except (BaseError, OSError, ValueError) as error:
        raise failure_from(error, f"cannot read {key} of {location}") from None
