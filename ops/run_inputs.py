"""References and star table of a run: how its definition names them, and the local files that jobs get for them.

A folder and a table on disk are named by path, and every machine has them there. Those in object storage are named by
URL and digest, and fetched into a bounded cache when a job needs them. Recipes need digests alone, so planning fetches
nothing but the index. Those from CRDS are named by the context, and lie in a local CRDS cache that was filled before;
or the index has the rules of the context, and they are fetched at the start (`ops.crds_push`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from ops.crds_cache import check_pinned_context, crds_cache, defined_context, is_crds, is_crds_definition
from ops.crds_push import lay_out_rules
from ops.gaia_option import is_queried
from ops.reference_store import is_url, newest_index, object_at, open_set, pinned_index
from ops.settings import RunSettings
from stages.reference_index import ReferenceIndex
from stream.failure import FatalError, PermanentError
from stream.results import file_digest
from stream.store import ObjectStore
from stream.store.cache import ObjectCache
from stream.store.measured import MeasuredStore

__all__ = ["RunInputs", "defined_references"]

Observer = Callable[[dict[str, Any]], None]


async def defined_references(text: str, settings: RunSettings) -> Any:
    """References as a definition names them: a folder's path, URL and digest of the newest index, or a CRDS context.

    Raises
    ------
    PermanentError
        There is no such folder, nothing was published there, or the context is not complete in the cache.
    """
    if is_crds(text):
        return await anyio.to_thread.run_sync(defined_context, text, settings)
    if is_url(text):
        url = text.rstrip("/")
        index = await newest_index(url)
        return {"url": url, "index": index.digest, **_context_in(index, settings)}
    path = anyio.Path(text)
    if not await path.is_dir():
        raise PermanentError(f"--references {text}: there is no such folder")
    return str(await path.resolve())


def _context_in(index: ReferenceIndex, settings: RunSettings) -> dict[str, Any]:
    """What a definition says of the CRDS context in an index, if there is one."""
    context = index.context
    if context is None:
        return {}
    return {"crds": context.name, "mappings": context.mappings, "parameters": settings.parameter_references}


def _is_published(references: Any) -> bool:
    """Whether a definition's references lie in object storage."""
    return isinstance(references, Mapping) and "url" in references


