"""An aggregator in a process of its own, on real Kafka and S3, with a solver of milliseconds. Not the science.

``python -m tests.faults.light_aggregator CONFIGURATION.json``. The configuration says where things are, how
associations close, and which faults are built in (`tests.faults.aggregator_faults`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio

from stream import event_loop
from stream.aggregator import Aggregator, Solved
from stream.association import AssociationSettings, Close, OnMissing
from stream.broker.kafka import KafkaBroker
from stream.broker.protocol import TopicPartition
from stream.clock import SystemClock
from stream.identity import hash_parts
from stream.message import MemberMessage, MemberStatus, Message
from stream.process_end import run_process
from stream.results import result_key
from stream.router import Router
from stream.store.obstore_store import open_store
from tests.faults.aggregator_faults import FAULTS, die_at_phases
from tests.faults.light_topology import TIMINGS, configured, segments, status_of

__all__ = ["AggregatorConfiguration", "Memory", "solution_identity"]


@dataclasses.dataclass
class AggregatorConfiguration:
    run: str
    broker: str
    store: str
    work: str
    journal: str
    triggers: str
    faults: list[str] = dataclasses.field(default_factory=list)
    deadline: float | None = None
    revision_delay: float = 0.5
    on_missing: str = OnMissing.ALIGN.value
    solve_seconds: float = 0.02

    @property
    def settings(self) -> AssociationSettings:
        return AssociationSettings(
            deadline=self.deadline, revision_delay=self.revision_delay, on_missing=OnMissing(self.on_missing)
        )

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(dataclasses.asdict(self)))
        return path


def solution_identity(close: Close, messages: Mapping[str, MemberMessage]) -> str:
    """What the light solver makes of a close: digests in the order in which it is given them, and nothing else."""
    members = [
        (m.member, m.status, messages[m.member].identity if m.member in messages else None) for m in close.members
    ]
    return hash_parts("solution", members, list(messages))


@dataclasses.dataclass(frozen=True)
class Memory:
    """What an aggregator knows of an association; equal for one that was restored and the one before it."""

    records: list[dict[str, Any]]
    deadline_at: float | None
    closed: int
    dispatched: int

    @classmethod
    def all_of(cls, aggregator: Aggregator) -> dict[str, Memory]:
        """Of the associations that the group gave to this aggregator, whatever it believes itself."""
        return {
            association: cls(
                [record.to_json() for record in state.records()],
                state.deadline_at,
                0 if state.last_close is None else state.last_close.revision,
                aggregator.known.dispatched.get(association, 0),
            )
            for association, state in aggregator.state().items()
            if aggregator.inbox.owns(TopicPartition(aggregator.inbox.group, aggregator.known.partitions[association]))
        }


class Light:
    """What the pipeline supplies to the aggregator, and a journal of what happens."""

    def __init__(self, config: AggregatorConfiguration) -> None:
        self.config = config

    def note(self, event: dict[str, Any]) -> None:
        """Append one line, as a whole."""
        line = json.dumps({**event, "worker": os.getpid(), "at": time.time()}, default=str)
        descriptor = os.open(self.config.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode() + b"\n")
        os.close(descriptor)

    async def solve(self, close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        self.note({"event": "solve", "association": close.association, "revision": close.revision})
        await anyio.sleep(self.config.solve_seconds)
        if not any(message.status is MemberStatus.OK for message in messages.values()):
            return None
        identity = solution_identity(close, messages)
        return Solved(result_key(identity), identity)

    async def abandon(self, message: Message, reason: str) -> None:
        self.note({"event": "abandoned", "exposure": message.exposure, "reason": reason})


async def serve(config: AggregatorConfiguration) -> None:
    for fault in config.faults:
        FAULTS[fault]()
    die_at_phases(Path(config.triggers))
    light, store = Light(config), open_store(config.store)
    async with KafkaBroker.from_url(config.broker, timings=TIMINGS) as broker:
        topics = await broker.topics()
        router = Router(
            broker=broker, segments=segments(), run=config.run, status_of=status_of, clock=SystemClock(),
            partitions={name: spec.partitions for name, spec in topics.items()},
        )  # fmt: skip
        aggregator = Aggregator(
            broker=broker, store=store, router=router, solver=light.solve, abandon=light.abandon,
            settings=config.settings, clock=SystemClock(), observe=light.note, start="none",
            revoke_seconds=TIMINGS.revoke_seconds,
        )  # fmt: skip
        async with anyio.create_task_group() as tasks:
            await tasks.start(aggregator.run)
            tasks.start_soon(_tell_memory, aggregator, Path(config.triggers), Path(config.work))
            with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                async for _ in signals:
                    break
            aggregator.inbox.quiet()
            with anyio.move_on_after(5.0):
                await aggregator.inbox.idle()
            tasks.cancel_scope.cancel()


async def _tell_memory(aggregator: Aggregator, triggers: Path, work: Path) -> None:
    """Write down what is known when a test asks for it."""
    asked = triggers / f"memory-{os.getpid()}"
    while True:
        if asked.exists():
            known = {name: dataclasses.asdict(memory) for name, memory in Memory.all_of(aggregator).items()}
            (work / "memory.partial").write_text(json.dumps(known))
            (work / "memory.partial").rename(work / "memory.json")
            asked.unlink()
        await anyio.sleep(0.02)


def last_words(group: BaseException) -> Iterable[str]:
    """The errors in a group, one line each, for who reads of a worker that ended."""
    if isinstance(group, BaseExceptionGroup):
        for error in group.exceptions:
            yield from last_words(error)
    else:
        yield repr(group)


def main() -> int:
    config: AggregatorConfiguration = configured(AggregatorConfiguration)
    try:
        event_loop.run(serve, config)
    except BaseException as error:
        logging.getLogger().exception("stopped")
        sys.stderr.write("\n".join(last_words(error)) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_process(main))
