"""What is known of a run's associations, from store and changelog: as an aggregator would restore it. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ops.connect import Connection, RunView
from ops.serve import association_settings
from stream.association import Association, AssociationSettings
from stream.changelog import Changelog
from stream.member_list import MemberList, load_close, read_member_list, superseded_by
from stream.member_statuses import Kept
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

    def to_json(self, *, names: bool) -> dict[str, Any]:
        """Return what there is to say, as a JSON value; ``names`` adds the members one by one."""
        state, records = self.state, {record.member: record for record in self.state.records()}
        last = state.last_close
        missing = [member for member in self.members.members if member not in records]
        changes = state.changed_members() if last is not None else ()
        told: dict[str, Any] = {
            "association": self.id,
            "product_name": self.members.product_name,
            "expected": len(self.members.members),
            "present": dict(sorted(Counter(record.status.value for record in records.values()).items())),
            "waited_for": len(missing),
            "since": _instant(self._first()),
            "deadline": _instant(state.deadline_at if last is None and state.superseded_by is None else None),
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
                {"member": member, "status": record.status.value, "since": _instant(record.changed_at)}
                if (record := records.get(member)) is not None
                else {"member": member, "status": None, "since": None}
                for member in self.members.members
            ]
            told |= {"missing": missing, "changed": list(changes)}
        return told

    def _first(self) -> float | None:
        """When the first member came. A member's record has its newest change, so the deadline tells more."""
        if self.state.deadline_at is not None and self.state.settings.deadline is not None:
            return self.state.deadline_at - self.state.settings.deadline
        return min((record.changed_at for record in self.state.records()), default=None)


async def association_views(connection: Connection, view: RunView) -> list[AssociationView]:
    """All associations that were announced to the run, by id."""
    run = connection.settings.run
    revisions = await _numbers(connection, f"runs/{run}/associations/")
    products = await _numbers(connection, f"runs/{run}/products/")
    joint = next(row.name for row in view.pipeline.segments.topology.rows if row.joint)
    topic = changelog_topic_name(run, joint)
    kept = await Changelog(connection.broker, topic).read() if topic in await connection.broker.topics() else {}
    settings = association_settings(view.definition)
    found: dict[str, AssociationView] = {}

    async def read(association: str) -> None:
        members = await read_member_list(connection.store, run, association)
        state = await _restored(connection, members, settings, revisions[association], kept)
        newest = 0 if state.last_close is None else state.last_close.revision
        found[association] = AssociationView(members, state, newest > 0 and products.get(association) == newest)

    await together([partial(read, association) for association in revisions], most=READS_AT_ONCE)
    return [found[association] for association in sorted(found)]


async def _restored(
    connection: Connection,
    members: MemberList,
    settings: AssociationSettings,
    revision: int,
    kept: Mapping[str, Kept],
) -> Association:
    state = Association(members.association, settings)
    state.expect(members.members)
    run = connection.settings.run
    close = await load_close(connection.store, run, members.association, revision)
    if close is not None:
        state.record_close(close)
    state.supersede(await superseded_by(connection.store, run, members.association, members.product_name))
    known = kept.get(members.association)
    state.restore(member.record for member in known.members.values()) if known else None
    return state


async def _numbers(connection: Connection, prefix: str) -> dict[str, int]:
    """Highest number under each association's name; 0 where there is only a member list."""
    found: dict[str, int] = {}
    async for info in connection.store.list(prefix):
        association, _, last = info.key.removeprefix(prefix).rpartition("/")
        found[association] = max(found.get(association, 0), int(last) if last.isdigit() else 0)
    return found


def _instant(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
