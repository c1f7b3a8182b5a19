"""Closes Kafka clients within bounds, also those that cannot finish. Not when they are to be closed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any

import anyio
from aiokafka import errors

from stream.broker.kafka_errors import failure_from

__all__ = ["abandoned", "closed"]

LOG = logging.getLogger(__name__)

_CLOSE_SECONDS = 10.0


async def closed(closing: Awaitable[Any]) -> None:
    """Close a client, for what it is worth: what it still held is reported elsewhere."""
    with anyio.move_on_after(_CLOSE_SECONDS):
        try:
            await closing
        except (errors.KafkaError, OSError) as error:
            LOG.info("%s", failure_from(error, "a client did not close in order"))


async def abandoned(producer: Any) -> None:
    """Close a producer that may hold a record which it cannot deliver.

    `stop` delivers first; when that does not end, the task that tries would go on for good (aiokafka 0.14).
    """
    await closed(producer.stop())
    await closed(producer._sender.close())  # noqa: SLF001
    await closed(producer.client.close())
