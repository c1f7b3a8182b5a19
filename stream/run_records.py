"""What a run keeps in the store: its definition, pointers to results, attempts. The results belong to no run."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stream.clock import Clock
from stream.failure import FatalError
from stream.identity import canonical_json
from stream.results import Manifest, result_key
from stream.retry import Attempt, Outcome
from stream.store import ObjectStore

__all__ = ["AttemptRecord", "Attempts", "Pointer", "RunRecords"]


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which result a run has for an exposure after a stage; ``adopted`` when it found it, made by somebody else."""

    exposure: str
    stage: str
    identity: str
    generation: int
    content_digest: str
    adopted: bool = False

    @property
    def manifest(self) -> str:
        """Key of the manifest."""
        return result_key(self.identity, self.generation)

    @classmethod
    def to(cls, manifest: Manifest) -> Pointer:
        """Pointer to a result."""
        return cls(
            manifest.exposure, manifest.stage, manifest.identity, manifest.generation, manifest.content_digest
        )  # fmt: skip

    def encode(self) -> bytes:
        """The pointer as canonical JSON."""
        return canonical_json({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def decode(cls, data: bytes) -> Pointer:
        """Read what `encode` gave."""
        document = json.loads(data)
        return cls(**{name: document[name] for name in cls.__slots__ if name in document})


class RunRecords:
    """The records of one run.

    Parameters
    ----------
    store : ObjectStore
        Where they are.
    run : str
        The run's name.
    """

    def __init__(self, store: ObjectStore, run: str) -> None:
        self._store = store
        self.run = run

    async def define(self, definition: Mapping[str, Any]) -> None:
        """Fix what the run is; the same definition again changes nothing.

        Raises
        ------
        stream.failure.FatalError
            The run is defined otherwise: the text says by what.
        """
        if not await self._store.put_if_absent(self._definition_key, canonical_json(definition)):
            await self.require_definition(definition)

    async def definition(self) -> dict[str, Any] | None:
        """The run's definition, None before `define`."""
        data = await self._store.get(self._definition_key)
        return None if data is None else json.loads(data)

    async def require_definition(self, definition: Mapping[str, Any]) -> None:
        """Refuse to work with another definition than the run's.

        Raises
        ------
        stream.failure.FatalError
            The run is not defined, or otherwise.
        """
        stored = await self.definition()
        if stored is None:
            msg = f"the run {self.run!r} is not defined yet: define it first (rampstream topics apply --run {self.run})"
            raise FatalError(msg)
        if canonical_json(stored) != canonical_json(definition):
            differences = list(_differences(stored, json.loads(canonical_json(definition)), ""))
            shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
            msg = (
                f"the run {self.run!r} is already defined otherwise: {shown}. A run keeps its definition for good: "
                "use its settings, or choose another name for a new run (it shares all results that do not change)"
            )
            raise FatalError(msg)

    async def point(self, manifest: Manifest) -> Pointer:
        """Let the run's pointer for the manifest's exposure and stage lead to it."""
        pointer = Pointer.to(manifest)
        await self._store.put(self._pointer_key(manifest.exposure, manifest.stage), pointer.encode())
        return pointer

    async def adopt(self, manifest: Manifest) -> None:
        """Let the run's pointer lead to a result that was found, unless it does already."""
        known = await self.pointer(manifest.exposure, manifest.stage)
        pointer = replace(Pointer.to(manifest), adopted=True)
        if known is None or known.manifest != pointer.manifest:
            await self._store.put(self._pointer_key(manifest.exposure, manifest.stage), pointer.encode())

    async def pointer(self, exposure: str, stage: str) -> Pointer | None:
        """The run's pointer, None when there is none."""
        data = await self._store.get(self._pointer_key(exposure, stage))
        return None if data is None else Pointer.decode(data)

    async def add_revision(self, association: str, manifest: Manifest) -> int:
        """Add a finalized exposure under the next free revision; the same result again gets the revision it has.

        Returns
        -------
        int
            The revision, from 1.
        """
        pointer = Pointer.to(manifest)
        revisions = await self.revisions(manifest.exposure, manifest.stage, association)
        latest = max(revisions, default=0)
        while True:
            if latest and revisions[latest].identity == pointer.identity:
                return latest
            latest += 1
            key = f"{self._pointer_key(manifest.exposure, manifest.stage)}/{association}/{latest}"
            if await self._store.put_if_absent(key, pointer.encode()):
                return latest
            revisions = await self.revisions(manifest.exposure, manifest.stage, association)

    async def revisions(self, exposure: str, stage: str, association: str) -> dict[int, Pointer]:
        """All revisions of a finalized exposure by number."""
        prefix = f"{self._pointer_key(exposure, stage)}/{association}/"
        found: dict[int, Pointer] = {}
        async for info in self._store.list(prefix):
            data = await self._store.get(info.key)
            if data is not None:
                found[int(info.key.removeprefix(prefix))] = Pointer.decode(data)
        return dict(sorted(found.items()))

    @property
    def _definition_key(self) -> str:
        return f"runs/{self.run}/definition"

    def _pointer_key(self, exposure: str, stage: str) -> str:
        return f"runs/{self.run}/{exposure}/{stage}"


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt as it is kept; ``id`` is unique and part of the keys of the objects that it writes."""

    key: str
    id: str
    attempt: Attempt
    worker: str
    started: float
    ended: float | None = None
    failure: Mapping[str, Any] | None = None


class Attempts:
    """Attempts at the messages of one run, written before a job starts and again when it ends.

    Parameters
    ----------
    store : ObjectStore
        Where they are.
    run, worker : str
        The run, and the name of this worker.
    clock : Clock
        For their times.
    """

    def __init__(self, store: ObjectStore, *, run: str, worker: str, clock: Clock) -> None:
        self._store = store
        self._run = run
        self._worker = worker
        self._clock = clock

    async def first(self, exposure: str, stage: str) -> AttemptRecord | None:
        """Write the first attempt, open; None, and nothing written, when there was one before.

        Most messages are tried once: that their first attempt can be created says that there was none, in one request
        instead of two.
        """
        return await self._create(exposure, stage, 1, bigger_slot=False)

    async def start(
        self, exposure: str, stage: str, *, bigger_slot: bool = False, after: int | None = None
    ) -> AttemptRecord:
        """Write an open attempt with the next number; the caller may know of one ``after`` which it comes."""
        if after is None:
            taken = await self.earlier(exposure, stage)
            after = max((record.attempt.number for record in taken), default=0)
        while True:
            after += 1
            record = await self._create(exposure, stage, after, bigger_slot=bigger_slot)
            if record is not None:
                return record

    async def _create(self, exposure: str, stage: str, number: int, *, bigger_slot: bool) -> AttemptRecord | None:
        record = AttemptRecord(
            key=f"{self._prefix(exposure, stage)}{number:06d}",
            id=f"{number}-{uuid.uuid4().hex[:12]}",
            attempt=Attempt(number, bigger_slot=bigger_slot),
            worker=self._worker,
            started=self._clock.now(),
        )
        return record if await self._store.put_if_absent(record.key, _encoded(record)) else None

    async def end(
        self, record: AttemptRecord, outcome: Outcome, failure: Mapping[str, Any] | None = None
    ) -> AttemptRecord:
        """Write how an attempt ended."""
        ended = replace(
            record, attempt=replace(record.attempt, outcome=outcome), ended=self._clock.now(), failure=failure
        )
        await self._store.put(record.key, _encoded(ended))
        return ended

    async def earlier(self, exposure: str, stage: str) -> list[AttemptRecord]:
        """All attempts at a message, oldest first."""
        records = []
        async for info in self._store.list(self._prefix(exposure, stage)):
            data = await self._store.get(info.key)
            if data is not None:
                records.append(_decoded(info.key, data))
        return records

    async def clear(self, exposure: str | None = None, stage: str | None = None) -> int:
        """Forget attempts: of one message, of one exposure, or of the run. Returns how many."""
        prefix = f"attempts/{self._run}/"
        if exposure is not None:
            prefix = f"{prefix}{exposure}/" if stage is None else self._prefix(exposure, stage)
        keys = [info.key async for info in self._store.list(prefix)]
        for key in keys:
            await self._store.delete(key)
        return len(keys)

    def _prefix(self, exposure: str, stage: str) -> str:
        return f"attempts/{self._run}/{exposure}/{stage}/"


def _encoded(record: AttemptRecord) -> bytes:
    return canonical_json(
        {
            "id": record.id,
            "number": record.attempt.number,
            "outcome": str(record.attempt.outcome),
            "bigger_slot": record.attempt.bigger_slot,
            "worker": record.worker,
            "started": record.started,
            "ended": record.ended,
            "failure": record.failure,
        }
    )


def _decoded(key: str, data: bytes) -> AttemptRecord:
    try:
        document = json.loads(data)
    except ValueError:  # cut short by a power failure, so its worker never ended it
        return AttemptRecord(key, "", Attempt(int(key.rpartition("/")[2])), worker="", started=0.0)
    attempt = Attempt(document["number"], Outcome(document["outcome"]), document["bigger_slot"])
    return AttemptRecord(
        key, document["id"], attempt, document["worker"], document["started"], document["ended"], document["failure"]
    )


def _differences(stored: Any, given: Any, where: str) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(given, dict):
        for name in sorted(stored.keys() | given.keys()):
            path = f"{where}.{name}" if where else name
            if name not in given:
                yield f"{path} was {_shown(stored[name])}, is not given now"
            elif name not in stored:
                yield f"{path} was not given, is {_shown(given[name])}"
            else:
                yield from _differences(stored[name], given[name], path)
    elif stored != given or type(stored) is not type(given):
        yield f"{where} was {_shown(stored)}, is {_shown(given)}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
