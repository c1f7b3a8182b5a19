"""Calls side by side: all come to their end, and a failure keeps its class."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from stream.failure import RetriableError
from stream.together import together


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_the_first_error_is_raised_alone_and_after_all_have_ended() -> None:
    ended: list[str] = []

    async def call(name: str, seconds: float, error: Exception | None = None) -> None:
        await anyio.sleep(seconds)
        ended.append(name)
        if error is not None:
            raise error

    with pytest.raises(RetriableError, match="no answer"):
        await together(
            [
                partial(call, "slow", 0.05),
                partial(call, "late", 0.02, ValueError("later")),
                partial(call, "soon", 0.0, RetriableError("no answer")),
            ]
        )
    assert ended == ["soon", "late", "slow"]


@pytest.mark.anyio
async def test_calls_wait_side_by_side() -> None:
    met = anyio.Event()

    async def wait() -> None:
        await met.wait()

    async def tell() -> None:
        met.set()

    with anyio.fail_after(5):
        await together([wait, tell])


@pytest.mark.anyio
async def test_cancelling_it_cancels_all() -> None:
    cancelled: list[int] = []

    async def call(number: int) -> None:
        try:
            await anyio.sleep(60)
        except anyio.get_cancelled_exc_class():
            cancelled.append(number)
            raise

    with anyio.move_on_after(0.05):
        await together(partial(call, number) for number in range(3))
    assert sorted(cancelled) == [0, 1, 2]
