"""References from a pinned CRDS context in a local cache, as a source for stages. Not the rules, and no fetching."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.crds_context import DUST_FIELDS, SCHEME, CrdsContext, reference_path
from stages.reference_rules import OPTIONAL_TYPES
from stages.reference_selection import DirectoryReferences
from stages.references import Reference, open_reference
from stream.failure import PermanentError

if TYPE_CHECKING:
    from stream.stage import Facts

__all__ = ["CrdsReferences", "selected_by"]

log = logging.getLogger(__name__)


def selected_by(context: CrdsContext, reference_type: str, facts: Facts, *, optional: frozenset[str]) -> str | None:
    """``crds://FILE`` of the reference that a context has for an exposure, or None for N/A.

    Parameters
    ----------
    context : CrdsContext
        The rules.
    reference_type : str
        A type as CRDS names it, or a key of `stages.crds_context.DUST_FIELDS`.
    facts : dict
        Of the exposure.
    optional : frozenset of str
        Types for which N/A is an answer.

    Raises
    ------
    PermanentError
        The context has no answer, or N/A for a type that no exposure can do without.
    """
    try:
        found = context.best(reference_type, facts)
    except PermanentError as error:
        if reference_type not in DUST_FIELDS:
            raise
        log.info("no dust map: %s", error)  # as the mission has it, nothing about the maps costs the catalog
        return None
    if found is None:
        if reference_type in optional:
            return None
        raise PermanentError(
            f"reference type {reference_type} is N/A in the CRDS context {context.name} for detector "
            f"{facts['detector']}, optical element {facts['optical_element']}, exposure type "
            f"{facts['exposure_type']}, but the pipeline cannot do without it"
        )
    return SCHEME + found


class CrdsReferences:
    """References of one context, and pinned local files; implements `stream.stage.ReferenceSource`.

    The name of a reference is ``crds://FILE``, as ``meta.ref_file`` has it, wherever the cache is.

    Parameters
    ----------
    context : CrdsContext
        The rules.
    pinned : mapping, optional
        Local file by reference type, as for `stages.reference_selection.DirectoryReferences`.
    cache : Path, optional
        Folder for digests and unpacked arrays; not the CRDS cache, to which nothing is written.
    cache_bytes : int, optional
        Bound on the unpacked arrays.
    optional : frozenset of str
        Types for which N/A is an answer.
    """

    def __init__(
        self,
        context: CrdsContext,
        *,
        pinned: Mapping[str, str | Path] | None = None,
        cache: Path | None = None,
        cache_bytes: int | None = None,
        optional: frozenset[str] = OPTIONAL_TYPES,
    ) -> None:
        self.context = context
        self._arrays = None if cache is None else cache / "arrays"
        self._arrays_bytes = cache_bytes
        self._optional = optional
        self._pinned_types = frozenset(pinned or ())
        self._files = DirectoryReferences(
            None, pinned=pinned, cache=cache, cache_bytes=cache_bytes, optional=optional
        )  # fmt: skip
        self._opened: dict[str, Reference] = {}

    def select(self, reference_type: str, facts: Facts) -> str | None:
        """``crds://FILE`` of the reference for an exposure (of a pinned one, the path), or None for N/A.

        Raises
        ------
        PermanentError
            The context has no answer, or N/A for a type that no exposure can do without.
        """
        if reference_type in self._pinned_types:
            return self._files.select(reference_type, facts)
        return selected_by(self.context, reference_type, facts, optional=self._optional)

    def digest(self, name: str) -> str:
        """SHA-256 of a file's content; computed once for each state of the file, and kept.

        Raises
        ------
        PermanentError
            The file is not in the cache, or changed since it was first seen.
        """
        return self._files.digest(str(self._path(name)))

    def open(self, name: str) -> Reference:
        """Open a file with arrays memory-mapped; opened once and kept. Raises as `digest`."""
        if not name.startswith(SCHEME):
            return self._files.open(name)
        self._files.digest(str(self._path(name)))  # it is still the file that the recipe tells of
        if name not in self._opened:
            self._opened[name] = open_reference(
                self._path(name), recorded_name=name, cache=self._arrays, cache_bytes=self._arrays_bytes
            )
        return self._opened[name]

    def release(self, opened: Iterable[Reference]) -> None:
        """Give back the memory of mapped arrays."""
        self._files.release(opened)

    def _path(self, name: str) -> Path:
        if not name.startswith(SCHEME):
            return Path(name)
        path = reference_path(self.context.cache, name.removeprefix(SCHEME))
        if not path.is_file():
            raise PermanentError(
                f"{name.removeprefix(SCHEME)} is not in the CRDS cache {self.context.cache}; {self.context.remedy}"
            )
        return path
