"""Faults that a light aggregator may have built in: ways to break it that tests must show, and moments to die at."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stream import aggregator as aggregator_module
from stream.aggregator import Aggregator
from stream.association import Association, AssociationSettings, Close, CloseReason, Seen
from stream.changelog import Changelog
from stream.dispatch import Dispatcher
from stream.identity import canonical_json
from stream.member_list import close_key
from stream.member_statuses import MemberStatuses
from stream.message import Message
from stream.router import Router
from stream.store import ObjectStore
from stream.stored_associations import StoredAssociations

__all__ = ["FAULTS", "PHASES", "die_at_phases"]

PHASES = ("after-status", "after-note", "after-close", "mid-dispatch", "after-dispatch")


def die_at_phases(triggers: Path) -> None:
    """Have this process die as by a power failure when it comes to a phase for which there is a file."""

    def phase(name: str) -> None:
        try:
            (triggers / f"kill-{name}").unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def dying(owner: Any, name: str, phase_after: str) -> None:
        done = getattr(owner, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            result = await done(*args, **kwargs)
            phase(phase_after)
            return result

        setattr(owner, name, call)

    dying(MemberStatuses, "keep", "after-status")
    dying(Changelog, "note_member", "after-note")
    dying(aggregator_module, "put_close", "after-close")
    dying(Router, "send", "mid-dispatch")
    dying(Dispatcher, "send", "after-dispatch")


def believe_in_ownership() -> None:
    """Go on with associations whatever the group says: a partition that went is kept, and no lease is doubted."""

    async def keep(self: Aggregator, partitions: Sequence[Any]) -> None:
        self._backlog.clear()  # nothing more comes from there: what was read is all

    Aggregator._let_go = keep  # type: ignore[method-assign]
    Aggregator._owns = lambda self, association: association in self.known.states  # type: ignore[method-assign]
    Aggregator._check_owned = lambda self, association: None  # type: ignore[method-assign]


def forget_members() -> None:
    """Keep nothing of a member but in memory."""

    async def note_member(self: Changelog, *args: Any, **more: Any) -> None:
        return

    Changelog.note_member = note_member  # type: ignore[method-assign]


def take_closes_for_sent() -> None:
    """Do not look whether the members of a close were all sent on."""

    def resume(self: Aggregator, association: str) -> None:
        return

    Aggregator._resume = resume  # type: ignore[method-assign]


def count_messages() -> None:
    """Take an association for complete when as many messages came as it has members."""
    observe, first_close = Association.observe, Association._first_close
    counts: dict[str, int] = {}

    def counted(self: Association, *args: Any, **kwargs: Any) -> Seen:
        counts[self.id] = counts.get(self.id, 0) + 1
        return observe(self, *args, **kwargs)

    def premature(self: Association, now: float | None) -> Close | None:
        if counts.get(self.id, 0) >= len(self._places):
            return self._closed(CloseReason.COMPLETE)
        return first_close(self, now)

    Association.observe = counted  # type: ignore[method-assign]
    Association._first_close = premature  # type: ignore[method-assign]


def order_by_arrival() -> None:
    """List the members of a close as they came."""
    snapshot = Association._snapshot

    def arrived(self: Association) -> Any:
        places = list(self._members)
        return tuple(sorted(snapshot(self), key=lambda m: places.index(m.member) if m.member in places else -1))

    Association._snapshot = arrived  # type: ignore[method-assign]


def close_for_good() -> None:
    """Open no new revision for who comes or changes after the close."""
    due = Association.due

    def once(self: Association, now: float, *, backlog_read: bool = True) -> Close | None:
        return None if self.last_close is not None else due(self, now, backlog_read=backlog_read)

    Association.due = once  # type: ignore[method-assign]


def align_whoever_failed() -> None:
    """Take each rule for missing members for `align`."""
    begin = Association.__init__

    def lenient(self: Association, association: str, settings: AssociationSettings) -> None:
        begin(
            self, association, AssociationSettings(deadline=settings.deadline, revision_delay=settings.revision_delay)
        )

    Association.__init__ = lenient  # type: ignore[method-assign]


def overwrite_closes() -> None:
    """Write a close whether or not another owner has."""

    async def put_close(store: ObjectStore, run: str, close: Close) -> Close:
        await store.put(close_key(run, close.association, close.revision), canonical_json(close.to_json()))
        return close

    aggregator_module.put_close = put_close


def send_on_what_is_known() -> None:
    """Send on the members that this owner happens to know of, as they are now."""

    async def as_known(self: MemberStatuses, close: Close, known: Any) -> Any:
        return {member: known[member] for member in close.used if member in known}

    MemberStatuses.as_closed = as_known  # type: ignore[method-assign]


def ignore_backlog() -> None:
    """Let deadlines fire before what came meanwhile is read."""
    Aggregator._backlog_read = lambda self, association: True  # type: ignore[method-assign]


def keep_one_record() -> None:
    """Keep all members of an association under one key, of which compaction leaves one."""
    publish = Changelog._publish

    async def under_one_key(self: Changelog, key: str, value: dict[str, Any]) -> None:
        await publish(self, key.partition("/")[0] + "/member" if "record" in value else key, value)

    Changelog._publish = under_one_key  # type: ignore[method-assign]


def keep_no_statuses() -> None:
    """Trust in the changelog alone."""

    async def keep(self: MemberStatuses, *args: Any) -> None:
        return

    MemberStatuses.keep = keep  # type: ignore[method-assign]


def send_once_more_under_another_id() -> None:
    """Name a process in the id of what it sends."""
    event_id = Message.event_id
    Message.event_id = lambda self, topic: event_id(self, f"{topic} {os.getpid()}")  # type: ignore[method-assign]


def close_when_superseded() -> None:
    """Do not look for a newer list."""

    async def look(self: StoredAssociations, state: Association) -> bool:
        return False

    StoredAssociations.look_for_newer_list = look  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[], None]] = {
    "believes-it-owns": believe_in_ownership,
    "forgets-members": forget_members,
    "takes-closes-for-sent": take_closes_for_sent,
    "counts-messages": count_messages,
    "orders-by-arrival": order_by_arrival,
    "closes-for-good": close_for_good,
    "aligns-whoever-failed": align_whoever_failed,
    "overwrites-closes": overwrite_closes,
    "sends-on-what-is-known": send_on_what_is_known,
    "ignores-the-backlog": ignore_backlog,
    "keeps-one-record": keep_one_record,
    "keeps-no-statuses": keep_no_statuses,
    "sends-under-another-id": send_once_more_under_another_id,
    "closes-when-superseded": close_when_superseded,
}
