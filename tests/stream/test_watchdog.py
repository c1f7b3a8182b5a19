"""When a worker counts as stuck."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from stream.watchdog import Facts, ProgressWatch


def told(facts: Facts, seconds: Iterable[float]) -> list[str | None]:
    """What one watch says of unchanged facts at these times."""
    watch = ProgressWatch()
    return [watch.trouble(facts, now) for now in seconds]


IDLE = Facts(waiting=3, free=1, started=0.0, stable_since=0.0)
UNSTABLE = Facts(waiting=3, free=1, started=0.0, stable_since=None)
RESTORING = Facts(waiting=3, free=1, started=0.0, stable_since=None, taking_up=True)


@pytest.mark.parametrize(
    ("facts", "limit", "reason"), [(IDLE, 120, "idle"), (UNSTABLE, 120, "unstable"), (RESTORING, 1800, "restore")]
)
def test_it_is_stuck_after_its_limit_and_not_before(facts: Facts, limit: float, reason: str) -> None:
    assert told(facts, (0.0, limit - 1, limit + 1)) == [None, None, reason]


@pytest.mark.parametrize(
    "facts",
    [
        Facts(waiting=0, free=1, started=0.0, stable_since=0.0),
        Facts(waiting=3, free=0, started=0.0, stable_since=0.0),
        Facts(waiting=3, free=1, started=0.0, stable_since=None, stopping=True),
        Facts(waiting=3, free=1, started=0.0, stable_since=None, broker_answers=False),
    ],
)
def test_who_has_nothing_to_do_no_room_or_no_broker_is_not_stuck(facts: Facts) -> None:
    assert told(facts, (0.0, 1e4, 2e4)) == [None, None, None]


def test_a_message_that_is_taken_begins_the_time_anew_and_so_does_a_restore() -> None:
    watch = ProgressWatch()
    assert watch.trouble(IDLE, 0.0) is None
    assert watch.trouble(Facts(waiting=3, free=1, started=100.0, stable_since=0.0), 200.0) is None
    assert watch.trouble(UNSTABLE, 300.0) is None
    assert watch.trouble(RESTORING, 400.0) is None
    assert watch.trouble(UNSTABLE, 500.0) is None
    assert watch.trouble(UNSTABLE, 621.0) == "unstable"
