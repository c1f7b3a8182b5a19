"""Runs a few calls side by side and raises the first error alone. Not a task group: it would wrap the error in a group.

Callers of the engine's parts catch failures by their class.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import anyio

__all__ = ["together"]


async def together(calls: Iterable[Callable[[], Awaitable[Any]]], *, most: float = math.inf) -> None:
    """Await all calls to their end, at most so many at once, also when some fail; then raise the first error, if any.

    Cancelling it cancels all of them.
    """
    calls = list(calls)
    if len(calls) == 1:
        await calls[0]()
    elif calls:
        await _side_by_side(calls, most)


async def _side_by_side(calls: Sequence[Callable[[], Awaitable[Any]]], most: float) -> None:
    errors: list[Exception] = []
    limit = anyio.CapacityLimiter(most)

    async def guarded(call: Callable[[], Awaitable[Any]]) -> None:
        try:
            async with limit:
                await call()
        except Exception as error:  # noqa: BLE001 - raised again below, the first one alone
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(guarded, call)
    if errors:
        raise errors[0]
