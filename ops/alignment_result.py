"""What a joint solution says of one member. Not how it was found."""

from __future__ import annotations

from typing import Any

__all__ = ["alignment_reason", "part_of_solution"]


def part_of_solution(solution: Any, exposure: str) -> Any:
    """The solution with one member alone: the job needs no more, and others may be ten thousand."""
    if solution is None:
        return None
    part = solution["members"].get(exposure)
    return {**solution, "members": {} if part is None else {exposure: part}}


def alignment_reason(solution: Any, exposure: str) -> str | None:
    """Why the joint solution has no correction for an exposure; None where it has, or where there is no solution."""
    member = (solution or {}).get("members", {}).get(exposure) or {}
    reason = member.get("reason")
    return None if reason is None else str(reason)
