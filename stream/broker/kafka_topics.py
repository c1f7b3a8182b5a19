"""Topics of a Kafka cluster: listed, created, compared; never changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import errors
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from stream.broker.kafka_errors import failures
from stream.broker.protocol import TopicSpec
from stream.failure import PermanentError, RetriableError

__all__ = ["KafkaTopics"]

_CREATE_SECONDS = 30.0
"""Until a topic that was created has leaders: a second on a healthy cluster."""

_MOST_REPLICAS = 3
_SAFE_IN_SYNC = 2
"""With three replicas, an acknowledged record is on two: one broker may be lost, and work goes on."""


class KafkaTopics:
    """Topics through an admin client that is started.

    Parameters
    ----------
    admin : AIOKafkaAdminClient
        The client.
    replication : int
        Replicas of new topics; 0 for three, or as many as there are brokers.
    """

    def __init__(self, admin: Any, *, replication: int = 0) -> None:
        self._admin = admin
        self._replication = replication

    async def partitions(self, topic: str) -> int:
        """Number of partitions.

        Raises
        ------
        stream.failure.PermanentError
            There is no such topic.
        """
        found = await self._described([topic])
        if topic not in found:
            msg = f"there is no topic {topic}; create it first (rampstream topics apply)"
            raise PermanentError(msg)
        return found[topic]

    async def all(self) -> Mapping[str, TopicSpec]:
        """Every topic that is not the cluster's own."""
        with failures("cannot list topics"):
            names = [name for name in await self._admin.list_topics() if not name.startswith("__")]
        counts = await self._described(names)
        compacted = await self._compacted(list(counts))
        return {name: TopicSpec(name, count, compacted=compacted[name]) for name, count in counts.items()}

    async def create(self, specs: Sequence[TopicSpec]) -> None:
        """Create topics that do not exist.

        Raises
        ------
        stream.failure.PermanentError
            A topic exists with other partitions or another clean-up policy, or the cluster refuses one.
        """
        names = [spec.name for spec in specs]
        counts = await self._described(names)
        compacted = await self._compacted(list(counts))
        missing = [spec for spec in specs if spec.name not in counts]
        for spec in specs:
            if spec.name in counts and (counts[spec.name], compacted[spec.name]) != (spec.partitions, spec.compacted):
                msg = (
                    f"topic {spec.name} exists with {counts[spec.name]} partitions, compacted {compacted[spec.name]}; "
                    f"wanted are {spec.partitions} and {spec.compacted}, and a topic is never changed here"
                )
                raise PermanentError(msg)
        if missing:
            await self._create(missing)

    async def _create(self, specs: Sequence[TopicSpec]) -> None:
        replicas = self._replication
        with failures("cannot create topics"):
            if not replicas:
                replicas = min(_MOST_REPLICAS, len((await self._admin.describe_cluster())["brokers"]))
            new = [self._new(spec, replicas) for spec in specs]
            answer = await self._admin.create_topics(new)
        for topic, code, *text in answer.topic_errors:
            error = errors.for_code(code)
            if error not in {errors.NoError, errors.TopicAlreadyExistsError}:
                msg = f"topic {topic} cannot be created: {error.__name__} {text[0] if text and text[0] else ''}"
                raise (RetriableError if getattr(error, "retriable", False) else PermanentError)(msg)
        deadline = time.monotonic() + _CREATE_SECONDS
        wanted = {spec.name: spec.partitions for spec in specs}
        while not await self._usable(wanted):
            if time.monotonic() > deadline:
                msg = f"topics {', '.join(wanted)} were created and cannot be used after {_CREATE_SECONDS:.0f} s"
                raise RetriableError(msg)
            await asyncio.sleep(0.1)

    @staticmethod
    def _new(spec: TopicSpec, replicas: int) -> Any:
        config = {"min.insync.replicas": str(min(_SAFE_IN_SYNC, max(1, replicas - 1)))}
        if spec.compacted:
            config["cleanup.policy"] = "compact"
        return NewTopic(spec.name, spec.partitions, replicas, topic_configs={**config, **spec.config})

    async def _usable(self, wanted: Mapping[str, int]) -> bool:
        """Whether all partitions are there and have leaders."""
        with failures("cannot describe topics"):
            found = await self._admin.describe_topics(list(wanted))
        led = {t["topic"]: sum(p["leader"] >= 0 and not p["error_code"] for p in t["partitions"]) for t in found}
        return led == dict(wanted)

    async def _described(self, names: Sequence[str]) -> dict[str, int]:
        """Partitions of the topics that exist."""
        if not names:
            return {}
        with failures("cannot describe topics"):
            found = await self._admin.describe_topics(list(names))
        known = {}
        for topic in found:
            error = errors.for_code(topic["error_code"])
            if error is errors.NoError:
                known[topic["topic"]] = len(topic["partitions"])
            elif error is not errors.UnknownTopicOrPartitionError:
                with failures(f"topic {topic['topic']} cannot be described now"):
                    raise error
        return known

    async def _compacted(self, names: Sequence[str]) -> dict[str, bool]:
        if not names:
            return {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, {"cleanup.policy": ""}) for name in names]
        with failures("cannot describe the settings of topics"):
            answers = await self._admin.describe_configs(resources)
        found: dict[str, bool] = {}
        for answer in answers:
            for _, _, _, name, entries in answer.resources:
                values = {entry[0]: entry[1] for entry in entries}
                found[name] = "compact" in (values.get("cleanup.policy") or "")
        return found
