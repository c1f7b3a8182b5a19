"""References chosen from an index, or by the CRDS context in it; read from files fetched for a job. Fetches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.crds_context import SCHEME, CrdsContext
from stages.crds_references import selected_by
from stages.reference_index import IndexedFile, ReferenceIndex
from stages.reference_rules import OPTIONAL_TYPES, choose
from stages.reference_selection import DirectoryReferences
from stages.references import Reference, open_reference
from stream.failure import PermanentError

if TYPE_CHECKING:
    from stream.stage import Facts

__all__ = ["IndexedContextReferences", "IndexedReferences"]


class IndexedReferences:
    """References of an index and pinned local files; implements `stream.stage.ReferenceSource`.

    The name of a reference is its URL. Selection and digests need the index alone; a file can be opened once it was
    lent.

    Parameters
    ----------
    index : ReferenceIndex
        The files there are.
    url : str
        Where they are.
    pinned : mapping, optional
        Local file by reference type, as for `stages.reference_selection.DirectoryReferences`.
    cache : Path, optional
        Folder for unpacked arrays, and for what is known of pinned files.
    cache_bytes : int, optional
        Bound on the unpacked arrays.
    optional : frozenset of str
        Types for which finding none is an answer.
    """

    def __init__(
        self,
        index: ReferenceIndex,
        url: str,
        *,
        pinned: Mapping[str, str | Path] | None = None,
        cache: Path | None = None,
        cache_bytes: int | None = None,
        optional: frozenset[str] = OPTIONAL_TYPES,
    ) -> None:
        self._where = f"in {url}"
        self._arrays = None if cache is None else cache / "arrays"
        self._arrays_bytes = cache_bytes
        self._optional = optional
        self._files = index.named(url)
        self._by_type: dict[str, list[tuple[str, IndexedFile]]] = {}
        for file in index.files:  # by file, not by URL: two equal files under two names are two candidates
            self._by_type.setdefault(str(file.header.reference_type), []).append((f"{url}/{file.key}", file))
        self._pinned_types = frozenset(pinned or ())
        self._pinned = DirectoryReferences(
            None, pinned=pinned, cache=cache, cache_bytes=cache_bytes, optional=optional
        )  # fmt: skip
        self._lent: dict[str, Path] = {}
        self._opened: dict[str, tuple[Reference, int]] = {}

    def needs(self, name: str) -> bool:
        """Whether the file of this name must be lent before it can be opened."""
        return name in self._files

    def lend(self, files: Mapping[str, str | Path]) -> None:
        """Give local files by name, for a job; those of the job before are no longer used.

        What is still open from an earlier job is kept where the file is the same, else closed: so nothing stays mapped
        that the cache has let go, but for the files of one job.
        """
        self._lent = {name: Path(path) for name, path in files.items()}
        for name, (reference, inode) in list(self._opened.items()):
            path = self._lent.get(name)
            if path is not None and path.stat().st_ino == inode:
                reference.moved_to(path)
            else:
                reference.close()
                del self._opened[name]

    def select(self, reference_type: str, facts: Facts) -> str | None:
        """URL of the reference for an exposure (of a pinned one, the path), or None for N/A.

        Raises
        ------
        PermanentError
            None fits where one is required, or two fit equally well.
        """
        if reference_type in self._pinned_types:
            return self._pinned.select(reference_type, facts)
        candidates = ((name, file.header) for name, file in self._by_type.get(reference_type, ()))
        return choose(reference_type, candidates, facts, where=self._where, optional=self._optional)

    def digest(self, name: str) -> str:
        """SHA-256 of a file's content, from the index; of a pinned file, from the file."""
        file = self._files.get(name)
        return self._pinned.digest(name) if file is None else file.sha256

    def open(self, name: str) -> Reference:
        """Open a file that was lent, with arrays memory-mapped.

        Raises
        ------
        PermanentError
            The file was not lent, or cannot be read.
        """
        file = self._files.get(name)
        if file is None:
            return self._pinned.open(name)
        if name not in self._opened:
            path = self._lent.get(name)
            if path is None:
                raise PermanentError(f"{name}: a stage asks for a reference that references_for did not name")
            reference = open_reference(
                path, recorded_name=name, cache=self._arrays, cache_bytes=self._arrays_bytes, content=file.sha256
            )
            self._opened[name] = reference, path.stat().st_ino
        return self._opened[name][0]

    def release(self, opened: Iterable[Reference]) -> None:
        """Give back the memory of mapped arrays."""
        self._pinned.release(opened)


class IndexedContextReferences(IndexedReferences):
    """References of an index by the rules of the CRDS context in it.

    The name of a reference is ``crds://FILE``, as of one in a CRDS cache.

    Parameters
    ----------
    context : CrdsContext
        The rules, as they were fetched.
    index, url, **options
        As for `IndexedReferences`.
    """

    def __init__(self, index: ReferenceIndex, url: str, context: CrdsContext, **options: Any) -> None:
        super().__init__(index, url, **options)
        self.context = context

    def select(self, reference_type: str, facts: Facts) -> str | None:
        """``crds://FILE`` of the reference for an exposure (of a pinned one, the path), or None for N/A.

        Raises
        ------
        PermanentError
            The context has no answer, or N/A for a type that no exposure can do without; or the file was not published.
        """
        if reference_type in self._pinned_types:
            return self._pinned.select(reference_type, facts)
        found = selected_by(self.context, reference_type, facts, optional=self._optional)
        if found is not None and found not in self._files:
            raise PermanentError(
                f"{found.removeprefix(SCHEME)} is not {self._where}, where this context was published for other "
                f"exposures; {self.context.remedy}"
            )
        return found
