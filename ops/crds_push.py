"""Publishes a context of a local CRDS cache in object storage, and lays its rules out again on a worker's machine.

What is published are the mappings, and the references and parameter files that exposures need. A worker fetches the
mappings and parameter files at its start, for they are small and selection reads them; references when a job needs
them, as those of any published set (`ops.run_inputs`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread

from ops.crds_files import Exposure, Resolved, file_catalog, local_path, problem_of, resolve
from ops.reference_store import Pushed, open_set, publish
from stages.crds_context import CrdsContext, mapping_folder, reference_path, server_config
from stages.reference_index import IndexedContext, IndexedFile, ReferenceIndex, key_of
from stages.reference_rules import ALWAYS, Header
from stages.reference_selection import DirectoryReferences
from stream.failure import FatalError, PermanentError
from stream.results import file_digest
from stream.store import ObjectStore
from stream.together import together

__all__ = ["lay_out_rules", "push_context"]

_PARAMETERS = "pars-"

_TOGETHER = 8
"""Rules fetched at once: a few kB each, so that answers are waited for and not the link."""


@dataclass(frozen=True, slots=True)
class _Described:
    """A context as it is published: the index, and where each file is."""

    index: ReferenceIndex
    files: list[tuple[Path, IndexedFile]]
    rules: list[tuple[Path, IndexedFile]]


async def push_context(
    context: CrdsContext, exposures: Sequence[Exposure], url: str, *, tell: Callable[[str], Any] = lambda _: None
) -> tuple[Pushed, list[Resolved]]:
    """Publish a context, with the references that exposures need, as the newest set at a URL.

    Parameters
    ----------
    context : CrdsContext
        Of the local cache, which was filled before.
    exposures : sequence
        Labels and facts.
    url : str
        Where.
    tell : callable
        Told about each reference that was sent.

    Returns
    -------
    Pushed
        What was done.
    list of Resolved
        What each type resolves to for each exposure: where that is an error, nothing could be published.

    Raises
    ------
    PermanentError
        A mapping or a reference is missing or damaged, or changes meanwhile. Then the newest set stays as it was.
    """
    store = open_set(url)
    resolved = await anyio.to_thread.run_sync(resolve, context, exposures)
    source = DirectoryReferences(None)
    described = await anyio.to_thread.run_sync(_describe, context, resolved, source)
    for path, file in described.rules:
        await store.put(file.key, path)
    return await publish(store, described.index, described.files, source, tell=tell), resolved


def _describe(context: CrdsContext, resolved: Sequence[Resolved], source: DirectoryReferences) -> _Described:
    cache = context.cache
    types = {found.name: found.reference_type for found in resolved if found.name is not None}
    catalog = file_catalog(cache)
    files = []
    for name, reference_type in sorted(types.items()):
        path = local_path(cache, name)
        problem = problem_of(path, catalog.get(name))
        if problem is not None:
            raise PermanentError(f"{name} in the CRDS cache {cache} {problem}; {context.remedy}")
        files.append((path, _file(path, source.digest(str(path)), reference_type)))
    mappings = context.digest()
    rules = [
        (path, _file(path, file_digest(path), None))
        for path in map(partial(local_path, cache), context.mapping_names())
    ]
    invalid = tuple(sorted(str(name) for name in server_config(cache).get("bad_files_list", ())))
    told = IndexedContext(context.name, mappings, tuple(rule for _, rule in rules), invalid)
    return _Described(ReferenceIndex(tuple(file for _, file in files), told), files, rules)


def _file(path: Path, digest: str, reference_type: str | None) -> IndexedFile:
    header = Header(reference_type, ALWAYS, {})  # rules choose, and not what is said of the file
    return IndexedFile(key_of(path, digest), path.name, digest, path.stat().st_size, header)


async def lay_out_rules(store: ObjectStore, index: ReferenceIndex, folder: Path) -> Path:
    """Have mappings and parameter files of a published context where the field's client reads them.

    Parameters
    ----------
    store : ObjectStore
        Of the set.
    index : ReferenceIndex
        With a context.
    folder : Path
        Processes of a machine may share it.

    Returns
    -------
    Path
        A CRDS cache without references.

    Raises
    ------
    FatalError
        A file is gone or was changed, or the folder cannot be written to.
    """
    assert index.context is not None
    cache = folder / f"crds-{index.digest}"
    told = repr({"bad_files_list": list(index.context.invalid)}).encode()
    wanted = [(mapping_folder(cache) / rule.name, rule) for rule in index.context.rules]
    wanted += [
        (reference_path(cache, file.name), file)
        for file in index.files
        if str(file.header.reference_type).startswith(_PARAMETERS)
    ]
    try:
        await anyio.to_thread.run_sync(_keep, cache / "config" / "roman" / "server_config", told)
        await together((partial(_fetched, store, path, file) for path, file in wanted), most=_TOGETHER)
    except OSError as error:
        raise FatalError(f"the cache {folder} cannot be used: {error.strerror}") from error
    return cache


async def _fetched(store: ObjectStore, path: Path, file: IndexedFile) -> None:
    if await anyio.to_thread.run_sync(_has, path, file.sha256):
        return
    data = await store.get(file.key)
    if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
        raise FatalError(
            f"{file.key}: {file.name} of the CRDS context that the run is defined with "
            f"{'is gone' if data is None else 'was changed'}; publish the same context again, or define a new run"
        )
    await anyio.to_thread.run_sync(_keep, path, data)


def _has(path: Path, sha256: str) -> bool:
    return path.is_file() and file_digest(path) == sha256


def _keep(path: Path, data: bytes) -> None:
    """Write a file whole; racing processes write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as draft:
        draft.write(data)
    Path(draft.name).replace(path)
