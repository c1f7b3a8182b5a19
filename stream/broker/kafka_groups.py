"""Asks the coordinator of a Kafka group about it. Joins none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import errors

from stream.broker.kafka_errors import failures
from stream.failure import RetriableError

__all__ = ["asked_patiently", "has_members"]


async def asked_patiently(what: str, ask: Callable[[], Awaitable[Any]], *, seconds: float) -> Any:
    """Ask until there is an answer, for so many seconds.

    Groups move to another coordinator, and in a young cluster there is none until it is asked for.
    """
    gives_up = time.monotonic() + seconds
    while True:
        try:
            with failures(what):
                return await ask()
        except RetriableError:
            if time.monotonic() > gives_up:
                raise
            await asyncio.sleep(0.2)


async def has_members(admin: Any, group: str, *, seconds: float) -> bool:
    """Whether a group has members, by an ``AIOKafkaAdminClient``."""

    async def described() -> bool:
        (answer,) = await admin.describe_consumer_groups([group])
        code, _, _, _, _, members, *_ = answer.groups[0]
        if code:
            raise errors.for_code(code)
        return bool(members)

    return bool(await asked_patiently(f"cannot look up the members of group {group}", described, seconds=seconds))
