"""An aggregator that takes up thousands of open associations, in a process of its own. Not their alignment.

``python -m bench.association_restore CONFIGURATION.json``: the changelog and the member lists are there; prints what
the restore took and how fast members are taken while all associations are open, as JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio

from stream.aggregator import Aggregator
from stream.association import AssociationSettings, Close, MemberRecord
from stream.broker.embedded import EmbeddedBroker
from stream.broker.kafka import KafkaBroker
from stream.broker.protocol import Broker
from stream.changelog import Changelog
from stream.clock import SystemClock
from stream.identity import hash_parts
from stream.member_list import MemberList, put_member_list
from stream.member_statuses import KeptMember
from stream.message import MemberMessage, MemberStatus, Message
from stream.process_end import run_process
from stream.router import Router, run_topics
from stream.store.obstore_store import open_store
from stream.together import together
from stream.topology import Segments, StageRow, Topology, changelog_topic_name
from stream.tracing import Resting

__all__ = ["Configuration", "Restored", "prepare"]

BRANCH = "x"
DETECTORS = 18
PARTITIONS = 36
TOGETHER = 64
PATIENCE_SECONDS = 600.0


@dataclass
class Configuration:
    """What lies where, and how much of it."""

    run: str
    broker: str
    """``kafka://…``, or the folder of an embedded log."""
    store: str
    associations: int
    come: int
    """Members of each association that have come."""
    late: int
    """Members that come after the restore: one of each of so many associations."""


@dataclass
class Restored:
    """What it took."""

    seconds: float
    cpu_seconds: float
    associations: int
    members: int
    members_a_second: float
    """While all associations are open."""


def _segments() -> Segments:
    rows = [StageRow("first", frozenset({BRANCH})), StageRow("joint", frozenset({BRANCH}), joint=True)]
    return Topology([*rows, StageRow("last", frozenset({BRANCH}))]).segments("granular")


def _broker(config: Configuration) -> AbstractAsyncContextManager[Broker]:
    if config.broker.startswith("kafka://"):
        return KafkaBroker.from_url(config.broker)
    return EmbeddedBroker(Path(config.broker))


def _names(number: int) -> tuple[str, list[str]]:
    base = f"r0000101001001001001_{number:04d}"
    return f"{base}-{hashlib.sha256(base.encode()).hexdigest()[:12]}", [
        f"{base}_wfi{detector:02d}" for detector in range(1, DETECTORS + 1)
    ]


def _facts(member: str) -> dict[str, Any]:
    """Facts as large as those of a real exposure: all scalar metadata by which references are selected."""
    from roman_datamodels.datamodels import ScienceRawModel

    from stages.l1 import exposure_facts

    meta = ScienceRawModel.create_fake_data(shape=(1, 8, 8)).to_flat_dict(include_arrays=False)
    nested: dict[str, Any] = {}
    for path, value in meta.items():
        *folders, last = path.removeprefix("roman.meta.").split(".")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    from astropy.time import Time

    nested["exposure"]["start_time"] = Time("2027-03-01T00:00:00")
    return exposure_facts(member, nested, rows=4096, resultants=9)


def _message(run: str, association: str, member: str, facts: dict[str, Any]) -> MemberMessage:
    identity = hash_parts("member", member)
    return MemberMessage(
        run=run, association=association, member=member, status=MemberStatus.OK, branch=BRANCH, identity=identity,
        manifest=f"results/{identity}/1", facts={**facts, "id": member, "filename": f"{member}_uncal.asdf"},
        tie_points=f"objects/{member}/source_catalog/1/tie_points", tie_points_digest=hash_parts("tie points", member),
    )  # fmt: skip


class _Noted:
    """Stands for the broker of a changelog, and keeps what it is told to publish."""

    key: bytes
    value: bytes

    async def publish(self, topic: str, *, key: bytes, value: bytes) -> None:
        del topic
        self.key, self.value = key, value


async def _record_of_a_member(run: str) -> tuple[_Noted, int]:
    """What a changelog has of member ``MEMBER`` of ``ASSOCIATION`` in partition 0, and bytes of its message.

    The names alone are replaced for all the others: to make a hundred thousand messages takes minutes.
    """
    noted, now = _Noted(), time.time()
    message = _message(run, "ASSOCIATION", "MEMBER", _facts("MEMBER"))
    record = MemberRecord("MEMBER", MemberStatus.OK, message.digest, 0, now, now + 86_400.0)
    changelog = Changelog(cast("Broker", noted), "changelog")
    await changelog.note_member("ASSOCIATION", 0, KeptMember.of(record, message, Resting(None, now)))
    return noted, len(message.encode())


async def prepare(config: Configuration) -> int:
    """Write the topics, member lists and changelog that an aggregator would have left; bytes of a member's message."""
    store, topic = open_store(config.store), changelog_topic_name(config.run, "joint")
    template, size = await _record_of_a_member(config.run)
    async with _broker(config) as broker:
        await broker.create_topics(run_topics(config.run, _segments(), partitions=PARTITIONS))

        async def one(number: int) -> None:
            association, members = _names(number)
            await put_member_list(store, config.run, MemberList(association, tuple(members), members[0][:-6]))
            names = [(association.encode(), member.encode()) for member in members[: config.come]]
            for known, member in names:
                key, value = (
                    text.replace(b"ASSOCIATION", known).replace(b"MEMBER", member)
                    for text in (template.key, template.value)
                )
                await broker.publish(topic, key=key, value=value)

        await together((partial(one, number) for number in range(config.associations)), most=TOGETHER)
    return size


async def restore(config: Configuration) -> Restored:
    """Start an aggregator and wait until it has taken everything up; then let late members come."""
    events: dict[str, list[dict[str, Any]]] = {"restored": [], "member": []}

    def observe(event: dict[str, Any]) -> None:
        if event["event"] in events:
            events[event["event"]].append(event)

    store, facts = open_store(config.store), _facts("member")
    async with _broker(config) as broker, anyio.create_task_group() as tasks:
        router = Router(
            broker=broker, segments=_segments(), run=config.run, status_of=lambda _: MemberStatus.OK,
            clock=SystemClock(),
        )  # fmt: skip
        aggregator = Aggregator(
            broker=broker, store=store, router=router, solver=_nobody_solves, abandon=_nobody_abandons,
            settings=AssociationSettings(), clock=SystemClock(), observe=observe,
        )  # fmt: skip
        began, cpu = time.monotonic(), time.process_time()
        await tasks.start(aggregator.run)
        await _until(lambda: bool(events["restored"]))
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        state = aggregator.state()
        members = sum(len(association.records()) for association in state.values())
        began = time.monotonic()
        late = min(config.late, config.associations)
        for number in range(late):
            association, names = _names(number)
            await router.send_member(_message(config.run, association, names[config.come], facts))
        await _until(lambda: len(events["member"]) >= late)
        rate = late / (time.monotonic() - began)
        tasks.cancel_scope.cancel()
    return Restored(seconds, cpu, len(state), members, rate)


async def _until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while not holds():  # noqa: ASYNC110 - events of a list
            await anyio.sleep(0.02)


async def _nobody_solves(close: Close, messages: dict[str, MemberMessage]) -> None:
    raise AssertionError(close.association, len(messages))


async def _nobody_abandons(message: Message, reason: str) -> None:
    raise AssertionError(message.exposure, reason)


def main() -> int:
    found = asyncio.run(restore(Configuration(**json.loads(Path(sys.argv[1]).read_text()))))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_process(main))
