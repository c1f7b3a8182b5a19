"""Who may do what on a real Kafka with TLS, passwords and ACLs: the roles as docs/operating.md lists them, no more."""

from __future__ import annotations

import gc
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from ops.settings import RunSettings
from ops.table import build_pipeline
from ops.topics import bootstrap, group_topics, wanted_topics
from stream.broker.kafka import KafkaBroker
from stream.broker.kafka_consumer import KafkaConsumer
from stream.broker.kafka_settings import KafkaSecurity, KafkaTimings
from stream.broker.protocol import Commit, Record, TopicPartition, TopicSpec
from stream.failure import FatalError, RetriableError
from stream.topology import changelog_topic_name, dead_letter_topic_name, retry_topic_name, topic_name
from tests.contract.broker_harness import PATIENCE, joined, take
from tests.servers import KafkaCluster, kafka_cluster

pytestmark = [
    pytest.mark.anyio,
    # aiokafka 0.14 does not wait for the end of the connection on which it was refused: one of TLS ends when the
    # server answers, and a loop that is closed before leaves its socket to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TIMINGS = KafkaTimings(
    session_seconds=2.0, heartbeat_seconds=0.3, revoke_seconds=2.0, rebalance_seconds=5.0, request_seconds=8.0
)
RUN, OTHER = "prompt", "reproc"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
ROW = re.compile(r"^\| (\w+) \| (Topic|Group) \| `([\w.]+)` \| (literal|prefixed) \| ([\w, ]+) \| \S", re.MULTILINE)
RESOURCES = {"Topic": 2, "Group": 3}
PATTERNS = {"literal": 3, "prefixed": 4}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
ALLOW = 3


