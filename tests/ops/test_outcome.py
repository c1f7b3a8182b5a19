"""A run is done when every member of every association has reported and each that was used is settled."""

from __future__ import annotations

import math
from typing import Any

from ops.outcome import Outcomes
from stream.member_list import MemberList

SESSION = 1000


def outcomes(*lists: tuple[str, tuple[str, ...]], times: tuple[float, ...] = ()) -> Outcomes:
    ticks = iter(times)
    members = [MemberList(association, members) for association, members in lists]
    return Outcomes(members, session_ms=SESSION, clock=lambda: next(ticks, math.nan))


def member(exposure: str, association: str, status: str = "ok", **more: Any) -> dict[str, Any]:
    return {
        "event": "member", "exposure": exposure, "association": association, "status": status, "reason": None,
        "published_ms": SESSION, **more,
    }  # fmt: skip


def row(found: Outcomes, exposure: str, association: str) -> dict[str, Any]:
    return found.rows[exposure, association].to_json(found.work.get(exposure, found.new_work()))


def test_every_member_must_report_in_this_session() -> None:
    found = outcomes(("j", ("a", "b")))
    found.observe(member("a", "j"))
    found.observe(member("b", "j", published_ms=SESSION - 1))
    assert not found.all_reported("j"), "b's message is that of an earlier session"
    found.observe(member("b", "j", "failed", reason="cut off"))
    assert found.all_reported("j")
    assert (row(found, "b", "j")["status"], row(found, "b", "j")["reason"]) == ("failed", "cut off")


def test_a_close_is_done_when_each_used_member_is_settled() -> None:
    found = outcomes(("j", ("a", "b", "c")))
    assert not found.is_done("j", ("a", "b"), 1), "not sent on yet"
    found.observe({"event": "dispatched", "association": "j", "revision": 1})
    found.observe({"event": "finalized", "association": "j", "exposure": "a", "revision": 1})
    assert not found.is_done("j", ("a", "b"), 1)
    found.observe({"event": "finalize_failed", "association": "j", "exposure": "b", "revision": 1, "reason": "no"})
    assert found.is_done("j", ("a", "b"), 1)
    assert not found.is_done("j", ("a", "b"), 2), "of a later revision nothing is known"
    assert (row(found, "b", "j")["status"], row(found, "b", "j")["reason"]) == ("failed", "no")


def test_a_member_that_did_not_wait_for_the_close_counts_for_every_revision() -> None:
    found = outcomes(("j", ("a",)))
    found.observe({"event": "finalized", "association": "j", "exposure": "a", "revision": None})
    found.observe({"event": "dispatched", "association": "j", "revision": 2})
    assert found.is_done("j", ("a",), 2)


def test_a_failure_before_the_close_is_one_of_all_associations_and_a_later_one_of_its_own() -> None:
    found = outcomes(("i", ("a",)), ("j", ("a", "b")))
    found.observe({"event": "failed", "exposure": "a", "reason": "late", "association": "j"})
    assert [row(found, "a", name)["status"] for name in "ij"] == ["waiting", "failed"]
    found.observe({"event": "failed", "exposure": "a", "reason": "bad", "association": None})
    assert [row(found, "a", name)["reason"] for name in "ij"] == ["bad", "bad"]
    assert row(found, "b", "j")["status"] == "waiting"


def test_work_on_an_exposure_counts_for_all_its_associations() -> None:
    found = outcomes(("i", ("a",)), ("j", ("a",)), times=(5.0, 6.0, 9.5))
    found.observe({"event": "stage_started", "exposure": "a", "stage": "x"})
    found.observe({"event": "stage", "exposure": "a", "stage": "x", "seconds": 2.0, "cpu_seconds": 1.0, "rss": 3})
    found.observe({"event": "stage_started", "exposure": "a", "stage": "y"})
    found.observe({"event": "reused", "exposure": "a", "stages": ["v", "w"]})
    found.observe({"event": "finalized", "association": "j", "exposure": "a", "revision": 1})
    for name, seconds in (("i", None), ("j", 4.5)):
        told = row(found, "a", name)
        assert told["stages"] == {"x": {"seconds": 2.0, "cpu_seconds": 1.0, "rss": 3}}
        assert (told["stages_run"], told["stages_reused"], told["seconds"]) == (1, 2, seconds)


def test_a_row_tells_the_alignment_in_milliarcseconds_or_why_there_is_none() -> None:
    found = outcomes(("j", ("a", "b")))
    found.rows["a", "j"].summary = {
        "sources": 7, "shift": [0.003, 0.004], "rms": 0.001, "statuses": {"tweakreg": "COMPLETE"},
    }  # fmt: skip
    found.rows["b", "j"].summary = {"statuses": {"tweakreg": "FAILED"}, "alignment_reason": "too few stars"}
    aligned, other = row(found, "a", "j"), row(found, "b", "j")
    assert math.isclose(aligned["shift_mas"], 5.0)
    assert (aligned["rms_mas"], aligned["sources"], aligned["tweakreg"]) == (1.0, 7, "COMPLETE")
    assert (other["shift_mas"], other["tweakreg"], other["tweakreg_reason"]) == (None, "FAILED", "too few stars")


def test_events_of_others_are_passed_over() -> None:
    found = outcomes(("j", ("a",)))
    for event in (
        {"event": "unheard of"},
        member("z", "j", "failed", reason="x"),
        member("a", "other", "failed", reason="x"),
        {"event": "finalized", "association": "other", "exposure": "a", "revision": 1},
        {"event": "finalize_failed", "association": "other", "exposure": "a", "revision": 1, "reason": "x"},
    ):
        found.observe(event)
    assert row(found, "a", "j")["status"] == "waiting"
    assert not found.all_reported("j")
