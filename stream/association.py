"""When an association closes, and with whom: a state machine without I/O. The driver is the aggregator.

The driver feeds it member statuses in the order of the log (`Association.observe`), the list of expected members
(`Association.expect`) and what is already closed (`Association.record_close`), and asks what is due
(`Association.due`). Only what is recorded changes state, so that a crash between a decision and its effect leads to the
same decision again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from stream.close import MISSING, Close, ClosedMember, CloseOutcome, CloseReason, is_absent
from stream.failure import PermanentError
from stream.message import MemberStatus

__all__ = [
    "Association",
    "AssociationSettings",
    "Close",
    "CloseOutcome",
    "CloseReason",
    "ClosedMember",
    "MemberRecord",
    "OnMissing",
    "Seen",
]


class OnMissing(StrEnum):
    """What to do about members that failed or have not come at the deadline."""

    ALIGN = "align"
    """Go on without them."""
    WAIT = "wait"
    """Wait for a redrive or an operator."""
    FAIL = "fail"
    """Align none: each is finalized with its own WCS."""


class Seen(StrEnum):
    """What a member's status was to the association."""

    NEW = "new"
    CHANGED = "changed"
    REPEAT = "repeat"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationSettings:
    """How an association closes.

    Attributes
    ----------
    minimum : int
        Fewest members, not failed, that are worth aligning; with fewer the outcome is FAIL. Of an association that
        has fewer in all, all of them.
    deadline : float or None
        Seconds from the first member to the deadline; None for no deadline.
    revision_delay : float
        Seconds without a change before changes after a close open a new revision.
    on_missing : OnMissing
        What to do about members that failed or have not come at the deadline.
    """

    minimum: int = 1
    deadline: float | None = 86_400.0
    revision_delay: float = 1_800.0
    on_missing: OnMissing = OnMissing.ALIGN

    def __post_init__(self) -> None:
        if self.minimum < 1 or self.revision_delay < 0 or (self.deadline is not None and self.deadline < 0):
            msg = f"minimum is at least 1, deadline and revision_delay are not negative; got {self}"
            raise PermanentError(msg)


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """Newest status of a member: one record of the changelog.

    ``offset`` is where the status lies in the source topic, ``changed_at`` the Unix time at which it came, and
    ``deadline_at`` the association's absolute deadline, which travels with every record so that it survives with any.
    """

    member: str
    status: MemberStatus
    digest: str
    offset: int
    changed_at: float
    deadline_at: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MemberRecord:
        """Read what `to_json` wrote."""
        return cls(**{**value, "status": MemberStatus(value["status"])})


