"""What a close of an association is: who was there, and what is to be done with them. Not when it happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from stream.message import MemberStatus

__all__ = ["MISSING", "Close", "CloseOutcome", "CloseReason", "ClosedMember", "is_absent"]

MISSING = "missing"
"""Status, in a close, of a member that has not come."""


class CloseReason(StrEnum):
    """Why an association closed."""

    COMPLETE = "complete"
    DEADLINE = "deadline"
    OPERATOR = "operator"
    CHANGED = "changed"
    """A member came or changed after the close before."""


class CloseOutcome(StrEnum):
    """What is to be done with the members."""

    ALIGN = "align"
    FAIL = "fail"
    """Too much is missing: no solution for anyone."""


@dataclass(frozen=True, slots=True)
class ClosedMember:
    """A member as it was at a close: status ``missing`` and no digest when it had not come."""

    member: str
    status: str
    digest: str | None


@dataclass(frozen=True, slots=True)
class Close:
    """One close of an association: members in canonical order. Times do not enter, so that racers decide alike."""

    association: str
    revision: int
    reason: CloseReason
    outcome: CloseOutcome
    members: tuple[ClosedMember, ...]

    @property
    def expected(self) -> tuple[str, ...]:
        """All members, in canonical order."""
        return tuple(member.member for member in self.members)

    @property
    def used(self) -> tuple[str, ...]:
        """Members that came and did not fail, in canonical order."""
        return tuple(member.member for member in self.members if not is_absent(member.status))

    def to_json(self) -> dict[str, Any]:
        """Return the close as a JSON value."""
        return {**asdict(self), "members": [asdict(member) for member in self.members]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Close:
        """Read what `to_json` wrote."""
        return cls(
            association=value["association"],
            revision=value["revision"],
            reason=CloseReason(value["reason"]),
            outcome=CloseOutcome(value["outcome"]),
            members=tuple(ClosedMember(**member) for member in value["members"]),
        )


def is_absent(status: str) -> bool:
    """Whether a status says that there is nothing to align: not come, or failed."""
    return status in {MISSING, MemberStatus.FAILED.value}
