"""The association's machine against the rules of its design in short, through anything that may happen to it."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from stream.association import (
    Association,
    AssociationSettings,
    Close,
    ClosedMember,
    CloseOutcome,
    CloseReason,
    MemberRecord,
    OnMissing,
    Seen,
)
from stream.failure import PermanentError
from stream.message import MemberStatus

ID, OTHER = "x-1", "x-2"
STRANGER = "stranger"
FOREVER = 1e9

RULES = st.builds(
    AssociationSettings,
    minimum=st.integers(1, 4),
    deadline=st.sampled_from((None, 0.0, 10.0, 30.0)),
    revision_delay=st.sampled_from((0.0, 5.0)),
    on_missing=st.sampled_from(OnMissing),
)


class Status(NamedTuple):
    """A member's status, and when it came."""

    status: MemberStatus
    digest: str
    at: float


class Sent(NamedTuple):
    """A member's status as it lies in the log."""

    member: str
    status: MemberStatus
    digest: str
    offset: int


class Model:
    """An association by all that was ever read of it; nothing is kept that follows from that."""

    def __init__(self, members: tuple[str, ...], rules: AssociationSettings) -> None:
        self.members = members
        self.rules = rules
        self.listed = False
        self.superseded = False
        self.read: list[tuple[str, Status]] = []
        self.closes: list[Close] = []

    def see(self, member: str, status: Status) -> Seen:
        if self.listed and member not in self.members:
            return Seen.UNEXPECTED
        before = self.newest().get(member)
        self.read.append((member, status))
        if before is None:
            return Seen.NEW
        return Seen.REPEAT if before.digest == status.digest else Seen.CHANGED

    def newest(self) -> dict[str, Status]:
        """Newest status of each member; of several alike in a row the first."""
        found: dict[str, Status] = {}
        for member, status in self.read:
            if member not in found or found[member].digest != status.digest:
                found[member] = status
        return {member: found[member] for member in found if not self.listed or member in self.members}

    def deadline(self) -> float | None:
        if not self.read or self.rules.deadline is None:
            return None
        return self.read[0][1].at + self.rules.deadline

    def changes(self) -> dict[str, Status]:
        """Members that are not as the newest close has them."""
        closed = {member.member: member.digest for member in self.closes[-1].members} if self.closes else {}
        newest = self.newest()
        return {
            name: newest[name] for name in self.members if name in newest and newest[name].digest != closed.get(name)
        }

    def close(self, reason: CloseReason) -> Close:
        newest, absent = self.newest(), self.absent()
        present = len(self.members) - len(absent)
        few = present < min(self.rules.minimum, len(self.members))
        strict = self.rules.on_missing is OnMissing.FAIL and reason is not CloseReason.OPERATOR
        outcome = CloseOutcome.FAIL if few or (strict and absent) else CloseOutcome.ALIGN
        members = [
            ClosedMember(name, newest[name].status.value, newest[name].digest)
            if name in newest
            else ClosedMember(name, "missing", None)
            for name in self.members
        ]
        return Close(ID, len(self.closes) + 1, reason, outcome, tuple(members))

    def absent(self) -> set[str]:
        newest = self.newest()
        return {name for name in self.members if name not in newest or newest[name].status is MemberStatus.FAILED}

    def due(self, now: float, *, backlog_read: bool) -> Close | None:
        if not self.listed or self.superseded:
            return None
        waits = self.rules.on_missing is OnMissing.WAIT
        if self.closes:
            before = {member.member for member in self.closes[-1].members if member.status in {"missing", "failed"}}
            changed_at = [status.at for status in self.changes().values()]
            settled = bool(changed_at) and now >= max(changed_at) + self.rules.revision_delay
            ready = settled and backlog_read and not (waits and self.absent() - before)
            return self.close(CloseReason.CHANGED) if ready else None
        if waits and self.absent():
            return None
        if len(self.newest()) == len(self.members):
            return self.close(CloseReason.COMPLETE)
        deadline = self.deadline()
        passed = backlog_read and deadline is not None and now >= deadline
        return self.close(CloseReason.DEADLINE) if passed else None

    def may_be_closed(self) -> bool:
        """Whether an operator is obeyed."""
        return self.listed and not self.superseded and bool(not self.closes or self.changes())


