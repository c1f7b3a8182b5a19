"""Results by identity: manifests that list the objects, created once, checked when found. Not how they are made."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from stream.failure import PermanentError, RetriableError
from stream.identity import canonical_json, hash_parts
from stream.store import ObjectStore
from stream.together import together

__all__ = ["Manifest", "ObjectKind", "Results", "StoredObject", "file_digest", "object_key", "result_key"]

_LOG = logging.getLogger(__name__)

_TOGETHER = 4
"""Objects of one result put at once: enough to fill a link."""

_TRUSTED_SECONDS = 600.0
"""How long what was put here is believed to be there: nothing collects what is so young, and the next segment's message
comes in seconds."""

_TRUSTED = 2000
"""The most objects that are remembered: 0.5 kB each, a manifest with its facts about 10 kB, 20 MB at most."""


class ObjectKind(StrEnum):
    """What an object is to its result."""

    INPUT = "input"
    """The raw file of an ingested exposure."""
    TREE = "tree"
    ARRAY = "array"
    SIDE = "side"
    """A small object for the joint stage."""
    PRODUCT = "product"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a result; ``digest`` is the SHA-256 of its bytes in hexadecimal, ``size`` in bytes."""

    name: str
    key: str
    digest: str
    size: int
    kind: ObjectKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that makes up a result: enough to prefetch, check and collect garbage.

    Attributes
    ----------
    identity : str
        Identity of the result (see `stream.identity`).
    exposure, stage, branch : str
        Of what, after which stage, on which branch it goes on.
    facts : mapping
        JSON values for messages, opaque to the engine.
    objects : tuple of StoredObject
        With those that earlier attempts wrote and this result only refers to.
    attempt : str
        Who made it; no part of the identity.
    extra : mapping
        More JSON values about the making (software versions, times); ``content`` may hold a digest of the tree's
        content, and then counts in `content_digest`.
    generation : int
        1, or more when earlier manifests of this identity were damaged.
    """

    identity: str
    exposure: str
    stage: str
    branch: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    objects: tuple[StoredObject, ...] = ()
    attempt: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 1

    @property
    def key(self) -> str:
        """Where the manifest is."""
        return result_key(self.identity, self.generation)

    @property
    def content_digest(self) -> str:
        """Digest of the result's content: equal for two results with equal numbers, whoever made them.

        The tree counts only by ``extra["content"]``, for its bytes also tell when and where it was made.
        """
        parts = [[o.name, o.digest] for o in self.objects if o.kind not in {ObjectKind.TREE, ObjectKind.PRODUCT}]
        return hash_parts("content", self.branch, self.extra.get("content"), sorted(parts))

    def object(self, name: str) -> StoredObject | None:
        """The object of that name."""
        return next((o for o in self.objects if o.name == name), None)

    def document(self) -> dict[str, Any]:
        """The manifest as a JSON value."""
        # Not asdict, which copies facts and objects in depth and takes 25 times as long.
        own = {name: getattr(self, name) for name in self.__slots__}
        return {**own, "facts": dict(self.facts), "extra": dict(self.extra), "objects": _plain(self.objects)}

    def encode(self) -> bytes:
        """The manifest as canonical JSON."""
        return canonical_json(self.document())

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Manifest:
        """Read what `document` gave; keys that it does not know, of a newer version, are left out.

        Raises
        ------
        stream.failure.PermanentError
            Something is missing.
        """
        try:
            objects = tuple(
                StoredObject(o["name"], o["key"], o["digest"], int(o["size"]), ObjectKind(o["kind"]))
                for o in document["objects"]
            )
            known = {name: document[name] for name in cls.__slots__ if name in document and name != "objects"}
            return cls(**known, objects=objects)
        except (KeyError, TypeError, ValueError) as error:
            msg = f"not a manifest: {type(error).__name__} {error}"
            raise PermanentError(msg) from error

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read what `encode` gave. Raises PermanentError for anything else."""
        try:
            return cls.from_document(json.loads(data))
        except ValueError as error:
            msg = f"not a manifest: {error}"
            raise PermanentError(msg) from error


def result_key(identity: str, generation: int = 1) -> str:
    """Key of a manifest. The first has its number too, for a folder and a file cannot share a name on a local store."""
    return f"results/{identity}/{generation}"


