"""Time as a dependency: the system's clock, and one that tests move by hand. Not a scheduler."""

from __future__ import annotations

import time
from typing import Protocol

import anyio
import anyio.lowlevel

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """What time it is, and waiting for a later one."""

    def now(self) -> float:
        """Unix time in seconds; may jump when the machine's clock is set."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back; for durations."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait. Cancelling it is safe."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for real seconds."""
        await anyio.sleep(seconds)


class ManualClock:
    """A clock that stands still until it is moved.

    Parameters
    ----------
    start : float
        Unix time in seconds at which it stands.
    """

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, anyio.Event]] = []

    def now(self) -> float:
        """Return the time it was set to."""
        return self._now

    def monotonic(self) -> float:
        """Return the same as `now`: this clock never goes back."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on and wake whoever sleeps until then.

        Raises
        ------
        ValueError
            ``seconds`` is negative.
        """
        if seconds < 0:
            msg = f"a manual clock only moves forward, not by {seconds} s"
            raise ValueError(msg)
        self._now += seconds
        for wakes_at, event in self._sleepers:
            if wakes_at <= self._now:
                event.set()
        self._sleepers = [sleeper for sleeper in self._sleepers if sleeper[0] > self._now]

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced far enough."""
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        sleeper = (self._now + seconds, anyio.Event())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1].wait()
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
