"""Compares two folders of products, array by array and column by column. Not part of the product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pyarrow.parquet as pq

from tests.parity.accepted import ACCEPTED

INPUT_NAME = ACCEPTED["input-name"].meta
"""Accepted where an exposure was given to the two under different names; else compared."""

ACCEPTED_META = {key for accepted in ACCEPTED.values() for key in accepted.meta} - {*INPUT_NAME}
"""Metadata that tell who wrote the file, when and from where."""


@dataclass
class Differences:
    """What was compared, and what was found to differ."""

    equal_fraction: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    outside: dict[str, float] = field(default_factory=dict)
    meta: list[str] = field(default_factory=list)
    columns: dict[str, float] = field(default_factory=dict)
    wcs_mas: float = 0.0
    sources: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Renamed:
    """Our name of an exposure, where it was given under another one than the oracle's."""

    own: str
    exposure: str

    def meta(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Metadata as they are under the oracle's name; without the input's own name where that is another."""
        if self.own == self.exposure:
            return dict(meta)
        told = {**meta, "filename": meta["filename"].replace(self.own, self.exposure)}
        for key in INPUT_NAME:
            group, _, name = key.partition(".")
            if group in told:
                told[group] = {inner: value for inner, value in told[group].items() if inner != name}
        return told

    def parquet(self, metadata: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """The same of a catalog's."""
        if self.own == self.exposure:
            return dict(metadata)
        accepted = {f"roman.meta.{key}".encode() for key in INPUT_NAME}
        told = {key: value for key, value in metadata.items() if key not in accepted}
        name = b"roman.meta.filename"
        return told | {name: metadata[name].replace(self.own.encode(), self.exposure.encode())}


def compare_images(ours: Path, theirs: Path, named: Renamed, found: Differences) -> None:
    """Arrays and metadata of two ``_cal`` files."""
    with asdf.open(ours, memmap=False) as a, asdf.open(theirs, memmap=False) as b:
        mine, oracle = dict(a["roman"]), dict(b["roman"])
        if str(type(mine)) != str(type(oracle)):
            found.meta.append("model type")
        keys = {k for k in oracle if k != "meta"}
        if keys != {k for k in mine if k != "meta"}:
            found.meta.append(f"arrays {sorted(keys ^ {k for k in mine if k != 'meta'})}")
        err = np.asarray(oracle["err"], dtype=np.float64)
        good = (np.asarray(oracle["dq"]) & 1) == 0
        for key in sorted(keys & mine.keys()):
            x, y = np.asarray(mine[key]), np.asarray(oracle[key])
            if x.dtype != y.dtype or x.shape != y.shape:
                found.meta.append(f"{key}: {x.dtype}{x.shape} instead of {y.dtype}{y.shape}")
                continue
            same = (x == y) | ((x != x) & (y != y))  # noqa: PLR0124 - NaN
            found.equal_fraction[key] = float(same.mean()) if same.size else 1.0
            found.sizes[key] = same.size
        difference = np.abs(np.asarray(mine["data"], np.float64) - np.asarray(oracle["data"], np.float64))
        with np.errstate(invalid="ignore"):
            found.outside["data"] = float(np.mean((difference > 1e-3 * err)[good]))
        found.outside["dq"] = float(np.mean(np.asarray(mine["dq"]) != np.asarray(oracle["dq"])))
        compare_meta("meta", named.meta(mine["meta"]), named.meta(oracle["meta"]), found.meta)
        found.wcs_mas = wcs_difference(mine["meta"]["wcs"], oracle["meta"]["wcs"], np.asarray(oracle["data"]).shape)


def compare_meta(where: str, mine: Any, oracle: Any, found: list[str]) -> None:
    if isinstance(oracle, Mapping) and isinstance(mine, Mapping):
        for key in sorted({*mine, *oracle} - ACCEPTED_META - {"wcs"}):
            if key not in mine or key not in oracle:
                found.append(f"{where}.{key}: only in {'oracle' if key in oracle else 'ours'}")
            else:
                compare_meta(f"{where}.{key}", mine[key], oracle[key], found)
    elif isinstance(oracle, (list, tuple)) and isinstance(mine, (list, tuple)) and len(mine) == len(oracle):
        for i, (x, y) in enumerate(zip(mine, oracle, strict=True)):
            compare_meta(f"{where}[{i}]", x, y, found)
    elif isinstance(oracle, float) and isinstance(mine, float):
        if not (
            mine == oracle or abs(mine - oracle) <= 1e-6 * abs(oracle) + 1e-9 or (np.isnan(mine) and np.isnan(oracle))
        ):
            found.append(f"{where}: {mine!r} instead of {oracle!r}")
    elif hasattr(oracle, "shape"):
        if type(mine) is not type(oracle) or not np.array_equal(mine, oracle):
            found.append(f"{where}: {mine!r} instead of {oracle!r}")
    elif mine != oracle:
        found.append(f"{where}: {mine!r} instead of {oracle!r}")


def wcs_difference(ours: Any, theirs: Any, shape: tuple[int, ...]) -> float:
    """Largest separation in mas over a grid on the detector."""
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else float("inf")
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, 17), np.linspace(0, shape[0] - 1, 17))
    ra, dec = ours(x, y)
    ra2, dec2 = theirs(x, y)
    return float(np.max(np.hypot((ra - ra2) * np.cos(np.radians(dec)), dec - dec2)) * 3.6e6)


