"""The index of a set of reference files: what selection needs of each, and where it lies. Opens no file.

An index is one JSON object. Its digest stands for the whole set, for it holds the digest of every file. `describe`
makes it from a folder; who puts it and the files into a store is not said here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.reference_rules import Header
from stages.reference_selection import DirectoryReferences
from stream.failure import PermanentError
from stream.identity import canonical_json

__all__ = ["FORMAT", "IndexedFile", "ReferenceIndex", "describe"]

FORMAT = "rampstream-references-1"

_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9._+=@,~-]")


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """One reference file.

    ``key`` is relative to the set and holds a part of the digest, so that no key ever gets another content.
    """

    key: str
    name: str
    sha256: str
    size: int
    header: Header

    @property
    def digest(self) -> str:
        """SHA-256, as the cache of fetched objects asks for it."""
        return self.sha256


@dataclass(frozen=True, slots=True)
class ReferenceIndex:
    """All files of a set, in the order of their names."""

    files: tuple[IndexedFile, ...]

    def encode(self) -> bytes:
        """The index as JSON, the same bytes for the same files."""
        return canonical_json({"format": FORMAT, "files": [asdict(file) for file in self.files]})

    @property
    def digest(self) -> str:
        """SHA-256 of the encoded index."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes, *, where: str) -> ReferenceIndex:
        """Read what `encode` gave.

        Raises
        ------
        PermanentError
            It is no index, or one of another format.
        """
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise PermanentError(f"{where}: expected the format {FORMAT}, got {document['format']!r}")
            return cls(tuple(IndexedFile(**{**file, "header": Header(**file["header"])}) for file in document["files"]))
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentError(f"{where}: not an index of references: {type(error).__name__} {error}") from error


def describe(directory: Path, source: DirectoryReferences) -> Iterable[tuple[Path, IndexedFile]]:
    """Path and entry of each reference file of a folder, in the order of their names; reads and digests the files.

    Parameters
    ----------
    directory : Path
        The folder.
    source : DirectoryReferences
        Made from it.

    Raises
    ------
    PermanentError
        A file cannot be read, or changes meanwhile.
    """
    root = directory.expanduser().absolute()
    for path, header in source.described():
        digest = source.digest(path)
        name = Path(path).relative_to(root).as_posix()
        base = _NOT_IN_KEYS.sub("_", Path(path).name).lstrip(".") or "reference"
        key = f"files/{digest[:16]}/{base}"
        yield Path(path), IndexedFile(key, name, digest, Path(path).stat().st_size, header)