def object_key(exposure: str, stage: str, attempt: str, file: str) -> str:
    """Key of an object that an attempt writes: never the key of another attempt's."""
    return f"objects/{exposure}/{stage}/{attempt}/{file}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal (1.2 GB/s)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Results:
    """Results in a store, for all runs.

    Parameters
    ----------
    store : ObjectStore
        Where they are.
    on_difference : callable, optional
        Called with (the winner, the loser) when two results of one identity have different content: equal input and
        recipe gave other numbers, which someone must look at. Logged in any case.
    """

    def __init__(
        self, store: ObjectStore, *, on_difference: Callable[[Manifest, Manifest], None] | None = None
    ) -> None:
        self._store = store
        self._on_difference = on_difference
        self._put_here: OrderedDict[str, tuple[float, Manifest | None]] = OrderedDict()

    async def find(self, identity: str, *, check_digests: Path | None = None) -> Manifest | None:
        """The result, if it is there and whole.

        Parameters
        ----------
        identity : str
            Which.
        check_digests : Path, optional
            Also read every object (through this cache folder) and compare its digest.
        """
        return (await self.look(identity, check_digests=check_digests))[0]

    async def look(
        self, identity: str, *, check_digests: Path | None = None
    ) -> tuple[Manifest | None, Manifest | None]:
        """The result as `find` gives it; and where there is none, the first of its manifests that is not whole."""
        generation = 1
        damaged: Manifest | None = None
        while (data := await self._store.get(result_key(identity, generation))) is not None:
            manifest = _decoded(data, result_key(identity, generation))
            if manifest is not None and await self._is_whole(manifest, check_digests):
                return manifest, None
            damaged = damaged or manifest
            generation += 1
        return None, damaged

    async def read(self, key: str) -> Manifest:
        """The manifest at a key, unchecked: one that was published here lately is not asked for, for none ever changes.

        Raises
        ------
        stream.failure.RetriableError
            It does not exist (collected, or written to another store).
        stream.failure.PermanentError
            It is no manifest.
        """
        known = self._trusted(key)
        if known is not None and known[1] is not None:
            return known[1]
        data = await self._store.get(key)
        if data is None:
            msg = f"the manifest {key} does not exist in {self._store!r}"
            raise RetriableError(msg)
        return Manifest.decode(data)

    async def publish(
        self,
        manifest: Manifest,
        *,
        check_digests: Path | None = None,
        accept: Callable[[Manifest], bool] = lambda _: True,
    ) -> Manifest:
        """Make a result known, its objects having been put before; returns the one that holds.

        The first writer wins, and a loser gets the winner's; a damaged winner, or one that ``accept`` refuses, is
        succeeded by the next generation. Publishing the same manifest again changes nothing.
        """
        generation = 1
        while True:
            candidate = replace(manifest, generation=generation)
            if await self._store.put_if_absent(candidate.key, candidate.encode()):
                self._trust(candidate.key, candidate)
                return candidate
            data = await self._store.get(candidate.key)
            if data is None:  # collected between the two calls
                continue
            winner = _decoded(data, candidate.key)
            if winner is not None and accept(winner) and await self._is_whole(winner, check_digests):
                if winner.content_digest != candidate.content_digest:
                    self._differs(winner, candidate)
                return winner
            generation += 1

    async def publish_made(self, made: Mapping[str, Any]) -> list[Manifest]:
        """Put and publish what `stream.segment.execute_segment` returned; the results that hold, in order.

        The objects come first and the manifests after them: a crash in between leaves garbage, never a broken result.
        """
        files = made["files"].items()
        await together((partial(self._store.put, key, Path(path)) for key, path in files), most=_TOGETHER)
        for key, _ in files:
            self._trust(key)
        return [await self.publish(Manifest.from_document(document)) for document in made["manifests"]]

    async def missing(self, manifest: Manifest, *, trusting: bool = False) -> list[StoredObject]:
        """Objects of a result that do not exist or have another size.

        ``trusting`` does not ask for those that were put here a short while ago.
        """
        lost: list[StoredObject] = []
        asked = [stored for stored in manifest.objects if not (trusting and self._trusted(stored.key))]

        async def look(stored: StoredObject) -> None:
            info = await self._store.head(stored.key)
            if info is None or info.size != stored.size:
                lost.append(stored)

        if asked:
            async with anyio.create_task_group() as tasks:
                for stored in asked:
                    tasks.start_soon(look, stored)
        return lost

    async def fetch(self, manifest: Manifest, cache: Path) -> dict[str, Path]:
        """Local files of all objects by name.

        Raises
        ------
        stream.failure.RetriableError
            One does not exist.
        """
        paths: dict[str, Path] = {}

        async def fetch_one(stored: StoredObject) -> None:
            paths[stored.name] = await self._store.fetch(stored.key, cache)

        await together(partial(fetch_one, stored) for stored in manifest.objects)
        return paths

    def _trust(self, key: str, manifest: Manifest | None = None) -> None:
        self._put_here[key] = (time.monotonic(), manifest)
        while len(self._put_here) > _TRUSTED:
            self._put_here.popitem(last=False)

    def _trusted(self, key: str) -> tuple[float, Manifest | None] | None:
        known = self._put_here.get(key)
        return known if known is not None and time.monotonic() - known[0] < _TRUSTED_SECONDS else None

    async def _is_whole(self, manifest: Manifest, cache: Path | None) -> bool:
        lost = await self.missing(manifest)
        if not lost and cache is not None:
            paths = await self.fetch(manifest, cache)
            for stored in manifest.objects:
                if await anyio.to_thread.run_sync(file_digest, paths[stored.name]) != stored.digest:
                    lost.append(stored)
        if lost:
            _LOG.warning("The result %s is damaged: %s", manifest.key, ", ".join(o.key for o in lost))
        return not lost

    def _differs(self, winner: Manifest, loser: Manifest) -> None:
        _LOG.error(
            "Two results of %s after %s differ though input and recipe are equal: %s by %s, and by %s",
            winner.exposure, winner.stage, winner.key, winner.attempt, loser.attempt,
        )  # fmt: skip
        if self._on_difference is not None:
            self._on_difference(winner, loser)


def _decoded(data: bytes, key: str) -> Manifest | None:
    try:
        return Manifest.decode(data)
    except PermanentError as error:  # cut short by a power failure: as good as damaged
        _LOG.warning("The manifest %s cannot be read: %s", key, error)
        return None


def _plain(objects: tuple[StoredObject, ...]) -> list[dict[str, Any]]:
    return [
        {name: getattr(stored, name) for name in StoredObject.__slots__} | {"kind": str(stored.kind)}
        for stored in objects
    ]
