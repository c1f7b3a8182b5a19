"""How the broker suite gets at an implementation, and the few moves its tests are made of. No tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import anyio
import anyio.lowlevel

from stream.broker.protocol import Broker, Commit, Consumer, Record, TopicPartition

__all__ = ["MOMENT", "PATIENCE", "BrokerHarness", "Recorder", "fill", "joined", "take", "until", "values"]

PATIENCE = 20.0
"""Seconds to wait for what must come; what must not come is waited for a `MOMENT`."""

MOMENT = 0.25


class BrokerHarness(Protocol):
    """How the suite gets at an implementation. All brokers of one harness see the same log."""

    def open(self) -> AbstractAsyncContextManager[Broker]:
        """One more broker on the same log, as another process would open it."""
        ...

    async def kill(self, broker: Broker) -> None:
        """End a broker as a crash would: without leaving groups, calling listeners or flushing.

        When this returns another broker can take over its partitions. Leaving the broker's context later is harmless.
        """
        ...


class Recorder:
    """A listener that notes what it is told, and may commit when told that partitions go."""

    def __init__(self) -> None:
        self.assigned: list[tuple[frozenset[TopicPartition], int]] = []
        self.revoked: list[frozenset[TopicPartition]] = []
        self.consumer: Consumer | None = None
        self.commit_on_revoke: dict[TopicPartition, Commit] = {}

    async def on_assigned(self, partitions: Sequence[TopicPartition], epoch: int) -> None:
        self.assigned.append((frozenset(partitions), epoch))

    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        await anyio.lowlevel.checkpoint()
        self.revoked.append(frozenset(partitions))
        if self.consumer is not None and self.commit_on_revoke:
            await self.consumer.commit(self.commit_on_revoke)


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - brokers have no event to wait for
            await anyio.sleep(0.01)


async def joined(consumer: Consumer) -> Consumer:
    """Fetch nothing until the consumer owns partitions."""
    with anyio.fail_after(PATIENCE):
        while not consumer.assignment():
            assert await consumer.fetch(max_records=1, timeout=0.05) == () or consumer.assignment()
    return consumer


async def take(consumer: Consumer, count: int, *, max_records: int = 100) -> list[Record]:
    """Fetch until so many records have come."""
    records: list[Record] = []
    with anyio.fail_after(PATIENCE):
        while len(records) < count:
            records += await consumer.fetch(max_records=max_records, timeout=1.0)
    assert len(records) == count
    return records


async def fill(broker: Broker, topic: str, count: int, *, partition: int = 0, first: int = 0) -> list[Record]:
    return [
        await broker.publish(topic, key=b"k", value=str(number).encode(), partition=partition)
        for number in range(first, first + count)
    ]


def values(records: Sequence[Record]) -> list[int]:
    return [int(record.value or b"-1") for record in records]
