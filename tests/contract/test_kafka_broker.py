"""A real Kafka keeps the contract through aiokafka, and what members of its groups must do besides."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream.broker.kafka import KafkaBroker
from stream.broker.kafka_consumer import KafkaConsumer
from stream.broker.kafka_settings import KafkaSecurity, KafkaTimings
from stream.broker.protocol import Broker, Commit, TopicPartition, TopicSpec
from stream.failure import FatalError, PermanentError, RetriableError
from tests.contract.broker_harness import PATIENCE, BrokerHarness, Recorder, fill, joined, take, values
from tests.contract.broker_suite import BrokerSuite
from tests.servers import KafkaCluster, kafka_cluster

SESSION = 2.0
TIMINGS = KafkaTimings(
    session_seconds=SESSION, heartbeat_seconds=0.3, revoke_seconds=2.0, rebalance_seconds=5.0, request_seconds=8.0
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with kafka_cluster(tmp_path_factory.mktemp("kafka")) as running:
        yield running


async def crash(consumer: KafkaConsumer) -> None:
    """Cut a member off as a kill would: no more signs of life, no leaving, no listener."""
    coordinator = consumer._client._coordinator

    async def silent() -> None:
        return

    coordinator._maybe_leave_group = silent
    consumer._listener = None
    await consumer.leave()


class KafkaHarness:
    """Brokers on one cluster; each `open` is another client, as another process has its own."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self.cluster = cluster

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Broker]:
        async with KafkaBroker.from_url(self.cluster.url, timings=TIMINGS) as broker:
            yield broker

    async def kill(self, broker: Broker) -> None:
        assert isinstance(broker, KafkaBroker)
        for consumer in broker._consumers:
            await crash(consumer)