class Association:
    """State of one association.

    Parameters
    ----------
    association : str
        Its id.
    settings : AssociationSettings
        How it closes.
    """

    def __init__(self, association: str, settings: AssociationSettings) -> None:
        self.id = association
        self.settings = settings
        self._expected: tuple[str, ...] | None = None
        self._places: frozenset[str] = frozenset()
        self._deadline_at: float | None = None
        self._members: dict[str, MemberRecord] = {}
        self._close: Close | None = None
        self._closed_digests: dict[str, str | None] = {}
        self._news: set[str] = set()
        self._last_change = 0.0
        self._superseded_by: str | None = None

    @property
    def expected(self) -> tuple[str, ...] | None:
        """Members in canonical order; None while the list is not known."""
        return self._expected

    @property
    def last_close(self) -> Close | None:
        """The newest close."""
        return self._close

    @property
    def deadline_at(self) -> float | None:
        """Unix time of the deadline; None when there is none, or no member has come."""
        return self._deadline_at

    @property
    def superseded_by(self) -> str | None:
        """The association that has its product name now; as long as there is one, this one does not close."""
        return self._superseded_by

    @property
    def changed(self) -> bool:
        """Whether a member came or changed after the newest close (or there is none)."""
        return bool(self._close is None or self._changes())

    @property
    def since(self) -> float | None:
        """Unix time at which the first member came; None while none has.

        A member's record has its newest change, so the deadline tells more where there is one.
        """
        if self._deadline_at is not None and self.settings.deadline is not None:
            return self._deadline_at - self.settings.deadline
        return min((record.changed_at for record in self._members.values()), default=None)

    @property
    def settled_at(self) -> float | None:
        """Unix time at which the last change came that the newest close has; None when that does not have all.

        From then on nothing is known of the association that close and store do not say.
        """
        if self._close is None or self._changes():
            return None
        return self._last_change

    def changed_members(self) -> tuple[str, ...]:
        """Members that came or changed after the newest close, in canonical order; all that came if there is none."""
        return tuple(record.member for record in self._changes())

    def records(self) -> tuple[MemberRecord, ...]:
        """The state of the members, one record each, by member id."""
        return tuple(self._members[member] for member in sorted(self._members))

    def record(self, member: str) -> MemberRecord | None:
        """The newest status of a member; None when it has not come."""
        return self._members.get(member)

    def restore(self, records: Iterable[MemberRecord]) -> None:
        """Take up records of the changelog in any order: of each member the one of the highest source offset stays."""
        for record in records:
            known = self._members.get(record.member)
            if known is None or record.offset > known.offset:
                self._members[record.member] = record
            if record.deadline_at is not None:
                known_at = self._deadline_at
                self._deadline_at = record.deadline_at if known_at is None else min(known_at, record.deadline_at)
            self._last_change = max(self._last_change, record.changed_at)
        self._drop_unexpected()
        self._compare(self._members)

    def expect(self, members: Sequence[str]) -> None:
        """Learn the list of members in canonical order.

        Raises
        ------
        stream.failure.PermanentError
            It is empty, names a member twice, or differs from the list known before.
        """
        ordered = tuple(members)
        if not ordered:
            msg = f"the association {self.id} has no members"
            raise PermanentError(msg)
        if len(set(ordered)) != len(ordered):
            twice = sorted({member for member in ordered if ordered.count(member) > 1})
            msg = f"the association {self.id} names members twice: {', '.join(twice)}"
            raise PermanentError(msg)
        if self._expected is not None and self._expected != ordered:
            msg = f"the association {self.id} has two lists of members: an id stands for one list alone"
            raise PermanentError(msg)
        self._expected = ordered
        self._places = frozenset(ordered)
        self._drop_unexpected()

    def supersede(self, by: str | None) -> None:
        """Learn which association with a newer list has its product name; None when its own list is the newest."""
        self._superseded_by = by

    def observe(self, member: str, status: MemberStatus, digest: str, *, offset: int, now: float) -> Seen:
        """Take note of a member's status; only NEW and CHANGED change the state.

        Parameters
        ----------
        member : str
            Its id.
        status : MemberStatus
            What became of it.
        digest : str
            By which repeats are known.
        offset : int
            Where the status lies in the source topic; what lies below the newest known is old news.
        now : float
            Unix time in seconds.
        """
        if self._expected is not None and member not in self._places:
            return Seen.UNEXPECTED
        known = self._members.get(member)
        if known is not None and offset <= known.offset:
            return Seen.REPEAT
        if known is not None and known.digest == digest:
            return Seen.REPEAT
        if self._deadline_at is None and self.settings.deadline is not None:
            self._deadline_at = now + self.settings.deadline
        self._members[member] = MemberRecord(member, status, digest, offset, now, self._deadline_at)
        self._last_change = max(self._last_change, now)
        self._compare((member,))
        return Seen.NEW if known is None else Seen.CHANGED

    def record_close(self, close: Close) -> None:
        """Learn of a close that is durable: ours, a racer's, or one from before a restart; older ones are ignored.

        Raises
        ------
        stream.failure.PermanentError
            It is of another association.
        """
        if close.association != self.id:
            msg = f"a close of association {close.association} was given to {self.id}"
            raise PermanentError(msg)
        if self._close is None or close.revision > self._close.revision:
            self._close = close
            self._closed_digests = {member.member: member.digest for member in close.members}
            self._compare(self._members)

    def due(self, now: float, *, backlog_read: bool = True) -> Close | None:
        """Return the close that is due, None when none is. The state stays as it is until `record_close`.

        Parameters
        ----------
        now : float
            Unix time in seconds.
        backlog_read : bool
            Whether all statuses that lay in the log when the aggregator started are read: before that no time fires,
            for a member may have come in time while nobody looked.
        """
        if self._expected is None or self._superseded_by is not None:
            return None
        if self._close is None:
            return self._first_close(now if backlog_read else None)
        changes = self._changes()
        if not changes or not backlog_read or now < self._settled_at(changes):
            return None
        if self.settings.on_missing is OnMissing.WAIT and self._newly_absent(self._close):
            return None
        return self._closed(CloseReason.CHANGED)

    def close_by_operator(self, *, again: bool = False) -> Close:
        """Return the close that an operator asks for: now, with whoever is there, whatever ``on_missing`` says.

        Raises
        ------
        stream.failure.PermanentError
            The list of members is not known, the association is superseded, or nothing changed since the last close
            (but ``again`` has the same once more).
        """
        if self._superseded_by is not None:
            msg = f"the association {self.id} is superseded by a newer list of its product name, {self._superseded_by}"
            raise PermanentError(msg)
        if self._expected is None:
            msg = f"the association {self.id} cannot be closed: its list of members is not known yet"
            raise PermanentError(msg)
        if self._close is not None and not self._changes() and not again:
            msg = f"the association {self.id} is closed with revision {self._close.revision} and nothing changed since"
            raise PermanentError(msg)
        return self._closed(CloseReason.OPERATOR)

    def next_due(self) -> float | None:
        """Unix time at which `due` should be asked again if nothing comes before; None when time alone does nothing."""
        if self._expected is None or self._superseded_by is not None:
            return None
        if self._close is None:
            return None if self.settings.on_missing is OnMissing.WAIT else self.deadline_at
        changes = self._changes()
        if not changes or (self.settings.on_missing is OnMissing.WAIT and self._newly_absent(self._close)):
            return None
        return self._settled_at(changes)

    def _first_close(self, now: float | None) -> Close | None:
        wait = self.settings.on_missing is OnMissing.WAIT
        if len(self._members) == len(self._places):
            failed = any(is_absent(record.status) for record in self._members.values())
            return None if failed and wait else self._closed(CloseReason.COMPLETE)
        deadline = self._deadline_at
        if now is None or deadline is None or now < deadline or wait:
            return None
        return self._closed(CloseReason.DEADLINE)

    def _drop_unexpected(self) -> None:
        if self._expected is not None and not self._members.keys() <= self._places:
            self._members = {name: record for name, record in self._members.items() if name in self._places}
            self._news &= self._members.keys()

    def _closed(self, reason: CloseReason) -> Close:
        members = self._snapshot()
        present = sum(not is_absent(member.status) for member in members)
        strict = self.settings.on_missing is OnMissing.FAIL and reason is not CloseReason.OPERATOR
        incomplete = strict and present < len(members)
        few = present < min(self.settings.minimum, len(members))
        outcome = CloseOutcome.FAIL if incomplete or few else CloseOutcome.ALIGN
        revision = 1 if self._close is None else self._close.revision + 1
        return Close(self.id, revision, reason, outcome, members)

    def _snapshot(self) -> tuple[ClosedMember, ...]:
        members = []
        for member in self._expected or ():
            record = self._members.get(member)
            known = (MISSING, None) if record is None else (record.status.value, record.digest)
            members.append(ClosedMember(member, *known))
        return tuple(members)

    def _changes(self) -> list[MemberRecord]:
        if not self._news:  # ten thousand repeats of as many members must not look at all of them each time
            return []
        return [self._members[member] for member in self._expected or () if member in self._news]

    def _compare(self, members: Iterable[str]) -> None:
        """Take note of which of these are not as the newest close has them; all, where there is none."""
        for member in members:
            if self._members[member].digest == self._closed_digests.get(member):
                self._news.discard(member)
            else:
                self._news.add(member)

    def _settled_at(self, changes: list[MemberRecord]) -> float:
        return max(record.changed_at for record in changes) + self.settings.revision_delay

    def _newly_absent(self, last: Close) -> bool:
        before = {member.member for member in last.members if is_absent(member.status)}
        return any(is_absent(member.status) and member.member not in before for member in self._snapshot())
