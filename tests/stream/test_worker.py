"""A worker's order: the attempt is stored before the work, and all that tells of a result before the commit."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream.broker.embedded import EmbeddedBroker
from stream.clock import SystemClock
from stream.failure import FailureClass, RetriableError
from stream.identity import chain, root_identity
from stream.member_list import MemberList
from stream.message import MemberStatus, Message
from stream.results import Manifest, Results
from stream.retry import Attempt, Breaker, Outcome, RetryPolicy
from stream.router import Router, run_topics
from stream.run_records import AttemptRecord, Attempts
from stream.store import ObjectInfo
from stream.store.obstore_store import ObstoreObjectStore, open_store
from stream.topology import Segment, StageRow, Topology, dead_letter_topic_name, topic_name
from stream.tracing import Forwarding
from stream.worker import SegmentWorker
from tests.stream import toy_run
from tests.stream.toy_run import ToyRun

RUN = "r"
FIRST, SECOND = f"{RUN}.first", f"{RUN}.second"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class EndsLate:
    """A store in which an attempt ends only when it may, or fails to once."""

    def __init__(self) -> None:
        self._inner = open_store("memory:")
        assert isinstance(self._inner, ObstoreObjectStore)
        self.may_end = anyio.Event()
        self.fails = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put(self, key: str, data: bytes | Path) -> ObjectInfo:
        if key.startswith("attempts/"):
            await self.may_end.wait()
            if self.fails:
                self.fails -= 1
                raise RetriableError("the store does not answer")
        return await self._inner.put(key, data)


class Bench:
    """One worker of the first of two stages, whose work is to publish a manifest."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.broker = broker
        self.store = EndsLate()
        self.attempts = Attempts(self.store, run=RUN, worker="w", clock=SystemClock())  # type: ignore[arg-type]
        self.results = Results(self.store)  # type: ignore[arg-type]
        self.seen: list[list[AttemptRecord]] = []
        rows = [StageRow("first", frozenset("x")), StageRow("second", frozenset("x"))]
        self.segments = Topology(rows).segments("granular")
        self.router = Router(
            broker=broker, segments=self.segments, run=RUN, status_of=lambda _: MemberStatus.OK, clock=SystemClock()
        )

    async def process(self, message: Message, segment: Segment, *, attempt: str, bigger_slot: bool) -> Manifest:
        del bigger_slot
        self.seen.append(await self.attempts.earlier(message.exposure, segment.name))
        identity = chain(message.identity, "0" * 64)
        return await self.results.publish(
            Manifest(identity=identity, exposure=message.exposure, stage="first", branch="x", attempt=attempt)
        )

    async def finish(self, message: Message, manifest: Manifest) -> None:
        raise NotImplementedError

    async def abandon(self, message: Message, reason: str) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        await self.broker.create_topics(run_topics(RUN, self.segments))
        root = root_identity("e1", "0" * 64)
        await self.router.send(
            Message(run=RUN, exposure="e1", stage="first", branch="x", identity=root, manifest="results/root/1")
        )
        worker = SegmentWorker(
            broker=self.broker, attempts=self.attempts, router=self.router, segment=self.segments.named("first"),
            work=self, capacity=anyio.CapacityLimiter(1), policy=RetryPolicy(retry_delays=()), breaker=Breaker(),
            clock=SystemClock(), rng=random.Random(1),
        )  # fmt: skip
        async with anyio.create_task_group() as tasks:
            await tasks.start(worker.run)
            with anyio.fail_after(20):
                yield
            tasks.cancel_scope.cancel()

    async def published(self, topic: str) -> list[str]:
        _, end = (await self.broker.extents(topic))[0]
        return [str(record.header("ce_id")) for record in await self.broker.read(topic, 0, 0, end)]

    async def until_committed(self) -> None:
        while await self.broker.lag(FIRST, FIRST):  # noqa: ASYNC110 - the log has no event for it
            await anyio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with EmbeddedBroker(tmp_path / "log") as broker:
        yield Bench(broker)


@pytest.mark.anyio
async def test_work_begins_when_its_attempt_is_stored(bench: Bench) -> None:
    bench.store.may_end.set()
    async with bench.serving():
        await bench.until_committed()
    ((record,),) = bench.seen
    assert (record.attempt.number, record.attempt.outcome) == (1, Outcome.OPEN)
    (ended,) = await bench.attempts.earlier("e1", "first")
    assert (ended.id, ended.attempt.outcome) == (record.id, Outcome.DONE)


@pytest.mark.anyio
async def test_nothing_is_committed_before_the_attempt_has_ended(bench: Bench) -> None:
    async with bench.serving():
        while not await bench.published(SECOND):  # noqa: ASYNC110 - the log has no event for it
            await anyio.sleep(0.01)
        await anyio.sleep(0.2)
        assert await bench.broker.lag(FIRST, FIRST) == 1
        bench.store.may_end.set()
        await bench.until_committed()


@pytest.mark.anyio
async def test_a_message_whose_attempt_could_not_be_ended_is_handled_and_published_again(bench: Bench) -> None:
    bench.store.fails = 1
    bench.store.may_end.set()
    async with bench.serving():
        await bench.until_committed()
    first, second = await bench.published(SECOND)
    assert first == second
    outcomes = [record.attempt.outcome for record in await bench.attempts.earlier("e1", "first")]
    assert outcomes == [Outcome.OPEN, Outcome.DONE]


@pytest.mark.anyio
async def test_earlier_attempts_are_looked_at_before_another_begins(bench: Bench) -> None:
    bench.store.may_end.set()
    limit = RetryPolicy().open_limit
    assert RetryPolicy().admit([Attempt(number) for number in range(1, limit + 1)]) is not None
    for _ in range(limit):
        await bench.attempts.start("e1", "first")
    async with bench.serving():
        await bench.until_committed()
    assert bench.seen == []
    assert len(await bench.published(dead_letter_topic_name(RUN))) == 1
    assert await bench.published(SECOND) == []


@pytest.mark.anyio
async def test_fields_of_a_newer_version_go_on_to_all_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {"schema_version": "1.7", "colour": {"deep": [1, None]}}
    async with ToyRun.opened(tmp_path, Forwarding()) as run:
        send = run.router.send

        async def newer_twice(message: Message) -> None:
            for _ in range(2):
                await send(message.replaced(**newer))

        with monkeypatch.context() as announcing:
            announcing.setattr(run.router, "send", newer_twice)
            await run.ingest(MemberList("good", ("e1",)), "e1")
            await run.ingest(MemberList("bad", ("e2",)), "e2")
        run.runner.failures["execute", "e2"] = [FailureClass.PERMANENT] * 2
        async with run.serving():
            await run.until(lambda: run.count("record_done") == 4 + 2 + 4 + 1)
        for name, expected in [
            ("shift", {"e1": 2}),
            (toy_run.JOINT, {"e1": 2, "e2": 2}),
            (toy_run.LAST, {"e1": 1}),
        ]:
            emitted: dict[str, list[tuple[Any, ...]]] = {}
            for record in await run.records(topic_name(toy_run.RUN, name)):
                document = json.loads(record.value or b"")
                assert {field: document.get(field) for field in newer} == newer
                assert record.header("schema_version") == b"1.7"
                emitted.setdefault(document.get("exposure", document.get("member")), []).append(
                    (record.key, record.value, record.header("ce_id"))
                )
            assert {exposure: len(records) for exposure, records in emitted.items()} == expected
            assert all(len(set(records)) == 1 for records in emitted.values()), "a repeat has the same bytes and id"
