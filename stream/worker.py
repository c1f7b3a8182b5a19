"""Serves segments: takes a message, looks for results that exist, runs a job for the rest, stores, publishes, commits.

Order is write effect, publish, commit (`stream.inbox` commits after the handler returns). A message that is seen again
finds its result and publishes it again under the same deterministic id.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

import anyio
from anyio.abc import TaskStatus

from stream.broker.protocol import NOT_BEFORE, Broker, Record
from stream.clock import Clock
from stream.dead_letters import bury
from stream.failure import Failure, FailureClass, FatalError, PermanentError, PoisonError
from stream.inbox import REVOKE_SECONDS, Inbox
from stream.jobs import JobOutcome
from stream.lease import Lease
from stream.message import Message, MessageKind
from stream.precedence import Capacity
from stream.results import Manifest
from stream.retry import Action, Attempt, Breaker, Outcome, RetryPolicy
from stream.router import Router
from stream.run_records import AttemptRecord, Attempts
from stream.stopped_segments import StoppedSegments
from stream.together import together
from stream.topology import Segment, retry_topic_name, topic_name
from stream.tracing import Forwarding, Tracing, traced

__all__ = ["SegmentWork", "SegmentWorker", "WorkFailedError"]

LOG = logging.getLogger(__name__)

Observer = Callable[[dict[str, Any]], None]

_RELEASE_SECONDS = 5.0
"""How long a worker that stops may take to say so in the attempts that it gives up: one small object each."""


class WorkFailedError(Failure):
    """A job that did not return, with what is known of its end."""

    def __init__(self, outcome: JobOutcome) -> None:
        failure = outcome.failure or {}
        super().__init__(str(failure.get("message", "the job failed")))
        self.failure = failure
        self.failure_class = FailureClass(failure.get("class", FailureClass.PERMANENT))


class SegmentWork(Protocol):
    """What a worker does for one message: supplied with the jobs of the pipeline at hand."""

    async def process(self, message: Message, segment: Segment, *, attempt: str, bigger_slot: bool) -> Manifest:
        """Store the result of the message's segment, or find the one that exists; raises `Failure`."""
        ...

    async def finish(self, message: Message, manifest: Manifest) -> None:
        """Publish what follows from a finalized exposure."""
        ...

    async def abandon(self, message: Message, reason: str) -> None:
        """Tell those who wait for a finalized exposure that it will not come."""
        ...


