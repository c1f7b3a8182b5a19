"""Keeps Kafka clients from asking for metadata without a pause. Not when they ask.

A consumer with a partition that has no leader asks again as soon as it is answered (aiokafka 0.14). Where servers
refuse connections, or answer that there is no leader yet, that is a busy loop in the client and a flood for them.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

__all__ = ["paced"]

_AFTER_ANSWER = 0.1
"""Seconds between two questions. Java's client waits as long (retry.backoff.ms)."""

_AFTER_SILENCE = 0.5
"""Seconds between two questions of which no server answered the first."""


def paced(client: Any) -> None:
    """Have an ``AIOKafkaClient`` pause between two questions for the cluster's metadata."""
    ask = client._metadata_update  # noqa: SLF001
    next_at = 0.0

    async def update(cluster: Any, topics: Any) -> bool:
        nonlocal next_at
        if cluster is not client.cluster:  # somebody waits for this one answer
            return bool(await ask(cluster, topics))
        await asyncio.sleep(max(0.0, next_at - time.monotonic()))
        answered = bool(await ask(cluster, topics))
        next_at = time.monotonic() + (_AFTER_ANSWER if answered else _AFTER_SILENCE)
        return answered

    client._metadata_update = update  # noqa: SLF001
