"""From the files and associations that a person names to exposures and member lists. Not the announcing of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.association_file import Association, read_association
from stages.l1 import inspect_l1
from stages.product_names import base_name
from stream.failure import Failure, PermanentError
from stream.identity import association_id
from stream.member_list import MemberList

__all__ = ["Entry", "Ingest", "digest_file", "inspect", "read_inputs"]

CHUNK_BYTES = 8 << 20


@dataclass(slots=True)
class Entry:
    """One exposure that was named: where it is, and what is known of it."""

    id: str
    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    size: int = 0
    mtime_ns: int = 0
    error: str | None = None


@dataclass(slots=True)
class Ingest:
    """What one command names.

    ``listed`` holds the members of associations, ``refused`` what could not even be listed: a name, and why.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    lists: list[MemberList] = field(default_factory=list)
    listed: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, exposure: str, path: Path) -> None:
        """Take note of a file; two files of one base name are an error for both."""
        known = self.entries.get(exposure)
        if known is None:
            self.entries[exposure] = Entry(exposure, path)
        elif known.path != path and known.path.resolve() != path.resolve():
            known.error = (
                f"{known.path} and {path} have one base name, {exposure}: products of both would have the same names; "
                "give one of them another name"
            )


def read_inputs(inputs: Iterable[Path], *, absent: bool = False) -> Ingest:
    """Sort inputs into exposures and associations; nothing is opened but association files.

    Parameters
    ----------
    inputs : iterable of Path
        ``.json`` files are associations, everything else is taken for L1 files.
    absent : bool
        Take associations some of whose members' files are not there.
    """
    ingest = Ingest()
    associations: dict[str, list[tuple[Path, Association]]] = {}
    for given in inputs:
        path = given.absolute()  # a link counts under its own name: exposures are known by the names of their files
        if path.suffix.lower() == ".json":
            try:
                found = read_association(path, absent=absent)
            except Failure as error:
                ingest.refused[str(given)] = str(error)
                continue
            associations.setdefault(found.product_name, []).append((path, found))
        else:
            exposure = base_name(path.name)
            try:
                single = association_id(exposure, [exposure])
            except PermanentError as error:
                ingest.refused[str(given)] = f"{path}: {error}"
                continue
            ingest.add(exposure, path)
            if all(known.association != single for known in ingest.lists):
                ingest.lists.append(MemberList(single, (exposure,)))
    for name, found_under in associations.items():
        distinct = {path for path, _ in found_under}
        if len(distinct) > 1:
            files = " and ".join(str(path) for path in sorted(distinct))
            ingest.refused.update(
                dict.fromkeys(map(str, distinct), f"{files} both have the product name {name}: run them apart")
            )
            continue
        _add_association(ingest, *found_under[0])
    return ingest


def _add_association(ingest: Ingest, path: Path, found: Association) -> None:
    members = tuple(member.id for member in found.members)
    try:
        identity = association_id(found.product_name, members)
    except PermanentError as error:
        ingest.refused[str(path)] = f"{path}: products[0].name: {error}"
        return
    for member in found.members:
        ingest.add(member.id, member.path.absolute())
    ingest.listed.update(members)
    ingest.lists.append(
        MemberList(
            identity,
            members,
            found.product_name,
            {"table_name": found.table_name, "pool_name": found.pool_name},
        )
    )


def inspect(entry: Entry) -> None:
    """Read the header and the digest of one file into its entry; what is wrong goes into ``entry.error``."""
    if entry.error is not None:
        return
    try:
        if not entry.path.is_file():
            raise PermanentError(f"{entry.path}: there is no such file")
        before = entry.path.stat()
        facts = inspect_l1(entry.path)
        entry.digest = digest_file(entry.path)
        after = entry.path.stat()
    except Failure as error:
        entry.error = str(error)
        return
    except OSError as error:
        entry.error = f"{entry.path}: cannot be read: {error.strerror}"
        return
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        entry.error = f"{entry.path}: changed while it was read; run again when it is complete"
        return
    entry.size, entry.mtime_ns = after.st_size, after.st_mtime_ns
    entry.facts = {**facts, "id": entry.id, "locality": _locality(str(facts["detector"]))}


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _locality(detector: str) -> int | str:
    """Number of a detector, so that detectors spread evenly over partitions; its name where it has none."""
    number = detector.removeprefix("WFI")
    return int(number) if number.isdigit() else detector
