"""What a run has seen of each exposure, and when everything that was asked for is done. No I/O."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from stream.member_list import MemberList

__all__ = ["Outcomes", "Row"]


@dataclass(slots=True)
class Row:
    """One exposure of one association."""

    exposure: str
    association: str
    status: str = "waiting"
    reason: str | None = None
    products: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    finished: float | None = None

    def to_json(self, work: _Work) -> dict[str, Any]:
        """Return the row as a JSON value."""
        shift, rms = self.summary.get("shift"), self.summary.get("rms")
        begun = work.started
        return {
            "exposure": self.exposure,
            "association": self.association,
            "status": self.status,
            "reason": self.reason,
            "products": self.products,
            "outputs": self.outputs,
            "sources": self.summary.get("sources"),
            "shift_mas": None if not shift else 1e3 * math.hypot(*shift),
            "rms_mas": None if rms is None else 1e3 * rms,
            "tweakreg": self.summary.get("statuses", {}).get("tweakreg"),
            "tweakreg_reason": self.summary.get("alignment_reason"),
            "stages_run": len(work.stages),
            "stages_reused": len(work.reused),
            "stages": work.stages,
            "seconds": None if begun is None or self.finished is None else self.finished - begun,
        }


@dataclass(slots=True)
class _Work:
    """What was done on one exposure, for all its associations together."""

    started: float | None = None
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)


class Outcomes:
    """The outcome of a run as its events tell it.

    Parameters
    ----------
    lists : iterable of MemberList
        The associations that were asked for.
    session_ms : int
        Unix time in ms at which this process began: older member messages are those of an earlier one.
    clock : callable
        Seconds, for durations.
    """

    def __init__(
        self, lists: Iterable[MemberList], *, session_ms: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lists = {members.association: members for members in lists}
        self.rows = {(m, a): Row(m, a) for a, members in self.lists.items() for m in members.members}
        self.work: dict[str, _Work] = {}
        self._session_ms = session_ms
        self._clock = clock
        self._unreported = {association: set(members.members) for association, members in self.lists.items()}
        self._settled: dict[str, dict[int, set[str]]] = {association: {} for association in self.lists}
        self.closed: set[str] = set()
        self.dispatched: dict[str, int] = {}
        self.first_work: float | None = None
        self.last_product: float | None = None

    def observe(self, event: dict[str, Any]) -> None:
        """Take note of one event of the engine."""
        handler = getattr(self, f"_on_{event.get('event')}", None)
        if handler is not None:
            handler(event)

    @staticmethod
    def new_work() -> _Work:
        """Work of an exposure on which nothing was done."""
        return _Work()

    def all_reported(self, association: str) -> bool:
        """Whether every member has told the association how it fared, in this session."""
        return not self._unreported[association]

    def is_done(self, association: str, used: Collection[str], revision: int) -> bool:
        """Whether every used member of a dispatched close is finalized, or has failed at it."""
        if self.dispatched.get(association, 0) < revision:
            return False
        by_revision = self._settled[association]
        settled = [by_revision.get(revision, set()), by_revision.get(0, set())]
        # Asked after each event, of ten thousand members: that there are too few is known from their numbers.
        return sum(map(len, settled)) >= len(used) and set(used) <= settled[0] | settled[1]

    def _of(self, exposure: str) -> _Work:
        return self.work.setdefault(exposure, _Work())

    def _on_stage_started(self, event: dict[str, Any]) -> None:
        now = self._clock()
        work = self._of(event["exposure"])
        if work.started is None:
            work.started = now
        if self.first_work is None:
            self.first_work = now

    def _on_stage(self, event: dict[str, Any]) -> None:
        self._of(event["exposure"]).stages[event["stage"]] = {
            key: event[key] for key in ("seconds", "cpu_seconds", "rss") if key in event
        }

    def _on_reused(self, event: dict[str, Any]) -> None:
        self._of(event["exposure"]).reused.update(event["stages"])

    def _on_failed(self, event: dict[str, Any]) -> None:
        association = event.get("association")
        for row in self.rows.values():
            if row.exposure == event["exposure"] and association in {None, row.association}:
                row.status, row.reason = "failed", event["reason"]

    def _on_member(self, event: dict[str, Any]) -> None:
        row = self.rows.get((event["exposure"], event["association"]))
        if row is None or event["published_ms"] < self._session_ms:
            return
        self._unreported[row.association].discard(row.exposure)
        if event["status"] == "failed":
            row.status, row.reason = "failed", event["reason"]

    def _on_closed(self, event: dict[str, Any]) -> None:
        self.closed.add(event["association"])

    def _on_dispatched(self, event: dict[str, Any]) -> None:
        self.dispatched[event["association"]] = event["revision"]

    def _on_finalized(self, event: dict[str, Any]) -> None:
        self._settle(event)
        self.last_product = self._clock()
        row = self.rows.get((event["exposure"], event["association"]))
        if row is not None:
            row.finished = self.last_product

    def _on_finalize_failed(self, event: dict[str, Any]) -> None:
        self._settle(event)
        row = self.rows.get((event["exposure"], event["association"]))
        if row is not None:
            row.status, row.reason = "failed", event["reason"]

    def _settle(self, event: dict[str, Any]) -> None:
        by_revision = self._settled.get(event["association"])
        if by_revision is not None:
            by_revision.setdefault(event["revision"] or 0, set()).add(event["exposure"])
