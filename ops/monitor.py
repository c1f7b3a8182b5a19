"""Watches one worker from inside: feeds the gauges, and the watchdog. Decides nothing about messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import anyio

from stream.aggregator import Aggregator
from stream.broker.protocol import Broker
from stream.failure import Failure
from stream.inbox import Inbox
from stream.metrics import Metrics
from stream.precedence import Capacity
from stream.watchdog import Facts, ProgressWatch, Watchdog

__all__ = ["Monitor"]

LOG = logging.getLogger(__name__)

TICK_SECONDS = 0.5
LOOK_SECONDS = 5.0
"""Between looks at lags: a few requests a segment."""

AGE_EVERY = 3
"""Looks between two looks at the age of what waits: each reads a record of the log."""


class Monitor:
    """The monitor of one worker.

    Parameters
    ----------
    broker : Broker
        For lags.
    inboxes : mapping of str to Inbox
        By segment.
    topics : mapping of str to sequence of str
        Topics of each segment.
    aggregator : Aggregator, optional
        When this worker has the joint stage.
    tokens : Capacity
        What inboxes share.
    metrics : Metrics
        What is fed.
    watchdog : Watchdog
        Told that the loop runs, and to bite.
    watch : ProgressWatch
        Decides when.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        inboxes: Mapping[str, Inbox],
        topics: Mapping[str, Sequence[str]],
        aggregator: Aggregator | None,
        tokens: Capacity,
        metrics: Metrics,
        watchdog: Watchdog,
        watch: ProgressWatch | None = None,
    ) -> None:
        self._broker = broker
        self._inboxes = dict(inboxes)
        self._topics = dict(topics)
        self._aggregator = aggregator
        self._tokens = tokens
        self._metrics = metrics
        self._watchdog = watchdog
        self._watch = watch or ProgressWatch()
        self._gap_since: dict[str, float] = {}
        self._looks = 0
        self._broker_answers = True
        self._lag = 0
        self.stopping = False
        self.ready = False

    def live(self) -> str | None:
        """What is wrong with this worker, None when nothing is."""
        return self._watch.trouble(self._facts(), time.monotonic())

    def not_ready(self) -> str | None:
        """Why this worker should not be counted on, None when it should."""
        if self.stopping:
            return "taking nothing more"
        restoring = [name for name, inbox in self._inboxes.items() if inbox.taking_up]
        if restoring:
            return f"restoring what {', '.join(restoring)} knew"
        unstable = [name for name, inbox in self._inboxes.items() if inbox.stable_since is None]
        if not self.ready or unstable:
            return f"waiting for an assignment of {', '.join(unstable) or 'its segments'}"
        return None if self._broker_answers else "the broker does not answer"

    def _facts(self) -> Facts:
        stable = [inbox.stable_since for inbox in self._inboxes.values()]
        known = [since for since in stable if since is not None]
        owned = any(inbox.partitions for inbox in self._inboxes.values())
        return Facts(
            waiting=self._lag if owned else 0,
            free=int(self._tokens.total_tokens - self._tokens.borrowed_tokens),
            started=max((inbox.last_start for inbox in self._inboxes.values()), default=0.0),
            stable_since=max(known) if len(known) == len(stable) and known else None,
            stopping=self.stopping,
            broker_answers=self._broker_answers,
            taking_up=any(inbox.taking_up for inbox in self._inboxes.values()),
        )

    async def run(self) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tick)
            while True:
                await self._look()
                trouble = self.live()
                if trouble is not None:
                    self._watchdog.trip(trouble)
                await anyio.sleep(LOOK_SECONDS)

    async def _tick(self) -> None:
        gauge = self._metrics["loop_lag_seconds"]
        while True:
            due = time.monotonic() + TICK_SECONDS
            await anyio.sleep(TICK_SECONDS)
            self._watchdog.tick()
            gauge.set(max(0.0, time.monotonic() - due))

    async def _look(self) -> None:
        self._looks += 1
        self._own()
        try:
            with anyio.fail_after(LOOK_SECONDS * 4):
                await self._lags()
        except (Failure, TimeoutError) as error:
            self._broker_answers = False
            LOG.warning("the broker does not tell lags: %r", error)
        else:
            self._broker_answers = True
        if self._aggregator is not None:
            self._associations(self._aggregator)

    def _own(self) -> None:
        now = time.monotonic()
        for segment, inbox in self._inboxes.items():
            gap = sum(inbox.gaps().values())
            if gap == 0:
                self._gap_since.pop(segment, None)
            since = self._gap_since.setdefault(segment, now) if gap else now
            for name, value in {
                "in_flight": inbox.in_flight,
                "partitions": len(inbox.partitions),
                "rebalances": inbox.rebalances,
                "commit_gap_records": gap,
                "commit_gap_seconds": now - since,
            }.items():
                self._metrics[name].labels(segment).set(value)

    async def _lags(self) -> None:
        waiting = 0
        for segment, topics in self._topics.items():
            group = topics[0]
            lag = sum([await self._broker.lag(group, topic) for topic in topics])
            # Retry topics hold what is not due; only the inbox says whether there is something to do.
            inbox = self._inboxes[segment]
            open_here = lag - inbox.in_flight
            waiting += max(0, open_here) if await self._broker.lag(group, group) > inbox.in_flight else 0
            self._metrics["lag_records"].labels(segment).set(lag)
            if self._looks % AGE_EVERY == 1:
                self._metrics["lag_seconds"].labels(segment).set(await self._age(group) if lag else 0.0)
        self._lag = waiting

    async def _age(self, topic: str) -> float:
        committed = await self._broker.committed(topic, topic)
        oldest = None
        for number, (first, end) in (await self._broker.extents(topic)).items():
            commit = committed.get(number)
            offset = first if commit is None else max(first, commit.offset)
            if offset < end:
                for record in await self._broker.read(topic, number, offset, offset + 1):
                    oldest = record.timestamp_ms if oldest is None else min(oldest, record.timestamp_ms)
        return 0.0 if oldest is None else max(0.0, time.time() - oldest / 1000)

    def _associations(self, aggregator: Aggregator) -> None:
        known = aggregator.state().values()
        opened = [state for state in known if state.last_close is None and state.superseded_by is None]
        first = [since for state in opened if (since := state.since) is not None]
        self._metrics["open_associations"].set(len(opened))
        self._metrics["oldest_association_seconds"].set(time.time() - min(first) if first else 0.0)
