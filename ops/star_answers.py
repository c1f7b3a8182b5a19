"""The stars that catalogs answered, kept in the store: one question is put once, and has one answer from then on.

::

    stars/<question>.json                        where the answer is (written with put-if-absent)
    stars/<question>/<16 digits>.parquet         a star table

The question is digested from the source as the run's definition names it, the cone and the epoch; and from the run's
salt, so that ``--recompute`` asks anew. So a run that is repeated, or replayed with other parameters, has the same
stars though the catalog may have moved on, and needs no network for them.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from ops.pipeline_jobs import PipelineJobs
from stream.failure import RetriableError
from stream.identity import canonical_json, hash_parts
from stream.results import ObjectKind, StoredObject
from stream.store import ObjectStore

__all__ = ["STARS", "StarAnswers"]

LOG = logging.getLogger(__name__)

STARS = "stars"
"""Name of the star table among the objects of a solution."""


class StarAnswers:
    """Asks, and keeps what is answered.

    Parameters
    ----------
    jobs : PipelineJobs
        Runs the question in a job process, which may hang or die of it.
    store : ObjectStore
        Where answers lie.
    scratch : Path
        For files being made.
    at_once : int
        Questions at once: a catalog that hangs must leave slots to everything else.
    """

    def __init__(self, *, jobs: PipelineJobs, store: ObjectStore, scratch: Path, at_once: int = 1) -> None:
        self._jobs = jobs
        self._store = store
        self._scratch = scratch
        self._asking = anyio.CapacityLimiter(at_once)

    async def answer(
        self, source: Mapping[str, Any], cone: Mapping[str, float], *, patience: float, salt: str | None, label: str
    ) -> StoredObject:
        """The star table for a cone: the stored one, or what the source answers now.

        Parameters
        ----------
        source : mapping
            As the definition names it.
        cone : mapping
            The fields of `stages.tweakreg.cone.SearchCone`.
        patience : float
            Seconds for a service to answer.
        salt : str or None
            Of the run.
        label : str
            What it is for, in messages.

        Raises
        ------
        WorkFailedError
            The source does not answer, or with something else than stars.
        """
        question = hash_parts("stars", dict(source), dict(cone), salt)
        found = await self._stored(question)
        if found is not None:
            return found
        async with self._asking:
            return await self._ask(question, source, cone, patience=patience, label=label)

    async def _stored(self, question: str) -> StoredObject | None:
        record = await self._store.get(f"stars/{question}.json")
        if record is None:
            return None
        told = json.loads(record)
        if await self._store.head(told["key"]) is None:
            LOG.warning("%s: the stars that were kept here are gone: asked for again", told["key"])
            return None
        return StoredObject(STARS, told["key"], told["digest"], told["size"], ObjectKind.SIDE)

    async def _ask(
        self, question: str, source: Mapping[str, Any], cone: Mapping[str, float], *, patience: float, label: str
    ) -> StoredObject:
        folder = self._scratch / f"stars-{uuid.uuid4().hex}"
        await anyio.Path(folder).mkdir(parents=True)
        try:
            path = folder / "stars.parquet"
            arguments = {"cone": dict(cone), "timeout": patience, "out": str(path)}
            told = await self._jobs.run_patiently("ask_stars", arguments, label=label)
            key = f"stars/{question}/{told['digest'][:16]}.parquet"
            info = await self._store.put(key, path)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
        LOG.info("%s: %d reference stars from %s", label, told["stars"], source)
        record = {"key": key, "digest": told["digest"], "size": info.size, "stars": told["stars"]}
        record |= {"source": dict(source), "cone": dict(cone)}
        await self._keep(question, record)
        kept = await self._stored(question)
        if kept is None:
            raise RetriableError(f"{key}: the stars that were just kept are gone")
        return kept

    async def _keep(self, question: str, record: dict[str, Any]) -> None:
        """Let the first answer win; one whose table is gone is replaced."""
        data, key = canonical_json(record), f"stars/{question}.json"
        if not await self._store.put_if_absent(key, data) and await self._stored(question) is None:
            await self._store.put(key, data)
