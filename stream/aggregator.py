"""Gathers the members of associations from the stream, closes each, has it solved, and sends its members on.

A thin driver: `stream.association` decides when an association closes. State is references only, in a compacted
changelog with one record a member; a close is an object that is created once; and everything after a close is
repeated from it if it was not finished.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from stream.association import Association, AssociationSettings, Close, CloseOutcome, MemberRecord, Seen
from stream.broker.protocol import Broker, Record, TopicPartition
from stream.clock import Clock
from stream.dead_letters import bury
from stream.failure import Failure, FailureClass, PermanentError, PoisonError, RetriableError
from stream.identity import canonical_json
from stream.inbox import REVOKE_SECONDS, Inbox
from stream.lease import Lease, OrphanedError
from stream.member_list import load_close, put_close, read_member_list
from stream.message import MemberMessage, MemberStatus, Message
from stream.router import Router
from stream.store import ObjectStore
from stream.topology import changelog_topic_name, topic_name
from stream.tracing import Forwarding, Resting, Tracing, carrying, current_traceparent, traced

__all__ = ["Aggregator", "Solved", "Solver"]

LOG = logging.getLogger(__name__)

DISPATCHED = "#dispatched"
IDLE_SECONDS = 3600.0
"""Longest sleep of the timer when nothing is due; a member's arrival wakes it at once."""

BACKLOG_SECONDS = 0.5
"""How often the timer looks whether the backlog is read, while it is not."""

_PAUSE_SECONDS = 5.0
"""Between tries to send members on while broker or store do not answer."""


@dataclass(frozen=True, slots=True)
class Solved:
    """A joint solution: the key of its manifest."""

    manifest: str
    identity: str


Solver = Callable[[Close, dict[str, MemberMessage]], Awaitable[Solved | None]]
"""Solves one close; None when no member can be aligned. Failures of the fit itself are part of a solution."""

Abandon = Callable[[Message, str], Awaitable[None]]
"""Told about a member that will not be finalized, and why."""

Observer = Callable[[dict[str, Any]], None]


