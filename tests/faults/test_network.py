"""Replies that never come, connections that fall silent, clocks that jump: nothing is lost, and workers come back."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream.message import Message
from stream.topology import retry_topic_name, topic_name
from tests import kafka_proxy
from tests.faults.bench_of_workers import FULL, Bench
from tests.faults.light_topology import STAGES
from tests.kafka_proxy import Api, Fault, KafkaProxy
from tests.servers import KafkaCluster, S3Server, free_port, kafka_cluster

LOST = 20 if FULL else 2
NOTICED = 30.0
REJOINED = 60.0
SLACK = 1.0 if FULL else 2.0
"""Beside others on two cores nothing is as quick as it should be."""

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def proxy() -> Iterator[KafkaProxy]:
    with kafka_proxy.running() as running:
        yield running


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory, proxy: KafkaProxy) -> Iterator[KafkaCluster]:
    """A cluster with a second listener, to which the proxy leads: the bench itself sees the undisturbed one."""
    direct, behind, controller = free_port(), free_port(), free_port()
    proxy.upstream = behind
    settings = [
        f"listeners=PLAINTEXT://127.0.0.1:{direct},PROXIED://127.0.0.1:{behind},CONTROLLER://127.0.0.1:{controller}",
        f"advertised.listeners=PLAINTEXT://127.0.0.1:{direct},PROXIED://127.0.0.1:{proxy.port}",
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        f"controller.quorum.voters=1@127.0.0.1:{controller}",
    ]
    with kafka_cluster(tmp_path_factory.mktemp("kafka"), port=direct, settings=settings) as cluster:
        yield cluster


@pytest.fixture
def bench(
    tmp_path: Path, proxied: KafkaCluster, proxy: KafkaProxy, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    yield Bench(tmp_path, proxied, s3)
    proxy.heal()


async def published(bench: Bench) -> dict[str, list[tuple[bytes, str]]]:
    """Id and digest of each message to the second stage, by exposure."""
    topic = topic_name(bench.run, STAGES[1])
    found = defaultdict(list)
    for partition, (first, end) in (await bench.broker.extents(topic)).items():
        for record in await bench.broker.read(topic, partition, first, end):
            digest = hashlib.sha256(record.value or b"").hexdigest()
            found[Message.from_record(record).exposure].append((record.header("ce_id") or b"", digest))
    return found


async def lose_publishes(bench: Bench, proxy: KafkaProxy, **worker: Any) -> None:
    """Lose the replies to one message for longer than a publish lasts, until another producer publishes it."""
    bench.start(broker=proxy.url, timings="hasty", **worker)
    await bench.ingest(1)
    await bench.done()
    rule = proxy.fail(Fault.LOSE_REPLY, Api.PRODUCE, topic=topic_name(bench.run, STAGES[1]), times=1_000_000)
    made = proxy.seen[Api.INIT_PRODUCER_ID]
    await bench.ingest(2, first=1)
    with anyio.move_on_after(12 * SLACK):
        while proxy.seen[Api.INIT_PRODUCER_ID] == made:  # noqa: ASYNC110 - another process
            await anyio.sleep(0.1)
        await anyio.sleep(1.0)
    assert rule.hits > 1
    proxy.heal()
    await bench.done()


async def test_replies_that_are_lost_leave_no_gap_and_no_second_message(bench: Bench, proxy: KafkaProxy) -> None:
    async with bench.opened(partitions=2):
        first, second = (topic_name(bench.run, stage) for stage in STAGES)
        rules = [proxy.fail(Fault.LOSE_REPLY, Api.PRODUCE, topic=second, times=LOST)]
        rules += [proxy.fail(Fault.LOSE_REPLY, Api.OFFSET_COMMIT, topic=topic, times=LOST) for topic in (first, second)]
        bench.start(broker=proxy.url)
        await bench.ingest(3 * LOST)
        await bench.done(60 * SLACK)
        assert [rule.hits for rule in rules] == [LOST] * 3
        assert await bench.problems() == []
        assert {len(messages) for messages in (await published(bench)).values()} == {1}


async def test_a_publish_that_is_given_up_is_repeated_by_another_producer_under_its_id(
    bench: Bench, proxy: KafkaProxy
) -> None:
    async with bench.opened(partitions=1):
        made = proxy.seen[Api.INIT_PRODUCER_ID]
        await lose_publishes(bench, proxy)
        assert proxy.seen[Api.INIT_PRODUCER_ID] - made >= 2
        assert await bench.problems() == []
        messages = await published(bench)
        assert max(len(repeats) for repeats in messages.values()) > 1
        assert {len(set(repeats)) for repeats in messages.values()} == {1}


@pytest.mark.mutant
async def test_a_worker_that_keeps_a_broken_producer_shows(bench: Bench, proxy: KafkaProxy) -> None:
    async with bench.opened(partitions=1):
        made = proxy.seen[Api.INIT_PRODUCER_ID]
        await lose_publishes(bench, proxy, mutant="keeps-a-broken-producer")
        assert proxy.seen[Api.INIT_PRODUCER_ID] - made == 1


@pytest.mark.mutant
async def test_a_worker_that_names_each_publish_anew_shows(bench: Bench, proxy: KafkaProxy) -> None:
    async with bench.opened(partitions=1):
        await lose_publishes(bench, proxy, mutant="names-each-publish-anew")
        assert any("ids" in problem for problem in await bench.problems())


async def lose_commits(bench: Bench, proxy: KafkaProxy, **worker: Any) -> None:
    """Lose commits on their way for longer than the client asks again, then nothing more."""
    bench.start(broker=proxy.url, timings="hasty", **worker)
    await bench.ingest(1)
    await bench.done()
    rule = proxy.fail(Fault.LOSE_REQUEST, Api.OFFSET_COMMIT, topic=topic_name(bench.run, STAGES[0]), times=1_000_000)
    await bench.ingest(1, first=1)
    await bench.wait_for(lambda: rule.hits > 1)
    await anyio.sleep(3.0)
    proxy.heal()


async def test_a_commit_that_was_not_heard_is_made_again(bench: Bench, proxy: KafkaProxy) -> None:
    async with bench.opened(partitions=1):
        await lose_commits(bench, proxy)
        await bench.done(NOTICED * SLACK)
        assert await bench.problems() == []
        assert bench.redone() == 0


@pytest.mark.mutant(in_slice=True)
async def test_a_worker_that_takes_unheard_commits_for_done_shows(bench: Bench, proxy: KafkaProxy) -> None:
    async with bench.opened(partitions=1):
        await lose_commits(bench, proxy, mutant="takes-unheard-commits-for-done")
        assert not await bench.settled(6.0)
        assert any("not committed" in problem for problem in await bench.problems())


async def fall_silent(bench: Bench, proxy: KafkaProxy, timings: str) -> None:
    """Have every connection of a worker that has work swallow what it takes; new ones work."""
    bench.start(broker=proxy.url, timings=timings)
    await bench.ingest(3)
    await bench.done()
    assert proxy.vanish() >= 4
    await bench.ingest(3, first=3)


async def test_a_worker_whose_connections_fell_silent_makes_new_ones(bench: Bench, proxy: KafkaProxy) -> None:
    async with bench.opened(partitions=2):
        await fall_silent(bench, proxy, "own" if FULL else "hasty")
        await bench.done(REJOINED if FULL else NOTICED * SLACK)
        assert await bench.problems() == []


@pytest.mark.mutant
async def test_a_worker_without_deadlines_waits_on_silent_connections(bench: Bench, proxy: KafkaProxy) -> None:
    async with bench.opened(partitions=2):
        await fall_silent(bench, proxy, "endless")
        assert not await bench.settled(NOTICED if FULL else 20.0)


async def test_a_worker_cut_off_for_longer_than_its_session_joins_again(bench: Bench, proxy: KafkaProxy) -> None:
    async with bench.opened(partitions=2):
        first = bench.start(broker=proxy.url, timings="hasty")
        await bench.ingest(3)
        await bench.done()
        proxy.vanish(for_good=True)
        second = bench.start(timings="hasty")
        await bench.ingest(4, first=3)
        await bench.done()
        assert {worker for *_, worker in bench.executions()[-4:]} == {second.pid}
        proxy.come_back()
        back = time.monotonic()
        while not [row for row in bench.executions()[-4:] if row[3] == first.pid]:
            assert time.monotonic() - back < REJOINED
            await bench.ingest(4, first=len(bench.inputs))
            await bench.done()
        assert await bench.problems() == []


async def set_the_clock(bench: Bench, seconds: float, **worker: Any) -> None:
    """Set a worker's clock while an exposure waits for another try and others are on their way."""
    bench.start(retry_seconds=3.0, **worker)
    await bench.ingest(1, act="fails-twice")
    topic = retry_topic_name(bench.run, STAGES[0], 0)
    with anyio.fail_after(60):
        while not [end for _, end in (await bench.broker.extents(topic)).values() if end]:  # noqa: ASYNC110
            await anyio.sleep(0.05)
    (bench.triggers / "clock").write_text(str(seconds))
    await bench.ingest(4, first=1)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
async def test_a_clock_that_jumps_an_hour_delays_nothing(bench: Bench, seconds: float) -> None:
    async with bench.opened(partitions=1):
        await set_the_clock(bench, seconds)
        await bench.done(NOTICED * SLACK)
        assert await bench.problems() == []


@pytest.mark.mutant
async def test_a_worker_that_believes_the_clock_shows(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        await set_the_clock(bench, -3600.0, mutant="believes-the-clock")
        assert not await bench.settled(12.0)


async def test_a_clock_that_is_further_ahead_than_the_broker_takes_ends_its_worker(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        await set_the_clock(bench, 7200.0)
        with anyio.fail_after(NOTICED * SLACK):
            status = await anyio.to_thread.run_sync(bench.workers[0].wait, abandon_on_cancel=True)
        assert status == 3
        assert await bench.dead_letters() == []
        (bench.triggers / "clock").unlink()
        bench.start()
        await bench.done()
        assert await bench.problems() == []


@pytest.mark.mutant
async def test_a_worker_that_waits_for_the_clock_shows(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        await set_the_clock(bench, 7200.0, mutant="waits-for-the-clock", drain_seconds=0.5)
        assert not await bench.settled(10.0)
        assert bench.workers[0].poll() is None
