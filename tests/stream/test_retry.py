"""What becomes of failures: attempts count as they should, and a bad deployment stops itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.failure import FailureClass
from stream.retry import Action, Attempt, Breaker, Decision, Outcome, RetryPolicy

POLICY = RetryPolicy(jitter=0.0)
FAILURES = [Outcome(failure.value) for failure in FailureClass]


def attempts(*outcomes: Outcome) -> list[Attempt]:
    return [Attempt(number, outcome) for number, outcome in enumerate(outcomes, 1)]


def decide(*outcomes: Outcome, policy: RetryPolicy = POLICY) -> Decision:
    return policy.decide(attempts(*outcomes), now=1000.0, rng=random.Random(1))


def test_a_retriable_failure_is_tried_in_place_then_through_the_tiers_then_dead() -> None:
    retriable = Outcome.RETRIABLE
    assert decide(retriable).action is Action.RETRY_IN_PLACE
    assert decide(retriable).delay == 1.0
    waits = [(tier, delay) for tier, delay in enumerate((60.0, 600.0, 3600.0))]
    for tier, delay in waits:
        decision = decide(*[retriable] * (2 + tier))
        assert (decision.action, decision.tier, decision.not_before) == (Action.RETRY_LATER, tier, 1000.0 + delay)
    assert decide(*[retriable] * 5).action is Action.DEAD_LETTER


@pytest.mark.parametrize("outcome", [Outcome.PERMANENT, Outcome.POISON])
def test_what_would_only_repeat_itself_is_dead_at_once(outcome: Outcome) -> None:
    assert decide(outcome).action is Action.DEAD_LETTER
    assert decide(Outcome.RETRIABLE, outcome).action is Action.DEAD_LETTER


def test_a_fatal_failure_stops_whatever_came_before() -> None:
    for history in ([], [Outcome.RETRIABLE] * 9, [Outcome.RESOURCE] * 3):
        assert decide(*history, Outcome.FATAL).action is Action.STOP


def test_a_job_that_outgrows_its_slot_gets_the_bigger_one_once() -> None:
    first = decide(Outcome.RESOURCE)
    assert (first.action, first.bigger_slot) == (Action.BIGGER_SLOT, True)
    assert decide(Outcome.RESOURCE, Outcome.RESOURCE).action is Action.DEAD_LETTER
    assert decide(Outcome.RESOURCE, Outcome.RETRIABLE, Outcome.RESOURCE).action is Action.DEAD_LETTER
    small = RetryPolicy(has_bigger_slot=False)
    assert decide(Outcome.RESOURCE, policy=small).action is Action.DEAD_LETTER


def test_a_job_that_outgrew_its_slot_keeps_the_bigger_one_in_later_retries() -> None:
    assert decide(Outcome.RESOURCE, Outcome.RETRIABLE).bigger_slot
    assert decide(Outcome.RESOURCE, Outcome.RETRIABLE, Outcome.RETRIABLE).bigger_slot
    assert not decide(Outcome.RETRIABLE, Outcome.RETRIABLE).bigger_slot
    assert POLICY.needs_bigger_slot(attempts(Outcome.RESOURCE, Outcome.OPEN))
    assert not POLICY.needs_bigger_slot(attempts(Outcome.RETRIABLE, Outcome.OPEN))


def test_a_killed_worker_condemns_no_message_but_five_in_a_row_do() -> None:
    assert POLICY.admit([]) is None
    assert POLICY.admit(attempts(*[Outcome.OPEN] * 4)) is None
    decision = POLICY.admit(attempts(*[Outcome.OPEN] * 5))
    assert decision is not None
    assert decision.action is Action.DEAD_LETTER
    assert "5 attempts in a row" in decision.reason


@pytest.mark.parametrize("between", [Outcome.RELEASED, Outcome.RETRIABLE, Outcome.DONE])
def test_an_attempt_that_its_worker_outlived_breaks_the_row(between: Outcome) -> None:
    assert POLICY.admit(attempts(*[Outcome.OPEN] * 4, between, *[Outcome.OPEN] * 4)) is None


@given(
    st.lists(st.sampled_from(Outcome), max_size=12),
    st.sampled_from(FAILURES),
    st.data(),
)
@settings(deadline=None)
def test_attempts_that_nobody_ended_change_no_decision(
    history: list[Outcome], last: Outcome, data: st.DataObject
) -> None:
    counted = [outcome for outcome in history if outcome not in {Outcome.OPEN, Outcome.RELEASED, Outcome.DONE}]
    assert decide(*history, last) == decide(*counted, last)


@given(st.lists(st.sampled_from(FAILURES), min_size=1, max_size=30))
@settings(deadline=None)
def test_no_message_is_tried_for_ever(failures: list[Outcome]) -> None:
    last = 0
    for count in range(1, len(failures) + 1):
        if decide(*failures[:count]).action in {Action.DEAD_LETTER, Action.STOP}:
            break
        last = count
    # Two in place, three tiers, one bigger slot.
    assert last <= 5


@given(st.integers(0, 10**6), st.floats(0, 0.99))
@settings(deadline=None)
def test_jitter_stays_in_its_bounds_and_comes_from_the_generator_given(seed: int, jitter: float) -> None:
    policy = RetryPolicy(jitter=jitter)
    history = attempts(Outcome.RETRIABLE, Outcome.RETRIABLE)
    decision = policy.decide(history, now=0.0, rng=random.Random(seed))
    assert 60 * (1 - jitter) - 1e-9 <= decision.delay <= 60 * (1 + jitter) + 1e-9
    assert decision == policy.decide(history, now=0.0, rng=random.Random(seed))


def test_failures_of_one_moment_do_not_come_back_together() -> None:
    rng = random.Random(1)
    history = attempts(Outcome.RETRIABLE, Outcome.RETRIABLE)
    times = {RetryPolicy().decide(history, now=0.0, rng=rng).not_before for _ in range(50)}
    assert len(times) == 50


def test_not_before_is_never_early() -> None:
    assert Decision(Action.RETRY_LATER, "", not_before=1.0001).not_before_ms == 1001
    assert Decision(Action.RETRY_LATER, "", not_before=1.0).not_before_ms == 1000
    assert Decision(Action.DEAD_LETTER, "").not_before_ms is None


@pytest.mark.parametrize("outcomes", [[], [Outcome.OPEN], [Outcome.DONE], [Outcome.RETRIABLE, Outcome.RELEASED]])
def test_deciding_without_a_failure_is_a_mistake(outcomes: list[Outcome]) -> None:
    with pytest.raises(ValueError, match="did not fail"):
        decide(*outcomes)


@pytest.mark.parametrize(
    "settings_", [{"tries_in_place": 0}, {"jitter": 1.0}, {"retry_delays": (-1.0,)}, {"open_limit": 0}]
)
def test_settings_that_make_no_sense_are_refused(settings_: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        RetryPolicy(**settings_)  # type: ignore[arg-type]


def feed(breaker: Breaker, count: int, failure: FailureClass | None, *, observations: int = 10) -> bool:
    return any(breaker.record(failure, observation=str(n % observations)) for n in range(count))


def test_the_breaker_opens_at_forty_in_a_row_from_three_observations() -> None:
    assert not feed(Breaker(), 39, FailureClass.PERMANENT)
    assert feed(Breaker(), 40, FailureClass.PERMANENT)
    assert feed(Breaker(), 40, FailureClass.PERMANENT, observations=3)
    assert not feed(Breaker(), 150, FailureClass.PERMANENT, observations=2)


def test_a_success_or_another_class_ends_the_row() -> None:
    for other in (None, FailureClass.RETRIABLE):
        breaker = Breaker()
        feed(breaker, 39, FailureClass.PERMANENT)
        breaker.record(other, observation="x")
        assert not feed(breaker, 39, FailureClass.PERMANENT)
        assert feed(breaker, 1, FailureClass.PERMANENT)


def test_the_breaker_opens_at_a_fifth_of_the_last_two_hundred_with_one_class() -> None:
    breaker = Breaker()
    for number in range(199):
        assert not breaker.record(FailureClass.PERMANENT if number % 5 == 0 else None, observation="one")
    assert breaker.record(None, observation="one")
    assert breaker.reason == "40 of the last 200 failed with class permanent"
    mixed = Breaker()
    classes = [FailureClass.PERMANENT, FailureClass.RETRIABLE]
    assert not any(mixed.record(classes[n % 10 // 5] if n % 5 == 0 else None, observation="o") for n in range(1000))


def test_a_few_failures_at_the_start_are_no_statistics() -> None:
    breaker = Breaker()
    assert not any(breaker.record(FailureClass.PERMANENT if n % 2 else None, observation=str(n)) for n in range(199))


def test_an_open_breaker_stays_open_until_it_is_reset() -> None:
    breaker = Breaker()
    feed(breaker, 40, FailureClass.RESOURCE)
    for _ in range(500):
        assert breaker.record(None, observation="x")
    assert breaker.reason is not None
    assert "resource" in breaker.reason
    breaker.reset()
    assert not feed(breaker, 39, FailureClass.RESOURCE)


def test_the_breaker_can_be_off() -> None:
    assert not feed(Breaker(enabled=False), 500, FailureClass.PERMANENT)
