"""The index of a set of reference files: what selection needs of each, and where it lies. Opens no file.

An index is one JSON object. Its digest stands for the whole set, for it holds the digest of every file. `describe`
makes it from a folder; who puts it and the files into a store is not said here. An index may hold the rules of a CRDS
context too: then they choose, and not what is said of each file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.crds_context import SCHEME
from stages.reference_rules import Header
from stages.reference_selection import DirectoryReferences
from stream.failure import PermanentError
from stream.identity import canonical_json

__all__ = ["CONTEXT_FORMAT", "FORMAT", "IndexedContext", "IndexedFile", "ReferenceIndex", "describe", "key_of"]

FORMAT = "rampstream-references-1"

CONTEXT_FORMAT = "rampstream-references-crds-1"
"""With the rules of a context. A format of its own, for who does not know it would choose by what files say."""

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
class IndexedContext:
    """A CRDS context.

    Attributes
    ----------
    name : str
        Of its pipeline mapping.
    mappings : str
        Digest of its rules (see `stages.crds_context.CrdsContext.digest`).
    rules : tuple of IndexedFile
        Its mappings.
    invalid : tuple of str
        Files that the server had marked as scientifically invalid.
    """

    name: str
    mappings: str
    rules: tuple[IndexedFile, ...]
    invalid: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReferenceIndex:
    """All files of a set, in the order of their names; with a context its rules choose among them."""

    files: tuple[IndexedFile, ...]
    context: IndexedContext | None = None

    def encode(self) -> bytes:
        """The index as JSON, the same bytes for the same files."""
        files = [asdict(file) for file in self.files]
        if self.context is None:
            return canonical_json({"format": FORMAT, "files": files})
        return canonical_json({"format": CONTEXT_FORMAT, "files": files, "context": asdict(self.context)})

    def named(self, url: str) -> dict[str, IndexedFile]:
        """Files of the set at a URL by the name that stages and products know them by."""
        if self.context is None:
            return {f"{url}/{file.key}": file for file in self.files}
        return {f"{SCHEME}{file.name}": file for file in self.files}

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
            if document["format"] not in {FORMAT, CONTEXT_FORMAT}:
                raise PermanentError(
                    f"{where}: expected the format {FORMAT} or {CONTEXT_FORMAT}, got {document['format']!r}"
                )
            files = _files(document["files"])
            if document["format"] == FORMAT:
                return cls(files)
            told = document["context"]
            rules, invalid = _files(told["rules"]), tuple(told["invalid"])
            return cls(files, IndexedContext(told["name"], told["mappings"], rules, invalid))
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentError(f"{where}: not an index of references: {type(error).__name__} {error}") from error


def _files(told: Iterable[dict[str, Any]]) -> tuple[IndexedFile, ...]:
    return tuple(IndexedFile(**{**file, "header": Header(**file["header"])}) for file in told)


def key_of(path: Path, digest: str) -> str:
    """Key of a file in a set, with a part of its digest."""
    base = _NOT_IN_KEYS.sub("_", path.name).lstrip(".") or "reference"
    return f"files/{digest[:16]}/{base}"


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
        yield Path(path), IndexedFile(key_of(Path(path), digest), name, digest, Path(path).stat().st_size, header)