class SegmentWorker:
    """Serves one segment of one run.

    Parameters
    ----------
    broker, attempts, router : Broker, Attempts, Router
        The engine's parts.
    segment : Segment
        What to serve.
    work : SegmentWork
        Does the work.
    capacity : Capacity
        One token for each message in flight; segments may share them (see `stream.precedence`).
    policy : RetryPolicy
        What becomes of failures.
    breaker : Breaker
        Stops the stage when too much fails.
    clock, rng : Clock, random.Random
        Time and chance.
    observe : callable
        Told what happens, as small dicts.
    start : str
        Where a partition without a commit starts (see `stream.inbox.Inbox`).
    revoke_seconds : float
        How long partitions that must go wait for what is in flight.
    tracing : Tracing, optional
        Traces of messages; they are passed on without one.
    stopped : StoppedSegments, optional
        Told when the breaker opens, so that no other worker goes on.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        attempts: Attempts,
        router: Router,
        segment: Segment,
        work: SegmentWork,
        capacity: Capacity,
        policy: RetryPolicy,
        breaker: Breaker,
        clock: Clock,
        rng: random.Random,
        observe: Observer = lambda _: None,
        start: str = "earliest",
        revoke_seconds: float = REVOKE_SECONDS,
        tracing: Tracing | None = None,
        stopped: StoppedSegments | None = None,
    ) -> None:
        self._broker = broker
        self._attempts_kept = attempts
        self._router = router
        self._segment = segment
        self._work = work
        self._policy = policy
        self._breaker = breaker
        self._stopped = stopped
        self._clock = clock
        self._rng = rng
        self._observe = observe
        self._locks: dict[str, anyio.Lock] = {}
        topic = topic_name(router.run, segment.name)
        retries = [retry_topic_name(router.run, segment.name, tier) for tier in range(len(policy.retry_delays))]
        self.inbox = Inbox(
            broker=broker,
            group=topic,
            topics=(topic, *retries),
            handler=traced(self._handle, tracing or Forwarding(), segment.name),
            capacity=capacity,
            start=start,
            clock=clock,
            revoke_seconds=revoke_seconds,
        )

    @property
    def breaker(self) -> Breaker:
        """The stage's breaker."""
        return self._breaker

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        Raises
        ------
        stream.failure.FatalError
            The engine cannot go on; the message that met it is not committed.
        """
        await self.inbox.run(task_status=task_status)

    async def _handle(self, record: Record, lease: Lease) -> None:
        began = self._clock.monotonic()
        try:
            message = Message.from_record(record)
        except PoisonError as error:
            LOG.error("%s", error)  # noqa: TRY400 - the text says it all
            await self._bury(record, error, attempts=1, lease=lease)
            return
        # Repeats of one message wait for one another: the second finds the result of the first.
        lock = self._locks.setdefault(message.identity, anyio.Lock())
        try:
            async with lock:
                await self._attempts(record, message, lease)
        finally:
            if not (lock.locked() or lock.statistics().tasks_waiting):
                self._locks.pop(message.identity, None)
        self._observe(
            {"event": "record_done", "segment": self._segment.name, "seconds": self._clock.monotonic() - began}
        )

    async def _attempts(self, record: Record, message: Message, lease: Lease) -> None:
        attempts = self._attempts_kept
        lease.check()
        lease.check_start()
        earlier: list[Attempt] = []
        attempt = await attempts.first(message.exposure, message.stage)
        if attempt is None:
            earlier = [known.attempt for known in await attempts.earlier(message.exposure, message.stage)]
            refused = self._policy.admit(earlier)
            if refused is not None:
                await self._give_up(record, message, PermanentError(refused.reason), earlier, lease)
                return
        while True:
            bigger = self._policy.needs_bigger_slot(earlier)
            if attempt is None:
                lease.check_start()
                number = max((known.number for known in earlier), default=0)
                attempt = await attempts.start(message.exposure, message.stage, bigger_slot=bigger, after=number)
            try:
                async with self._released_on_stop(attempt):
                    manifest = await self._work.process(message, self._segment, attempt=attempt.id, bigger_slot=bigger)
            except Failure as error:
                ended = await attempts.end(attempt, Outcome(error.failure_class.value), _described(error))
                earlier.append(ended.attempt)
                lease.check()
                if not await self._failed(record, message, error, earlier, lease):
                    return
                attempt = None
            else:
                self._breaker.record(None, observation=_observation(message))
                # Neither needs the other, and the commit waits for both.
                await together(
                    [partial(attempts.end, attempt, Outcome.DONE), partial(self._emit, message, manifest, lease)]
                )
                return

    @asynccontextmanager
    async def _released_on_stop(self, attempt: AttemptRecord) -> AsyncIterator[None]:
        """Mark an attempt as nobody's fault when this worker stops in the middle of it."""
        try:
            yield
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_RELEASE_SECONDS, shield=True), contextlib.suppress(Failure):
                await self._attempts_kept.end(attempt, Outcome.RELEASED)
            raise

    async def _failed(
        self, record: Record, message: Message, error: Failure, attempts: Sequence[Attempt], lease: Lease
    ) -> bool:
        """Do what the policy says; True to try again now."""
        if self._breaker.record(error.failure_class, observation=_observation(message)):
            self._observe({"event": "breaker", "segment": self._segment.name, "reason": self._breaker.reason})
            if self._stopped is not None:
                await self._stopped.stop(self._segment.name, str(self._breaker.reason))
            raise FatalError(f"stage {self._segment.name} is stopped: {self._breaker.reason}; last: {error}") from error
        decision = self._policy.decide(attempts, now=self._clock.now(), rng=self._rng)
        LOG.warning("%s at %s: %s; %s", message.exposure, self._segment.name, error, decision.reason)
        self._observe(
            {"event": "attempt_failed", "exposure": message.exposure, "segment": self._segment.name,
             "class": error.failure_class.value, "reason": str(error), "action": decision.action.value}
        )  # fmt: skip
        if decision.action is Action.STOP:
            raise error
        if decision.action is Action.RETRY_IN_PLACE:
            await self._clock.sleep(decision.delay)
            return True
        if decision.action is Action.BIGGER_SLOT:
            return True
        if decision.action is Action.RETRY_LATER and decision.tier is not None:
            headers = tuple(header for header in record.headers if header[0] != NOT_BEFORE)
            lease.check()
            await self._broker.publish(
                retry_topic_name(message.run, self._segment.name, decision.tier),
                key=record.key,
                value=record.value,
                headers=(*headers, (NOT_BEFORE, str(decision.not_before_ms).encode())),
            )
            return False
        await self._give_up(record, message, error, attempts, lease)
        return False

    async def _give_up(
        self, record: Record, message: Message, error: Failure, attempts: Sequence[Attempt], lease: Lease
    ) -> None:
        await self._bury(record, error, attempts=len(attempts), lease=lease)
        self._observe(
            {"event": "failed", "exposure": message.exposure, "segment": self._segment.name, "reason": str(error),
             "association": message.association}
        )  # fmt: skip
        if message.kind is MessageKind.FINALIZE:
            await self._work.abandon(message, str(error))
        else:
            for association in message.associations:
                lease.check()
                await self._router.failed(message.exposure, association, str(error), message.facts, cause=message)

    async def _bury(self, record: Record, error: Failure, *, attempts: int, lease: Lease) -> None:
        described = _described(error)
        lease.check()
        await bury(
            self._broker, self._router.run, record, stage=self._segment.name, failure=described, attempts=attempts
        )
        self._observe({"event": "dead_letter", "segment": self._segment.name, "class": described["class"]})

    async def _emit(self, message: Message, manifest: Manifest, lease: Lease) -> None:
        lease.check()
        if message.kind is MessageKind.FINALIZE:
            await self._work.finish(message, manifest)
        else:
            await self._router.forward(message, manifest)


def _observation(message: Message) -> str:
    return str(message.facts.get("observation_id", message.exposure))


def _described(error: Failure) -> dict[str, Any]:
    described = {"class": error.failure_class.value, "type": type(error).__name__, "message": str(error)}
    return {**getattr(error, "failure", {}), **described}
