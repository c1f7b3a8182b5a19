"""Fills a local CRDS cache from the server, through the field's client: the only place that reaches for the network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops.crds_files import CatalogEntry, Exposure, Resolved, catalog_entries, local_path, problem_of, resolve
from stages.crds_context import OBSERVATORY, CrdsContext, client, server_config
from stream.failure import FatalError, PermanentError, RetriableError

__all__ = ["DEFAULT_SERVER", "Synced", "sync"]

DEFAULT_SERVER = "https://roman-crds.stsci.edu"

_PATHS = ("CRDS_PATH_SINGLE", "CRDS_MAPPATH", "CRDS_REFPATH", "CRDS_CFGPATH", "CRDS_PICKLEPATH")


@dataclass(slots=True)
class Synced:
    """What was done.

    ``fetched`` names the files that came from the server, ``resolved`` what each type resolves to.
    """

    context: str
    mappings: int = 0
    references: int = 0
    fetched: list[str] = field(default_factory=list)
    fetched_bytes: int = 0
    resolved: list[Resolved] = field(default_factory=list)


def sync(
    cache: Path,
    context: str | None,
    exposures: Sequence[Exposure],
    *,
    server: str | None = None,
    tell: Callable[[str], Any] = lambda _: None,
) -> Synced:
    """Fetch a context's mappings, and the references that exposures need, as far as the cache does not have them.

    Parameters
    ----------
    cache : Path
        The cache; made if it does not exist.
    context : str or None
        Name of the pipeline mapping; None for the one that the server has in use.
    exposures : sequence
        Labels and facts.
    server : str, optional
        URL; by default ``CRDS_SERVER_URL``, else the mission's.
    tell : callable
        Told about each file before it is fetched.

    Raises
    ------
    RetriableError
        The server does not answer, or what it sent is not what it says of it.
    PermanentError
        It does not know the context, or the cache is meant to be read only.
    FatalError
        The cache cannot be written to.
    """
    client()
    if os.environ.get("CRDS_READONLY_CACHE", "").lower() in {"1", "true", "t"}:
        raise PermanentError("CRDS_READONLY_CACHE is set: a cache that is only read cannot be synced")
    with _environment(cache), _quiet_client():
        from crds.client import api
        from crds.core.exceptions import CrdsError

        url = server or os.environ.get("CRDS_SERVER_URL") or DEFAULT_SERVER
        api.set_crds_server(url)
        try:
            return _Sync(cache, tell).run(context, exposures)
        except CrdsError as error:
            raise RetriableError(f"the CRDS server {url}: {error}") from error
        except OSError as error:
            raise FatalError(f"the CRDS cache {cache} cannot be filled: {error}") from error


@contextmanager
def _environment(cache: Path) -> Iterator[None]:
    """The variables by which the client finds the cache; as they were afterwards."""
    before = {name: os.environ.get(name) for name in (*_PATHS, "CRDS_PATH", "CRDS_OBSERVATORY")}
    for name in _PATHS:
        os.environ.pop(name, None)
    os.environ["CRDS_PATH"], os.environ["CRDS_OBSERVATORY"] = str(cache), OBSERVATORY
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Keep the client from telling about each file too; its warnings stay."""
    logger = logging.getLogger("CRDS")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Sync:
    def __init__(self, cache: Path, tell: Callable[[str], Any]) -> None:
        self._cache = cache
        self._tell = tell
        self._catalog: dict[str, CatalogEntry] = {}

    def run(self, context: str | None, exposures: Sequence[Exposure]) -> Synced:
        from crds.client import api
        from crds.client.proxy import crds_decode

        told = api.get_server_info()
        self._catalog = catalog_entries(crds_decode(told["download_metadata"]))
        name = context or told.get("latest_context") or told["operational_context"]
        if name not in self._catalog:
            raise PermanentError(f"the CRDS server {told.get('server')} does not know the context {name}")
        done = Synced(name)
        mappings = api.get_mapping_names(name)
        self._fetch(done, mappings)
        done.mappings = len(mappings)
        self._keep(told)
        opened = CrdsContext(self._cache, name)
        done.resolved = resolve(opened, exposures)
        references = sorted({found.name for found in done.resolved if found.name is not None})
        self._fetch(done, references)
        done.references = len(references)
        return done

    def _fetch(self, done: Synced, names: Iterable[str]) -> None:
        """Have files in the cache that are what the server says; a damaged one is replaced, a bad download removed."""
        from crds.client.api import FileCacher

        for name in names:
            entry = self._catalog.get(name)
            if entry is None:
                raise PermanentError(f"the CRDS server does not know {name}, which the context {done.context} names")
            path = local_path(self._cache, name)
            if problem_of(path, entry) is None:
                continue
            path.unlink(missing_ok=True)
            self._tell(name)
            cacher = FileCacher(done.context, parameters={"META.INSTRUMENT.NAME": "WFI"})
            try:
                cacher.get_local_files([name])
            finally:
                bad = problem_of(path, entry)
                if bad is not None:
                    path.unlink(missing_ok=True)
            if bad is not None:
                raise RetriableError(f"{name}, as it came from the CRDS server, {bad}; try again")
            done.fetched.append(name)
            done.fetched_bytes += entry.size

    def _keep(self, told: dict[str, Any]) -> None:
        """Leave what the server told where the client, and runs without network, look for it."""
        from crds.core import config, heavy_client

        config.get_crds_ref_subdir_mode(OBSERVATORY)
        heavy_client.cache_server_info(heavy_client.ConfigInfo(told), OBSERVATORY)
        if server_config(self._cache) != told:  # the client keeps quiet about what it cannot write
            raise FatalError(f"{self._cache}: what the CRDS server told cannot be written to config/{OBSERVATORY}")
