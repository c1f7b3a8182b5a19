"""How an exposure is kept between segments: a small ASDF tree, and an ASDF file for each large array.

Implements `stream.stage.PayloadFormat`. Everything that is not a large array (metadata, logs, the numbers of the WCS,
the catalog, small arrays) is in the tree; it comes back as it went in, so that a run through many segments gives the
same products as one in memory. Not the products' format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.asdf_arrays import map_array_file, write_array_file, write_asdf
from stages.asdf_container import ArrayNode, AsdfContainer, open_container, plain
from stages.cal_logs import collect_logs
from stages.exposure import Exposure, Level
from stages.l1 import exposure_facts, open_l1
from stream.failure import PermanentError

if TYPE_CHECKING:
    from stream.stage import Facts

__all__ = ["ExposurePayload"]

LARGE = 1 << 20
"""Arrays of at least this many bytes are objects of their own."""

_FORMAT = 1
_KEY = "payload"
_WRAPPED = "__python__"
"""Marks values that YAML has no type for (tuples, numpy numbers) inside the catalog's metadata."""


class ExposurePayload:
    """The payload format of `stages.exposure.Exposure`.

    Parameters
    ----------
    threads : int
        Threads for packing, and for unpacking what is packed.
    """

    def __init__(self, *, threads: int = 1) -> None:
        self._threads = threads

    def load_input(self, path: Path, facts: Facts) -> Exposure:
        """Open and validate an input file (see `stages.l1.open_l1`); its id is ``facts["id"]`` where given."""
        return open_l1(path, exposure_id=facts.get("id"), threads=self._threads)

    def load(self, tree: Path, arrays: Mapping[str, Path]) -> Exposure:
        """Open a payload; large arrays are mapped copy-on-write, or unpacked.

        Raises
        ------
        PermanentError
            Not a payload of this format, or an array is missing.
        """
        container = open_container(tree)
        document = plain(container.tree.get(_KEY))
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise PermanentError(f"{tree}: not a payload of format {_FORMAT}")
        document = _with_arrays(container, document)
        missing = [name for name in document["large"] if name not in arrays]
        if missing:
            raise PermanentError(f"{tree}: the payload's arrays {', '.join(missing)} are missing")
        loaded = {
            name: map_array_file(arrays[name], threads=self._threads).array
            if name in document["large"]
            else document["small"][name]
            for name in document["order"]
        }
        tie_points = document["tie_points"]
        return Exposure(
            id=document["id"],
            level=Level(document["level"]),
            meta=document["meta"],
            arrays=loaded,
            extras=document["extras"],
            catalog=None if document["catalog"] is None else _decode_catalog(document["catalog"]),
            wcs=document["wcs"],
            logs=document["logs"],
            tie_points=None if tie_points is None else tie_points.tobytes(),
            source_tag=document["source_tag"],
            done=frozenset(document.get("done", ())),
        )

    def save_tree(self, item: Exposure, path: Path) -> None:
        """Write everything but the large arrays."""
        large = list(self.array_names(item))
        document = {
            "format": _FORMAT,
            "id": item.id,
            "level": str(item.level),
            "source_tag": item.source_tag,
            "meta": item.meta,
            "extras": item.extras,
            "wcs": item.wcs,
            "logs": item.logs,
            "catalog": None if item.catalog is None else _encode_catalog(item.catalog),
            "tie_points": None if item.tie_points is None else np.frombuffer(item.tie_points, np.uint8),
            "order": list(item.arrays),
            "large": large,
            "small": {name: array for name, array in item.arrays.items() if name not in large},
        }
        if item.done:
            document["done"] = sorted(item.done)
        write_asdf(path, {_KEY: document})

    def array_names(self, item: Exposure) -> Iterable[str]:
        """Names of the arrays of 1 MB and more."""
        return tuple(name for name, array in item.arrays.items() if array.nbytes >= LARGE)

    def save_array(self, item: Exposure, name: str, path: Path) -> None:
        """Write one array as an ASDF file: flags and other integers packed, the rest as it is, on a page."""
        array = item.arrays[name]
        write_array_file(path, array, pack=self._threads if array.dtype.kind in "biu" else 0)

    def array_token(self, item: Exposure, name: str) -> Any:
        """How often the array was declared changed."""
        return item.versions.get(name)

    def side_objects(self, item: Exposure) -> Mapping[str, bytes]:
        """The tie points for the joint alignment, once there is a catalog."""
        return {} if item.tie_points is None else {"tie_points": item.tie_points}

    def collect_logs(self, item: Exposure) -> AbstractContextManager[None]:
        """Context in which the stages' log lines become lines for ``meta.cal_logs``."""
        return collect_logs(item)

    def facts(self, item: Exposure) -> Facts:
        """Facts for messages: those of the input, and what became known since.

        Returns
        -------
        dict
            As `stages.l1.exposure_facts`, and ``level``, ``cal_step``, ``group_id``, ``sources`` (rows of the catalog,
            None without one) and ``wcs`` (numbers, None before assign_wcs).
        """
        data = item.arrays["data"]
        border = 8 if item.level is Level.IMAGE else 0
        facts = exposure_facts(
            item.id, item.meta, rows=data.shape[-2] + border, resultants=len(item.meta["exposure"]["read_pattern"])
        )
        facts["level"] = str(item.level)
        facts["cal_step"] = dict(item.meta.get("cal_step", {}))
        facts["group_id"] = item.meta.get("group_id") or item.meta["observation"]["observation_id"]
        facts["sources"] = None if item.catalog is None else len(item.catalog)
        facts["wcs"] = item.wcs
        return facts


def _with_arrays(container: AsdfContainer, value: Any) -> Any:
    if isinstance(value, ArrayNode):
        return np.array(container.map_array(value).array)
    if isinstance(value, dict):
        return {key: _with_arrays(container, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_arrays(container, inner) for inner in value]
    return value


def _encode_catalog(catalog: Any) -> dict[str, Any]:
    columns = [
        {
            "name": name,
            "unit": None if catalog[name].unit is None else str(catalog[name].unit),
            "description": catalog[name].info.description,
            "data": np.asarray(catalog[name]),
        }
        for name in catalog.colnames
    ]
    return {"columns": columns, "meta": _encode_value(dict(catalog.meta))}


def _decode_catalog(document: dict[str, Any]) -> Any:
    from astropy.table import Column, Table
    from astropy.units import Unit

    columns = [
        Column(
            column["data"],
            name=column["name"],
            unit=None if column["unit"] is None else Unit(column["unit"], parse_strict="silent"),
            description=column["description"],
        )
        for column in document["columns"]
    ]
    return Table(columns, meta=_decode_value(document["meta"]), copy=False)


def _encode_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _encode_value(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return {_WRAPPED: "tuple", "value": [_encode_value(inner) for inner in value]}
    if isinstance(value, list):
        return [_encode_value(inner) for inner in value]
    if isinstance(value, np.generic):
        return {_WRAPPED: "scalar", "value": np.array([value])}
    return value


def _decode_value(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get(_WRAPPED) == "tuple":
            return tuple(_decode_value(inner) for inner in value["value"])
        if value.get(_WRAPPED) == "scalar":
            return value["value"][0]
        return {key: _decode_value(inner) for key, inner in value.items()}
    return [_decode_value(inner) for inner in value] if isinstance(value, list) else value