class Interleavings(RuleBasedStateMachine):
    """Feeds both what comes in any order, and compares what they say after each step."""

    sent = Bundle("sent")

    @initialize(count=st.integers(1, 3), rules=RULES, listed=st.booleans(), data=st.data())
    def start(self, count: int, rules: AssociationSettings, *, listed: bool, data: st.DataObject) -> None:
        members = data.draw(st.permutations([f"m{number}" for number in range(count)]), "members")
        self.state = Association(ID, rules)
        self.model = Model(tuple(members), rules)
        self.offset = 0
        self.now = 0.0
        self.changelog: list[MemberRecord] = []
        if listed:
            self.list_comes()

    def observe(self, member: str, status: MemberStatus, digest: str) -> Sent:
        self.offset += 1
        before = self.state.records()
        seen = self.state.observe(member, status, digest, offset=self.offset, now=self.now)
        assert seen is self.model.see(member, Status(status, digest, self.now))
        assert (self.state.records() == before) is (seen in {Seen.REPEAT, Seen.UNEXPECTED})
        if seen in {Seen.NEW, Seen.CHANGED}:
            self.changelog += [record for record in self.state.records() if record.member == member]
        return Sent(member, status, digest, self.offset)

    @rule(
        target=sent,
        place=st.integers(0, 3),
        status=st.sampled_from(MemberStatus),
        content=st.sampled_from("ab"),
        after=st.sampled_from((0.0, 1.0, 4.0)),
        backlog_read=st.booleans(),
    )
    def status_comes(self, place: int, status: MemberStatus, content: str, after: float, *, backlog_read: bool) -> Sent:
        names = self.model.members
        if self.model.listed or self.model.read:  # a stranger who comes first, before the list, starts the deadline
            names += (STRANGER,)
        self.now += after
        sent = self.observe(names[place % len(names)], status, f"{status}-{content}")
        self.close_if_due(backlog_read=backlog_read)
        return sent

    @rule(target=sent, one=sent)
    def sent_again(self, one: Sent) -> Sent:
        return self.observe(one.member, one.status, one.digest)

    @rule(one=sent)
    def read_again(self, one: Sent) -> None:
        before = self.state.records()
        seen = self.state.observe(one.member, one.status, one.digest, offset=one.offset, now=self.now)
        assert seen in {Seen.REPEAT, Seen.UNEXPECTED}
        assert self.state.records() == before

    @rule(seconds=st.sampled_from((1.0, 4.0, 5.0, 10.0, 40.0)), backlog_read=st.booleans())
    def time_passes(self, seconds: float, *, backlog_read: bool) -> None:
        self.now += seconds
        self.close_if_due(backlog_read=backlog_read)

    @rule()
    def list_comes(self) -> None:
        self.state.expect(self.model.members)
        self.model.listed = True

    @rule(by=st.sampled_from((None, None, OTHER)))
    def another_list(self, by: str | None) -> None:
        self.state.supersede(by)
        self.model.superseded = by is not None

    def close_if_due(self, *, backlog_read: bool) -> None:
        close = self.state.due(self.now, backlog_read=backlog_read)
        if close is not None:
            self.take(close)
            assert self.state.due(FOREVER) is None, "a recorded close is due no more"

    @rule()
    def operator_closes(self) -> None:
        if not self.model.may_be_closed():
            with pytest.raises(PermanentError):
                self.state.close_by_operator()
            return
        close = self.state.close_by_operator()
        assert close == self.model.close(CloseReason.OPERATOR)
        self.take(close)

    def take(self, close: Close) -> None:
        self.state.record_close(close)
        self.model.closes.append(close)

    @rule(data=st.data())
    def restarts(self, data: st.DataObject) -> None:
        old, fresh = self.state, Association(ID, self.model.rules)
        compacted = data.draw(st.booleans(), "compacted")
        records = data.draw(st.permutations(old.records() if compacted else self.changelog), "records")
        closes = data.draw(st.permutations(self.model.closes), "closes")
        for step in data.draw(st.permutations(("records", "closes", "list")), "steps"):
            if step == "records":
                fresh.restore(MemberRecord.from_json(record.to_json()) for record in records)
            elif step == "closes":
                for close in closes:
                    fresh.record_close(Close.from_json(close.to_json()))
            elif self.model.listed:
                fresh.expect(self.model.members)
        fresh.supersede(old.superseded_by)
        assert (fresh.records(), fresh.last_close) == (old.records(), old.last_close)
        assert (fresh.since, fresh.deadline_at) == (old.since, old.deadline_at)
        self.state = fresh

    @invariant()
    def the_same_is_due(self) -> None:
        for backlog_read in (False, True):
            for now in (self.now, FOREVER):
                told = self.state.due(now, backlog_read=backlog_read)
                assert told == self.model.due(now, backlog_read=backlog_read)

    @invariant()
    def nothing_is_due_before_next_due(self) -> None:
        if self.state.due(self.now) is not None:
            return
        at = self.state.next_due()
        if at is None:
            assert self.state.due(FOREVER) is None
        else:
            assert self.now < at
            assert self.state.due(at - 1) is None
            assert self.state.due(at) is not None

    @invariant()
    def the_same_is_known(self) -> None:
        records = {one.member: Status(one.status, one.digest, one.changed_at) for one in self.state.records()}
        assert records == self.model.newest()
        assert self.state.deadline_at == self.model.deadline()
        assert self.state.last_close == (self.model.closes[-1] if self.model.closes else None)
        if self.model.listed:
            assert self.state.changed_members() == tuple(self.model.changes())


TestAssociation = Interleavings.TestCase
TestAssociation.settings = settings(deadline=None, max_examples=300)
