"""Runs a few calls side by side and raises the first error alone. Not a task group: it would wrap the error in a group.

Callers of the engine's parts catch failures by their class.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio

__all__ = ["together"]


async def together(calls: Iterable[Callable[[], Awaitable[Any]]]) -> None:
    """Await all calls to their end, also when some fail; then raise the first error there was, if any.

    Cancelling it cancels all of them.
    """
    errors: list[Exception] = []

    async def guarded(call: Callable[[], Awaitable[Any]]) -> None:
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - raised again below, the first one alone
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(guarded, call)
    if errors:
        raise errors[0]
