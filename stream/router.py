"""Publishes what comes next: the message to the next segment's inbox, or a member's status to the aggregator's.

Each goes on with the trace of what is handled meanwhile (see `stream.tracing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stream.broker.protocol import Broker, TopicSpec
from stream.clock import Clock
from stream.failure import PermanentError
from stream.message import MemberMessage, MemberStatus, Message, MessageKind, OrderMessage
from stream.product_event import ProductEvent
from stream.results import Manifest
from stream.topology import (
    Segments,
    changelog_topic_name,
    dead_letter_topic_name,
    partition_for,
    product_event_topic_name,
    retry_topic_name,
    topic_name,
)
from stream.tracing import current_traceparent

__all__ = ["Router", "run_topics"]

StatusOf = Callable[[Manifest], MemberStatus]
"""From a member's last result to its status for the joint stage."""


def run_topics(
    run: str,
    segments: Segments,
    *,
    partitions: int = 1,
    retry_tiers: int = 0,
    retention_ms: int | None = None,
) -> list[TopicSpec]:
    """All topics of a run: an inbox for each segment, retries, the aggregators' changelogs, dead letters, events.

    Retry topics have an eighth of the partitions: little goes through them. Dead letters and changelogs are kept for
    good, the rest for ``retention_ms``; no topic is bounded in size, for a burst would push out what nobody has read.
    """
    sized = {} if retention_ms is None else {"retention.bytes": "-1"}
    kept = {} if retention_ms is None else {"retention.ms": str(retention_ms), **sized}
    specs = [TopicSpec(topic_name(run, segment.name), partitions, config=kept) for segment in segments]
    specs += [
        TopicSpec(retry_topic_name(run, segment.name, tier), max(1, partitions // 8), config=kept)
        for segment in segments
        if not segments.topology.row(segment.name).joint
        for tier in range(retry_tiers)
    ]
    specs += [
        TopicSpec(changelog_topic_name(run, row.name), 1, compacted=True) for row in segments.topology.rows if row.joint
    ]
    forever = {} if retention_ms is None else {"retention.ms": "-1", **sized}
    specs.append(TopicSpec(product_event_topic_name(run), 1, config=kept))
    return [*specs, TopicSpec(dead_letter_topic_name(run), config=forever)]


class Router:
    """Knows the topology and the run, and so where a result goes next.

    Parameters
    ----------
    broker : Broker
        Where to publish.
    segments : Segments
        The topology as it is cut.
    run : str
        The run.
    status_of : callable
        Status of a member from its last result.
    clock : Clock
        For the time in the headers.
    partitions : mapping of str to int
        Partitions of each topic that has more than one.
    spread : int
        Over how many partitions the exposures of one locality are spread.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        segments: Segments,
        run: str,
        status_of: StatusOf,
        clock: Clock,
        partitions: Mapping[str, int] | None = None,
        spread: int = 1,
    ) -> None:
        self.run = run
        self.segments = segments
        self._broker = broker
        self._status_of = status_of
        self._clock = clock
        self._partitions = dict(partitions or {})
        self._spread = spread

    async def send(self, message: Message) -> None:
        """Publish a message to the inbox of the segment that holds its start stage."""
        topic = self.segments.inbox(self.run, message.stage)
        locality = message.facts.get("locality", message.exposure)
        await self._broker.publish(
            topic,
            key=message.key,
            value=message.encode(),
            headers=message.headers(topic, time=self._clock.now(), traceparent=current_traceparent()),
            partition=partition_for(
                locality if isinstance(locality, int) else str(locality),
                message.exposure,
                partitions=self._partitions.get(topic, 1),
                spread=self._spread,
            ),
        )

    async def send_member(self, message: MemberMessage | OrderMessage) -> None:
        """Publish a member's status, or an order about its association, to the topic of the joint stage."""
        topic = topic_name(self.run, self.joint_stage)
        headers = message.headers(topic, time=self._clock.now(), traceparent=current_traceparent())
        await self._broker.publish(topic, key=message.key, value=message.encode(), headers=headers)

    async def send_event(self, event: ProductEvent) -> None:
        """Publish that products became visible."""
        topic = product_event_topic_name(self.run)
        headers = event.headers(topic, time=self._clock.now(), traceparent=current_traceparent())
        await self._broker.publish(topic, key=event.key, value=event.encode(), headers=headers)

    @property
    def joint_stage(self) -> str:
        """Name of the topology's joint stage."""
        return next(row.name for row in self.segments.topology.rows if row.joint)

    @property
    def finalizing_stage(self) -> str:
        """Name of the stage behind the joint stage."""
        topology = self.segments.topology
        return topology.rows[topology.index(self.joint_stage) + 1].name

    async def forward(self, message: Message, manifest: Manifest) -> None:
        """Publish what follows from a message and its stored result."""
        following = self.segments.topology.next_stage(manifest.stage, manifest.branch)
        if following is None:
            return
        if self.segments.topology.row(following).joint:
            for association in message.associations:
                await self.send_member(self._member(manifest, association).following(message))
            return
        await self.send(
            Message(
                run=self.run,
                exposure=manifest.exposure,
                stage=following,
                branch=manifest.branch,
                identity=manifest.identity,
                manifest=manifest.key,
                facts=dict(manifest.facts),
                associations=message.associations,
            ).following(message)
        )

    def finalization(self, member: MemberMessage, *, revision: int | None, solution: str | None) -> Message:
        """Message that has a member finalized, at a revision of the close and with a joint solution if there is one.

        Raises
        ------
        stream.failure.PermanentError
            The member has no result.
        """
        if member.branch is None or member.identity is None or member.manifest is None:
            msg = f"member {member.member} of {member.association} has no result to finalize"
            raise PermanentError(msg)
        return Message(
            kind=MessageKind.FINALIZE,
            run=self.run,
            exposure=member.member,
            stage=self.finalizing_stage,
            branch=member.branch,
            identity=member.identity,
            manifest=member.manifest,
            facts=member.facts,
            associations=(member.association,),
            association=member.association,
            revision=revision,
            solution=solution,
        ).following(member)

    def _member(self, manifest: Manifest, association: str) -> MemberMessage:
        tie_points = manifest.object("tie_points")
        return MemberMessage(
            run=self.run,
            association=association,
            member=manifest.exposure,
            status=self._status_of(manifest),
            branch=manifest.branch,
            identity=manifest.identity,
            manifest=manifest.key,
            tie_points=tie_points.key if tie_points else None,
            tie_points_digest=tie_points.digest if tie_points else None,
            facts=dict(manifest.facts),
        )

    async def failed(
        self, exposure: str, association: str, reason: str, facts: Mapping[str, Any], *, cause: Message | None = None
    ) -> None:
        """Tell an association that a member failed, and with which message if there was one."""
        status = MemberMessage(
            run=self.run,
            association=association,
            member=exposure,
            status=MemberStatus.FAILED,
            facts=dict(facts),
            reason=reason,
        )
        await self.send_member(status if cause is None else status.following(cause))
