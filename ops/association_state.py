"""What is known of a run's associations, from store and changelog: as an aggregator would restore it. Reads only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ops.connect import Connection, RunView
from ops.serve import association_settings
from stream.association import Association
from stream.changelog import Changelog
from stream.member_list import MemberList, read_member_list
from stream.member_statuses import Kept, MemberStatuses
from stream.stored_associations import StoredAssociations
from stream.together import together
from stream.topology import changelog_topic_name

__all__ = ["AssociationView", "association_views"]

READS_AT_ONCE = 16
"""Reads of small objects side by side: they wait for the store, not for this machine."""


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

    def to_json(self, *, names: bool) -> dict[str, Any]:
        """Return what there is to say, as a JSON value; ``names`` adds the members one by one."""
        state, came = self.state, self._came()
        last = state.last_close
        missing = [member for member in self.members.members if member not in came]
        changes = state.changed_members() if last is not None else ()
        told: dict[str, Any] = {
            "association": self.id,
            "product_name": self.members.product_name,
            "expected": len(self.members.members),
            "present": dict(sorted(Counter(status for status, _ in came.values()).items())),
            "waited_for": len(missing),
            "since": _instant(state.since),
            "deadline": _instant(state.deadline_at if self.is_open else None),
            "revision": 0 if last is None else last.revision,
            "closed": None if last is None else last.reason.value,
            "outcome": None if last is None else last.outcome.value,
            "changes": len(changes),
            "next_revision": _instant(state.next_due() if last is not None else None),
            "complete": self.complete,
            "superseded_by": state.superseded_by,
        }
        if names:
            told["members"] = [
                {"member": member, "status": status, "since": _instant(since)}
                for member in self.members.members
                for status, since in [came.get(member, (None, None))]
            ]
            told |= {"missing": missing, "changed": list(changes)}
        return told

    def _came(self) -> dict[str, tuple[str, float | None]]:
        """Status of each member that came, and since when; that is not known of an association that was forgotten."""
        last = self.state.last_close
        came: dict[str, tuple[str, float | None]] = {}
        if last is not None:
            came |= {member.member: (member.status, None) for member in last.members if member.digest is not None}
        return came | {record.member: (record.status.value, record.changed_at) for record in self.state.records()}


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
