"""What comes after a close opens a new revision, once and not before it has settled."""

from __future__ import annotations

import pytest

from stream.association import Close, ClosedMember, CloseOutcome, CloseReason, OnMissing
from stream.failure import PermanentError
from tests.stream.association_driver import FAILED, MEMBERS, OK, Driver

DAY = 86_400.0


def test_a_changed_member_opens_a_new_revision_once_none_has_come_for_the_delay() -> None:
    driver = Driver(revision_delay=100.0).expect()
    for member in MEMBERS:
        driver.see(member)
    driver.wait(1000)
    driver.see("a", OK, "a-new")
    assert driver.state.next_due() == 1100
    driver.wait(60)
    driver.see("b", OK, "b-new")
    driver.wait(99)
    assert len(driver.closes) == 1
    driver.wait(1)
    assert len(driver.closes) == 2
    close = driver.closes[1]
    assert (close.revision, close.reason) == (2, CloseReason.CHANGED)
    assert [member.digest for member in close.members] == ["c-ok", "a-new", "b-new"]


def test_a_late_member_opens_a_new_revision_and_an_operator_need_not_wait() -> None:
    driver = Driver().expect()
    driver.see("a")
    driver.see("b")
    driver.wait(DAY)
    driver.see("c")
    assert driver.operator().closes[1].used == MEMBERS
    assert driver.wait(DAY).closes[2:] == []


def test_a_member_that_changes_back_opens_no_revision() -> None:
    driver = Driver(revision_delay=100.0).expect()
    for member in MEMBERS:
        driver.see(member)
    driver.see("a", OK, "other")
    driver.see("a")
    assert len(driver.wait(1000).closes) == 1


def test_a_member_that_fails_after_the_close_waits_for_its_redrive_when_told_so() -> None:
    driver = Driver(on_missing=OnMissing.WAIT, revision_delay=100.0).expect()
    for member in MEMBERS:
        driver.see(member)
    driver.see("a", FAILED)
    assert driver.state.next_due() is None
    assert len(driver.wait(1000).closes) == 1
    driver.see("a", OK, "a-again")
    assert [close.used for close in driver.wait(100).closes[1:]] == [MEMBERS]


def test_no_revision_fires_before_the_backlog_is_read() -> None:
    driver = Driver(revision_delay=100.0).expect()
    for member in MEMBERS:
        driver.see(member)
    driver.see("a", OK, "new")
    assert driver.state.due(1000.0, backlog_read=False) is None
    assert driver.state.due(1000.0) is not None


def test_losers_of_a_race_adopt_the_winners_close() -> None:
    driver = Driver().expect()
    driver.see("a")
    ours = driver.state.close_by_operator()
    winners = Close(
        "x-1", 1, CloseReason.OPERATOR, CloseOutcome.ALIGN, tuple(ClosedMember(m, "missing", None) for m in MEMBERS)
    )
    assert ours != winners
    driver.state.record_close(winners)
    assert driver.state.last_close == winners
    # What the winner did not know of is a change, and opens the next revision.
    assert driver.wait(1800).closes[-1].revision == 2
    driver.state.record_close(winners)
    assert driver.state.last_close == driver.closes[-1]
    with pytest.raises(PermanentError, match="close of association y was given to x-1"):
        driver.state.record_close(Close("y", 3, CloseReason.OPERATOR, CloseOutcome.ALIGN, ()))


def test_asking_what_is_due_changes_nothing_so_that_a_crash_repeats_the_decision() -> None:
    driver = Driver()
    driver.state.expect(("a",))
    driver.state.observe("a", OK, "d", offset=1, now=0.0)
    assert driver.state.due(0.0) == driver.state.due(0.0)
    assert driver.state.last_close is None
