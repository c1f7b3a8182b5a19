"""Gathers the members of associations from the stream, closes each, has it solved, and sends its members on.

A thin driver: `stream.association` decides when an association closes; `stream.known_associations` has what is known. A
close is an object that is created once; everything after it is repeated from it if it was not finished.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from stream.association import Association, AssociationSettings, Close, Seen
from stream.broker.protocol import Broker, Record, TopicPartition
from stream.clock import Clock
from stream.dead_letters import bury
from stream.dispatch import Abandon, Dispatcher, Solved, Solver, UnsolvedError, pause_after
from stream.failure import FailureClass, PermanentError, PoisonError, RetriableError
from stream.inbox import REVOKE_SECONDS, Inbox
from stream.known_associations import FORGET_SECONDS, KnownAssociations
from stream.lease import Lease, OrphanedError
from stream.member_list import put_close
from stream.member_statuses import KeptMember
from stream.message import MemberMessage, OrderMessage, about_association
from stream.router import Router
from stream.store import ObjectStore
from stream.topology import topic_name
from stream.tracing import Forwarding, Resting, Tracing, current_traceparent, traced

__all__ = ["Aggregator", "Solved", "Solver"]

LOG = logging.getLogger(__name__)

IDLE_SECONDS = 3600.0
"""Longest sleep of the timer when nothing is due; a member's arrival wakes it at once."""

BACKLOG_SECONDS = 0.5
"""How often the timer looks whether the backlog is read, while it is not, and whether associations are ours."""