class Aggregator:
    """The aggregator of one run's joint stage.

    Parameters
    ----------
    broker, store : Broker, ObjectStore
        Where members come from and where closes and member lists lie.
    router : Router
        Sends the finalize messages.
    solver : callable
        Runs the joint stage on one close.
    abandon : callable
        Told about each member of a close that cannot be solved.
    settings : AssociationSettings
        When associations close.
    clock : Clock
        Time.
    observe : callable
        Told about members, closes and dispatches.
    start : str
        Where a partition without a commit starts (see `stream.inbox.Inbox`).
    revoke_seconds : float
        How long partitions that must go wait for what is in flight.
    tracing : Tracing, optional
        Traces of members; they are passed on without one.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        store: ObjectStore,
        router: Router,
        solver: Solver,
        abandon: Abandon,
        settings: AssociationSettings,
        clock: Clock,
        observe: Observer = lambda _: None,
        start: str = "earliest",
        revoke_seconds: float = REVOKE_SECONDS,
        tracing: Tracing | None = None,
    ) -> None:
        self._broker = broker
        self._store = store
        self._router = router
        self._solver = solver
        self._abandon = abandon
        self._settings = settings
        self._clock = clock
        self._observe = observe
        self._tracing = tracing or Forwarding()
        self._associations: dict[str, Association] = {}
        self._messages: dict[str, dict[str, MemberMessage]] = {}
        self._traces: dict[str, dict[str, Resting]] = {}
        self._dispatched: dict[str, int] = {}
        self._at_once: set[tuple[str, str]] = set()
        self._unlogged: set[tuple[str, str]] = set()
        self._partition: dict[str, int] = {}
        self._backlog: dict[int, int] = {}
        self._changelog = changelog_topic_name(router.run, router.joint_stage)
        self._topic = topic_name(router.run, router.joint_stage)
        self._wake = anyio.Event()
        self._tasks: TaskGroup | None = None
        self.inbox = Inbox(
            broker=broker,
            group=self._topic,
            topics=(self._topic,),
            handler=traced(self._take, self._tracing, router.joint_stage),
            start=start,
            clock=clock,
            revoke_seconds=revoke_seconds,
            on_assigned=self._take_up,
            on_revoked=self._let_go,
        )

    def state(self) -> dict[str, Association]:
        """The associations by id."""
        return dict(self._associations)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Consume until cancelled. State is restored whenever partitions come, before their records."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            await tasks.start(self.inbox.run)
            task_status.started()
            await self._timer()

    async def settle(self, association: str) -> None:
        """Close at once if anything changed since the last close; else send the members of that close on once more.

        For an operator, or a run that knows that nobody else will come. Repeats are harmless.
        """
        state = await self._state(association)
        last = state.last_close
        if last is not None and not state.changed:
            self._dispatch_soon(last)
        else:
            await self._closed(state, state.close_by_operator())

    async def _take_up(self, partitions: Sequence[TopicPartition]) -> None:
        """Restore what lies in partitions that have come; the backlog is read before any deadline fires."""
        began = self._clock.monotonic()
        mine = {partition.partition for partition in partitions}
        extents = await self._broker.extents(self._topic)
        self._backlog.update({number: extents[number][1] for number in mine})
        records: dict[str, list[MemberRecord]] = {}
        for key, record in (await self._broker.read_latest(self._changelog)).items():
            association, _, member = key.decode().partition("/")
            value = json.loads(record.value or b"null")
            if value["partition"] not in mine:
                continue
            self._partition[association] = value["partition"]
            if member == DISPATCHED:
                self._dispatched[association] = int(value["revision"])
                continue
            restored = MemberRecord.from_json(value["record"])
            records.setdefault(association, []).append(restored)
            message = MemberMessage.model_validate_json(json.dumps(value["message"]))
            self._messages.setdefault(association, {})[member] = message
            self._traces.setdefault(association, {})[member] = Resting(value.get("traceparent"), restored.changed_at)
        for association, found in records.items():
            state = await self._state(association)
            state.restore(found)
        for association in records:
            await self._resume(association)
        self._observe({"event": "restored", "associations": len(records), "seconds": self._clock.monotonic() - began})
        self._wake.set()

    async def _let_go(self, partitions: Sequence[TopicPartition]) -> None:
        """Forget what lies in partitions that go: another aggregator restores it."""
        gone = {partition.partition for partition in partitions}
        for association in [known for known, number in self._partition.items() if number in gone]:
            del self._partition[association]
            for kept in (self._associations, self._messages, self._traces, self._dispatched):
                kept.pop(association, None)
        for number in gone:
            self._backlog.pop(number, None)

    def _owns(self, association: str) -> bool:
        number = self._partition.get(association)
        return number is not None and self.inbox.owns(TopicPartition(self._topic, number))

    def _check_owned(self, association: str) -> None:
        if not self._owns(association):
            raise OrphanedError

    def _backlog_read(self, association: str) -> bool:
        number = self._partition.get(association, -1)
        return self.inbox.prefix(TopicPartition(self._topic, number)) >= self._backlog.get(number, 0)

    async def _state(self, association: str) -> Association:
        state = self._associations.get(association)
        if state is None:
            members = await read_member_list(self._store, self._router.run, association)
            state = Association(association, self._settings)
            state.expect(members.members)
            revision = 1
            while (close := await load_close(self._store, self._router.run, association, revision)) is not None:
                state.record_close(close)
                revision += 1
            self._associations[association] = state
        return state

    async def _resume(self, association: str) -> None:
        """Finish what a crash interrupted: a close whose members were not all sent on, or one that is due."""
        state = self._associations[association]
        last = state.last_close
        if last is not None and self._dispatched.get(association, 0) < last.revision:
            self._dispatch_soon(last)

    async def _take(self, record: Record, lease: Lease) -> None:
        began = self._clock.monotonic()
        await self._member(record, lease)
        self._observe(
            {"event": "record_done", "segment": self._router.joint_stage, "seconds": self._clock.monotonic() - began}
        )

    async def _member(self, record: Record, lease: Lease) -> None:
        try:
            message = MemberMessage.from_record(record)
            state = await self._state(message.association)
        except (PoisonError, PermanentError) as error:
            lease.check()
            await self._bury(record, error)
            return
        self._partition[message.association] = record.partition
        entry = (message.association, message.member)
        seen = state.observe(
            message.member, message.status, message.digest, offset=record.offset, now=self._clock.now()
        )
        if seen in {Seen.NEW, Seen.CHANGED}:
            self._unlogged.add(entry)
        if entry in self._unlogged:  # also when an earlier try at this record got no further
            known = next(r for r in state.records() if r.member == message.member)
            self._messages.setdefault(message.association, {})[message.member] = message
            trace = current_traceparent()
            self._traces.setdefault(message.association, {})[message.member] = Resting(trace, known.changed_at)
            lease.check()
            change = {"record": known.to_json(), "message": message.model_dump(mode="json"), "traceparent": trace}
            await self._log_change(message.association, message.member, change)
            self._unlogged.discard(entry)
        await self._finalize_at_once(message)
        self._observe(
            {"event": "member", "association": message.association, "exposure": message.member,
             "status": message.status.value, "seen": seen.value, "reason": message.reason,
             "late": seen in {Seen.NEW, Seen.CHANGED} and state.last_close is not None,
             "published_ms": record.timestamp_ms}
        )  # fmt: skip
        await self._check(state)
        self._wake.set()

    async def _log_change(self, association: str, member: str, value: dict[str, Any]) -> None:
        await self._broker.publish(
            self._changelog,
            key=f"{association}/{member}".encode(),
            value=canonical_json({"partition": self._partition[association], **value}),
        )

    async def _bury(self, record: Record, error: Exception) -> None:
        LOG.error("member message refused: %s", error)
        failure = {"class": FailureClass.POISON.value, "type": type(error).__name__, "message": str(error)}
        await bury(self._broker, self._router.run, record, stage=self._router.joint_stage, failure=failure, attempts=1)
        self._observe({"event": "dead_letter", "segment": self._router.joint_stage, "class": failure["class"]})

    async def _check(self, state: Association) -> None:
        close = state.due(self._clock.now(), backlog_read=self._backlog_read(state.id))
        if close is not None:
            await self._closed(state, close)

    async def _closed(self, state: Association, close: Close) -> None:
        winner = await put_close(self._store, self._router.run, close)
        state.record_close(winner)
        LOG.info("association %s closed, revision %d: %s", state.id, winner.revision, winner.reason.value)
        self._observe(
            {"event": "closed", "association": state.id, "revision": winner.revision, "reason": winner.reason.value}
        )
        self._dispatch_soon(winner)

    def _dispatch_soon(self, close: Close) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._dispatch_patiently, close)

    async def _dispatch_patiently(self, close: Close) -> None:
        """Send members on until that is done, or another aggregator has the association."""
        while True:
            try:
                await self._dispatch(close)
            except (RetriableError, OrphanedError) as error:
                LOG.warning("members of %s cannot be sent on now: %r", close.association, error)
                await self._clock.sleep(_PAUSE_SECONDS)
                if close.association not in self._partition:
                    return
            else:
                return

    async def _finalize_at_once(self, message: MemberMessage) -> None:
        done = (message.association, message.digest)
        if message.status in {MemberStatus.SKIPPED, MemberStatus.SATURATED} and done not in self._at_once:
            self._at_once.add(done)
            await self._router.send(self._router.finalization(message, revision=None, solution=None))

    async def _dispatch(self, close: Close) -> None:
        messages = self._messages.get(close.association, {})
        present = {m: messages[m] for m in close.used if m in messages}
        traces = self._traces.get(close.association, {})
        with self._tracing.closing(
            f"close {self._router.joint_stage}", [traces[member].traceparent for member in present],
            association=close.association, revision=close.revision, reason=close.reason.value,
            outcome=close.outcome.value, expected=len(close.members), used=len(present),
        ):  # fmt: skip
            solved, unsolved = await self._solve(close, present)
            for message in present.values():
                self._check_owned(close.association)
                await self._send_on(close, message, traces[message.member], solved, unsolved)
        self._check_owned(close.association)
        await self._log_change(close.association, DISPATCHED, {"revision": close.revision})
        self._dispatched[close.association] = close.revision
        self._observe({"event": "dispatched", "association": close.association, "revision": close.revision})

    async def _solve(self, close: Close, present: dict[str, MemberMessage]) -> tuple[Solved | None, str | None]:
        """Solution of a close, and why there is none where there should be."""
        if close.outcome is not CloseOutcome.ALIGN:
            return None, None
        try:
            return await self._solver(close, present), None
        except Failure as error:
            if error.failure_class is FailureClass.FATAL:
                raise
            LOG.error("association %s cannot be solved: %s", close.association, error)  # noqa: TRY400
            return None, str(error)

    async def _send_on(
        self, close: Close, message: MemberMessage, trace: Resting, solved: Solved | None, unsolved: str | None
    ) -> None:
        """Have a member finalized, in the exposure's own trace."""
        if message.status is not MemberStatus.OK:
            with carrying(trace.traceparent):
                await self._finalize_at_once(message)
            return
        finalize = self._router.finalization(
            message, revision=close.revision, solution=solved.manifest if solved else None
        )
        with self._tracing.resuming(
            f"await {self._router.joint_stage}", trace,
            association=close.association, revision=close.revision, exposure=message.member,
        ):  # fmt: skip
            if unsolved is None:
                await self._router.send(finalize)
            else:
                await self._abandon(finalize, unsolved)

    async def _timer(self) -> None:
        while True:
            self._wake = anyio.Event()
            now = self._clock.now()
            times = [at for state in self._associations.values() if (at := state.next_due()) is not None]
            delay = min([at - now for at in times] or [math.inf])
            if not all(self._backlog_read(association) for association in self._associations):
                delay = max(delay, BACKLOG_SECONDS)
            with anyio.move_on_after(max(0.01, min(delay, IDLE_SECONDS))):
                await self._wake.wait()
            for state in list(self._associations.values()):
                if self._owns(state.id):
                    await self._check_patiently(state)

    async def _check_patiently(self, state: Association) -> None:
        try:
            await self._check(state)
        except RetriableError as error:
            LOG.warning("association %s cannot be closed now: %s", state.id, error)
            await self._clock.sleep(_PAUSE_SECONDS)