def _is_stored(gaia: Any) -> bool:
    """Whether a definition's star table lies in object storage."""
    return not isinstance(gaia, str) and not is_queried(gaia)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An object as the cache asks for it."""

    name: str
    key: str
    digest: str
    size: int


class _Stores:
    """References and stars as one store, so that one cache and one bound hold both."""

    def __init__(self) -> None:
        self.references: ObjectStore | None = None
        self.stars: dict[str, tuple[ObjectStore, str]] = {}

    def staging(self, name: str) -> Path | None:  # noqa: ARG002
        """None: not local."""
        return None

    async def get(self, key: str) -> bytes | None:
        """Read from the one that has the key."""
        store, own = self._place(key)
        return await store.get(own)

    async def fetch(self, key: str, cache: Path) -> Path:
        """Fetch from the one that has the key."""
        store, own = self._place(key)
        return await store.fetch(own, cache)

    def _place(self, key: str) -> tuple[ObjectStore, str]:
        if key in self.stars:
            return self.stars[key]
        assert self.references is not None
        return self.references, key


class RunInputs:
    """References and star table of one run, in one process.

    Parameters
    ----------
    definition : mapping
        Of the run.
    folder : Path
        For what is fetched and what is made from it; several processes of a machine may share it.
    max_bytes : int, optional
        Bound on fetched files, and on unpacked arrays made from them; none for local ones.
    crds : Path, optional
        This machine's CRDS cache, for references from there.
    observe : callable
        Told about hits and misses, as ``{"event": "reference_cache", "outcome": "hit" or "miss", "bytes"}``.
    """

    def __init__(
        self,
        definition: Mapping[str, Any],
        folder: Path,
        *,
        max_bytes: int | None = None,
        crds: Path | None = None,
        observe: Observer = lambda _: None,
    ) -> None:
        self._crds = crds
        self._rules: Path | None = None
        self._folder = folder
        self._max_bytes = max_bytes
        self._files: dict[str, _Wanted] = {}
        self._stars: _Wanted | None = None
        self._stores = _Stores()
        self._observe = observe
        self._references = definition["references"]
        self._gaia = definition["gaia"]
        self._cache: ObjectCache | None = None

    @classmethod
    async def opened(
        cls, definition: Mapping[str, Any], folder: Path, settings: RunSettings, observe: Observer = lambda _: None
    ) -> RunInputs:
        """Read what selection needs of a run's references.

        Raises
        ------
        FatalError
            The index in the store, or the context in the CRDS cache, is not the one that the run is defined with, or
            the folder cannot be written to.
        """
        crds = None
        if is_crds_definition(definition["references"]):
            crds = crds_cache(settings)
            await anyio.to_thread.run_sync(check_pinned_context, definition["references"], crds)
        remote = _is_published(definition["references"]) or _is_stored(definition["gaia"])
        inputs = cls(
            definition,
            (settings.reference_cache or folder).absolute() if remote else folder,
            max_bytes=int(settings.reference_cache_gb * 1e9) if remote else None,
            crds=crds,
            observe=observe,
        )
        if remote:
            await inputs._open()
        return inputs

    @property
    def environment(self) -> dict[str, Any]:
        """What job processes need to know (see `ops.workbench.Workbench`)."""
        references = self._references
        if is_crds_definition(references):
            references = {**references, "path": str(self._crds)}
        elif _is_published(references):
            references = {**references, "path": str(self._index_path)}
            if self._rules is not None:
                references["rules"] = str(self._rules)
        return {
            "references": references,
            "gaia": self._gaia,
            "cache": str(self._folder),
            "cache_bytes": self._max_bytes,
        }

    @property
    def stars_are_fetched(self) -> bool:
        """Whether the star table lies in object storage."""
        return _is_stored(self._gaia)

    @asynccontextmanager
    async def lease(self, references: Sequence[str] = (), *, stars: bool = False) -> AsyncIterator[dict[str, Any]]:
        """Arguments that give a job its local files, which stay as long as the context lasts.

        Parameters
        ----------
        references : sequence of str
            Names of the references that it opens, as selected.
        stars : bool
            Whether it reads the star table.

        Raises
        ------
        stream.failure.RetriableError
            A file is not in the store, or is not the one that the index or the definition tells of.
        """
        wanted = [self._files[name] for name in dict.fromkeys(references) if name in self._files]
        if stars and self._stars is not None:
            wanted.append(self._stars)
        if self._cache is None or not wanted:
            yield {}
            return
        async with self._cache.lease(wanted) as paths:
            lent: dict[str, Any] = {"files": {name: str(path) for name, path in paths.items()}}
            if stars and self._stars is not None:
                lent["stars"] = lent["files"].pop(self._stars.name)
            yield lent

    def sweep(self) -> None:
        """Remove what killed processes left. Call it at start."""
        if self._cache is not None:
            self._cache.sweep()

    @property
    def _index_path(self) -> Path:
        return self._folder / f"index-{self._references['index']}.json"

    async def _open(self) -> None:
        if _is_published(self._references):
            url, digest = self._references["url"], self._references["index"]
            data = await pinned_index(url, digest)
            index = ReferenceIndex.decode(data, where=f"{url}, index {digest[:16]}…")
            await anyio.to_thread.run_sync(self._keep_index, data)
            store = open_set(url)
            if index.context is not None:
                self._rules = await lay_out_rules(store, index, self._folder)
                await anyio.to_thread.run_sync(check_pinned_context, self._references, self._rules)
            self._stores.references = MeasuredStore(store, self._observe)
            self._files = {
                name: _Wanted(name, file.key, file.sha256, file.size) for name, file in index.named(url).items()
            }
        if _is_stored(self._gaia):
            url, digest = self._gaia["url"], self._gaia["digest"]
            store, key = object_at(url)
            kept_as = f"stars/{hashlib.sha256(url.encode()).hexdigest()[:8]}-{digest[:16]}/{key}"
            self._stores.stars[kept_as] = MeasuredStore(store, self._observe), key
            self._stars = _Wanted(url, kept_as, digest, self._gaia["size"])
        self._cache = ObjectCache(
            self._stores,
            self._folder / "fetched",
            max_bytes=self._max_bytes or 0,
            digest=file_digest,
            observe=lambda event: self._observe({**event, "event": "reference_cache"}),
        )

    def _keep_index(self, data: bytes) -> None:
        """Leave the index where job processes read it; racing processes leave the same."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as draft:
                draft.write(data)
            Path(draft.name).replace(self._index_path)
        except OSError as error:
            raise FatalError(f"the cache {self._folder} cannot be used: {error.strerror}") from error
