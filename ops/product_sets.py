"""Decides which products are visible: one record for each revision of an association.

One record in the store for each revision of an association lists the products of all its members; it is written when
the last of them is finalized. What is shown of it, and where, is not decided here (`ops.projection`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio

from ops.closed_associations import ClosedAssociations
from stream.association import Close
from stream.close import is_absent
from stream.failure import RetriableError
from stream.identity import canonical_json
from stream.member_list import MemberList, associations_of, superseded_by
from stream.member_statuses import MemberStatuses
from stream.message import MemberStatus
from stream.product_event import EventProduct, ProductEvent
from stream.results import Manifest, ObjectKind, Results
from stream.run_records import RunRecords
from stream.store import ObjectStore
from stream.together import together

__all__ = ["ProductSet", "ProductSets"]

_TOGETHER = 32
"""Members looked up at once: each takes the store a few answers, and there may be ten thousand."""

_AT_ONCE = "at-once"
"""In keys, in place of a revision: of members that waited for no close."""

_WATCHED = 8
"""Revisions of which it is remembered who is waited for."""

V = TypeVar("V")

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

    Attributes
    ----------
    associations : ClosedAssociations
        Lists and closes, read once.
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
        self._statuses = MemberStatuses(store, run)
        self._visible = visible
        self._publish = publish
        self._observe = observe
        self._lock = anyio.Lock()
        self.associations = ClosedAssociations(store, results, run)
        self._wanted: dict[tuple[str, int], dict[str, str]] = {}
        self._waiting: dict[tuple[str, int], dict[str, None]] = {}
        self._complete_ones: set[tuple[str, int]] = set()

    def _folder(self, association: str, part: int | str) -> str:
        return f"runs/{self._run}/finalized/{association}/{part}/"

    def _pointer(self, exposure: str, association: str, of: int | str) -> str:
        if isinstance(of, int):
            return f"{self._folder(association, of)}{exposure}"
        return f"{self._folder(association, _AT_ONCE)}{exposure}/{of}"

    def _key(self, association: str, revision: int | str) -> str:
        return f"runs/{self._run}/products/{association}/{revision}"

    async def finalized(self, association: str, of: int | str, manifest: Manifest) -> None:
        """Take note of a finalized member: of a revision, or of the identity of its result if it waited for no close.

        Those that did not wait come before the close that has them, and when they change the close before is still the
        newest: it has them by that identity alone.
        """
        pointer = self._pointer(manifest.exposure, association, of)
        document = canonical_json({"manifest": manifest.key, "identity": manifest.identity})
        news = await self._store.get(pointer) != document
        if news:
            await self._store.put(pointer, document)
        await self._records.add_revision(association, manifest)
        close = await self.associations.newest_close(association)
        if close is not None and (news or (association, close.revision) not in self._complete_ones):
            await self._check(association, pointer)

    async def failed(self, association: str, of: int | str, exposure: str, reason: str) -> None:
        """Take note of a member that could not be finalized; one that was before keeps its products."""
        pointer = self._pointer(exposure, association, of)
        await self._store.put_if_absent(pointer, canonical_json({"failed": reason}))
        await self._check(association, pointer)

    async def newest_close(self, association: str) -> Close | None:
        """Return the newest close of an association."""
        return await self.associations.newest_close(association)

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

    async def former(self, product_set: ProductSet) -> dict[str, set[str]]:
        """Digests, by name, that products had in sets whose place this one took: what may be left of them in a folder.

        These are earlier revisions and, where it has a product name, the sets of other associations that had it.
        """
        own, name = product_set.association, product_set.product_name
        others = set() if name is None else await associations_of(self._store, self._run, name)
        found: dict[str, set[str]] = {}
        for association in {own} | others:
            prefix = self._key(association, "")
            async for info in self._store.list(prefix):
                if association == own and int(info.key.removeprefix(prefix)) >= product_set.revision:
                    continue
                data = await self._store.get(info.key)
                members = {} if data is None else ProductSet(**json.loads(data)).members
                for exposure, member in members.items():
                    if name is None and exposure not in product_set.members.keys() | product_set.failed.keys():
                        continue  # at the top, where the files of others are
                    for product in member["products"]:
                        found.setdefault(product["name"], set()).add(product["digest"])
        return found

    async def _superseded(self, association: str, product_name: str | None) -> bool:
        """Whether the folder of a product name is another association's."""
        return await superseded_by(self._store, self._run, association, product_name) is not None

    async def check(self, association: str) -> None:
        """Write the record, project it and tell of it if the newest revision is complete and no newer list counts."""
        await self._check(association, None)

    async def _check(self, association: str, come: str | None) -> None:
        """Check, when something ``come`` at this pointer or for any other reason."""
        async with self._lock:
            close = await self.newest_close(association)
            if close is None or not await self._all_there(close, come):
                return
            members = await self.associations.members(association)
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
            self._complete_ones.add((association, close.revision))
        self._observe({"event": "products", "association": association, "revision": close.revision})

    async def _all_there(self, close: Close, come: str | None) -> bool:
        """Whether all members that a close uses are finalized or failed, and what came is one of them.

        Each of ten thousand asks this, so the store is asked for one of those that were not there, the last in the
        order in which they are sent on, and for all of them only when that one has come.
        """
        key = (close.association, close.revision)
        if come is not None and come not in await self._awaited(close):
            return False
        waiting = self._waiting.pop(key, None)
        if waiting is None or come is None:
            waiting = await self._missing(close)
        elif come in waiting:
            del waiting[come]
        while waiting:
            last = next(reversed(waiting))
            if await self._store.head(last) is None:
                _keep(self._waiting, key, waiting)
                return False
            waiting = await self._missing(close)
            waiting.pop(last, None)
        return True

    async def _missing(self, close: Close) -> dict[str, None]:
        """Pointers of members that a close uses and that are not there, in canonical order."""
        wanted = dict.fromkeys(await self._awaited(close))
        for part in (_AT_ONCE, close.revision):
            async for info in self._store.list(self._folder(close.association, part)):
                wanted.pop(info.key, None)
        return wanted

    async def _awaited(self, close: Close) -> dict[str, str]:
        """Pointers of the members that a close uses, in canonical order, and whose each is.

        Raises
        ------
        stream.failure.RetriableError
            The status of a member that did not wait for the close is not in the store.
        """
        key = (close.association, close.revision)
        if key in self._wanted:
            return self._wanted[key]
        used = [member for member in close.members if not is_absent(member.status)]
        results: dict[str, int | str] = {}

        async def look(member: str, digest: str | None) -> None:
            found = None if digest is None else await self._statuses.result(close.association, member, digest)
            if found is None:
                raise RetriableError(f"the status of {member} at a close of {close.association} is not stored")
            results[member] = found

        at_once = [member for member in used if member.status != MemberStatus.OK.value]
        await together([partial(look, member.member, member.digest) for member in at_once], most=_TOGETHER)
        wanted = {
            self._pointer(name, close.association, results.get(name, close.revision)): name
            for name in (member.member for member in used)
        }
        return _keep(self._wanted, key, wanted)

    async def _complete(self, members: MemberList, close: Close) -> ProductSet | None:
        found: dict[str, dict[str, Any]] = {}

        async def look(pointer: str, member: str) -> None:
            told = await self._finished(pointer)
            if told is not None:
                found[member] = told

        await together([partial(look, *wanted) for wanted in (await self._awaited(close)).items()], most=_TOGETHER)
        if len(found) < len(close.used):
            return None
        failed = {member.member: member.status for member in close.members if is_absent(member.status)}
        failed |= {member: found[member]["failed"] for member in close.used if "failed" in found[member]}
        return ProductSet(
            close.association,
            close.revision,
            members.product_name,
            {member: found[member] for member in close.used if member not in failed},
            {member.member: failed[member.member] for member in close.members if member.member in failed},
        )

    async def _finished(self, pointer: str) -> dict[str, Any] | None:
        """What became of a member: its products, or why it ``failed``; None while its result is not there."""
        data = await self._store.get(pointer)
        noted: dict[str, Any] | None = None if data is None else json.loads(data)
        if noted is None or "failed" in noted:
            return noted
        manifest = await self._results.find(noted["identity"])
        if manifest is None:
            return None
        content = manifest.extra.get("content", {})
        return {
            "manifest": manifest.key,
            "identity": manifest.identity,
            "summary": manifest.extra.get("summary", {}),
            "products": [
                {"name": o.name, "key": o.key, "digest": o.digest, "size": o.size, "content": content.get(o.name)}
                for o in manifest.objects
                if o.kind is ObjectKind.PRODUCT
            ],
        }


def _keep(known: dict[tuple[str, int], V], key: tuple[str, int], value: V) -> V:
    """Remember something of a revision, and of the others the newest."""
    known[key] = value
    while len(known) > _WATCHED:
        del known[next(iter(known))]
    return value
