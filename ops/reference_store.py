"""A set of reference files in object storage: publishes files there, and reads the index. Fetches no file.

::

    files/<16 digits of the digest>/<file name>   written once
    indexes/<digest of the index>.json            written once; a run names one of them
    index.json                                    the newest index, written last

Nothing is ever deleted or changed here but ``index.json``, so a run goes on with the set that it was defined with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from stages.reference_index import IndexedFile, ReferenceIndex, describe
from stages.reference_selection import DirectoryReferences
from stream.failure import FatalError, PermanentError
from stream.results import file_digest
from stream.store import ObjectStore
from stream.store.obstore_store import open_store

__all__ = [
    "NEWEST",
    "Pushed",
    "is_url",
    "newest_index",
    "object_at",
    "open_set",
    "pinned_index",
    "publish",
    "push",
    "push_table",
]

NEWEST = "index.json"

SCHEMES = ("s3://", "gs://", "az://")

_TOGETHER = 2
"""Files uploaded at once, in four parts each: enough to fill a link."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did."""

    index: ReferenceIndex
    uploaded: tuple[IndexedFile, ...]


def is_url(text: str) -> bool:
    """Whether references or a star table are named by the URL of a store, and not by a path."""
    return text.startswith(SCHEMES)


def open_set(url: str) -> ObjectStore:
    """Open the store at a URL.

    Raises
    ------
    PermanentError
        It is a path, or of a kind that other machines cannot reach.
    FatalError
        It cannot be opened.
    """
    if not is_url(url):
        raise PermanentError(f"{url}: expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://ACCOUNT/CONTAINER/PREFIX")
    return open_store(url.rstrip("/"))


def object_at(url: str) -> tuple[ObjectStore, str]:
    """The store that holds one object, and the object's key.

    Raises
    ------
    PermanentError
        The URL names no object.
    """
    folder, _, key = url.rstrip("/").rpartition("/")
    if folder.count("/") < 2 or not key:
        raise PermanentError(f"{url}: expected the URL of an object, for example s3://BUCKET/PREFIX/gaia.parquet")
    return open_set(folder), key


def _index_key(digest: str) -> str:
    return f"indexes/{digest}.json"


async def newest_index(url: str) -> ReferenceIndex:
    """The index that was published last.

    Raises
    ------
    PermanentError
        There is none, or it is none.
    """
    data = await open_set(url).get(NEWEST)
    if data is None:
        raise PermanentError(
            f"{url}: there is no {NEWEST}: publish references with rampstream references push DIR|crds:[CONTEXT] {url}"
        )
    return ReferenceIndex.decode(data, where=f"{url}/{NEWEST}")


async def pinned_index(url: str, digest: str) -> bytes:
    """The index of a given digest, encoded.

    Raises
    ------
    FatalError
        It is gone or was changed.
    """
    store = open_set(url)
    data = await store.get(_index_key(digest))
    if data is None:
        newest = await store.get(NEWEST)
        there = "there is no index" if newest is None else f"the newest index is {_digest(newest)[:16]}…"
        raise FatalError(
            f"{url}: the index {digest[:16]}… of the references that the run is defined with is gone ({there}); "
            "publish the same files again, or define a new run"
        )
    if _digest(data) != digest:
        raise FatalError(
            f"{url}: the references are not those that the run is defined with: the index {digest[:16]}… now has the "
            f"digest {_digest(data)[:16]}…; publish the same files again, or define a new run"
        )
    return data


async def push(directory: Path, url: str, *, tell: Callable[[str], Any] = lambda _: None) -> Pushed:
    """Publish the reference files of a folder as the newest set at a URL; files that are there are not sent again.

    Parameters
    ----------
    directory : Path
        Searched recursively.
    url : str
        Where.
    tell : callable
        Told about each file that was sent.

    Raises
    ------
    PermanentError
        There is no reference file, or one cannot be read or changes meanwhile.
    """
    source = DirectoryReferences(directory)
    found = await anyio.to_thread.run_sync(lambda: list(describe(directory, source)))
    if not found:
        raise PermanentError(f"{directory}: no reference file in this folder (.asdf with meta.reftype, or dust maps)")
    return await publish(open_set(url), ReferenceIndex(tuple(file for _, file in found)), found, source, tell=tell)


async def publish(
    store: ObjectStore,
    index: ReferenceIndex,
    found: Sequence[tuple[Path, IndexedFile]],
    source: DirectoryReferences,
    *,
    tell: Callable[[str], Any] = lambda _: None,
) -> Pushed:
    """Publish an index as the newest one, after those of its files that are not there.

    Parameters
    ----------
    store : ObjectStore
        Of the set.
    index : ReferenceIndex
        Names the files.
    found : sequence
        Where each file is.
    source : DirectoryReferences
        Digested them: it tells if one changes while it is sent.
    tell : callable
        Told about each file that was sent.

    Raises
    ------
    PermanentError
        A file changes meanwhile.
    """
    present = {info.key: info.size async for info in store.list("files/")}
    missing = {file.key: (path, file) for path, file in found if present.get(file.key) != file.size}
    await _upload(store, source, list(missing.values()), tell)
    data = index.encode()
    await store.put(_index_key(index.digest), data)
    await store.put(NEWEST, data)
    return Pushed(index, tuple(file for _, file in missing.values()))


async def push_table(table: Path, url: str) -> str:
    """Publish a star table beside a set of references; returns its URL.

    Raises
    ------
    PermanentError
        It is not a file.
    """
    digest, size = await anyio.to_thread.run_sync(_measured, table)
    key = f"stars/{digest[:16]}/{table.name}"
    store = open_set(url)
    known = await store.head(key)
    if known is None or known.size != size:
        await store.put(key, table)
    return f"{url.rstrip('/')}/{key}"


async def _upload(
    store: ObjectStore,
    source: DirectoryReferences,
    files: list[tuple[Path, IndexedFile]],
    tell: Callable[[str], Any],
) -> None:
    errors: list[Exception] = []
    limit = anyio.CapacityLimiter(_TOGETHER)

    async def one(path: Path, file: IndexedFile) -> None:
        async with limit:
            if errors:
                return
            try:
                await store.put(file.key, path)
                await anyio.to_thread.run_sync(source.digest, str(path))  # it is still what was digested
                tell(file.name)
            except Exception as error:  # noqa: BLE001 - raised below, alone: a group would hide its class
                errors.append(error)

    async with anyio.create_task_group() as tasks:
        for path, file in files:
            tasks.start_soon(one, path, file)
    if errors:
        raise errors[0]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _measured(table: Path) -> tuple[str, int]:
    if not table.is_file():
        raise PermanentError(f"--gaia {table}: there is no such file")
    return file_digest(table), table.stat().st_size