def compare_catalogs(ours: Path, theirs: Path, named: Renamed, found: Differences) -> None:
    """Columns, types, units and values of two ``_cat`` files; sources are matched by their row."""
    a, b = pq.read_table(ours), pq.read_table(theirs)
    found.sources = (a.num_rows, b.num_rows)
    if [(f.name, f.type, f.metadata) for f in a.schema] != [(f.name, f.type, f.metadata) for f in b.schema]:
        for f, g in zip(a.schema, b.schema, strict=False):
            if (f.name, f.type, f.metadata) != (g.name, g.type, g.metadata):
                found.meta.append(f"column {f.name} {f.type} {f.metadata} instead of {g.name} {g.type} {g.metadata}")
    mine, oracle = named.parquet(a.schema.metadata), named.parquet(b.schema.metadata)
    for key in sorted({*mine, *oracle}):
        if not any(
            word in key.decode() for word in ("software", "file_date", "date", "versions", "ref_file", "yaml")
        ) and mine.get(key) != oracle.get(key):
            found.meta.append(f"parquet {key.decode()}: {mine.get(key)!r} instead of {oracle.get(key)!r}")
    if a.num_rows != b.num_rows:
        return
    loose = _unconstrained(b) | _shallow(a, b)
    for name in b.column_names:
        x = a[name].to_numpy().astype(np.float64)
        y = b[name].to_numpy().astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.abs(x - y) / np.maximum(np.abs(y), 1e-30)
        relative[(x == y) | (np.isnan(x) & np.isnan(y))] = 0
        if "psf" in name:
            relative[loose] = 0
        found.columns[name] = float(np.max(np.where(np.isnan(relative), np.inf, relative), initial=0))


def _unconstrained(catalog: Any) -> Any:
    """PSF fits that did not converge (bit 8), or that say nothing of the position: rounding decides their numbers."""
    if "psf_flags" not in catalog.column_names:
        return np.zeros(catalog.num_rows, dtype=bool)
    errors = [catalog[name].to_numpy() for name in ("x_psf_err", "y_psf_err")]
    return (catalog["psf_flags"].to_numpy() & 8 != 0) | (errors[0] > 1) | (errors[1] > 1)


_VALUE, _NEAR, _SHALLOW_PART = 1e-5, 1e-3, 0.01


def _shallow(ours: Any, oracle: Any) -> Any:
    """PSF fits with a shallow minimum: both solvers stop in it, at places a thousandth of a pixel apart at most.

    Then the flux differs by a thousandth of its error, and so do the errors; at most one source in a hundred does. Of
    more, none is excused.
    """
    nobody = np.zeros(oracle.num_rows, dtype=bool)
    fitted = {"psf_flux": "psf_flux_err", "x_psf": "x_psf_err", "y_psf": "y_psf_err"}
    if not set(fitted) <= set(oracle.column_names) & set(ours.column_names):
        return nobody

    def apart(name: str, scale: str | None = None) -> Any:
        x, y = (table[name].to_numpy().astype(np.float64) for table in (ours, oracle))
        return np.abs(x - y) / (1 if scale is None else np.abs(oracle[scale].to_numpy().astype(np.float64)))

    with np.errstate(invalid="ignore", divide="ignore"):
        near = [apart("psf_flux", "psf_flux_err"), apart("x_psf"), apart("y_psf")]
        near += [apart(error, error) for error in fitted.values()]
        differ = [apart(name, name) > _VALUE for name in (*fitted, *fitted.values())]
    excused = np.logical_or.reduce(differ) & (np.maximum.reduce(near) <= _NEAR)
    return excused if excused.sum() <= max(1, _SHALLOW_PART * oracle.num_rows) else nobody


def compare_products(ours: Path, theirs: Path, exposure: str, *, named: str = "") -> Differences:
    """Compare all products of one exposure; ours may be ``named`` otherwise."""
    found = Differences()
    own = named or exposure
    names = Renamed(own, exposure)
    compare_images(ours / f"{own}_cal.asdf", theirs / f"{exposure}_cal.asdf", names, found)
    if (theirs / f"{exposure}_cat.parquet").exists():
        compare_catalogs(ours / f"{own}_cat.parquet", theirs / f"{exposure}_cat.parquet", names, found)
        with (
            asdf.open(ours / f"{own}_segm.asdf", memmap=False) as a,
            asdf.open(theirs / f"{exposure}_segm.asdf", memmap=False) as b,
        ):
            for key in ("data", "detection_image"):
                if key in b["roman"]:
                    x, y = np.asarray(a["roman"][key]), np.asarray(b["roman"][key])
                    found.sizes[f"segm.{key}"] = x.size
                    found.equal_fraction[f"segm.{key}"] = float(np.mean((x == y) | (np.isnan(x) & np.isnan(y))))
            compare_meta("segm.meta", names.meta(a["roman"]["meta"]), names.meta(b["roman"]["meta"]), found.meta)
    with asdf.open(ours / f"{own}_wcs.asdf") as a, asdf.open(theirs / f"{exposure}_wcs.asdf") as b:
        compare_meta("wcs.meta", names.meta(a["roman"]["meta"]), names.meta(b["roman"]["meta"]), found.meta)
        for key in ("wcs_l1", "wcs_l2"):
            found.wcs_mas = max(found.wcs_mas, wcs_difference(a["roman"][key], b["roman"][key], (4096, 4096)))
    return found