@pytest.fixture(autouse=True)
def _sockets_left_behind() -> Iterator[None]:
    """Collected here, where they are expected, and not while another module's test runs."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with kafka_cluster(tmp_path_factory.mktemp("kafka"), secure=True) as running:
        yield running


def security(cluster: KafkaCluster, user: str = "admin", mechanism: str = "SCRAM-SHA-512") -> KafkaSecurity:
    return KafkaSecurity(
        tls=True,
        ca_file=str(cluster.data / "ca.pem"),
        mechanism=mechanism,
        username=user,
        password=cluster.password(user),
    )


@asynccontextmanager
async def connected(cluster: KafkaCluster, access: KafkaSecurity) -> AsyncIterator[KafkaBroker]:
    async with KafkaBroker.from_url(cluster.url, timings=TIMINGS, security=access) as broker:
        yield broker


async def refused(cluster: KafkaCluster, access: KafkaSecurity, says: str) -> None:
    """The first connection ends at once, as fatal, and says why."""
    began = time.monotonic()
    with pytest.raises(FatalError, match=says):
        async with connected(cluster, access):
            pass
    assert time.monotonic() - began < PATIENCE


# Coming in


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_each_mechanism_produces_and_consumes_over_tls(cluster: KafkaCluster, mechanism: str) -> None:
    topic = f"t-{uuid.uuid4().hex[:8]}"
    async with connected(cluster, security(cluster, mechanism=mechanism)) as broker:
        await broker.create_topics([TopicSpec(topic)])
        await broker.publish(topic, key=b"k", value=b"7")
        async with broker.consumer("g" + topic, [topic]) as consumer:
            assert [record.value for record in await take(consumer, 1)] == [b"7"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_a_wrong_password_is_fatal_and_named(cluster: KafkaCluster, mechanism: str) -> None:
    wrong = replace(security(cluster, "worker", mechanism), password="guess")  # noqa: S106
    await refused(cluster, wrong, f"'worker' with {mechanism} was not let in.*RAMPSTREAM_KAFKA_PASSWORD")


async def test_an_authority_that_is_not_known_is_fatal_and_named(cluster: KafkaCluster) -> None:
    await refused(cluster, replace(security(cluster), ca_file=None), "certificate is not trusted.*KAFKA_CA_FILE")


async def test_plain_text_to_a_port_of_tls_is_fatal_and_named(cluster: KafkaCluster) -> None:
    await refused(cluster, replace(security(cluster), tls=False), "speaks TLS: set RAMPSTREAM_KAFKA_TLS=1")


async def test_no_password_where_one_is_asked_for_is_fatal_and_named(cluster: KafkaCluster) -> None:
    nobody = KafkaSecurity(tls=True, ca_file=str(cluster.data / "ca.pem"))
    await refused(cluster, nobody, "asks for a user and a password.*SCRAM-SHA-512.*SASL_MECHANISM")


async def test_a_cluster_that_does_not_answer_is_not_taken_for_a_refusal(cluster: KafkaCluster) -> None:
    with pytest.raises(RetriableError):
        async with KafkaBroker.from_url("kafka://127.0.0.1:1", timings=TIMINGS, security=security(cluster)):
            pass


async def test_a_password_that_is_withdrawn_stops_members_and_publishers(cluster: KafkaCluster) -> None:
    topic = f"t-{uuid.uuid4().hex[:8]}"
    async with connected(cluster, security(cluster)) as broker:
        await broker.create_topics([TopicSpec(topic)])
        await broker.publish(topic, key=b"k", value=b"7")
        async with broker.consumer("g" + topic, [topic]) as consumer:
            await joined(consumer)
            assert isinstance(consumer, KafkaConsumer)
            broker._options["sasl_plain_password"] = "withdrawn"  # noqa: S105
            for client in (consumer._client._client, broker._producer.client):
                client._sasl_plain_password = "withdrawn"  # noqa: S105
                for connection in list(client._conns.values()):
                    connection.close()
            with pytest.raises(FatalError, match="was not let in"):
                await broker.publish(topic, key=b"k", value=b"8")
            with pytest.raises(FatalError, match="was not let in"):
                await take(consumer, 2)


# What the roles may do


async def consumed(broker: KafkaBroker, group: str, topic: str) -> list[Record]:
    async with broker.consumer(group, [topic]) as consumer:
        return await take(consumer, 1)


def layout(run: str) -> tuple[list[TopicSpec], dict[str, list[str]]]:
    settings = RunSettings(run=run, preset="balanced", partitions=2, retry_seconds=(1.0,))
    segments = build_pipeline(settings).segments
    return wanted_topics(settings, segments), group_topics(run, segments, 1)


@pytest.fixture(scope="module")
def documented(cluster: KafkaCluster) -> list[tuple[str, ...]]:
    """The page's table, applied to the cluster word for word; two runs laid out by the operator where it may."""
    rows = ROW.findall(PAGE.read_text())
    anyio.run(_apply, cluster, rows)
    return rows


async def _apply(cluster: KafkaCluster, rows: list[tuple[str, ...]]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.servers, **security(cluster).options())
    await admin.start()
    try:
        for user, resource, name, pattern, operations in rows:
            for operation in operations.split(", "):
                number = OPERATIONS[operation]
                request = CreateAclsRequest(
                    RESOURCES[resource], name, PATTERNS[pattern], f"User:{user}", "*", number, ALLOW
                )
                answer = await admin._send_request(request)
                assert [code for code, _ in answer.creation_responses] == [0]
    finally:
        await admin.close()
    async with connected(cluster, security(cluster, "operator")) as operator:
        specs, groups = layout(RUN)
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    await operator.create_topics(specs)
                except FatalError:  # rules take a moment to reach the broker
                    await anyio.sleep(0.1)
                else:
                    break
        assert await bootstrap(operator, groups) == []
    async with connected(cluster, security(cluster)) as everything:
        specs, groups = layout(OTHER)
        await everything.create_topics(specs)
        await bootstrap(everything, groups)


def test_the_page_lists_rules_for_each_role(documented: list[tuple[str, ...]]) -> None:
    assert {user for user, *_ in documented} == {"operator", "worker", "ingest", "observer"}


