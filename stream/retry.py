"""What to do about a failure, and when to stop a stage: decisions alone, with clock and chance passed in."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from stream.failure import FailureClass

__all__ = ["Action", "Attempt", "Breaker", "Decision", "Outcome", "RetryPolicy"]


class Outcome(StrEnum):
    """How an attempt ended; the failures have the names of their class."""

    OPEN = "open"
    """It has not ended, or its worker died before it could say so."""
    DONE = "done"
    RELEASED = "released"
    """Given up by a worker that lives (partition lost, shutdown): nobody's fault."""
    RETRIABLE = FailureClass.RETRIABLE.value
    RESOURCE = FailureClass.RESOURCE.value
    PERMANENT = FailureClass.PERMANENT.value
    POISON = FailureClass.POISON.value
    FATAL = FailureClass.FATAL.value


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a message: written before the job starts, and again when it ends."""

    number: int
    outcome: Outcome = Outcome.OPEN
    bigger_slot: bool = False


class Action(StrEnum):
    """What becomes of a message that failed."""

    RETRY_IN_PLACE = "retry_in_place"
    """Wait ``delay`` seconds and try again; its partition's prefix waits with it."""
    RETRY_LATER = "retry_later"
    """Publish to the retry topic of ``tier``, to be withheld until ``not_before``."""
    BIGGER_SLOT = "bigger_slot"
    """Try again at once with more memory and time."""
    DEAD_LETTER = "dead_letter"
    STOP = "stop"
    """Stop the worker and touch nothing: no commit, no retry, no dead letter."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why in words.

    ``bigger_slot`` says that the next attempt, wherever it is, needs the bigger slot.
    """

    action: Action
    reason: str
    delay: float = 0.0
    tier: int | None = None
    not_before: float | None = None
    bigger_slot: bool = False

    @property
    def not_before_ms(self) -> int | None:
        """Value for the not-before header: Unix time in ms, rounded up so that it is never early."""
        return None if self.not_before is None else -int(-self.not_before * 1000 // 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """From a failure and the attempts so far to a decision.

    Attributes
    ----------
    tries_in_place : int
        Attempts that fail with RETRIABLE before the message leaves for a retry topic.
    in_place_delay : float
        Mean wait in seconds between tries in place: long enough for a connection to be built anew, short beside a job.
    retry_delays : tuple of float
        Mean wait of each retry tier in seconds. A minute for a restart, ten for a failover, an hour for a person who
        is awake: 71 minutes in all before the dead letter.
    jitter : float
        Each wait is drawn evenly from ``mean * (1 ± jitter)``, so that what failed together does not come
        back together.
    open_limit : int
        Attempts in a row that no worker outlived before they count as the message's fault.
    has_bigger_slot : bool
        Whether there is a bigger slot to try; without one a RESOURCE failure is a dead letter at once.
    """

    tries_in_place: int = 2
    in_place_delay: float = 1.0
    retry_delays: tuple[float, ...] = (60.0, 600.0, 3600.0)
    jitter: float = 0.5
    open_limit: int = 5
    has_bigger_slot: bool = True

    def __post_init__(self) -> None:
        if self.tries_in_place < 1 or self.open_limit < 1:
            msg = f"tries_in_place and open_limit are at least 1, got {self.tries_in_place} and {self.open_limit}"
            raise ValueError(msg)
        if not 0 <= self.jitter < 1 or self.in_place_delay < 0 or any(delay < 0 for delay in self.retry_delays):
            msg = f"delays are not negative and jitter lies in [0, 1), got {self}"
            raise ValueError(msg)

    def admit(self, earlier: Sequence[Attempt]) -> Decision | None:
        """Decide, before an attempt starts, whether there should be one; None when there should.

        Parameters
        ----------
        earlier : sequence of Attempt
            Attempts so far, oldest first, without the one that is about to start. An attempt that is open here was
            left so by a worker that died: a killed worker condemns no message, but a message that kills its worker
            every time is caught.
        """
        streak = 0
        for attempt in reversed(earlier):
            if attempt.outcome is not Outcome.OPEN:
                break
            streak += 1
        if streak < self.open_limit:
            return None
        return Decision(
            Action.DEAD_LETTER,
            f"{streak} attempts in a row ended with the death of their worker, the limit is {self.open_limit}",
        )

    def needs_bigger_slot(self, earlier: Sequence[Attempt]) -> bool:
        """Whether an attempt has already outgrown the normal slot."""
        return self.has_bigger_slot and any(attempt.outcome is Outcome.RESOURCE for attempt in earlier)

    def decide(self, attempts: Sequence[Attempt], *, now: float, rng: random.Random) -> Decision:
        """Decide what becomes of a message whose last attempt failed.

        Parameters
        ----------
        attempts : sequence of Attempt
            All attempts, oldest first; the last is the one that has just failed. Ended attempts count at once, open
            and released ones do not.
        now : float
            Unix time in seconds.
        rng : random.Random
            Where jitter comes from.

        Raises
        ------
        ValueError
            The last attempt did not fail.
        """
        last = attempts[-1].outcome if attempts else None
        if last is None or last in {Outcome.OPEN, Outcome.DONE, Outcome.RELEASED}:
            msg = f"the last attempt did not fail, its outcome is {last}"
            raise ValueError(msg)
        if last is Outcome.FATAL:
            return Decision(Action.STOP, "the engine cannot go on")
        if last is Outcome.RETRIABLE:
            return self._retry(attempts, now, rng)
        if last is Outcome.RESOURCE:
            return self._grow(attempts)
        return Decision(Action.DEAD_LETTER, f"a {last.value} failure would only repeat itself")

    def _retry(self, attempts: Sequence[Attempt], now: float, rng: random.Random) -> Decision:
        failed = sum(attempt.outcome is Outcome.RETRIABLE for attempt in attempts)
        bigger = self.needs_bigger_slot(attempts)
        if failed < self.tries_in_place:
            delay = self._drawn(self.in_place_delay, rng)
            reason = f"try {failed} of {self.tries_in_place} in place failed"
            return Decision(Action.RETRY_IN_PLACE, reason, delay=delay, bigger_slot=bigger)
        tier = failed - self.tries_in_place
        if tier >= len(self.retry_delays):
            return Decision(Action.DEAD_LETTER, f"failed {failed} times, the last retry topic included")
        delay = self._drawn(self.retry_delays[tier], rng)
        reason = f"failed {failed} times, retry tier {tier} of {len(self.retry_delays)}"
        return Decision(Action.RETRY_LATER, reason, delay=delay, tier=tier, not_before=now + delay, bigger_slot=bigger)

    def _grow(self, attempts: Sequence[Attempt]) -> Decision:
        outgrown = sum(attempt.outcome is Outcome.RESOURCE for attempt in attempts)
        if not self.has_bigger_slot:
            return Decision(Action.DEAD_LETTER, "the job outgrew its slot and there is no bigger one")
        if outgrown > 1:
            return Decision(Action.DEAD_LETTER, "the job outgrew the bigger slot too")
        return Decision(Action.BIGGER_SLOT, "the job outgrew its slot", bigger_slot=True)

    def _drawn(self, mean: float, rng: random.Random) -> float:
        return mean * rng.uniform(1 - self.jitter, 1 + self.jitter)


class Breaker:
    """Stops a stage that fails too much, so that a bad deployment cannot drain a topic into the dead-letter topic.

    It opens when ``in_a_row`` outcomes in a row, from at least ``observations`` observations, fail with one class (so
    that one bad observation stops nothing), or when ``share`` of the last ``window`` do. It stays open until `reset`.
    Bad input that ingest refuses is not to be shown to it.

    Parameters
    ----------
    in_a_row, observations, window : int
        The limits above.
    share : float
        Fraction of a full window; a window that is not full yet decides nothing, for five outcomes are no statistics.
    enabled : bool
        False for a run that a person watches.
    """

    def __init__(
        self, *, in_a_row: int = 40, observations: int = 3, window: int = 200, share: float = 0.2, enabled: bool = True
    ) -> None:
        self._in_a_row = in_a_row
        self._observations = observations
        self._share = share
        self._enabled = enabled
        self._last: deque[FailureClass | None] = deque(maxlen=window)
        self._row_class: FailureClass | None = None
        self._row = 0
        self._row_observations: set[str] = set()
        self._reason: str | None = None

    @property
    def reason(self) -> str | None:
        """Why it is open, None while it is closed."""
        return self._reason

    @property
    def is_open(self) -> bool:
        """Whether the stage must stop."""
        return self._reason is not None

    def record(self, failure: FailureClass | None, *, observation: str) -> bool:
        """Take note of one outcome (None for success) and return whether the breaker is open.

        Parameters
        ----------
        failure : FailureClass or None
            The class with which the attempt failed.
        observation : str
            What outcomes of one origin have in common.
        """
        if not self._enabled:
            return False
        self._last.append(failure)
        if failure is None or failure is not self._row_class:
            self._row = 0
            self._row_observations = set()
        self._row_class = failure
        if failure is not None:
            self._row += 1
            # Observations beyond the needed number change nothing: a row of any length takes constant memory.
            if len(self._row_observations) < self._observations:
                self._row_observations.add(observation)
        if self._reason is None:
            self._reason = self._row_reason() or self._window_reason()
        return self.is_open

    def reset(self) -> None:
        """Close it and forget what it has seen."""
        self._last.clear()
        self._row = 0
        self._row_class = None
        self._row_observations = set()
        self._reason = None

    def _row_reason(self) -> str | None:
        if self._row_class is None or self._row < self._in_a_row or len(self._row_observations) < self._observations:
            return None
        return (
            f"{self._row} in a row failed with class {self._row_class}, from at least {self._observations} observations"
        )

    def _window_reason(self) -> str | None:
        window = self._last.maxlen or 0
        if len(self._last) < window:
            return None
        failures = Counter(failure for failure in self._last if failure is not None)
        if not failures:
            return None
        worst, count = failures.most_common(1)[0]
        if count < self._share * window:
            return None
        return f"{count} of the last {window} failed with class {worst}"
