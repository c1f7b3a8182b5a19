"""What is known of a run's associations, from store and changelog: as an aggregator would restore it. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from ops.connect import Connection, RunView
from ops.product_sets import ProductSets
from ops.serve import association_settings
from stream.association import Association, OnMissing
from stream.changelog import Changelog
from stream.member_list import MemberList, read_member_list
from stream.member_statuses import Kept, MemberStatuses
from stream.message import MemberStatus
from stream.stored_associations import StoredAssociations
from stream.together import together
from stream.topology import changelog_topic_name

__all__ = ["AssociationView", "association_views", "tell_with_reasons", "without_products"]

READS_AT_ONCE = 16
"""Reads of small objects side by side: they wait for the store, not for this machine."""

WAIT_ENDS = "operator or redrive"
"""Until when an association is open whose rule is to wait for members that failed or have not come."""


class Came(NamedTuple):
    """Status of a member that came, its digest, and since when: not known of an association that was forgotten."""

    status: str
    digest: str
    since: float | None


@dataclass(frozen=True, slots=True)
class AssociationView:
    """One association as it is.

    ``complete`` says whether the product set of its newest revision is in the store.
    """

    members: MemberList
    state: Association
    complete: bool

    @property
    def id(self) -> str:
        """The association's id."""
        return self.members.association

    @property
    def is_open(self) -> bool:
        """Whether it may still close for the first time."""
        return self.state.last_close is None and self.state.superseded_by is None

    @property
    def waits(self) -> bool:
        """Whether it closes with all members alone, unless an operator says otherwise: no deadline counts."""
        return self.state.settings.on_missing is OnMissing.WAIT

    def to_json(self, lacking: Mapping[str, str]) -> dict[str, Any]:
        """Return what there is to say, as a JSON value, given who is without products (`without_products`)."""
        state, came = self.state, self.came()
        last = state.last_close
        deadline = _instant(state.deadline_at if self.is_open and not self.waits else None)
        return {
            "association": self.id,
            "product_name": self.members.product_name,
            "expected": len(self.members.members),
            "present": dict(sorted(Counter(member.status for member in came.values()).items())),
            "waited_for": len(self.missing(came)),
            "since": _instant(state.since),
            "deadline": deadline,
            "until": WAIT_ENDS if self.is_open and self.waits else deadline,
            "revision": 0 if last is None else last.revision,
            "closed": None if last is None else last.reason.value,
            "outcome": None if last is None else last.outcome.value,
            "changes": len(self.changes),
            "next_revision": _instant(state.next_due() if last is not None else None),
            "complete": self.complete,
            "without_products": len(lacking),
            "superseded_by": state.superseded_by,
        }

    @property
    def changes(self) -> tuple[str, ...]:
        """Members that came or changed after the newest close."""
        return () if self.state.last_close is None else self.state.changed_members()

    def missing(self, came: Mapping[str, Came]) -> list[str]:
        """Members that are waited for: have not come or, where that is the rule, have failed."""
        return [
            member
            for member in self.members.members
            if member not in came or (self.waits and came[member].status == MemberStatus.FAILED.value)
        ]

    def came(self) -> dict[str, Came]:
        """Newest status of each member that came."""
        last = self.state.last_close
        came: dict[str, Came] = {}
        if last is not None:
            came |= {one.member: Came(one.status, one.digest, None) for one in last.members if one.digest is not None}
        return came | {one.member: Came(one.status.value, one.digest, one.changed_at) for one in self.state.records()}


async def association_views(connection: Connection, view: RunView, *, statuses: bool = True) -> list[AssociationView]:
    """All associations that were announced to the run, by id; without ``statuses`` nothing is said of who has come."""
    run, store = connection.settings.run, connection.store
    revisions = await _numbers(connection, f"runs/{run}/associations/")
    products = await _numbers(connection, f"runs/{run}/products/")
    kept = await _kept(connection, view) if statuses else {}
    stored = StoredAssociations(store, run, association_settings(view.definition))
    found: dict[str, AssociationView] = {}

    async def read(association: str) -> None:
        members = await read_member_list(store, run, association)
        state = await stored.state_of(members, revision=revisions[association])
        await stored.look_for_newer_list(state)
        known = kept.get(association)
        if known is not None and known.members:
            if state.last_close is not None:  # who has come since says little without those who were there
                await MemberStatuses(store, run).recall(state.last_close, known)
            state.restore(member.record for member in known.members.values())
        newest = 0 if state.last_close is None else state.last_close.revision
        found[association] = AssociationView(members, state, newest > 0 and products.get(association) == newest)

    await together([partial(read, association) for association in revisions], most=READS_AT_ONCE)
    return [found[association] for association in sorted(found)]


async def tell_with_reasons(
    connection: Connection, view: AssociationView, lacking: Mapping[str, str]
) -> dict[str, Any]:
    """Return what there is to say of an association and of its members one by one, with why they failed.

    ``reason`` is why the member failed or was skipped, ``products_failed`` why the newest product set has none of one
    that did not fail (``lacking``).
    """
    run, came = connection.settings.run, view.came()
    statuses = MemberStatuses(connection.store, run)
    reasons: dict[str, str | None] = {}

    async def read(member: str, digest: str) -> None:
        kept = await statuses.load(view.id, member, digest)
        reasons[member] = None if kept is None else kept.message.reason

    wanted = [partial(read, member, one.digest) for member, one in came.items() if one.status != MemberStatus.OK.value]
    await together(wanted, most=READS_AT_ONCE)
    return view.to_json(lacking) | {
        "members": [
            {
                "member": member,
                "status": came[member].status if member in came else None,
                "since": _instant(came[member].since) if member in came else None,
                "reason": reasons.get(member),
                "products_failed": lacking.get(member),
            }
            for member in view.members.members
        ],
        "missing": view.missing(came),
        "changed": list(view.changes),
    }


async def without_products(connection: Connection, views: Sequence[AssociationView]) -> dict[str, dict[str, str]]:
    """Members that the newest product set should have products of and has not, and why, by association.

    Nothing is said while it is not complete.
    """
    run = connection.settings.run
    sets = ProductSets(store=connection.store, results=connection.results, run=run, visible=_unseen)
    lacking: dict[str, dict[str, str]] = {view.id: {} for view in views}

    async def read(view: AssociationView) -> None:
        newest, last = await sets.current(view.id), view.state.last_close
        if newest is not None and last is not None:
            lacking[view.id] = {member: newest.failed[member] for member in last.used if member in newest.failed}

    await together([partial(read, view) for view in views if view.complete], most=READS_AT_ONCE)
    return lacking


async def _unseen(_: Any) -> None:
    return


async def _kept(connection: Connection, view: RunView) -> dict[str, Kept]:
    """What the changelog says, where there is one."""
    joint = next(row.name for row in view.pipeline.segments.topology.rows if row.joint)
    topic = changelog_topic_name(connection.settings.run, joint)
    return await Changelog(connection.broker, topic).read() if topic in await connection.broker.topics() else {}


async def _numbers(connection: Connection, prefix: str) -> dict[str, int]:
    """Highest number under each association's name; 0 where there is only a member list."""
    found: dict[str, int] = {}
    async for info in connection.store.list(prefix):
        association, _, last = info.key.removeprefix(prefix).rpartition("/")
        found[association] = max(found.get(association, 0), int(last) if last.isdigit() else 0)
    return found


def _instant(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