@pytest.mark.usefixtures("documented")
async def test_a_worker_can_do_all_that_a_worker_does(cluster: KafkaCluster) -> None:
    specs, groups = layout(RUN)
    async with connected(cluster, security(cluster, "worker")) as broker:
        found = await broker.topics()
        assert {spec.name: spec.partitions for spec in specs} == {name: found[name].partitions for name in found}
        for spec in specs:
            await broker.publish(spec.name, key=b"k", value=b"1")
        for group, topics in groups.items():
            async with broker.consumer(group, topics, start="none") as consumer:
                for record in await take(consumer, len(topics)):
                    await consumer.commit({record.topic_partition: Commit(record.offset + 1)})
            assert [await broker.lag(group, topic) for topic in topics] == [0] * len(topics)
        assert list(await broker.read_latest(changelog_topic_name(RUN, "tweakreg"))) == [b"k"]
        letters = dead_letter_topic_name(RUN)
        assert len(await broker.read(letters, 0, 0, 1)) == 1


@pytest.mark.usefixtures("documented")
async def test_a_worker_can_do_nothing_else(cluster: KafkaCluster) -> None:
    inbox, foreign = topic_name(RUN, "dq_init"), topic_name(OTHER, "dq_init")
    async with connected(cluster, security(cluster, "worker")) as broker:
        with pytest.raises(FatalError, match="refuses"):
            await broker.create_topics([TopicSpec(f"{RUN}.new")])
        assert {name.partition(".")[0] for name in await broker.topics()} == {RUN}
        with pytest.raises(FatalError, match="refuses"):
            await broker.publish(foreign, key=b"k", value=b"1")
        with pytest.raises(FatalError, match="refuses"):
            await broker.committed(foreign, inbox)
        with pytest.raises(FatalError, match="refuses"):
            await broker.reset(foreign, {TopicPartition(inbox, 0): Commit(1)})
        with pytest.raises(FatalError, match="refuses"):
            await consumed(broker, foreign, inbox)


@pytest.mark.usefixtures("documented")
async def test_ingest_can_announce_and_do_nothing_else(cluster: KafkaCluster) -> None:
    inbox = topic_name(RUN, "dq_init")
    async with connected(cluster, security(cluster, "ingest")) as broker:
        assert inbox in await broker.topics()
        assert isinstance(await broker.publish(inbox, key=b"k", value=b"1"), Record)
        await broker.publish(topic_name(RUN, "tweakreg"), key=b"k", value=b"1")
        for topic in (retry_topic_name(RUN, "dq_init", 0), dead_letter_topic_name(RUN), topic_name(OTHER, "dq_init")):
            with pytest.raises(FatalError, match="refuses"):
                await broker.publish(topic, key=b"k", value=b"1")
        with pytest.raises(FatalError, match="refuses"):
            await broker.read(inbox, 0, 0, 1)
        with pytest.raises(FatalError, match="refuses"):
            await broker.committed(inbox, inbox)
        with pytest.raises(FatalError, match="refuses"):
            await broker.create_topics([TopicSpec(f"{RUN}.new")])


@pytest.mark.usefixtures("documented")
async def test_an_observer_sees_and_writes_nothing(cluster: KafkaCluster) -> None:
    inbox = topic_name(RUN, "dq_init")
    async with connected(cluster, security(cluster, "observer")) as broker:
        assert inbox in await broker.topics()
        assert await broker.lag(inbox, inbox) >= 0
        await broker.read_latest(dead_letter_topic_name(RUN))
        with pytest.raises(FatalError, match="refuses"):
            await broker.publish(inbox, key=b"k", value=b"1")
        with pytest.raises(FatalError, match="refuses"):
            await broker.reset(inbox, {TopicPartition(inbox, 0): Commit(0)})


@pytest.mark.usefixtures("documented")
async def test_an_operator_is_kept_to_its_runs(cluster: KafkaCluster) -> None:
    async with connected(cluster, security(cluster, "operator")) as broker:
        with pytest.raises(FatalError, match="refuses"):
            await broker.create_topics([TopicSpec(f"{OTHER}.new")])
        with pytest.raises(FatalError, match="refuses"):
            await broker.committed(topic_name(OTHER, "dq_init"), topic_name(RUN, "dq_init"))