_PAUSE_SECONDS = 5.0
"""Between tries to send members on while broker or store do not answer."""

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
    dispatched : callable
        Awaited with an association when the members of a close were sent on, before that is taken note of.
    start : str
        Where a partition without a commit starts (see `stream.inbox.Inbox`).
    revoke_seconds : float
        How long partitions that must go wait for what is in flight.
    forget_seconds : float
        How long a closed association is kept in memory after its last change and ``revision_delay``.
    tracing : Tracing, optional
        Traces of members; they are passed on without one.
    patient : bool
        Whether a solve that something outside fails is tried until it works; else its members are given up.
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
        dispatched: Callable[[str], Awaitable[None]] | None = None,
        start: str = "earliest",
        revoke_seconds: float = REVOKE_SECONDS,
        forget_seconds: float = FORGET_SECONDS,
        tracing: Tracing | None = None,
        patient: bool = True,
    ) -> None:
        self._broker = broker
        self._store = store
        self._router = router
        self._clock = clock
        self._observe = observe
        tracing = tracing or Forwarding()
        self._dispatcher = Dispatcher(
            router=router, solver=solver, abandon=abandon, tracing=tracing, observe=observe, patient=patient
        )
        self._after_dispatch = dispatched
        self.known = KnownAssociations(broker=broker, store=store, router=router, settings=settings)
        self._forget_after = settings.revision_delay + forget_seconds
        self._unlogged: set[tuple[str, str]] = set()
        self._dispatching: set[tuple[str, int]] = set()
        self._backlog: dict[int, int] = {}
        self._due: dict[str, float] = {}
        self._changed: dict[str, None] = {}
        self._topic = topic_name(router.run, router.joint_stage)
        self._wake = anyio.Event()
        self._tasks: TaskGroup | None = None
        self.inbox = Inbox(
            broker=broker,
            group=self._topic,
            topics=(self._topic,),
            handler=traced(self._take, tracing, router.joint_stage),
            start=start,
            clock=clock,
            revoke_seconds=revoke_seconds,
            on_assigned=self._take_up,
            on_revoked=self._let_go,
        )

    def state(self) -> dict[str, Association]:
        """The associations by id."""
        return dict(self.known.states)

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
        state = self.known.states.get(association) or await self.known.stored.load(association)
        self.known.states[association] = state
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
        restored = await self.known.restore(mine)
        for association in restored:
            self._resume(association)
        self._observe({"event": "restored", "associations": len(restored), "seconds": self._clock.monotonic() - began})
        self._look_at(*restored)

    async def _let_go(self, partitions: Sequence[TopicPartition]) -> None:
        """Forget what lies in partitions that go: another aggregator restores it."""
        numbers = {partition.partition for partition in partitions}
        gone = set(self.known.let_go(numbers))
        for association in gone:
            self._due.pop(association, None)
            self._changed.pop(association, None)
        self._unlogged = {entry for entry in self._unlogged if entry[0] not in gone}
        for number in numbers:
            self._backlog.pop(number, None)

    def _owns(self, association: str) -> bool:
        number = self.known.partitions.get(association)
        return number is not None and self.inbox.owns(TopicPartition(self._topic, number))

    def _check_owned(self, association: str) -> None:
        if not self._owns(association):
            raise OrphanedError

    def _backlog_read(self, association: str) -> bool:
        number = self.known.partitions.get(association, -1)
        return self.inbox.prefix(TopicPartition(self._topic, number)) >= self._backlog.get(number, 0)

    def _resume(self, association: str) -> None:
        """Finish what a crash interrupted: a close whose members were not all sent on."""
        last = self.known.states[association].last_close
        if last is not None and self.known.dispatched.get(association, 0) < last.revision:
            self._dispatch_soon(last)

    async def _take(self, record: Record, lease: Lease) -> None:
        began = self._clock.monotonic()
        await self._handle(record, lease)
        self._observe(
            {"event": "record_done", "segment": self._router.joint_stage, "seconds": self._clock.monotonic() - began}
        )

    async def _handle(self, record: Record, lease: Lease) -> None:
        try:
            message = about_association(record)
            state, recalled = await self.known.find(message.association, record.partition)
            if state.superseded_by is not None:  # its list may have been announced anew
                await self.known.stored.look_for_newer_list(state)
            lease.check()  # nothing is kept of a partition that went meanwhile
            self.known.take(state, record.partition, recalled, now=self._clock.now())
            if isinstance(message, OrderMessage):
                await self._order(message, state, lease)
                return
        except (PoisonError, PermanentError) as error:
            lease.check()
            await self._bury(record, error)
            return
        await self._member(message, state, record, lease)

    async def _member(self, message: MemberMessage, state: Association, record: Record, lease: Lease) -> None:
        entry = (message.association, message.member)
        seen = state.observe(
            message.member, message.status, message.digest, offset=record.offset, now=self._clock.now()
        )
        if seen in {Seen.NEW, Seen.CHANGED}:
            self._unlogged.add(entry)
        if entry in self._unlogged:  # also when an earlier try at this record got no further
            known = state.record(message.member)
            assert known is not None, "it was observed"
            member = KeptMember.of(known, message, Resting(current_traceparent(), known.changed_at))
            await self.known.note_member(message.association, record.partition, member, lease.check)
            self._unlogged.discard(entry)
        await self._dispatcher.finalize_at_once(message)
        self._observe(
            {"event": "member", "association": message.association, "exposure": message.member,
             "status": message.status.value, "seen": seen.value, "reason": message.reason,
             "late": seen in {Seen.NEW, Seen.CHANGED} and state.last_close is not None,
             "published_ms": record.timestamp_ms}
        )  # fmt: skip
        await self._check(state)
        self._look_at(state.id)

    async def _order(self, order: OrderMessage, state: Association, lease: Lease) -> None:
        """Do what an operator asks for, unless the revision that the order names is there already.

        Another revision is opened also when nothing changed: for members whose solve or finalization failed.
        """
        missed = await self.known.stored.catch_up(state)
        if missed and state.last_close is not None:  # of an owner before us, who did not get to send its members on
            self._dispatch_soon(state.last_close)
        revision = 0 if state.last_close is None else state.last_close.revision
        if order.revision > revision + 1:
            raise PermanentError(
                f"an order for revision {order.revision} of association {state.id}, which has {revision} so far"
            )
        refusal = None
        if order.revision <= revision:
            refusal = f"revision {order.revision} is there already"
        elif await self.known.stored.look_for_newer_list(state):
            refusal = f"it is superseded by {state.superseded_by}"
        elif not state.records():
            refusal = "no member has come"
        if refusal is None:
            lease.check()
            self._dispatcher.forget(state.id)  # who did not wait for a close may have failed as well
            await self._closed(state, state.close_by_operator(again=True))
        else:
            LOG.info("order to %s association %s: %s", order.action.value, state.id, refusal)
        self._observe(
            {"event": "order", "association": state.id, "action": order.action.value, "revision": order.revision,
             "refusal": refusal}
        )  # fmt: skip
        self._look_at(state.id)

    async def _bury(self, record: Record, error: Exception) -> None:
        LOG.error("member message refused: %s", error)
        failure = {"class": FailureClass.POISON.value, "type": type(error).__name__, "message": str(error)}
        await bury(self._broker, self._router.run, record, stage=self._router.joint_stage, failure=failure, attempts=1)
        self._observe({"event": "dead_letter", "segment": self._router.joint_stage, "class": failure["class"]})

    async def _check(self, state: Association) -> None:
        if any(association == state.id for association, _ in self._unlogged):
            return  # a close names nobody whom a crash would make unknown
        close = state.due(self._clock.now(), backlog_read=self._backlog_read(state.id))
        if close is not None and not await self.known.stored.look_for_newer_list(state):
            await self._closed(state, close)

    async def _closed(self, state: Association, close: Close) -> None:
        winner = await put_close(self._store, self._router.run, close)
        if state.last_close is not None and state.last_close.revision >= winner.revision:
            return  # timer and handler both found it due
        state.record_close(winner)
        LOG.info("association %s closed, revision %d: %s", state.id, winner.revision, winner.reason.value)
        self._observe(
            {"event": "closed", "association": state.id, "revision": winner.revision, "reason": winner.reason.value}
        )
        self._dispatch_soon(winner)

    def _dispatch_soon(self, close: Close) -> None:
        entry = (close.association, close.revision)
        if self._tasks is not None and entry not in self._dispatching:
            self._dispatching.add(entry)
            self._tasks.start_soon(self._dispatch_patiently, close)

    async def _dispatch_patiently(self, close: Close) -> None:
        """Send members on until that is done, or is no longer wanted of us; a close that fails blocks no other."""
        done, unsolved = False, 0
        try:
            while not done:
                try:
                    await self._dispatch(close)
                    done = True
                except (RetriableError, OrphanedError) as error:
                    LOG.warning("members of %s cannot be sent on now: %r", close.association, error)
                    unsolved = unsolved + 1 if isinstance(error, UnsolvedError) else 0
                    await self._clock.sleep(pause_after(unsolved, _PAUSE_SECONDS))
                    done = self.known.is_past(close)
        finally:
            self._dispatching.discard((close.association, close.revision))
            self._look_at(close.association)

    async def _dispatch(self, close: Close) -> None:
        association = close.association
        members = await self.known.statuses.as_closed(close, self.known.members.get(association, {}))
        await self._dispatcher.send(close, members, lambda: self._check_owned(association))
        if self._after_dispatch is not None:
            await self._after_dispatch(association)
        self._check_owned(association)
        await self.known.note_dispatched(association, close.revision)
        self._observe({"event": "dispatched", "association": association, "revision": close.revision})

    def _look_at(self, *associations: str) -> None:
        """Have the timer look at associations that changed: at no others, for ten thousand may be open."""
        self._changed.update(dict.fromkeys(associations))
        self._wake.set()

    async def _timer(self) -> None:
        while True:
            self._wake = anyio.Event()
            now = self._clock.now()
            changed, self._changed = self._changed, {}
            for association in changed | {known: None for known, at in self._due.items() if at <= now}:
                await self._check_patiently(association)
            delay = min(self._due.values(), default=math.inf) - self._clock.now()
            topic = self._topic
            if any(self.inbox.prefix(TopicPartition(topic, number)) < end for number, end in self._backlog.items()):
                delay = max(delay, BACKLOG_SECONDS)
            if self._changed:  # not ours yet, or the store did not answer
                delay = min(delay, BACKLOG_SECONDS)
            with anyio.move_on_after(max(0.01, min(delay, IDLE_SECONDS))):
                await self._wake.wait()

    async def _check_patiently(self, association: str) -> None:
        """Close or forget an association if that is due, and note when it may be due next."""
        self._due.pop(association, None)
        state = self.known.states.get(association)
        if state is None:
            return
        if not self._owns(association):
            self._changed[association] = None
            return
        try:
            await self._check(state)
            at = self._forgotten_at(state)
            if at is not None and at <= self._clock.now():
                self._forget_soon(state)
                return
        except RetriableError as error:
            LOG.warning("association %s cannot be closed now: %s", association, error)
            self._changed[association] = None
            await self._clock.sleep(_PAUSE_SECONDS)
            return
        if (at := state.next_due() if at is None else at) is not None:
            self._due[association] = at

    def _forgotten_at(self, state: Association) -> float | None:
        """Unix time at which an association may be forgotten if nothing happens to it; None while something may."""
        last, settled = state.last_close, state.settled_at
        if last is None or settled is None or self.known.dispatched.get(state.id, 0) < last.revision:
            return None
        if any(association == state.id for association, _ in (*self._unlogged, *self._dispatching)):
            return None
        return max(settled, self.known.touched.get(state.id, 0.0)) + self._forget_after

    def _forget_soon(self, state: Association) -> None:
        self._dispatcher.forget(state.id)
        members = self.known.drop(state.id)
        LOG.info("association %s is forgotten: nothing came since its close", state.id)
        if self._tasks is not None:
            self._tasks.start_soon(self._forget, state.id, members)

    async def _forget(self, association: str, members: Sequence[KeptMember]) -> None:
        try:
            await self.known.forget(association, members)
        except RetriableError as error:  # what is left is forgotten after the next restore
            LOG.warning("association %s cannot leave the changelog now: %s", association, error)
        self._observe({"event": "forgotten", "association": association})
