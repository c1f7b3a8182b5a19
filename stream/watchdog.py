"""Notices that a worker makes no progress, dumps all stacks and ends it: whoever supervises it starts another.

`ProgressWatch` decides, from facts and a clock. `Watchdog` looks from a thread of its own, for an event loop that is
blocked cannot notice it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EXIT_STATUS", "Facts", "ProgressWatch", "WatchLimits", "Watchdog"]

LOG = logging.getLogger(__name__)

EXIT_STATUS = 70
"""``EX_SOFTWARE``: the worker ended itself; everything that it had finished is kept."""


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """When there is trouble, in seconds.

    Attributes
    ----------
    loop : float
        Without a tick of the event loop. Below a session (30 s), so that a worker that can do nothing does not sit on
        its partitions; far above the worst stall of a healthy one, a second of garbage and page faults.
    idle : float
        With records waiting, a free slot and partitions owned, and nothing started: an order of magnitude above a
        fetch and a look at the lag together.
    unstable : float
        Without a stable assignment while the broker answers: ten rebalances of 12 s.
    taking_up : float
        Restoring what lies in partitions that came: thirty times what ten thousand open associations take.
    """

    loop: float = 25.0
    idle: float = 120.0
    unstable: float = 120.0
    taking_up: float = 1800.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a worker knows of itself at a moment; times are of the monotonic clock.

    ``waiting`` are records that somebody must take, ``free`` tokens for messages, ``started`` when a message was last
    taken, ``stable_since`` since when all groups have had an assignment (None: one has none), ``taking_up`` whether one
    is restoring what lies in its partitions.
    """

    waiting: int
    free: int
    started: float
    stable_since: float | None
    stopping: bool = False
    broker_answers: bool = True
    taking_up: bool = False


class ProgressWatch:
    """Decides whether a worker is stuck.

    Parameters
    ----------
    limits : WatchLimits
        When it is.
    """

    def __init__(self, limits: WatchLimits | None = None) -> None:
        self.limits = limits or WatchLimits()
        self._waiting_since: float | None = None
        self._unstable_since: float | None = None
        self._taking_up_since: float | None = None

    def trouble(self, facts: Facts, now: float) -> str | None:
        """What is wrong at this moment, None when nothing is. To be asked every few seconds."""
        if facts.stopping or not facts.broker_answers:
            self._waiting_since = self._unstable_since = self._taking_up_since = None
            return None
        if facts.taking_up:
            self._waiting_since = self._unstable_since = None
            self._taking_up_since = now if self._taking_up_since is None else self._taking_up_since
            return "restore" if now - self._taking_up_since > self.limits.taking_up else None
        self._taking_up_since = None
        if facts.stable_since is None:
            self._unstable_since = now if self._unstable_since is None else self._unstable_since
            if now - self._unstable_since > self.limits.unstable:
                return "unstable"
        else:
            self._unstable_since = None
        if facts.waiting > 0 and facts.free > 0 and facts.stable_since is not None:
            self._waiting_since = now if self._waiting_since is None else self._waiting_since
            if now - max(self._waiting_since, facts.started) > self.limits.idle:
                return "idle"
        else:
            self._waiting_since = None
        return None


class Watchdog:
    """Looks at the event loop's ticks from a thread.

    A process that was frozen as a whole (SIGSTOP, a suspended machine) finds the monotonic clock far ahead when it goes
    on: so what counts is how many looks of the thread itself passed without a tick, not what the clock says.

    Parameters
    ----------
    limits : WatchLimits
        When it bites.
    dump : Path
        File for all stacks.
    on_trip : callable
        Called with the reason; ends the process by default.
    """

    def __init__(
        self,
        *,
        limits: WatchLimits | None = None,
        dump: Path | None = None,
        on_trip: Callable[[str], None] | None = None,
        look_seconds: float = 0.5,
    ) -> None:
        self._limits = limits or WatchLimits()
        self._dump = dump
        self._on_trip = on_trip or _end
        self._look = look_seconds
        self._ticks = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def tick(self) -> None:
        """Say that the event loop runs."""
        self._ticks += 1

    def trip(self, reason: str) -> None:
        """Dump all stacks and end the process."""
        LOG.critical("the watchdog ends this worker: %s", reason)
        if self._dump is not None:
            with self._dump.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {reason}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        else:
            faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
        self._on_trip(reason)

    def _run(self) -> None:
        seen, looks = -1, 0
        while not self._stopped.wait(self._look):
            looks = 0 if self._ticks != seen else looks + 1
            seen = self._ticks
            if looks * self._look > self._limits.loop:
                self.trip("loop")
                return


def _end(reason: str) -> None:
    del reason
    os._exit(EXIT_STATUS)
