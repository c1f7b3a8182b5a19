"""The JSON document of a joint alignment: what each member is told. Applied to an exposure by `stages.align`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.exposure import StepStatus
from stages.tweakreg.fit import SUCCESS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stages.tweakreg.fit import Aligned

__all__ = ["aligned_result", "skipped_result", "solution"]


def skipped_result(reason: str) -> dict[str, Any]:
    """For a member that took no part."""
    return {
        "status": str(StepStatus.SKIPPED),
        "reason": reason,
        "corrections": [],
        "wcs_fit_results": None,
        "name": None,
    }


def aligned_result(member: Aligned, *, fitted: int, refcat: str, failure: str | None) -> dict[str, Any]:
    """For a member that took part.

    Parameters
    ----------
    member : Aligned
        After the alignment.
    fitted : int
        Number of members that took part.
    refcat : str
        Name of the absolute catalog as the parameter has it.
    failure : str or None
        Why the absolute alignment could not be done: the results then keep what the relative one had found.
    """
    fit = dict(member.fit_info)
    if failure is not None:
        fit["status"] = "FAILED"
    succeeded = fit.get("status") == SUCCESS
    fit.setdefault("nmatches", 0)
    fit["n_detector"] = fitted
    return {
        "status": str(StepStatus.COMPLETE if succeeded else StepStatus.FAILED),
        "reason": None if succeeded else failure or fit["status"],
        "corrections": member.corrections if succeeded else [],
        "wcs_fit_results": fit,
        "name": f"FIT-LVL2-{refcat}" if succeeded else None,
    }


def solution(members: Mapping[str, dict[str, Any]], aligned: Sequence[Aligned]) -> dict[str, Any]:
    """The whole document, with a summary of the joint fit for people."""
    complete = [m for m in aligned if members[m.id]["status"] == StepStatus.COMPLETE]
    fit = complete[0].fit_info if complete else {}
    return {
        "members": dict(members),
        "summary": {
            "complete": len(complete),
            "fitted": len(aligned),
            "members": len(members),
            "nmatches": fit.get("nmatches", 0),
            "rms": fit.get("rmse"),
            "shift": fit.get("shift"),
        },
    }
