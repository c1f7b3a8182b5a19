"""Tokens: never more than there are, and what is begun is finished before more is begun."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from stream.broker.embedded import EmbeddedBroker
from stream.broker.protocol import Record, TopicSpec
from stream.inbox import Inbox
from stream.lease import Lease
from stream.precedence import Tokens

FIRST, LATER, LAST = 0, 3, 7


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Queue:
    """Takers of tokens, and in which order they got them."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.served: list[str] = []

    async def take(self, name: str, precedence: int) -> None:
        await self.tokens.of(precedence).acquire_on_behalf_of(name)
        self.served.append(name)

    def give_back(self, name: str) -> None:
        self.tokens.of(FIRST).release_on_behalf_of(name)

    async def settled(self) -> list[str]:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        return self.served


@pytest.mark.anyio
async def test_who_is_further_on_comes_first_and_equals_in_their_order() -> None:
    queue = Queue(Tokens(1))
    await queue.take("running", FIRST)
    waiting = [("a", FIRST), ("b", FIRST), ("last", LAST), ("c", LATER), ("d", LATER)]
    async with anyio.create_task_group() as tasks:
        for name, precedence in waiting:
            tasks.start_soon(queue.take, name, precedence)
        await queue.settled()
        for name in ("running", "last", "c", "d", "a"):
            queue.give_back(name)
            await queue.settled()
    assert queue.served == ["running", "last", "c", "d", "a", "b"]


@pytest.mark.anyio
async def test_who_is_further_on_waits_for_no_beginner_to_end() -> None:
    queue = Queue(Tokens(3, kept=1))
    async with anyio.create_task_group() as tasks:
        for name in ("a", "b", "c"):
            tasks.start_soon(queue.take, name, FIRST)
        assert await queue.settled() == ["a", "b"]
        assert queue.tokens.of(FIRST).total_tokens == queue.tokens.of(FIRST).borrowed_tokens == 2
        tasks.start_soon(queue.take, "later", LATER)
        assert await queue.settled() == ["a", "b", "later"]
        queue.give_back("later")
        assert await queue.settled() == ["a", "b", "later"], "what is kept is not for beginners"
        queue.give_back("a")
        assert await queue.settled() == ["a", "b", "later", "c"]


@pytest.mark.anyio
async def test_who_is_cancelled_keeps_no_token_and_no_place() -> None:
    queue = Queue(Tokens(1))
    await queue.take("running", FIRST)
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(queue.take, "cancelled", LATER)
                await queue.settled()
                tasks.start_soon(queue.take, "next", FIRST)
                await queue.settled()
                scope.cancel()
        queue.give_back("running")
        assert await queue.settled() == ["running", "next"]
        tasks.cancel_scope.cancel()
    assert queue.tokens.borrowed == 1


@pytest.mark.anyio
async def test_many_takers_never_hold_more_than_there_are() -> None:
    tokens = Tokens(4, kept=1)
    held = most = beginners = most_beginners = 0

    async def work(precedence: int) -> None:
        nonlocal held, most, beginners, most_beginners
        async with tokens.one(precedence):
            held, beginners = held + 1, beginners + (precedence == FIRST)
            most, most_beginners = max(most, held), max(most_beginners, beginners)
            await anyio.lowlevel.checkpoint()
            held, beginners = held - 1, beginners - (precedence == FIRST)

    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(partial(work, number % 3))
    assert (most, most_beginners, tokens.borrowed) == (4, 3, 0)


@pytest.mark.anyio
async def test_a_worker_with_a_backlog_finishes_an_exposure_before_it_begins_the_one_after_the_next(
    tmp_path: Path,
) -> None:
    """With tokens in the order of asking, each segment's backlog would take its turn, and all would end together."""
    begun: list[str] = []
    tokens = Tokens(2, kept=1)
    async with EmbeddedBroker(tmp_path / "log") as broker:
        await broker.create_topics([TopicSpec("r.first"), TopicSpec("r.second")])
        for number in range(5):
            await broker.publish("r.first", key=None, value=str(number).encode())

        async def first(record: Record, lease: Lease) -> None:
            begun.append(f"first {record.offset}")
            await anyio.sleep(0.1)
            lease.check()
            await broker.publish("r.second", key=None, value=record.value)

        async def second(record: Record, lease: Lease) -> None:
            del lease
            begun.append(f"second {record.offset}")
            await anyio.sleep(0.1)

        inboxes = [
            Inbox(broker=broker, group=topic, topics=[topic], handler=handler, capacity=tokens.of(place))
            for place, (topic, handler) in enumerate({"r.first": first, "r.second": second}.items())
        ]
        async with anyio.create_task_group() as tasks:
            for inbox in inboxes:
                await tasks.start(inbox.run)
            with anyio.fail_after(20):
                while len(begun) < 10 or inboxes[1].in_flight:  # noqa: ASYNC110 - the log has no event for it
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    for number in range(3):
        assert begun.index(f"second {number}") < begun.index(f"first {number + 2}")
