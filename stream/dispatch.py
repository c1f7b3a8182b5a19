"""Has a close solved and sends its members on to be finalized. When to close is not decided here."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anyio.lowlevel import checkpoint

from stream.association import Close, CloseOutcome
from stream.failure import Failure, FailureClass, RetriableError
from stream.member_statuses import KeptMember
from stream.message import MemberMessage, MemberStatus, Message
from stream.retry import Action
from stream.router import Router
from stream.tracing import Resting, Tracing, carrying

__all__ = ["Abandon", "Dispatcher", "Solved", "Solver", "UnsolvedError", "pause_after"]

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Solved:
    """A joint solution: the key of its manifest."""

    manifest: str
    identity: str


Solver = Callable[[Close, dict[str, MemberMessage]], Awaitable[Solved | None]]
"""Solves one close; None when no member can be aligned. Failures of the fit itself are part of a solution."""

Abandon = Callable[[Message, str], Awaitable[None]]
"""Told about a member that will not be finalized, and why."""

ABANDON = "abandon"
"""Told in place of a `stream.retry.Action` when the members of a close are given up: no dead letter stands for them."""


LONGEST_PAUSE_SECONDS = 300.0
"""Between tries to solve a close: the pause doubles up to this, for each try of many closes takes a slot."""


class UnsolvedError(RetriableError):
    """Something outside failed the solve of a close; the same close can be solved later."""


def pause_after(failed: int, shortest: float) -> float:
    """Seconds before the next try, after so many solves in a row that failed."""
    return float(min(shortest * 2 ** min(max(0, failed - 1), 16), LONGEST_PAUSE_SECONDS))


class Dispatcher:
    """Sends members on.

    Parameters
    ----------
    router : Router
        Sends the finalize messages.
    solver : callable
        Runs the joint stage on one close.
    abandon : callable
        Told about each member of a close that cannot be solved.
    tracing : Tracing
        Traces of members.
    observe : callable
        Told about solves that failed.
    patient : bool
        Whether a close is to be solved later when something outside failed its job, instead of given up.
    """

    def __init__(
        self,
        *,
        router: Router,
        solver: Solver,
        abandon: Abandon,
        tracing: Tracing,
        observe: Callable[[dict[str, Any]], None] = lambda _: None,
        patient: bool = True,
    ) -> None:
        self._router = router
        self._solver = solver
        self._abandon = abandon
        self._tracing = tracing
        self._observe = observe
        self._patient = patient
        self._at_once: dict[str, set[str]] = {}

    async def finalize_at_once(self, message: MemberMessage) -> None:
        """Have a member that cannot be aligned finalized without waiting for a close; once in this process."""
        if message.status not in {MemberStatus.SKIPPED, MemberStatus.SATURATED}:
            return
        done = self._at_once.setdefault(message.association, set())
        if message.digest not in done:
            done.add(message.digest)
            await self._router.send(self._router.finalization(message, revision=None, solution=None))

    def forget(self, association: str) -> None:
        """Remember no longer who of an association was finalized at once: a repeat is then sent on once more."""
        self._at_once.pop(association, None)

    async def send(self, close: Close, members: Mapping[str, KeptMember], check_owned: Callable[[], None]) -> None:
        """Solve a close and send on the members that it uses; ``check_owned`` raises when that is not ours any more.

        Raises
        ------
        UnsolvedError
            It can be solved later; nobody was sent on or given up.
        """
        present = {member: members[member] for member in close.used if member in members}
        with self._tracing.closing(
            f"close {self._router.joint_stage}", [kept.trace.traceparent for kept in present.values()],
            association=close.association, revision=close.revision, reason=close.reason.value,
            outcome=close.outcome.value, expected=len(close.members), used=len(present),
        ):  # fmt: skip
            messages = {}
            for member, kept in present.items():
                messages[member] = kept.message
                await checkpoint()  # ten thousand take seconds to unpack
            solved, unsolved = await self._solve(close, messages)
            for member, kept in present.items():
                check_owned()
                await self._send_on(close, messages[member], kept.trace, solved, unsolved)

    async def _solve(self, close: Close, present: dict[str, MemberMessage]) -> tuple[Solved | None, str | None]:
        """Solution of a close, and why there is none where there should be."""
        if close.outcome is not CloseOutcome.ALIGN:
            return None, None
        try:
            return await self._solver(close, present), None
        except Failure as error:
            if error.failure_class is FailureClass.FATAL:
                raise
            later = error.failure_class is FailureClass.RETRIABLE
            if not self._patient:  # then only broker and store are waited for
                later = isinstance(error, RetriableError)
            self._observe(
                {"event": "attempt_failed", "exposure": close.association, "segment": self._router.joint_stage,
                 "class": error.failure_class.value, "reason": str(error),
                 "action": Action.RETRY_LATER.value if later else ABANDON}
            )  # fmt: skip
            if later:
                raise UnsolvedError(str(error)) from error
            LOG.error("association %s cannot be solved: %s", close.association, error)  # noqa: TRY400
            return None, str(error)

    async def _send_on(
        self, close: Close, message: MemberMessage, trace: Resting, solved: Solved | None, unsolved: str | None
    ) -> None:
        """Have a member finalized, in the exposure's own trace."""
        if message.status is not MemberStatus.OK:
            with carrying(trace.traceparent):
                await self.finalize_at_once(message)
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
