"""Which columns a catalog's schema requires, read from the schema itself: name pattern and dtype of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = ["missing_columns"]


def missing_columns(catalog: Table, tag: str) -> list[str]:
    """What a catalog lacks, a text for each required column that it has not in the required dtype.

    Parameters
    ----------
    catalog : Table
        The catalog.
    tag : str
        ASDF tag of the catalog's data model, which tells the schema.
    """
    missing = []
    for pattern, dtype in _required_columns(tag):
        found = {name: catalog[name].dtype for name in catalog.colnames if re.search(pattern, name)}
        if dtype not in found.values():
            found_text = ", ".join(f"found {name} {own}" for name, own in found.items()) or "missing"
            missing.append(f"{pattern.strip('^$')} ({dtype}, {found_text})")
    return missing


@lru_cache(maxsize=8)
def _required_columns(tag: str) -> tuple[tuple[str, np.dtype[Any]], ...]:
    schema = _document(tag.replace("/tags/", "/schemas/"))
    return tuple(dict.fromkeys(_walk(schema["properties"]["source_catalog"])))


def _walk(node: Any) -> Iterator[tuple[str, np.dtype[Any]]]:
    """The schema says "not all items are not this column" for each column that must be there."""
    if isinstance(node, list):
        for inner in node:
            yield from _walk(inner)
    elif isinstance(node, dict):
        column = node.get("not", {}).get("items", {}).get("not")
        if column is not None:
            definition, own = column["allOf"]
            (datatype,) = _resolve(definition["$ref"])["properties"]["data"]["properties"]["datatype"]["enum"]
            yield own["properties"]["name"]["pattern"], np.dtype("bool" if datatype == "bool8" else datatype)
            return
        if "$ref" in node and "#" not in node["$ref"]:
            yield from _walk(_document(node["$ref"]))
        for key in ("allOf", "properties", "columns"):
            yield from _walk(node.get(key))


def _resolve(reference: str) -> Any:
    uri, _, fragment = reference.partition("#")
    node = _document(uri)
    for key in fragment.strip("/").split("/"):
        node = node[key]
    return node


@lru_cache(maxsize=16)
def _document(uri: str) -> Any:
    import asdf
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(asdf.get_config().resource_manager[uri], Loader=loader)  # noqa: S506 - a safe loader