class Slow(Recorder):
    """A listener that takes long to take partitions up."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.interrupted = 0

    async def on_assigned(self, partitions: Sequence[TopicPartition], epoch: int) -> None:
        await super().on_assigned(partitions, epoch)
        try:
            await anyio.sleep(self.seconds)
        except anyio.get_cancelled_exc_class():
            self.interrupted += 1
            raise


@pytest.fixture
def topic_name() -> str:
    return f"suite-{uuid.uuid4().hex[:12]}"


class TestKafkaBroker(BrokerSuite):
    @pytest.fixture
    def broker_factory(self, cluster: KafkaCluster) -> BrokerHarness:
        return KafkaHarness(cluster)

    @pytest.mark.anyio
    async def test_two_members_share_and_the_one_that_stays_takes_over(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory, partitions=4) as (broker, topic), broker_factory.open() as other:
            stays, leaves = Recorder(), Recorder()
            async with broker.consumer("g" + topic, [topic], listener=stays) as first:
                await joined(first)
                assert len(first.assignment()) == 4
                async with other.consumer("g" + topic, [topic], listener=leaves) as second:
                    await joined(second)
                    with anyio.fail_after(PATIENCE):
                        while len(first.assignment()) != 2:
                            await first.fetch(max_records=1, timeout=0.1)
                    assert first.assignment() | second.assignment() == {TopicPartition(topic, n) for n in range(4)}
                    assert not first.assignment() & second.assignment()
                    old_epoch = stays.assigned[0][1]
                    assert not any(first.owns(partition, old_epoch) for partition in first.assignment())
                    assert all(first.owns(partition, stays.assigned[-1][1]) for partition in first.assignment())
                with anyio.fail_after(PATIENCE):
                    while len(first.assignment()) != 4:
                        await first.fetch(max_records=1, timeout=0.1)
                assert [epoch for _, epoch in stays.assigned] == sorted({epoch for _, epoch in stays.assigned})

    @pytest.mark.anyio
    async def test_records_of_partitions_that_went_are_not_handed_out(self, broker_factory: BrokerHarness) -> None:
        async with (
            self.opened(broker_factory, partitions=2) as (broker, topic),
            broker_factory.open() as other,
            broker.consumer("g" + topic, [topic]) as first,
        ):
            await joined(first)
            await fill(broker, topic, 3, partition=0)
            await fill(broker, topic, 3, partition=1)
            await anyio.sleep(0.5)  # read ahead into the buffers
            async with other.consumer("g" + topic, [topic]) as second:
                await joined(second)
                seen: list[int] = []
                with anyio.fail_after(PATIENCE):
                    while len(seen) < 3:
                        for record in await first.fetch(max_records=10, timeout=0.1):
                            assert record.topic_partition in first.assignment()
                            seen.append(record.partition)
                assert len(set(seen)) == 1
                owned = {partition.partition for partition in second.assignment()}
                assert owned
                assert owned.isdisjoint(seen)

    @pytest.mark.anyio
    async def test_a_silent_member_knows_that_it_may_own_nothing_any_more(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            recorder = Recorder()
            async with broker.consumer("g" + topic, [topic], listener=recorder) as consumer:
                await joined(consumer)
                partition, epoch = TopicPartition(topic, 0), recorder.assigned[0][1]
                assert consumer.owns(partition, epoch)
                assert isinstance(consumer, KafkaConsumer)
                coordinator = consumer._client._coordinator
                coordinator._heartbeat_task.cancel()  # as behind a half-open connection: nothing is answered
                began = time.monotonic()
                with anyio.fail_after(SESSION + 3):
                    while consumer.owns(partition, epoch):  # noqa: ASYNC110 - time alone ends it
                        await anyio.sleep(0.05)
                assert time.monotonic() - began < SESSION + 0.5

    @pytest.mark.anyio
    async def test_a_member_that_was_evicted_cannot_commit(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic), broker_factory.open() as other:
            await fill(broker, topic, 2)
            async with broker.consumer("g" + topic, [topic]) as zombie:
                await take(zombie, 2)
                assert isinstance(zombie, KafkaConsumer)
                zombie._client._coordinator._heartbeat_task.cancel()
                async with other.consumer("g" + topic, [topic]) as heir:
                    assert values(await take(heir, 2)) == [0, 1]
                    with pytest.raises(RetriableError):
                        await zombie.commit({TopicPartition(topic, 0): Commit(2)})
                    assert await heir.committed(TopicPartition(topic, 0)) is None

    @pytest.mark.anyio
    async def test_a_listener_that_takes_longer_than_a_session_keeps_its_partitions_and_is_told_once(
        self, broker_factory: BrokerHarness
    ) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            await fill(broker, topic, 2)
            listener = Slow(2.5 * SESSION)
            began = time.monotonic()
            async with broker.consumer("g" + topic, [topic], listener=listener) as consumer:
                assert values(await take(consumer, 2)) == [0, 1]
                assert time.monotonic() - began > 2.5 * SESSION, "nothing is handed out before"
                (epoch,) = [epoch for _, epoch in listener.assigned]
                assert consumer.owns(TopicPartition(topic, 0), epoch)
                await consumer.commit({TopicPartition(topic, 0): Commit(2)})
            assert len(listener.revoked) == 1

    @pytest.mark.anyio
    async def test_a_listener_is_interrupted_when_the_partitions_go_before_it_took_them_up(
        self, broker_factory: BrokerHarness
    ) -> None:
        async with self.opened(broker_factory, partitions=2) as (broker, topic), broker_factory.open() as other:
            slow = Slow(300)
            async with broker.consumer("g" + topic, [topic], listener=slow) as first:
                with anyio.fail_after(PATIENCE):
                    while not slow.assigned:  # noqa: ASYNC110 - in the cluster
                        await anyio.sleep(0.05)
                async with other.consumer("g" + topic, [topic]) as second:
                    await joined(second)
                    assert len(second.assignment()) == 1
                    assert slow.interrupted == 1
                    with anyio.fail_after(PATIENCE):
                        while len(slow.assigned) < 2:  # noqa: ASYNC110 - in the cluster
                            await anyio.sleep(0.05)
                    assert [len(partitions) for partitions, _ in slow.assigned] == [2, 1]
                    assert not first.assignment(), "it has nothing to hand out before it is done"
            assert slow.interrupted == 2

    @pytest.mark.anyio
    async def test_positions_of_a_group_with_members_cannot_be_reset(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            await fill(broker, topic, 4)
            async with broker.consumer("g" + topic, [topic]) as consumer:
                await joined(consumer)
                with pytest.raises(RetriableError):
                    await broker.reset("g" + topic, {TopicPartition(topic, 0): Commit(3)})

    @pytest.mark.anyio
    async def test_a_cluster_that_goes_and_comes_back_loses_nothing(self, cluster: KafkaCluster) -> None:
        async with KafkaBroker.from_url(cluster.url, timings=TIMINGS) as broker:
            topic = f"bounce-{uuid.uuid4().hex[:8]}"
            await broker.create_topics([TopicSpec(topic, 1)])
            published: list[int] = []

            async def publish() -> None:
                number = 0
                while number < 60:
                    try:
                        await broker.publish(topic, key=b"k", value=str(number).encode())
                    except RetriableError:
                        await anyio.sleep(0.2)
                        continue
                    published.append(number)
                    number += 1
                    await anyio.sleep(0.02)

            seen: set[int] = set()
            async with broker.consumer("g" + topic, [topic]) as consumer, anyio.create_task_group() as tasks:
                await joined(consumer)
                tasks.start_soon(publish)
                await anyio.sleep(0.4)
                await anyio.to_thread.run_sync(cluster.kill)
                await anyio.sleep(1.0)
                await anyio.to_thread.run_sync(cluster.start)
                with anyio.fail_after(60):
                    while len(seen) < 60:
                        seen |= set(values(await consumer.fetch(max_records=10, timeout=0.5)))
            assert seen == set(published) == set(range(60))

    @pytest.mark.anyio
    async def test_partitions_without_leaders_in_a_cluster_that_is_away_keep_nobody_busy(
        self, cluster: KafkaCluster
    ) -> None:
        async with KafkaBroker.from_url(cluster.url, timings=TIMINGS) as broker:
            topic = f"leaderless-{uuid.uuid4().hex[:8]}"
            await broker.create_topics([TopicSpec(topic, 1)])
            async with broker.consumer("g" + topic, [topic]) as consumer:
                await joined(consumer)
                assert isinstance(consumer, KafkaConsumer)
                client = consumer._client._client
                connect, tries = client._get_conn, 0

                async def counted(*arguments: Any, **options: Any) -> Any:
                    nonlocal tries
                    tries += 1
                    return await connect(*arguments, **options)

                await anyio.to_thread.run_sync(cluster.kill)
                known = client.cluster._partitions[topic]
                known[0] = known[0]._replace(leader=-1)  # as an answer says once the last leader is gone
                await anyio.sleep(1.0)
                client._get_conn = counted
                await anyio.sleep(2.0)
                client._get_conn = connect
                await anyio.to_thread.run_sync(cluster.start_what_is_down)
                assert 1 <= tries <= 40


@pytest.mark.anyio
async def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(RetriableError, match=r"127\.0\.0\.1:1"):
        async with KafkaBroker("127.0.0.1:1"):
            pass


@pytest.mark.parametrize("url", ["kafka://", "kafka://host", "kafka://a:1,b"])
def test_a_url_without_ports_is_refused(url: str) -> None:
    with pytest.raises(PermanentError, match="expected kafka://HOST:PORT"):
        KafkaBroker.from_url(url)


def test_timings_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(FatalError, match="three heartbeats"):
        KafkaTimings(session_seconds=10, heartbeat_seconds=5)
    with pytest.raises(FatalError, match="revoke budget"):
        KafkaTimings(revoke_seconds=11)


def test_security_comes_from_the_environment() -> None:
    security = KafkaSecurity.from_environment(
        {
            "RAMPSTREAM_KAFKA_TLS": "1",
            "RAMPSTREAM_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "RAMPSTREAM_KAFKA_USERNAME": "u",
            "RAMPSTREAM_KAFKA_PASSWORD": "p",
        }
    )
    options = security.options()
    assert options["security_protocol"] == "SASL_SSL"
    assert (options["sasl_mechanism"], options["sasl_plain_username"]) == ("SCRAM-SHA-512", "u")
    assert KafkaSecurity.from_environment({}).options() == {"security_protocol": "PLAINTEXT"}
    with pytest.raises(FatalError, match="SASL_MECHANISM"):
        KafkaSecurity.from_environment({"RAMPSTREAM_KAFKA_SASL_MECHANISM": "GSSAPI"})
    with pytest.raises(FatalError, match="come together"):
        KafkaSecurity.from_environment({"RAMPSTREAM_KAFKA_USERNAME": "u"})


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match="certificates"):
        KafkaSecurity(tls=True, ca_file=str(tmp_path / "none.pem")).options()
