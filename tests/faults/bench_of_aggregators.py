"""Tells aggregators on real servers of members, kills them, and checks what every history must have kept."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import anyio

from ops.topics import group_topics
from stream.association import Association, AssociationSettings, Close, CloseOutcome
from stream.broker.protocol import TopicSpec
from stream.changelog import Changelog
from stream.clock import SystemClock
from stream.identity import association_id, hash_parts
from stream.member_list import MemberList, load_close, put_member_list, take_product_name
from stream.member_statuses import Kept, MemberStatuses
from stream.message import MemberMessage, MemberStatus, Message, MessageKind, decode
from stream.results import result_key
from stream.router import Router
from stream.together import together
from stream.topology import changelog_topic_name, topic_name
from tests.faults.bench_of_workers import Bench, every_record
from tests.faults.light_aggregator import AggregatorConfiguration, Memory, solution_identity
from tests.faults.light_topology import JOINT, JOINT_BRANCH, LAST, segments, status_of

__all__ = ["AggregatorBench", "at_the_same_time"]

OK, FAILED, SKIPPED, SATURATED = MemberStatus


T = TypeVar("T")


async def at_the_same_time(
    names: Sequence[str],
    bench: Callable[[str], AggregatorBench],
    history: Callable[[AggregatorBench, str], Awaitable[T]],
    *,
    partitions: int = 2,
) -> dict[str, T]:
    """Have a history happen on a bench of its own for each name: most of it is waiting."""
    found: dict[str, T] = {}

    async def happen(name: str) -> None:
        async with bench(name).opened(partitions=partitions) as opened:
            found[name] = await history(opened, name)

    await together([partial(happen, name) for name in names])
    return found


class AggregatorBench(Bench):
    """One run of associations: its servers' own topics and prefix, what was told, its aggregators."""

    module = "tests.faults.light_aggregator"
    configuration = AggregatorConfiguration

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lists: dict[str, MemberList] = {}
        self._changelog: Mapping[str, str] = {}
        self._accepted: dict[tuple[str, int], Close] = {}
        self._overwritten: list[str] = []
        self._told: dict[tuple[str, str, str], MemberMessage] = {}
        self._router: Router | None = None

    @contextlib.asynccontextmanager
    async def opened(
        self, *, partitions: int = 2, changelog: Mapping[str, str] = MappingProxyType({})
    ) -> AsyncIterator[AggregatorBench]:
        """Have the run's topics; the changelog may have settings of its own."""
        self._changelog = changelog
        async with super().opened(partitions=partitions):
            yield self

    @property
    def changelog_topic(self) -> str:
        return changelog_topic_name(self.run, JOINT)

    def topics(self, partitions: int) -> list[TopicSpec]:
        return [
            dataclasses.replace(spec, config=self._changelog) if spec.compacted else spec
            for spec in super().topics(partitions)
        ]

    def groups(self) -> dict[str, list[str]]:
        joint = topic_name(self.run, JOINT)
        return {joint: group_topics(self.run, segments(), 0)[joint]}

    # What a test does

    async def announce(self, product_name: str, *members: str) -> str:
        listed = MemberList(association_id(product_name, members), members, product_name)
        await put_member_list(self.store, self.run, listed)
        await take_product_name(self.store, self.run, listed)
        self.lists[listed.association] = listed
        return listed.association

    def message(self, association: str, member: str, status: MemberStatus = OK, content: str = "") -> MemberMessage:
        """What a member has to tell; another content is another result."""
        if status is FAILED:
            reason = content or "no flat"
            return MemberMessage(run=self.run, association=association, member=member, status=status, reason=reason)
        identity = hash_parts("member", member, content)
        return MemberMessage(
            run=self.run, association=association, member=member, status=status, branch=JOINT_BRANCH, identity=identity,
            manifest=result_key(identity), facts={"locality": 1},
        )  # fmt: skip

    async def send(self, *messages: MemberMessage) -> None:
        if self._router is None:
            self._router = Router(
                broker=self.broker, segments=segments(), run=self.run, status_of=status_of, clock=SystemClock()
            )
        for message in messages:
            self._told[message.association, message.member, message.digest] = message
            await self._router.send_member(message)

    async def kill(self, worker: subprocess.Popen[bytes]) -> None:
        worker.kill()
        await anyio.to_thread.run_sync(worker.wait)

    async def killed_at(self, phase: str, worker: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
        """Wait until a worker has died at a phase for which there is a trigger."""
        await self.wait_for(lambda: worker.poll() is not None, seconds)
        assert not (self.triggers / f"kill-{phase}").exists()

    def events(self, name: str, worker: subprocess.Popen[bytes] | None = None) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [row for row in rows if row["event"] == name and (worker is None or row["worker"] == worker.pid)]

    async def until(self, event: str, count: int = 1, worker: subprocess.Popen[bytes] | None = None) -> None:
        await self.wait_for(lambda: len(self.events(event, worker)) >= count)

    # What is so

    async def closes(self, association: str) -> list[Close]:
        """The accepted closes; one that is not what it was when it was seen first is a problem for good."""
        found: list[Close] = []
        while (close := await load_close(self.store, self.run, association, len(found) + 1)) is not None:
            accepted = self._accepted.setdefault((association, close.revision), close)
            if close != accepted:
                self._overwritten.append(f"revision {close.revision} of {association} was {accepted}, is {close}")
            found.append(close)
        return found

    async def memory(self) -> dict[str, Memory]:
        """What the running aggregators know."""
        found: dict[str, Memory] = {}
        for worker in self.running():
            trigger = self.triggers / f"memory-{worker.pid}"
            trigger.touch()
            await self.wait_for(lambda trigger=trigger: not trigger.exists(), 10)  # type: ignore[misc]
            told = (self.folder / f"worker-{self.workers.index(worker)}" / "memory.json").read_text()
            found |= {name: Memory(**memory) for name, memory in json.loads(told).items()}
        return found

    async def settled(self, seconds: float = 30.0, **expected: Any) -> list[str]:  # type: ignore[override]
        """What does not hold after so many seconds; empty as soon as everything does, and still does a moment later."""
        gives_up = time.monotonic() + seconds
        held = 0
        while True:
            found = await self.problems(**expected)
            held = 0 if found else held + 1
            if held == 2 or time.monotonic() > gives_up:
                return found
            await anyio.sleep(0.25)

    async def problems(  # type: ignore[override]
        self, *, waiting: Sequence[str] = (), left: Sequence[str] = (), dead: int = 0
    ) -> list[str]:
        """What this run did not keep of what every run must keep.

        Associations that are ``waiting`` have no close; those that are ``left`` may have closes of earlier days.
        """
        if lag := await self.lag():
            return [f"{lag} records are not committed"]
        newest = self._newest(await every_record(self.broker, topic_name(self.run, JOINT)))
        sent = self._finalizations(await every_record(self.broker, topic_name(self.run, LAST)))
        found: list[str] = []
        closes = {association: await self.closes(association) for association in self.lists}
        for association, listed in self.lists.items():
            known = newest.get(association, {})
            mine = {key[1:]: messages for key, messages in sent.items() if key[0] == association}
            if association in left:
                continue
            if association in waiting or not known:
                found += [f"{association} has closed: {closes[association]}"] if closes[association] else []
                continue
            found += self._close_problems(listed, known, closes[association])
            found += [f"{association}: {text}" for text in self._sent_problems(known, closes[association], mine)]
        found += await self._memory_problems(newest, closes, left)
        if len(letters := await self.dead_letters()) != dead:
            found.append(f"dead letters {[letter.value for letter in letters]}, expected {dead}")
        found += [f"abandoned: {event}" for event in self.events("abandoned")]
        return found + self._overwritten

    @staticmethod
    def _newest(records: Sequence[Any]) -> dict[str, dict[str, tuple[MemberMessage, int]]]:
        """The newest status of each member by the log alone, with its offset: a repeat is none."""
        found: dict[str, dict[str, tuple[MemberMessage, int]]] = {}
        for record in records:
            message = decode(record)
            if isinstance(message, MemberMessage):
                known = found.setdefault(message.association, {})
                if message.member not in known or known[message.member][0].digest != message.digest:
                    known[message.member] = (message, record.offset)
        return found

    @staticmethod
    def _finalizations(records: Sequence[Any]) -> dict[tuple[str, str, int | None], dict[bytes | None, Message]]:
        """What was sent on, for each association, member and revision: messages by their ids."""
        found: dict[tuple[str, str, int | None], dict[bytes | None, Message]] = {}
        for record in records:
            message = Message.from_record(record)
            assert message.kind is MessageKind.FINALIZE
            key = (str(message.association), message.exposure, message.revision)
            found.setdefault(key, {})[record.header("ce_id")] = message
        return found

    @staticmethod
    def _close_problems(
        listed: MemberList, known: dict[str, tuple[MemberMessage, int]], closes: list[Close]
    ) -> list[str]:
        """The newest close has the newest status of each member, in the order of the list."""
        if not closes:
            return [f"{listed.association} is not closed"]
        expected = [
            (name, known[name][0].status.value, known[name][0].digest) if name in known else (name, "missing", None)
            for name in listed.members
        ]
        got = [(member.member, member.status, member.digest) for member in closes[-1].members]
        return [] if got == expected else [f"{listed.association} closed last with {got}, expected {expected}"]

    def _sent_problems(
        self,
        known: dict[str, tuple[MemberMessage, int]],
        closes: list[Close],
        sent: dict[tuple[str, int | None], dict[bytes | None, Message]],
    ) -> list[str]:
        """Each used member was sent on for the newest close, and everything that was sent is as its close says."""
        found = [f"{key} was sent under {len(ids)} ids" for key, ids in sent.items() if len(ids) > 1 and key[1]]
        wanted: set[tuple[str, int | None]] = set()
        for close in closes:
            solution = self._solution(close)
            for member in close.members:
                key = (member.member, close.revision if member.status == OK.value else None)
                if member.member not in close.used:
                    continue
                wanted.add(key)
                messages = list(sent.get(key, {}).values())
                if not messages and close is closes[-1]:
                    found.append(f"{key} was not sent on")
                if member.status == OK.value:
                    told = self._told[close.association, member.member, str(member.digest)]
                    right = (told.identity, solution)
                    found += [f"{key} was sent on as {m}" for m in messages if (m.identity, m.solution) != right]
        return found + [f"{key} was sent on and is in no close" for key in sent.keys() - wanted if key[1]]

    def _solution(self, close: Close) -> str | None:
        """Key of the solution of a close, from what it says alone."""
        messages = {m.member: self._told[close.association, m.member, str(m.digest)] for m in close.members if m.digest}
        used = {member: messages[member] for member in close.used}
        if close.outcome is not CloseOutcome.ALIGN or not any(message.status is OK for message in used.values()):
            return None
        return result_key(solution_identity(close, used))

    async def _memory_problems(
        self,
        newest: dict[str, dict[str, tuple[MemberMessage, int]]],
        closes: dict[str, list[Close]],
        left: Sequence[str],
    ) -> list[str]:
        """What aggregators know is what the log says, and is found again in the changelog, and in the store."""
        changelog = await Changelog(self.broker, self.changelog_topic).read()
        partitions = range(len(await self.broker.extents(topic_name(self.run, JOINT))))
        store = await MemberStatuses(self.store, self.run).newest(partitions)
        live = await self.memory()
        found = []
        for association, known in newest.items():
            if association in left or association not in self.lists:
                continue
            restored = self._restored(association, changelog.get(association), closes[association])
            told = [(r["member"], r["status"], r["digest"], r["offset"]) for r in restored.records]
            wanted = [(name, m.status.value, m.digest, offset) for name, (m, offset) in sorted(known.items())]
            if told != wanted:
                found.append(f"the changelog has {told} of {association}, expected {wanted}")
            if live.get(association) != restored:
                found.append(f"{association} is known as {live.get(association)} and would be restored as {restored}")
            rebuilt = self._restored(association, store.get(association), closes[association])
            if (rebuilt.records, rebuilt.deadline_at) != (restored.records, restored.deadline_at):
                found.append(f"{association} would be rebuilt from the store as {rebuilt}, not {restored}")
            if restored.dispatched != restored.closed:
                found.append(f"revision {restored.closed} of {association} is not noted as sent on")
        return found

    def _restored(self, association: str, kept: Kept | None, closes: list[Close]) -> Memory:
        state = Association(association, AssociationSettings())
        state.expect(self.lists[association].members)
        if kept is not None:
            state.restore(member.record for member in kept.members.values())
        records = [record.to_json() for record in state.records()]
        return Memory(records, state.deadline_at, len(closes), 0 if kept is None else kept.dispatched)
