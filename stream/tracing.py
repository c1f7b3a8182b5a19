"""Traces across messages: each carries the W3C trace context of its exposure. Records nothing: that is an option.

A worker takes the context from the ``traceparent`` header of what it handles, and whatever is published meanwhile goes
on with it (`current_traceparent`, which `stream.router` asks). The context is a header alone: it enters no message, no
identity and no digest. `Forwarding` passes it on as it came; `stream.opentelemetry_tracing` also records spans.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from stream.broker.protocol import Headers, Record
from stream.lease import Lease

__all__ = [
    "TRACEPARENT",
    "Forwarding",
    "Resting",
    "Tracing",
    "carrying",
    "current_traceparent",
    "parse_traceparent",
    "traced",
    "traceparent_of",
]

TRACEPARENT = "traceparent"
"""Name of the header."""

_IDS = r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_VALID = re.compile(rf"00-{_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_IDS}(?:-[!-~]{{0,200}})?")
"""Version 00 is fixed; a newer one may have more behind the same fields; ff is no version."""

_SAMPLED = "01"

# Belongs to the task that handles a message, and to the tasks that it starts: nothing is shared between messages.
_CURRENT: ContextVar[str | None] = ContextVar("rampstream_traceparent", default=None)

Event = Mapping[str, Any]
Observer = Callable[[dict[str, Any]], None]
Handler = Callable[[Record, Lease], Awaitable[None]]


def parse_traceparent(value: bytes | None) -> str | None:
    """Return the trace context in a header's value; None when it is none by the letter of W3C Trace Context."""
    if value is None or not value.isascii():
        return None
    text = value.decode("ascii")
    return text if _VALID.fullmatch(text) else None


def traceparent_of(headers: Headers) -> str | None:
    """Return the trace context in a record's headers; None when there is none, or more than one."""
    found = [value for name, value in headers if name == TRACEPARENT]
    return parse_traceparent(found[0]) if len(found) == 1 else None


def current_traceparent() -> str | None:
    """Return the trace context that a message published now goes on with."""
    return _CURRENT.get()


@contextmanager
def carrying(traceparent: str | None) -> Iterator[None]:
    """Let what is published in the block go on with a trace; with none, when there is none."""
    token = _CURRENT.set(traceparent)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def traced(handler: Handler, tracing: Tracing, segment: str) -> Handler:
    """Return a handler of records under each record's trace."""

    async def handle(record: Record, lease: Lease) -> None:
        with tracing.handling(record, segment):
            await handler(record, lease)

    return handle


class Resting(NamedTuple):
    """A trace that goes on later, and the Unix time since when it rests."""

    traceparent: str | None
    since: float


class Tracing(Protocol):
    """What the engine tells of where it is. Attributes are small: texts, numbers and sequences of them."""

    def starting(self, name: str, **attributes: Any) -> AbstractContextManager[None]:
        """A new trace: an exposure is announced in the block."""
        ...

    def handling(self, record: Record, segment: str) -> AbstractContextManager[None]:
        """The trace of a record goes on: it is handled in the block."""
        ...

    def closing(self, name: str, members: Iterable[str | None], **attributes: Any) -> AbstractContextManager[None]:
        """A new trace that points to those of ``members``: an association is closed and solved in the block."""
        ...

    def resuming(self, name: str, resting: Resting, **attributes: Any) -> AbstractContextManager[None]:
        """A trace that rested goes on, because of what is done around the block."""
        ...

    def job(self) -> AbstractContextManager[Callable[[Event], None]]:
        """A job runs in the block; the callable is given what its process reports."""
        ...

    def observing(self, observe: Observer) -> Observer:
        """An observer that also notes failures, and what else explains a message's fate, in its trace."""
        ...


class Forwarding:
    """Implements `Tracing` without recording: trace contexts are passed on as they came.

    A new trace gets random ids, and the flag that says that it is sampled, so that whoever records further on does.
    """

    def starting(self, name: str, **attributes: Any) -> AbstractContextManager[None]:
        """Begin a trace."""
        del name, attributes
        return carrying(f"00-{_random_id(16)}-{_random_id(8)}-{_SAMPLED}")

    def handling(self, record: Record, segment: str) -> AbstractContextManager[None]:
        """Go on with the record's trace."""
        del segment
        return carrying(traceparent_of(record.headers))

    def closing(self, name: str, members: Iterable[str | None], **attributes: Any) -> AbstractContextManager[None]:
        """Leave all traces alone."""
        del name, members, attributes
        return carrying(None)

    def resuming(self, name: str, resting: Resting, **attributes: Any) -> AbstractContextManager[None]:
        """Go on with a trace."""
        del name, attributes
        return carrying(resting.traceparent)

    def job(self) -> AbstractContextManager[Callable[[Event], None]]:
        """Take no note of reports."""
        return nullcontext(_ignore)

    def observing(self, observe: Observer) -> Observer:
        """Return the same observer."""
        return observe


def _ignore(_: Event) -> None:
    return


def _random_id(size: int) -> str:
    while True:
        found = secrets.token_hex(size)
        if int(found, 16):  # all zeros mean that there is none
            return found
