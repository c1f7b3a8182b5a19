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


@dataclass(frozen=True, slots=True)
class Announced:
    """What became of one exposure: ``announced``, ``known`` (it was before, and is left alone) or ``refused``."""

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

    async def _exposure(self, entry: Entry, lists: list[MemberList]) -> Announced:
        mine = tuple(members.association for members in lists if entry.id in members.members)
        known: dict[str, Any] = {}
        error = entry.error
        if error is None:
            known, error = await self._register(entry)
        if error is not None:
            LOG.error("%s", error)
            for association in mine:
                await self._router.failed(entry.id, association, error, entry.facts)
            return Announced(entry.id, "refused", error)
        # A list that is the newest once more may have been given up meanwhile: its members are told of again.
        told = set(known.get("associations", ())) - self._superseding
        if told >= set(mine) and not self._again:
            return Announced(entry.id, "known")
        await self._publish(entry, mine if self._again else tuple(a for a in mine if a not in told))
        known["associations"] = sorted(told | set(mine))
        await self._store.put(ingest_key(self._router.run, entry.id), canonical_json(known))
        return Announced(entry.id, "announced")

    async def _publish(self, entry: Entry, associations: tuple[str, ...]) -> None:
        root = root_identity(entry.id, entry.digest)
        manifest = await self._root(entry, root)
        branch = str(entry.facts["exposure_type"])
        first = starting_stage(self._router.segments.topology, branch, entry.facts.get("done", ()))
        if first is None:
            raise FatalError(f"no stage of the topology runs on exposure type {branch}")
        await self._router.send(
            Message(
                run=self._router.run, exposure=entry.id, stage=first, branch=branch, identity=root,
                manifest=manifest.key, facts=entry.facts, associations=associations,
            )
        )  # fmt: skip

    async def _root(self, entry: Entry, identity: str) -> Manifest:
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
        known: dict[str, Any] = json.loads(await self._store.get(key) or b"{}")
        if known.get("digest") == entry.digest:
            return known, None
        if not self._replace:
            return known, (
                f"{entry.path}: an exposure named {entry.id} with other content was ingested before from "
                f"{known.get('path')} (SHA-256 {str(known.get('digest'))[:12]}…, now {entry.digest[:12]}…); "
                "say --replace to take the new one"
            )
        await self._store.put(key, canonical_json(document))
        return document, None
