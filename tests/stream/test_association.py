"""An association closes with the right members at the right time, and order of arrival never changes the close."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from stream.identity import canonical_json
from stream.message import MemberStatus
from tests.stream.association_driver import FAILED, MEMBERS, OK, SATURATED, SKIPPED, Driver, statuses

DAY = 86_400.0


def test_it_closes_when_all_expected_members_are_terminal() -> None:
    driver = Driver().expect()
    driver.see("a")
    driver.see("b", SKIPPED)
    assert driver.closes == []
    driver.see("c", SATURATED)
    assert driver.closes == [
        Close(
            "x-1",
            1,
            CloseReason.COMPLETE,
            CloseOutcome.ALIGN,
            (
                ClosedMember("c", "saturated", "c-saturated"),
                ClosedMember("a", "ok", "a-ok"),
                ClosedMember("b", "skipped", "b-skipped"),
            ),
        )
    ]
    assert driver.closes[0].expected == driver.closes[0].used == MEMBERS


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[tuple[str, ...], list[tuple[str, MemberStatus]], int]:
    members = tuple(f"m{number}" for number in range(draw(st.integers(1, 6))))
    final = [(member, draw(st.sampled_from(MemberStatus))) for member in members]
    repeats = draw(st.lists(st.sampled_from(final), max_size=5))
    order = draw(st.permutations(final + repeats))
    return draw(st.permutations(members).map(tuple)), order, draw(st.integers(0, len(order)))


@given(arrivals(), st.sampled_from(OnMissing), st.booleans())
@settings(deadline=None, max_examples=200)
def test_any_order_of_arrival_gives_the_same_close(
    case: tuple[tuple[str, ...], list[tuple[str, MemberStatus]], int], on_missing: OnMissing, restart: bool
) -> None:
    members, order, list_comes_at = case
    driver = Driver(on_missing=on_missing)
    for position, (member, status) in enumerate(order):
        if position == list_comes_at:
            driver.expect(members)
        driver.see(member, status)
        if restart:
            records = driver.state.records()
            fresh = Driver(on_missing=on_missing)
            fresh.state.restore(reversed(records))
            if position >= list_comes_at:
                fresh.state.expect(members)
            for close in driver.closes:
                fresh.state.record_close(close)
            fresh.offset, fresh.closes = driver.offset, driver.closes
            driver = fresh
    if list_comes_at == len(order):
        driver.expect(members)
    straight = Driver(on_missing=on_missing).expect(members)
    for member, status in sorted(set(order)):
        straight.see(member, status)
    assert driver.closes == straight.closes
    assert len(driver.closes) == (0 if on_missing is OnMissing.WAIT and FAILED in dict(order).values() else 1)


@given(arrivals(), st.data())
@settings(deadline=None)
def test_the_close_at_the_deadline_depends_on_who_has_come_not_on_the_order(
    case: tuple[tuple[str, ...], list[tuple[str, MemberStatus]], int], data: st.DataObject
) -> None:
    members, order, _ = case
    order = order[: data.draw(st.integers(1, len(order)))]
    other = data.draw(st.permutations(order))
    closes = []
    for arrival in (order, other):
        driver = Driver().expect((*members, "never"))
        for member, status in arrival:
            driver.see(member, status)
        closes.append(driver.wait(DAY).closes)
    assert closes[0] == closes[1]
    assert [close.reason for close in closes[0]] == [CloseReason.DEADLINE]


def test_the_deadline_is_absolute_from_the_first_member_and_fires_without_traffic() -> None:
    driver = Driver().expect()
    assert driver.state.next_due() is None
    driver.wait(1000)
    driver.see("a")
    assert driver.state.deadline_at == driver.state.next_due() == 1000 + DAY
    driver.wait(DAY - 1)
    driver.see("a", OK, "changed")
    assert driver.closes == []
    driver.wait(1)
    assert statuses(driver.closes[0]) == ["missing", "ok", "missing"]
    assert driver.closes[0].outcome is CloseOutcome.ALIGN
    assert driver.closes[0].used == ("a",)


def test_the_deadline_survives_a_restart_even_when_its_first_member_has_changed() -> None:
    driver = Driver().expect()
    driver.see("a")
    driver.wait(5000)
    driver.see("a", OK, "changed")
    driver.see("b")
    fresh = Association("x-1", AssociationSettings())
    fresh.restore(MemberRecord.from_json(json.loads(canonical_json(r.to_json()))) for r in driver.state.records())
    assert fresh.records() == driver.state.records()
    assert fresh.deadline_at == DAY


def test_no_time_fires_before_the_backlog_is_read() -> None:
    driver = Driver().expect()
    driver.see("a")
    assert driver.state.due(2 * DAY, backlog_read=False) is None
    # The backlog brings the others, which came while nobody looked: complete, and not past its deadline.
    for member in ("b", "c"):
        driver.state.observe(member, OK, member, offset=9, now=2 * DAY)
    close = driver.state.due(2 * DAY, backlog_read=False)
    assert close is not None
    assert close.reason is CloseReason.COMPLETE


def test_without_a_deadline_it_waits_for_all() -> None:
    driver = Driver(deadline=None).expect()
    driver.see("a")
    assert driver.wait(1000 * DAY).closes == []
    assert driver.state.next_due() is None


def test_nothing_closes_while_the_list_is_not_known_and_the_deadline_runs_all_the_same() -> None:
    driver = Driver()
    for member in ("a", "b", "stranger"):
        driver.see(member)
    driver.wait(2 * DAY)
    assert driver.closes == []
    with pytest.raises(PermanentError, match="list of members is not known yet"):
        driver.operator()
    driver.expect()
    assert [close.reason for close in driver.closes] == [CloseReason.DEADLINE]
    assert driver.closes[0].expected == MEMBERS


@pytest.mark.parametrize("absent", [FAILED, None])
@pytest.mark.parametrize("policy", OnMissing)
def test_missing_and_failed_members_are_treated_alike(policy: OnMissing, absent: MemberStatus | None) -> None:
    driver = Driver(on_missing=policy).expect()
    driver.see("a")
    driver.see("b")
    if absent is not None:
        driver.see("c", absent)
    driver.wait(DAY)
    if policy is OnMissing.WAIT:
        assert driver.closes == []
        assert driver.state.next_due() is None
        driver.operator()
    close = driver.closes[0]
    assert close.outcome is (CloseOutcome.FAIL if policy is OnMissing.FAIL else CloseOutcome.ALIGN)
    assert close.used == ("a", "b")
    assert close.expected == MEMBERS


def test_waiting_ends_when_a_redrive_succeeds() -> None:
    driver = Driver(on_missing=OnMissing.WAIT).expect()
    driver.see("a")
    driver.see("b")
    driver.see("c", FAILED)
    driver.wait(2 * DAY)
    assert driver.see("c") is Seen.CHANGED
    assert [(close.reason, close.used) for close in driver.closes] == [(CloseReason.COMPLETE, MEMBERS)]


def test_fewer_than_the_minimum_are_not_aligned() -> None:
    for minimum, outcome in ((2, CloseOutcome.ALIGN), (3, CloseOutcome.FAIL)):
        driver = Driver(minimum=minimum).expect()
        driver.see("a")
        driver.see("b", SKIPPED)
        driver.see("c", FAILED)
        assert [close.outcome for close in driver.closes] == [outcome]


def test_a_minimum_that_an_association_cannot_have_asks_for_all_of_it() -> None:
    for members, failed, outcome in (
        (("a", "b"), None, CloseOutcome.ALIGN),
        (("a", "b"), "b", CloseOutcome.FAIL),
        (("a",), None, CloseOutcome.ALIGN),
    ):
        driver = Driver(minimum=3).expect(members)
        for member in members:
            driver.see(member, FAILED if member == failed else OK)
        assert [close.outcome for close in driver.closes] == [outcome]


def test_an_association_whose_members_all_failed_closes_too() -> None:
    driver = Driver().expect()
    for member in MEMBERS:
        driver.see(member, FAILED)
    assert [(close.outcome, close.used) for close in driver.closes] == [(CloseOutcome.FAIL, ())]


def test_an_operator_closes_with_whoever_is_there() -> None:
    driver = Driver().expect()
    driver.see("b")
    driver.operator()
    assert driver.closes[0].reason is CloseReason.OPERATOR
    assert statuses(driver.closes[0]) == ["missing", "missing", "ok"]
    with pytest.raises(PermanentError, match="closed with revision 1 and nothing changed since"):
        driver.operator()


def test_repeats_change_nothing() -> None:
    driver = Driver().expect()
    assert driver.see("a") is Seen.NEW
    before = driver.state.records()
    driver.now = 50.0
    assert driver.see("a") is Seen.REPEAT
    assert driver.state.records() == before
    assert driver.see("nobody") is Seen.UNEXPECTED
    assert driver.state.records() == before


def test_reading_the_log_again_from_an_older_offset_changes_nothing() -> None:
    driver = Driver().expect()
    driver.see("a", FAILED)
    driver.see("a", OK)
    # A restart reads the first status once more: it is old news, though its digest differs from the newest.
    assert driver.state.observe("a", FAILED, "a-failed", offset=1, now=9.0) is Seen.REPEAT
    assert driver.state.records()[0].status is OK


def test_restoring_keeps_the_record_of_the_highest_offset_whatever_the_order() -> None:
    old = MemberRecord("a", FAILED, "old", 3, 10.0, 500.0)
    new = MemberRecord("a", OK, "new", 7, 20.0, 400.0)
    for records in ([old, new], [new, old]):
        state = Association("x", AssociationSettings())
        state.restore(records)
        assert state.records() == (new,)
        assert state.deadline_at == 400.0


def test_closes_survive_json() -> None:
    driver = Driver().expect()
    driver.see("a", SATURATED)
    close = driver.operator().closes[0]
    assert Close.from_json(json.loads(canonical_json(close.to_json()))) == close


def test_a_superseded_association_does_not_close_until_its_list_is_the_newest_again() -> None:
    driver = Driver().expect()
    driver.state.supersede("x-2")
    for member in MEMBERS:
        driver.see(member)
    assert driver.wait(2 * DAY).closes == []
    assert driver.state.superseded_by == "x-2"
    assert driver.state.next_due() is None
    with pytest.raises(PermanentError, match="superseded by a newer list of its product name, x-2"):
        driver.operator()
    driver.state.supersede(None)
    assert [close.reason for close in driver.check().closes] == [CloseReason.COMPLETE]


@pytest.mark.parametrize(
    ("members", "text"), [((), "no members"), (("a", "a"), "twice: a"), (("a", "b"), "two lists of members")]
)
def test_a_bad_list_is_refused(members: tuple[str, ...], text: str) -> None:
    driver = Driver().expect()
    driver.expect()
    with pytest.raises(PermanentError, match=text):
        driver.state.expect(members)


@pytest.mark.parametrize("changes", [{"minimum": 0}, {"deadline": -1.0}, {"revision_delay": -1.0}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(PermanentError, match="got"):
        AssociationSettings(**changes)  # type: ignore[arg-type]


def test_thousands_of_members_are_no_burden() -> None:
    members = tuple(f"m{number}" for number in range(20_000))
    driver = Driver().expect(members)
    for member in reversed(members):
        driver.see(member)
    assert driver.closes[0].used == members
