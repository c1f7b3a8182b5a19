"""Files that exposures need from a CRDS context, and whether those in a local cache are whole. Fetches nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.ingest import read_inputs
from stages.asdf_container import open_container
from stages.crds_context import SCHEME, CrdsContext, mapping_folder, reference_path, server_config
from stages.crds_references import CrdsReferences
from stages.l1 import inspect_l1
from stages.parameter_references import parameter_types
from stream.failure import PermanentError

__all__ = [
    "CatalogEntry",
    "Resolved",
    "exposures_of_inputs",
    "exposures_of_options",
    "file_catalog",
    "is_mapping",
    "local_path",
    "problem_of",
    "resolve",
    "wanted_types",
]

Exposure = tuple[str, dict[str, Any]]
"""A label for people, and the facts by which references are selected."""

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Resolved:
    """What one reference type resolves to for one exposure: a file, N/A (None), or an error."""

    exposure: str
    reference_type: str
    name: str | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """What the server says about a file."""

    size: int
    sha1: str


def exposures_of_inputs(inputs: Iterable[Path]) -> list[Exposure]:
    """Exposures of L1 files and associations.

    Raises
    ------
    PermanentError
        One cannot be read.
    """
    ingest = read_inputs(inputs)
    if ingest.refused:
        raise PermanentError("; ".join(ingest.refused.values()))
    return [(entry.id, inspect_l1(entry.path)) for entry in ingest.entries.values()]


def exposures_of_options(
    detectors: Sequence[str], elements: Sequence[str], types: Sequence[str], start_time: str
) -> list[Exposure]:
    """One exposure for each combination of detector, optical element and exposure type, begun at a time (ISO, UTC)."""
    found = []
    for detector in detectors:
        for element in elements:
            for exposure_type in types:
                values = {
                    "instrument.name": "WFI",
                    "instrument.detector": detector,
                    "instrument.optical_element": element,
                    "exposure.type": exposure_type,
                    "exposure.start_time": start_time,
                }
                facts = {
                    "detector": detector,
                    "optical_element": element,
                    "exposure_type": exposure_type,
                    "start_time": start_time,
                    "meta": values,
                }
                found.append((f"{detector} {element} {exposure_type}", facts))
    return found


def wanted_types(exposure_type: str) -> tuple[list[str], list[str]]:
    """Types of the reference files that the stages of an exposure use, and of those with their parameters."""
    from stages.pipeline import TABLE, make_stage

    files: dict[str, None] = {}
    parameters: dict[str, None] = {}
    for row in TABLE:
        if exposure_type in row.branches:
            files.update(dict.fromkeys(getattr(make_stage(row.entry), "reference_types", ())))
            parameters.update(dict.fromkeys(parameter_types(row.name)))
    return list(files), list(parameters)


def resolve(context: CrdsContext, exposures: Iterable[Exposure]) -> list[Resolved]:
    """What each type that the pipeline uses resolves to for each exposure, as a run would have it."""
    source = CrdsReferences(context)
    wanted: dict[str, tuple[list[str], list[str]]] = {}
    found = []
    for label, facts in exposures:
        kind = str(facts["exposure_type"])
        files, parameters = wanted.setdefault(kind, wanted_types(kind))
        for reference_type in files:
            try:
                name = source.select(reference_type, facts)
            except PermanentError as error:
                found.append(Resolved(label, reference_type, None, str(error)))
                continue
            found.append(Resolved(label, reference_type, None if name is None else name.removeprefix(SCHEME)))
        found += [Resolved(label, t, name) for t in parameters if (name := _optional(context, t, facts)) is not None]
    return found


def _optional(context: CrdsContext, reference_type: str, facts: dict[str, Any]) -> str | None:
    try:
        return context.best(reference_type, facts)
    except PermanentError:
        return None


def file_catalog(cache: Path) -> dict[str, CatalogEntry]:
    """Size and SHA-1 of each file, as the server last told the cache; empty where it never did."""
    told = server_config(cache).get("download_metadata")
    if told is None:
        return {}
    from crds.client.proxy import crds_decode

    return catalog_entries(crds_decode(told))


def catalog_entries(told: Mapping[str, Mapping[str, Any]]) -> dict[str, CatalogEntry]:
    """Entries of what a server tells, as far as it knows size and checksum."""
    return {
        name: CatalogEntry(int(entry["size"]), str(entry["sha1sum"]))
        for name, entry in told.items()
        if str(entry.get("size", "")).isdigit() and entry.get("sha1sum") not in (None, "", "none")
    }


def is_mapping(name: str) -> bool:
    """Whether a file has rules, and is no reference."""
    return name.endswith((".pmap", ".imap", ".rmap"))


def local_path(cache: Path, name: str) -> Path:
    """Where a cache has, or would have, a mapping or reference."""
    return mapping_folder(cache) / name if is_mapping(name) else reference_path(cache, name)


def problem_of(path: Path, entry: CatalogEntry | None, *, checksum: bool = True) -> str | None:
    """What is wrong with a file in the cache; None for nothing.

    Parameters
    ----------
    path : Path
        Where it should be.
    entry : CatalogEntry or None
        What the server says of it. Where it says nothing, an ASDF file is looked through for being cut off.
    checksum : bool
        Whether to read all of it and compare its checksum.
    """
    if not path.is_file():
        return "is missing"
    if entry is None:
        return _structure_problem(path)
    size = path.stat().st_size
    if size != entry.size:
        return f"has {size} bytes; the server says {entry.size}"
    if checksum and _sha1(path) != entry.sha1:
        return "has another checksum than the server says"
    return None


def _structure_problem(path: Path) -> str | None:
    if path.suffix != ".asdf":
        return None
    try:
        open_container(path)
    except PermanentError as error:
        return f"cannot be read: {error}"
    return None


def _sha1(path: Path) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
