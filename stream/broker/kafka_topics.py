"""Topics of a Kafka cluster: listed, created, compared; never changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from aiokafka import errors
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from stream.broker.kafka_errors import failure_from, failures
from stream.broker.protocol import TopicPlan, TopicSpec
from stream.broker.topic_plan import planned
from stream.failure import FatalError, PermanentError, RetriableError

__all__ = ["KafkaTopics"]

_CREATE_SECONDS = 30.0
"""Until a topic that was created has leaders: a second on a healthy cluster."""

_APPEARS_SECONDS = 2.0
"""Another broker learns of a new topic a little later than the one that was asked to make it."""

_COMPARED = ("cleanup.policy", "min.insync.replicas", "retention.bytes", "retention.ms")

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
    servers : str
        The cluster's, for the commands that an operator is told.
    """

    def __init__(self, admin: Any, *, replication: int = 0, servers: str = "") -> None:
        self._admin = admin
        self._replication = replication
        self._servers = servers

    async def partitions(self, topic: str) -> int:
        """Number of partitions.

        Raises
        ------
        stream.failure.PermanentError
            There is no such topic, after a moment's patience with one that was made just now.
        """
        deadline = time.monotonic() + _APPEARS_SECONDS
        while topic not in (found := await self._described([topic])):
            if time.monotonic() > deadline:
                msg = f"there is no topic {topic}; create it first (rampstream topics apply)"
                raise PermanentError(msg)
            await asyncio.sleep(0.1)
        return len(found[topic])

    async def all(self) -> Mapping[str, TopicSpec]:
        """Every topic that is not the cluster's own; without the settings of those that may not be described."""
        with failures("cannot list topics"):
            names = [name for name in await self._admin.list_topics() if not name.startswith("__")]
        return await self._found(names)

    async def plan(self, specs: Sequence[TopicSpec]) -> TopicPlan:
        """Compare topics with what exists.

        Raises
        ------
        stream.failure.FatalError
            The settings of one may not be seen.
        """
        found = await self._found([spec.name for spec in specs])
        hidden = [name for name, spec in found.items() if not spec.config]
        if hidden:
            more = f" and {len(hidden) - 1} more topics" if len(hidden) > 1 else ""
            msg = f"the settings of {hidden[0]}{more} cannot be seen: that needs the operation DescribeConfigs"
            raise FatalError(msg)
        replicas = self._replication
        if not replicas:
            with failures("cannot describe the cluster"):
                replicas = min(_MOST_REPLICAS, len((await self._admin.describe_cluster())["brokers"]))
        return planned([_complete(spec, replicas) for spec in specs], found, servers=self._servers)

    async def create(self, specs: Sequence[TopicSpec]) -> None:
        """Create topics that do not exist.

        Raises
        ------
        stream.failure.PermanentError
            A topic exists with other partitions or another clean-up policy, or the cluster refuses one.
        stream.failure.FatalError
            This client may not create topics.
        """
        plan = await self.plan(specs)
        if plan.conflicts:
            msg = "; ".join(map(str, plan.conflicts)) + ": a topic is never changed here"
            raise PermanentError(msg)
        if plan.create:
            await self._create(plan.create)

    async def _create(self, specs: Sequence[TopicSpec]) -> None:
        new = [NewTopic(spec.name, spec.partitions, spec.replicas, topic_configs=dict(spec.config)) for spec in specs]
        with failures("cannot create topics"):
            answer = await self._admin.create_topics(new)
        for topic, code, *text in answer.topic_errors:
            error = errors.for_code(code)
            if error not in {errors.NoError, errors.TopicAlreadyExistsError}:
                failure = failure_from(error(*(line for line in text if line)), f"topic {topic} cannot be created")
                lasting = isinstance(failure, RetriableError) and not getattr(error, "retriable", False)
                raise PermanentError(str(failure)) if lasting else failure
        deadline = time.monotonic() + _CREATE_SECONDS
        wanted = {spec.name: spec.partitions for spec in specs}
        while not await self._usable(wanted):
            if time.monotonic() > deadline:
                msg = f"topics {', '.join(wanted)} were created and cannot be used after {_CREATE_SECONDS:.0f} s"
                raise RetriableError(msg)
            await asyncio.sleep(0.1)

    async def _usable(self, wanted: Mapping[str, int]) -> bool:
        """Whether all partitions are there and have leaders."""
        with failures("cannot describe topics"):
            found = await self._admin.describe_topics(list(wanted))
        led = {t["topic"]: sum(p["leader"] >= 0 and not p["error_code"] for p in t["partitions"]) for t in found}
        return led == dict(wanted)

    async def _found(self, names: Sequence[str]) -> dict[str, TopicSpec]:
        """The topics of these names that exist, as they are."""
        described = await self._described(names)
        settings = await self._settings(list(described))
        return {
            name: TopicSpec(
                name,
                len(partitions),
                compacted="compact" in settings[name].get("cleanup.policy", ""),
                config=settings[name],
                replicas=min((len(partition["replicas"]) for partition in partitions), default=None),
            )
            for name, partitions in described.items()
        }

    async def _described(self, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Partitions of the topics that exist."""
        if not names:
            return {}
        with failures("cannot describe topics"):
            found = await self._admin.describe_topics(list(names))
        known = {}
        for topic in found:
            error = errors.for_code(topic["error_code"])
            if error is errors.NoError:
                known[topic["topic"]] = topic["partitions"]
            elif error is not errors.UnknownTopicOrPartitionError:
                with failures(f"topic {topic['topic']} cannot be described"):
                    raise error
        return known

    async def _settings(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Settings that are compared; empty for a topic that went meanwhile or may not be described."""
        found: dict[str, dict[str, str]] = {name: {} for name in names}
        if not names:
            return found
        asked = dict.fromkeys(_COMPARED, "")
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, asked) for name in names]
        with failures("cannot describe the settings of topics"):
            answers = await self._admin.describe_configs(resources)
        for answer in answers:
            for code, _, _, name, entries in answer.resources:
                error = errors.for_code(code)
                if error is errors.NoError:
                    found[name] = {entry[0]: entry[1] or "" for entry in entries}
                elif error not in {errors.TopicAuthorizationFailedError, errors.UnknownTopicOrPartitionError}:
                    with failures(f"the settings of topic {name} cannot be described"):
                        raise error
        return found


def _complete(spec: TopicSpec, replicas: int) -> TopicSpec:
    """A topic with everything that its safety rests on: the cluster's defaults decide nothing of it."""
    config = {
        "cleanup.policy": "compact" if spec.compacted else "delete",
        "min.insync.replicas": str(min(_SAFE_IN_SYNC, max(1, replicas - 1))),
    }
    return replace(spec, config={**config, **spec.config}, replicas=replicas)
