"""Decides which products are visible: one record for each revision of an association.

One record in the store for each revision of an association lists the products of all its members; it is written when
the last of them is finalized. What is shown of it, and where, is not decided here (`ops.projection`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio

from stream.association import Close
from stream.identity import canonical_json
from stream.member_list import MemberList, load_close, read_member_list, superseded_by
from stream.message import MemberStatus
from stream.product_event import EventProduct, ProductEvent
from stream.results import Manifest, ObjectKind, Results
from stream.run_records import RunRecords
from stream.store import ObjectStore

__all__ = ["ProductSet", "ProductSets"]

Visible = Callable[["ProductSet"], Awaitable[None]]
"""Awaited with each set that is complete, again when it is complete again."""

Publish = Callable[[ProductEvent], Awaitable[None]]
"""Publishes that a set is visible."""


@dataclass(frozen=True, slots=True)
class ProductSet:
    """The products of one revision of an association.

    ``members`` maps each member to ``{"manifest": key, "products": [{name, key, digest, size, content}], "summary":
    {…}}``, where ``content`` is the content digest;
    ``failed`` maps members without products to the reason.
    """

    association: str
    revision: int
    product_name: str | None
    members: dict[str, dict[str, Any]]
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the set as a JSON value."""
        return {
            "association": self.association,
            "revision": self.revision,
            "product_name": self.product_name,
            "members": self.members,
            "failed": self.failed,
        }

    def event(self, run: str, close: Close, *, record: str, record_digest: str) -> ProductEvent:
        """Return the event that tells that the set is visible, given its close, and its record's key and digest."""
        return ProductEvent(
            run=run,
            association=self.association,
            product_name=self.product_name,
            revision=self.revision,
            record=record,
            record_digest=record_digest,
            expected=close.expected,
            used=close.used,
            exposures={
                member: tuple(EventProduct(**product) for product in self.members[member]["products"])
                for member in close.expected
                if member in self.members
            },
            failed=self.failed,
        ).bounded()


class ProductSets:
    """Product sets of one run.

    Parameters
    ----------
    store, results : ObjectStore, Results
        Where records and manifests lie.
    run : str
        The run.
    visible : callable
        Awaited with each complete set.
    publish : callable, optional
        Awaited with the event that tells of it, after that.
    observe : callable
        Told about each complete set.
    """

    def __init__(
        self,
        *,
        store: ObjectStore,
        results: Results,
        run: str,
        visible: Visible,
        publish: Publish | None = None,
        observe: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._results = results
        self._run = run
        self._records = RunRecords(store, run)
        self._visible = visible
        self._publish = publish
        self._observe = observe
        self._lock = anyio.Lock()

    def _pointer(self, exposure: str, association: str, revision: int) -> str:
        return f"runs/{self._run}/finalized/{association}/{revision}/{exposure}"

    def _key(self, association: str, revision: int) -> str:
        return f"runs/{self._run}/products/{association}/{revision}"

    async def finalized(self, association: str, revision: int | None, manifest: Manifest) -> None:
        """Take note of a finalized member (revision None: one that did not wait for the close)."""
        pointer = self._pointer(manifest.exposure, association, revision or 0)
        document = canonical_json({"manifest": manifest.key, "identity": manifest.identity})
        if not await self._store.put_if_absent(pointer, document):
            await self._store.put(pointer, document)
        await self._records.add_revision(association, manifest)
        await self.check(association)

    async def failed(self, association: str, revision: int | None, exposure: str, reason: str) -> None:
        """Take note of a member that could not be finalized; one that was before keeps its products."""
        pointer = self._pointer(exposure, association, revision or 0)
        await self._store.put_if_absent(pointer, canonical_json({"failed": reason}))
        await self.check(association)

    async def newest_close(self, association: str) -> Close | None:
        """Return the newest close of an association."""
        close, revision = None, 1
        while (found := await load_close(self._store, self._run, association, revision)) is not None:
            close, revision = found, revision + 1
        return close

    async def current(self, association: str) -> ProductSet | None:
        """Return the complete set of the newest close, None while there is none."""
        close = await self.newest_close(association)
        if close is None:
            return None
        data = await self._store.get(self._key(association, close.revision))
        return None if data is None else ProductSet(**json.loads(data))

    async def all(self) -> AsyncIterator[ProductSet]:
        """The newest complete set of each association of the run that is not superseded."""
        newest: dict[str, tuple[int, str]] = {}
        prefix = f"runs/{self._run}/products/"
        async for info in self._store.list(prefix):
            association, _, revision = info.key.removeprefix(prefix).rpartition("/")
            newest[association] = max(newest.get(association, (0, "")), (int(revision), info.key))
        for _, key in newest.values():
            data = await self._store.get(key)
            if data is None:
                continue
            found = ProductSet(**json.loads(data))
            if not await self._superseded(found.association, found.product_name):
                yield found

    async def _superseded(self, association: str, product_name: str | None) -> bool:
        """Whether the folder of a product name is another association's."""
        return await superseded_by(self._store, self._run, association, product_name) is not None

    async def check(self, association: str) -> None:
        """Write the record, project it and tell of it if the newest revision is complete and no newer list counts."""
        async with self._lock:
            close = await self.newest_close(association)
            if close is None:
                return
            members = await read_member_list(self._store, self._run, association)
            complete = await self._complete(members, close)
            if complete is None:
                return
            key, data = self._key(association, close.revision), canonical_json(complete.to_json())
            await self._store.put(key, data)
            if await self._superseded(association, members.product_name):
                return
            await self._visible(complete)
            if self._publish is not None:
                digest = hashlib.sha256(data).hexdigest()
                await self._publish(complete.event(self._run, close, record=key, record_digest=digest))
        self._observe({"event": "products", "association": association, "revision": close.revision})

    async def _complete(self, members: MemberList, close: Close) -> ProductSet | None:
        if await self._count(close) < len(close.used):
            return None
        failed: dict[str, str] = {}
        found: dict[str, dict[str, Any]] = {}
        for member in close.members:
            if member.member not in close.used:
                failed.setdefault(member.member, member.status)
                continue
            waited = member.status == MemberStatus.OK.value
            pointer = self._pointer(member.member, close.association, close.revision if waited else 0)
            data = await self._store.get(pointer)
            if data is None:
                return None
            noted = json.loads(data)
            if "failed" in noted:
                failed[member.member] = noted["failed"]
                continue
            manifest = await self._results.find(noted["identity"])
            if manifest is None:
                return None
            found[member.member] = {
                "manifest": manifest.key,
                "identity": manifest.identity,
                "summary": manifest.extra.get("summary", {}),
                "products": [
                    {
                        "name": o.name,
                        "key": o.key,
                        "digest": o.digest,
                        "size": o.size,
                        "content": manifest.extra.get("content", {}).get(o.name),
                    }
                    for o in manifest.objects
                    if o.kind is ObjectKind.PRODUCT
                ],
            }
        return ProductSet(close.association, close.revision, members.product_name, found, failed)

    async def _count(self, close: Close) -> int:
        """Members of a close that are finalized or failed at it: a listing, so that a large one costs no look-ups."""
        count = 0
        for revision in (0, close.revision):
            async for _ in self._store.list(f"runs/{self._run}/finalized/{close.association}/{revision}/"):
                count += 1
        return count
