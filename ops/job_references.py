"""Where a job's references come from: the source that a run's environment describes. Chooses and fetches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.crds_context import CrdsContext
from stages.crds_references import CrdsReferences
from stages.indexed_references import IndexedContextReferences, IndexedReferences
from stages.reference_index import ReferenceIndex
from stages.reference_selection import DirectoryReferences
from stream.failure import RetriableError

__all__ = ["reference_source"]


def reference_source(environment: Mapping[str, Any]) -> CrdsReferences | DirectoryReferences | IndexedReferences:
    """Return the source of references that an environment describes.

    Parameters
    ----------
    environment : mapping
        ``references``, ``pins`` (type to file), ``cache`` (folder) with ``cache_bytes``. References are a folder; or
        ``url``, ``index`` and local ``path`` of an index, and with a context in it also ``crds``, its name, and
        ``rules``, a CRDS cache without references; or ``crds``, a context, and the ``path`` of its cache.

    Raises
    ------
    PermanentError
        A folder, a pinned file or a context cannot be used.
    RetriableError
        The local copy of an index is damaged.
    """
    named = environment["references"]
    options: dict[str, Any] = {
        "pinned": environment["pins"],
        "cache": Path(environment["cache"]),
        "cache_bytes": environment.get("cache_bytes"),
    }
    if isinstance(named, str):
        return DirectoryReferences(Path(named), **options)
    if "url" not in named:
        return CrdsReferences(CrdsContext(Path(named["path"]), named["crds"]), **options)
    index = ReferenceIndex.decode(Path(named["path"]).read_bytes(), where=named["path"])
    if index.digest != named["index"]:
        raise RetriableError(f"{named['path']}: the copy of the references' index is damaged; start the worker again")
    if "crds" not in named:
        return IndexedReferences(index, named["url"], **options)
    remedy = f"publish it with rampstream references push crds://{named['crds']} {named['url']} INPUT…"
    context = CrdsContext(Path(named["rules"]), named["crds"], remedy=remedy)
    return IndexedContextReferences(index, named["url"], context, **options)
