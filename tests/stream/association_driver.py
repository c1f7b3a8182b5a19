"""Moves an association as the aggregator does. No tests."""

from __future__ import annotations

from typing import Any

from stream.association import Association, AssociationSettings, Close, Seen
from stream.message import MemberStatus

__all__ = ["FAILED", "MEMBERS", "OK", "SATURATED", "SKIPPED", "Driver", "statuses"]

OK, FAILED, SKIPPED, SATURATED = MemberStatus
MEMBERS = ("c", "a", "b")


class Driver:
    """Feeds an association as the aggregator does: rising offsets, a clock, closes recorded as they fall due."""

    def __init__(self, **changes: Any) -> None:
        self.state = Association("x-1", AssociationSettings(**changes))
        self.offset = 0
        self.now = 0.0
        self.closes: list[Close] = []

    def expect(self, members: tuple[str, ...] = MEMBERS) -> Driver:
        self.state.expect(members)
        return self.check()

    def see(self, member: str, status: MemberStatus = OK, digest: str = "") -> Seen:
        self.offset += 1
        seen = self.state.observe(member, status, digest or f"{member}-{status}", offset=self.offset, now=self.now)
        self.check()
        return seen

    def wait(self, seconds: float) -> Driver:
        self.now += seconds
        return self.check()

    def operator(self) -> Driver:
        self.take(self.state.close_by_operator())
        return self

    def check(self) -> Driver:
        close = self.state.due(self.now)
        if close is not None:
            self.take(close)
            assert self.state.due(self.now) is None, "a recorded close is due no more"
        return self

    def take(self, close: Close) -> None:
        self.closes.append(close)
        self.state.record_close(close)


def statuses(close: Close) -> list[str]:
    return [member.status for member in close.members]
