"""What a Kafka client makes of topics that some brokers do not know yet."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import errors

from stream.broker import kafka_topics
from stream.broker.kafka_topics import KafkaTopics
from stream.failure import PermanentError

PARTITION = {"partition": 0, "leader": 1, "error_code": 0, "replicas": [1]}


class AdminOfABrokerThatLearnsLate:
    """Knows a topic only after it was asked some times."""

    def __init__(self, after: int) -> None:
        self._after = after

    async def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        self._after -= 1
        unknown = errors.UnknownTopicOrPartitionError.errno if self._after >= 0 else 0
        partitions = [] if unknown else [PARTITION] * 4
        return [{"topic": name, "error_code": unknown, "partitions": partitions} for name in names]


@pytest.mark.anyio
async def test_a_topic_made_a_moment_ago_is_waited_for() -> None:
    assert await KafkaTopics(AdminOfABrokerThatLearnsLate(after=3)).partitions("run.dq_init") == 4


@pytest.mark.anyio
async def test_a_topic_that_nobody_made_is_said_not_to_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_topics, "_APPEARS_SECONDS", 0.15)
    with pytest.raises(PermanentError, match=r"there is no topic run\.dq_init; create it first"):
        await KafkaTopics(AdminOfABrokerThatLearnsLate(after=1000)).partitions("run.dq_init")
