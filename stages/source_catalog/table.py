"""The catalog as an astropy table: column order, types, units, descriptions and table metadata. No measurements."""

from __future__ import annotations

import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.source_catalog.apertures import ANNULUS_ARCSEC, APERTURE_ARCSEC
from stages.source_catalog.columns import (
    COLUMNS,
    EMPTY_COLUMNS,
    FORCED_MEASURED,
    FORCED_PREFIX,
    FORCED_SHAPES,
    Column,
)
from stages.source_catalog.kron import KRON_MINIMUM, KRON_SCALE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import Table
    from numpy.typing import NDArray

__all__ = ["add_reddening", "aperture_metadata", "catalog_table", "empty_table", "forced_table", "table_metadata"]

DISTRIBUTIONS = ("numpy", "scipy", "astropy", "photutils", "gwcs", "numba", "rampstream")
"""What the table records the versions of, where installed; the measurements follow photutils' definitions."""


def _versions() -> dict[str, str]:
    versions = {"Python": platform.python_version()}
    for name in DISTRIBUTIONS:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def table_metadata() -> dict[str, Any]:
    """Date, versions and the parameters that are the same for every catalog."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "versions": _versions(),
        "aperture_mask_method": "mask",
        "kron_params": (KRON_SCALE, KRON_MINIMUM, 0.0),
    }


def aperture_metadata(pixel_scale: float, ee_fractions: NDArray[np.float32]) -> dict[str, Any]:
    """Aperture radii in pixels and arcsec, and the enclosed-energy fractions of the circles."""
    return {
        "aperture_radii": {
            "circle_pix": APERTURE_ARCSEC / pixel_scale,
            "annulus_pix": ANNULUS_ARCSEC / pixel_scale,
            "circle_arcsec": APERTURE_ARCSEC.copy(),
            "annulus_arcsec": ANNULUS_ARCSEC.copy(),
        },
        "ee_fractions": ee_fractions,
    }


def add_reddening(table: Table, reddening: NDArray[np.float32]) -> None:
    """Add the column ``dust_ebv`` in place: last, but before this image's own shapes in a forced catalog."""
    from astropy.table import Column as TableColumn

    column = next(column for column in COLUMNS if column.name == "dust_ebv")
    first_shape = FORCED_PREFIX + FORCED_SHAPES[0]
    index = table.colnames.index(first_shape) if first_shape in table.colnames else len(table.colnames)
    values = reddening.astype(column.dtype)
    table.add_column(TableColumn(values, column.name, description=column.description), index=index)


def _table(columns: list[tuple[str, Column]], values: Mapping[str, NDArray[Any]]) -> Table:
    from astropy.table import Column as TableColumn
    from astropy.table import Table

    return Table(
        [
            TableColumn(
                np.asarray(values[column.name]).astype(column.dtype),
                name,
                unit=column.unit,
                description=column.description,
            )
            for name, column in columns
        ],
        copy=False,
    )


def catalog_table(values: Mapping[str, NDArray[Any]]) -> Table:
    """Table of the columns in ``values``, in product order, without metadata."""
    return _table([(column.name, column) for column in COLUMNS if column.name in values], values)


def forced_table(full: Mapping[str, NDArray[Any]], shapes: Mapping[str, NDArray[Any]]) -> Table:
    """Table of a forced catalog: what was measured in another image's segments, then this image's own shapes.

    Parameters
    ----------
    full : mapping
        Columns with the forcing image's detection image for shapes.
    shapes : mapping
        Columns with this image's own detection image for shapes; same labels.
    """
    from astropy.table import hstack

    named = [
        (FORCED_PREFIX + column.name if column.name in FORCED_MEASURED else column.name, column)
        for column in COLUMNS
        if column.name in full
    ]
    by_name = {column.name: column for column in COLUMNS}
    appended = [(FORCED_PREFIX + name, by_name[name]) for name in FORCED_SHAPES]
    return hstack([_table(named, full), _table(appended, shapes)])


def empty_table() -> Table:
    """Table without rows and metadata, in the schema's default columns."""
    from astropy.table import Column as TableColumn
    from astropy.table import Table

    by_name = {column.name: column for column in COLUMNS}
    table = Table()
    for name in EMPTY_COLUMNS:
        column = by_name[name.replace("aper00", "aper01")]
        unit = "mag" if name == "dust_ebv" else column.unit or "none"
        table[name] = TableColumn(np.empty(0, dtype=column.dtype), unit=unit, description=column.description)
    return table
