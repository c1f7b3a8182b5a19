"""Takes note of what a person names, and publishes it: member lists, then a message for each exposure.

Order is write effect, publish, mark: killed anywhere and started again, what was published already is published once
more with the same id, and nothing is left out.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from ops.ingest import Entry, Ingest
from ops.work import ingest_key
from stages.standing import starting_stage
from stream.clock import Clock
from stream.failure import FatalError
from stream.identity import canonical_json, root_identity
from stream.member_list import MemberList, put_member_list, take_product_name
from stream.message import Message
from stream.results import Manifest, ObjectKind, Results, StoredObject, object_key
from stream.router import Router
from stream.store import ObjectStore
from stream.tracing import Forwarding, Tracing

__all__ = ["INGEST", "Announced", "Announcer"]

LOG = logging.getLogger(__name__)

INGEST = "ingest"
"""Stands for a stage in the manifests and keys of what was ingested."""


def _awaited_prefix(run: str, exposure: str) -> str:
    """Where each association that waits for the file of an exposure has an object of its name."""
    return f"runs/{run}/awaited/{exposure}/"


@dataclass(frozen=True, slots=True)
class Announced:
    """What became of one exposure.

    ``announced``, ``known`` (it was before, and is left alone), ``awaited`` (its file is not there yet) or ``refused``.
    """

    exposure: str
    outcome: str
    reason: str | None = None


class Announcer:
    """Announces exposures to one run.

    Parameters
    ----------
    store, results, router : ObjectStore, Results, Router
        Of the run.
    clock : Clock
        For the time of arrival.
    upload : bool
        Copy inputs into the store; else they are registered and read where they lie.
    again : bool
        Publish also what was announced before.
    replace : bool
        Accept other content under a known name.
    tracing : Tracing, optional
        Begins the trace of each exposure.
    """

    def __init__(
        self,
        *,
        store: ObjectStore,
        results: Results,
        router: Router,
        clock: Clock,
        upload: bool,
        again: bool = False,
        replace: bool = False,
        tracing: Tracing | None = None,
    ) -> None:
        self._store = store
        self._results = results
        self._router = router
        self._clock = clock
        self._upload = upload
        self._again = again
        self._replace = replace
        self._tracing = tracing or Forwarding()
        self._superseding: set[str] = set()

    async def lists(self, ingest: Ingest) -> None:
        """Write the member lists, before any of their members is told of; each supersedes older ones of its name."""
        for members in ingest.lists:
            await put_member_list(self._store, self._router.run, members)
            before = await take_product_name(self._store, self._router.run, members)
            if before is not None:
                LOG.warning(
                    "association %s is superseded by %s, a newer list of its product name", before, members.association
                )
                self._superseding.add(members.association)

    async def exposure(self, entry: Entry, lists: list[MemberList]) -> Announced:
        """Publish one exposure that was inspected, as a member of its associations; a bad one is told to them."""
        with self._tracing.starting(INGEST, exposure=entry.id):
            return await self._exposure(entry, lists)

    async def absent(self, exposure: str, lists: list[MemberList]) -> Announced:
        """Have an exposure whose file is not there join its associations when it comes, or as it came before."""
        mine = _associations(exposure, lists)
        prefix = _awaited_prefix(self._router.run, exposure)
        for association in mine:
            await self._store.put_if_absent(prefix + association, b"{}")
        # Read after that was written: who ingests it meanwhile takes note of it first, and then looks who waits.
        known = await self.known(exposure)
        if not known:
            return Announced(exposure, "awaited")
        return await self._join(known, exposure, mine)

    async def awaited(self, exposure: str) -> tuple[str, ...]:
        """Associations that were announced before the file of this member was there."""
        prefix = _awaited_prefix(self._router.run, exposure)
        return tuple(sorted([info.key.removeprefix(prefix) async for info in self._store.list(prefix)]))

    async def join_awaited(self, ingest: Ingest) -> None:
        """Have a plain file be a member of the associations that wait for it, and not one of its own."""
        for members in [members for members in ingest.lists if members.product_name is None]:
            if await self.awaited(members.members[0]):
                ingest.lists.remove(members)

    async def _exposure(self, entry: Entry, lists: list[MemberList]) -> Announced:
        mine, error = _associations(entry.id, lists), entry.error
        if error is None:
            known, error = await self._register(entry)
        else:
            known = await self.known(entry.id)
        mine = tuple(dict.fromkeys((*mine, *await self.awaited(entry.id))))
        if error is None:
            return await self._join(known, entry.id, mine, entry)
        LOG.error("%s", error)
        # A member that is in already stays: what was refused is another file.
        told = set(known.get("associations", ()))
        for association in mine:
            if association not in told:
                await self._router.failed(entry.id, association, error, entry.facts)
        if told.intersection(mine):
            await self._join(known, entry.id, tuple(a for a in mine if a in told))
        return Announced(entry.id, "refused", error)

    async def _join(
        self, known: dict[str, Any], exposure: str, mine: tuple[str, ...], entry: Entry | None = None
    ) -> Announced:
        """Publish what is known under a name to associations that were not told of it, and take note of that."""
        # A list that is the newest once more may have been given up meanwhile: its members are told of again.
        told = set(known.get("associations", ())) - self._superseding
        wanted = tuple(dict.fromkeys((*mine, *known.get("replaced_in", ()))))
        if told.issuperset(wanted) and not self._again:
            return Announced(exposure, "known")
        root = await (self._found(known) if entry is None else self._root(entry))
        await self._publish(root, wanted if self._again else tuple(a for a in wanted if a not in told))
        noted = {key: value for key, value in known.items() if key != "replaced_in"}
        noted["associations"] = sorted({*known.get("associations", ()), *wanted})
        await self._store.put(ingest_key(self._router.run, exposure), canonical_json(noted))
        return Announced(exposure, "announced")

    async def _found(self, known: dict[str, Any]) -> Manifest:
        return await self._results.find(known["identity"]) or await self._results.read(known["manifest"])

    async def _publish(self, root: Manifest, associations: tuple[str, ...]) -> None:
        first = starting_stage(self._router.segments.topology, root.branch, root.facts.get("done", ()))
        if first is None:
            raise FatalError(f"no stage of the topology runs on exposure type {root.branch}")
        await self._router.send(
            Message(
                run=self._router.run, exposure=root.exposure, stage=first, branch=root.branch, identity=root.identity,
                manifest=root.key, facts=dict(root.facts), associations=associations,
            )
        )  # fmt: skip

    async def known(self, exposure: str) -> dict[str, Any]:
        """What was ingested under a name; empty when nothing was."""
        found: dict[str, Any] = json.loads(await self._store.get(ingest_key(self._router.run, exposure)) or b"{}")
        return found

    async def _root(self, entry: Entry) -> Manifest:
        identity = root_identity(entry.id, entry.digest)
        manifest = Manifest(
            identity=identity,
            exposure=entry.id,
            stage=INGEST,
            branch=str(entry.facts["exposure_type"]),
            facts=entry.facts,
            extra={"path": str(entry.path), "digest": entry.digest, "size": entry.size, "mtime_ns": entry.mtime_ns},
        )
        if not self._upload:
            return await self._results.publish(manifest)
        # The key tells the content: uploading again writes the same bytes to the same place.
        key = object_key(entry.id, INGEST, entry.digest[:16], "uncal.asdf")
        info = await self._store.head(key)
        if info is None or info.size != entry.size:
            await self._store.put(key, entry.path)
        stored = StoredObject("input", key, entry.digest, entry.size, ObjectKind.INPUT)
        uploaded = Manifest(
            identity=identity, exposure=entry.id, stage=INGEST, branch=manifest.branch, facts=entry.facts,
            objects=(stored,), extra={"source": str(entry.path)},
        )  # fmt: skip
        return await self._results.publish(uploaded, accept=lambda winner: bool(winner.objects))

    async def _register(self, entry: Entry) -> tuple[dict[str, Any], str | None]:
        """Take note of what is ingested under a name; what is known of it, or the reason why it is refused."""
        document: dict[str, Any] = {
            "identity": root_identity(entry.id, entry.digest),
            "path": str(entry.path),
            "digest": entry.digest,
            "size": entry.size,
            "mtime_ns": entry.mtime_ns,
            "arrived": self._clock.now(),
        }
        document["manifest"] = f"results/{document['identity']}/1"
        key = ingest_key(self._router.run, entry.id)
        if await self._store.put_if_absent(key, canonical_json(document)):
            return document, None
        known = await self.known(entry.id)
        if known.get("digest") == entry.digest:
            return known, None
        if not self._replace:
            return known, (
                f"{entry.path}: an exposure named {entry.id} with other content was ingested before from "
                f"{known.get('path')} (SHA-256 {str(known.get('digest'))[:12]}…, now {entry.digest[:12]}…); "
                "say --replace to take the new one"
            )
        # Whoever had the old one must be told of the new one, also by one who goes on after this one was killed.
        document["replaced_in"] = sorted({*known.get("associations", ()), *known.get("replaced_in", ())})
        await self._store.put(key, canonical_json(document))
        return document, None


def _associations(exposure: str, lists: list[MemberList]) -> tuple[str, ...]:
    return tuple(members.association for members in lists if exposure in members.members)
