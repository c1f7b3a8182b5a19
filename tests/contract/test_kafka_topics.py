"""Topics of a run on a real Kafka: what they are created with, what is told of those that differ, what stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiokafka import TopicPartition as Place
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ops.cli import main
from stream.broker.kafka import KafkaBroker
from stream.broker.kafka_settings import KafkaTimings
from stream.broker.protocol import Commit, TopicPartition, TopicSpec
from stream.failure import FatalError
from tests.contract.broker_harness import fill, take
from tests.servers import KafkaCluster, kafka_cluster

TIMINGS = KafkaTimings(
    session_seconds=2.0, heartbeat_seconds=0.3, revoke_seconds=2.0, rebalance_seconds=5.0, request_seconds=8.0
)
WEEK = str(168 * 3_600_000)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    # The cluster's own defaults would lose records of topics that leave a setting to it.
    hostile = ("log.cleanup.policy=compact", "log.retention.ms=60000", "log.retention.bytes=1000000")
    with kafka_cluster(tmp_path_factory.mktemp("kafka"), settings=hostile) as running:
        yield running


@pytest.fixture
def verb(cluster: KafkaCluster, tmp_path: Path) -> list[str]:
    """The words of ``topics`` for a run of its own; to be followed by the run's name."""
    (tmp_path / "references").mkdir()
    (tmp_path / "gaia.csv").touch()
    return [
        "--broker", cluster.url, "--store", str(tmp_path / "store"), "--work", str(tmp_path / "work"), "--preset",
        "balanced", "--references", str(tmp_path / "references"), "--gaia", str(tmp_path / "gaia.csv"),
    ]  # fmt: skip


async def alter(cluster: KafkaCluster, topic: str, **settings: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.servers)
    await admin.start()
    try:
        values = {name.replace("_", "."): value for name, value in settings.items()}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, values)])
    finally:
        await admin.close()


async def topics(cluster: KafkaCluster) -> dict[str, TopicSpec]:
    async with KafkaBroker.from_url(cluster.url, timings=TIMINGS) as broker:
        return dict(await broker.topics())


def test_no_default_of_the_cluster_decides_what_is_kept(
    cluster: KafkaCluster, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topics", "apply", "--run", "keeps", "--partitions", "2", "--json", *verb]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["applied"], report["conflicts"], report["differs"]) == (True, [], [])
    made = {name: spec for name, spec in anyio.run(topics, cluster).items() if name.startswith("keeps.")}
    assert {entry["topic"]: entry["config"].items() <= made[entry["topic"]].config.items()
            for entry in report["create"]} == dict.fromkeys(made, True)  # fmt: skip
    inbox, letters, changelog = (made[f"keeps.{name}"] for name in ("dq_init", "dead-letters", "tweakreg.changelog"))
    assert (inbox.partitions, inbox.replicas) == (2, 1)
    kept = [(spec.config["cleanup.policy"], spec.config["retention.ms"]) for spec in (inbox, letters)]
    assert kept == [("delete", WEEK), ("delete", "-1")]
    assert [spec.config["retention.bytes"] for spec in (inbox, letters)] == ["-1", "-1"]
    assert changelog.config["cleanup.policy"] == "compact"


def test_settings_that_differ_are_told_with_the_command_and_left_alone(
    cluster: KafkaCluster, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run", "differs", "--partitions", "2", *verb]
    assert main(["topics", "apply", *words]) == 0
    anyio.run(lambda: alter(cluster, "differs.dead-letters", cleanup_policy="delete", retention_ms="60000"))
    capsys.readouterr()
    assert main(["topics", "apply", *words]) == 0
    told = capsys.readouterr().out
    assert "differs: topic differs.dead-letters has retention.ms 60000, wanted is -1" in told
    assert f"kafka-configs.sh --bootstrap-server {cluster.servers} --alter --entity-type topics" in told
    assert anyio.run(topics, cluster)["differs.dead-letters"].config["retention.ms"] == "60000"


@pytest.mark.parametrize(
    ("topic", "partitions", "policy", "says"),
    [
        ("dq_init", 3, None, "partitions 2, wanted is 3"),
        ("dq_init", 2, "compact", "cleanup.policy compact, wanted is delete"),
        ("tweakreg.changelog", 2, "compact,delete", "cleanup.policy compact,delete, wanted is compact"),
    ],
)
def test_a_conflict_is_refused_and_changes_nothing(
    cluster: KafkaCluster, verb: list[str], capsys: pytest.CaptureFixture[str], topic: str, partitions: int,
    policy: str | None, says: str,
) -> None:  # fmt: skip
    run = f"conflict-{partitions}-{len(policy or '')}"
    assert main(["topics", "apply", "--run", run, "--partitions", "2", *verb]) == 0
    if policy is not None:
        anyio.run(lambda: alter(cluster, f"{run}.{topic}", cleanup_policy=policy))
    before = anyio.run(topics, cluster)
    capsys.readouterr()
    words = ["--run", run, "--partitions", str(partitions), *verb]
    assert main(["topics", "plan", *words]) == 1
    assert f"conflict: topic {run}.{topic} has {says}" in capsys.readouterr().out
    assert main(["topics", "apply", *words]) == 1
    assert says in capsys.readouterr().err
    assert anyio.run(topics, cluster) == before


async def _records_deleted(cluster: KafkaCluster, topic: str, before: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.servers)
    await admin.start()
    try:
        await admin.delete_records({Place(topic, 0): RecordsToDelete(before_offset=before)})
    finally:
        await admin.close()


@pytest.mark.anyio
async def test_records_that_went_before_they_were_read_stop_the_group(cluster: KafkaCluster) -> None:
    async with KafkaBroker.from_url(cluster.url, timings=TIMINGS) as broker:
        await broker.create_topics([TopicSpec("short")])
        await fill(broker, "short", 10)
        await broker.reset("late", {TopicPartition("short", 0): Commit(2)})
        await _records_deleted(cluster, "short", 5)
        async with broker.consumer("late", ["short"], start="none") as consumer:
            with pytest.raises(FatalError, match="deleted before they were read"):
                await take(consumer, 1)
        assert (await broker.committed("late", "short"))[0].offset == 2


def test_a_group_without_a_position_where_the_beginning_is_gone_is_noted(
    cluster: KafkaCluster, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    async def lay_out() -> None:
        async with KafkaBroker.from_url(cluster.url, timings=TIMINGS) as broker:
            week: dict[str, Any] = {"retention.ms": WEEK, "retention.bytes": "-1"}
            await broker.create_topics([TopicSpec("forgot.dq_init", 1, config=week)])
            await fill(broker, "forgot.dq_init", 3)
        await _records_deleted(cluster, "forgot.dq_init", 2)

    anyio.run(lay_out)
    assert main(["topics", "apply", "--run", "forgot", "--partitions", "1", *verb]) == 0
    assert "note: group forgot.dq_init had no position in forgot.dq_init[0]" in capsys.readouterr().out
