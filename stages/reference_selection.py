"""Choose reference files from a plain directory by each file's own metadata, by `stages.reference_rules`. Not CRDS."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.asdf_container import open_container, plain
from stages.reference_rules import ALWAYS, OPTIONAL_TYPES, SELECTION_KEYS, Header, choose
from stages.references import Reference, open_reference
from stream.failure import PermanentError

if TYPE_CHECKING:
    from stream.stage import Facts

__all__ = ["OPTIONAL_TYPES", "SELECTION_KEYS", "DirectoryReferences"]

_FITS = frozenset({".fits", ".fit"})
_FIELDS = {"NORTH": "dustmap_north", "SOUTH": "dustmap_south"}


@dataclass(frozen=True, slots=True)
class _Record:
    """What is known about one state (size and time) of a file."""

    path: str
    size: int
    mtime_ns: int
    header: Header
    sha256: str | None = None


class DirectoryReferences:
    """References from a directory (scanned recursively) and pinned files; implements `stream.stage.ReferenceSource`.

    Parameters
    ----------
    directory : Path or None
        Searched for ``*.asdf`` and FITS dust maps. None: pinned files only.
    pinned : mapping, optional
        File by reference type: used whatever the dates; "N/A" leaves an optional type out.
    cache : Path, optional
        Folder where headers, digests and unpacked arrays are kept between runs, by size and modification time.
    cache_bytes : int, optional
        Bound on the unpacked arrays.
    optional : frozenset of str
        Types for which finding none is an answer.

    Raises
    ------
    PermanentError
        The directory or a pinned file does not exist, or a pinned file is of another type.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        pinned: Mapping[str, str | Path] | None = None,
        cache: Path | None = None,
        cache_bytes: int | None = None,
        optional: frozenset[str] = OPTIONAL_TYPES,
    ) -> None:
        if directory is not None and not Path(directory).is_dir():
            raise PermanentError(f"{directory}: no such directory of reference files")
        self._directory = None if directory is None else Path(_absolute(directory))
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._optional = optional
        self._records: dict[str, _Record] = {}
        self._by_type: dict[str, list[_Record]] | None = None
        self._opened: dict[str, Reference] = {}
        self._pinned: dict[str, str | None] = {}
        for reference_type, name in (pinned or {}).items():
            self._pinned[reference_type] = None if str(name).upper() == "N/A" else self._pin(reference_type, name)

    def select(self, reference_type: str, facts: Facts) -> str | None:
        """Absolute path of the reference for an exposure, or None for N/A.

        Parameters
        ----------
        reference_type : str
            A key of `SELECTION_KEYS`, or a type of one's own.
        facts : dict
            With ``detector``, ``optical_element``, ``exposure_type``, ``start_time`` (ISO, UTC, to the millisecond).

        Raises
        ------
        PermanentError
            None fits where one is required, or two fit equally well: the text names the keys, or both files.
        """
        if reference_type in self._pinned:
            return self._pinned_for(reference_type, facts)
        return choose(
            reference_type,
            [(record.path, record.header) for record in self._of_type(reference_type)],
            facts,
            where=self._where,
            optional=self._optional,
        )

    def described(self) -> Iterator[tuple[str, Header]]:
        """Path and header of every reference file in the directory, in the order of their paths."""
        for path in self._files():
            record = self._record(path)
            if record.header.reference_type is not None:
                yield record.path, record.header

    def digest(self, name: str) -> str:
        """SHA-256 of a file's content; computed once for each state of the file, and kept in the cache.

        Raises
        ------
        PermanentError
            The file changed since it was first seen.
        """
        record = self._checked(name)
        if record.sha256 is None:
            with Path(name).open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self._checked(name)
            record = replace(record, sha256=sha256)
            self._records[record.path] = record
            self._keep(record)
        assert record.sha256 is not None
        return record.sha256

    def open(self, name: str) -> Reference:
        """Open a file with arrays memory-mapped; opened once and kept.

        Raises
        ------
        PermanentError
            The file changed since it was first seen, or cannot be read.
        """
        record = self._checked(name)
        if record.path not in self._opened:
            arrays = None if self._cache is None else self._cache / "arrays"
            self._opened[record.path] = open_reference(Path(record.path), cache=arrays, cache_bytes=self._cache_bytes)
        return self._opened[record.path]

    def release(self, opened: Iterable[Reference]) -> None:
        """Give back the memory of mapped arrays; they are read from the page cache again when they are next used."""
        for reference in opened:
            reference.drop_pages()

    def _pin(self, reference_type: str, name: str | Path) -> str:
        path = Path(_absolute(name))
        if not path.is_file():
            raise PermanentError(f"{path}: no such file; pinned as reference of type {reference_type}")
        found = self._record(path).header.reference_type
        if found != reference_type:
            raise PermanentError(
                f"{path}: pinned as reference of type {reference_type}, but its meta.reftype says {found or 'nothing'}"
            )
        return str(path)

    def _pinned_for(self, reference_type: str, facts: Facts) -> str | None:
        name = self._pinned[reference_type]
        if name is None:
            return choose(reference_type, (), facts, where=self._where, optional=self._optional)
        detectors = self._records[name].header.values.get("detector", [])
        detector = str(facts.get("detector", "")).upper()
        if "detector" in SELECTION_KEYS.get(reference_type, ()) and detectors and detector not in detectors:
            raise PermanentError(
                f"{name}: pinned as reference of type {reference_type}, but it is for {', '.join(detectors)} "
                f"and the exposure's detector is {detector}"
            )
        return name

    @property
    def _where(self) -> str:
        return "among the pinned files" if self._directory is None else f"in {self._directory}"

    def _of_type(self, reference_type: str) -> Sequence[_Record]:
        if self._by_type is None:
            by_type: dict[str, list[_Record]] = {}
            for path, header in self.described():
                by_type.setdefault(str(header.reference_type), []).append(self._records[path])
            self._by_type = by_type
        return self._by_type.get(reference_type, ())

    def _files(self) -> list[Path]:
        if self._directory is None:
            return []
        found = []
        for folder, _, names in os.walk(self._directory, followlinks=True):
            found += [Path(folder, name) for name in names if Path(name).suffix.lower() in {".asdf", *_FITS}]
        return sorted(found)

    def _record(self, path: Path) -> _Record:
        """What is known about the file, from memory, the cache, or its header."""
        name = str(path)
        if name not in self._records:
            stat = path.stat()
            kept = self._kept(name)
            if kept is None or (kept.size, kept.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
                kept = _Record(name, stat.st_size, stat.st_mtime_ns, _read_header(path))
                self._keep(kept)
            self._records[name] = kept
        return self._records[name]

    def _checked(self, name: str) -> _Record:
        path = Path(_absolute(name))
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise PermanentError(f"{path}: the reference file is gone") from None
        record = self._record(path)
        if (record.size, record.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            raise PermanentError(
                f"{path}: the reference file changed while it was in use; start again to use the new one"
            )
        return record

    def _kept_at(self, name: str) -> Path | None:
        if self._cache is None:
            return None
        return self._cache / "files" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"

    def _kept(self, name: str) -> _Record | None:
        place = self._kept_at(name)
        if place is None:
            return None
        try:
            document = json.loads(place.read_text())
            header = Header(**document.pop("header"))
            record = _Record(header=header, **document)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return record if record.path == name else None

    def _keep(self, record: _Record) -> None:
        place = self._kept_at(record.path)
        if place is None:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, suffix=".part", delete=False) as draft:
            json.dump(asdict(record), draft)
        Path(draft.name).replace(place)


def _read_header(path: Path) -> Header:
    nothing = Header(None, ALWAYS, {})
    if path.suffix.lower() in _FITS:
        from astropy.io import fits

        try:
            field = str(fits.getheader(path).get("FIELD", "")).strip().upper()
        except OSError as error:
            raise PermanentError(f"{path}: not a FITS file: {error}") from error
        return Header(_FIELDS.get(field), ALWAYS, {})
    tree = open_container(path).tree
    roman = tree.get("roman")
    meta = plain(roman["meta"]) if isinstance(roman, Mapping) and isinstance(roman.get("meta"), Mapping) else {}
    reftype = meta.get("reftype")
    if not isinstance(reftype, str):
        return nothing
    instrument, exposure = meta.get("instrument") or {}, meta.get("exposure") or {}
    values = {
        "detector": _accepted(instrument.get("detector")),
        "optical_element": _accepted(instrument.get("optical_element")),
        "exposure_type": list(dict.fromkeys(_accepted(exposure.get("p_exptype")) + _accepted(exposure.get("type")))),
    }
    return Header(reftype.strip().lower(), _useafter(path, meta), values)


def _useafter(path: Path, meta: Mapping[str, Any]) -> str:
    from stages.l1 import iso_milliseconds

    useafter = meta.get("useafter")
    if not hasattr(useafter, "utc"):
        raise PermanentError(f"{path}: meta.useafter is {useafter!r}; expected a time")
    return iso_milliseconds(useafter)


def _accepted(value: Any) -> list[str]:
    items = [item.strip().upper() for item in str(value or "").split("|")]
    return [item for item in items if item and item != "N/A"]


def _absolute(path: str | Path) -> str:
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100
