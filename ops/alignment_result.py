"""What a joint solution says of one member. Not how it was found."""

from __future__ import annotations

from typing import Any

__all__ = ["alignment_reason"]


def alignment_reason(solution: Any, exposure: str) -> str | None:
    """Why the joint solution has no correction for an exposure; None where it has, or where there is no solution."""
    member = (solution or {}).get("members", {}).get(exposure) or {}
    reason = member.get("reason")
    return None if reason is None else str(reason)
