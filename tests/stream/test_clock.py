"""A manual clock moves only by hand and wakes whoever slept long enough."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel
import pytest

from stream.clock import ManualClock, SystemClock


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_sleepers_wake_when_the_clock_has_passed_their_time() -> None:
    clock = ManualClock(100.0)
    woken: list[float] = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with anyio.create_task_group() as tasks:
        for seconds in (5.0, 1.0, 0.0):
            tasks.start_soon(sleep, seconds)
        await anyio.wait_all_tasks_blocked()
        assert woken == [0.0]
        clock.advance(4.999)
        await anyio.wait_all_tasks_blocked()
        assert woken == [0.0, 1.0]
        clock.advance(0.001)
    assert woken == [0.0, 1.0, 5.0]
    assert clock.now() == clock.monotonic() == pytest.approx(105.0)


def test_a_manual_clock_never_goes_back() -> None:
    with pytest.raises(ValueError, match="only moves forward"):
        ManualClock().advance(-1)


@pytest.mark.anyio
async def test_the_system_clock_tells_and_waits_for_real_time() -> None:
    clock = SystemClock()
    started = clock.monotonic()
    await clock.sleep(0.02)
    assert clock.monotonic() - started >= 0.019
    assert abs(clock.now() - time.time()) < 5
