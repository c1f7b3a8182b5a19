"""Records traces through OpenTelemetry. Imported only where its packages are installed and tracing is wanted.

Spans are made in the worker: job processes only report when stages begin and how long they took. No span is ever
current in a thread or process other than that of the task that handles the message.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)

from stream.broker.protocol import Record
from stream.tracing import Event, Observer, Resting, carrying, traceparent_of

__all__ = ["OpenTelemetryTracing"]

_NOTED = frozenset(
    {"attempt_failed", "breaker", "dead_letter", "failed", "finalize_failed", "job_failed", "results_differ", "reused"}
)
"""Events of the engine that explain what became of a message."""

_CONTENT_TYPES = (str, bool, int, float)


class OpenTelemetryTracing:
    """Implements `stream.tracing.Tracing`.

    Parameters
    ----------
    tracer : opentelemetry.trace.Tracer
        Makes the spans; its provider samples and exports them.
    now : callable
        Unix time in ns.
    """

    def __init__(self, tracer: Tracer, *, now: Callable[[], int] = time.time_ns) -> None:
        self._tracer = tracer
        self._now = now

    @contextmanager
    def starting(self, name: str, **attributes: Any) -> Iterator[None]:
        """Span that is the root of a new trace."""
        with self._span(name, None, SpanKind.PRODUCER, attributes):
            yield

    @contextmanager
    def handling(self, record: Record, segment: str) -> Iterator[None]:
        """Span of a message, under the one that published it; the root of a new trace when the record has none."""
        attributes = {
            "messaging.operation.type": "process",
            "messaging.destination.name": record.topic,
            "messaging.destination.partition.id": str(record.partition),
            "messaging.kafka.offset": record.offset,
            "messaging.message.id": _text(record.header("ce_id")),
            "exposure": _text(record.header("ce_subject")),
            "segment": segment,
        }
        with self._span(f"process {segment}", traceparent_of(record.headers), SpanKind.CONSUMER, attributes):
            yield

    @contextmanager
    def closing(self, name: str, members: Iterable[str | None], **attributes: Any) -> Iterator[None]:
        """Span that is the root of a new trace, with a link to each member's."""
        links = [Link(_context(member)) for member in members if member is not None]
        with self._span(name, None, SpanKind.INTERNAL, attributes, links=links):
            yield

    @contextmanager
    def resuming(self, name: str, resting: Resting, **attributes: Any) -> Iterator[None]:
        """Span of the rest, with a link to what is being done."""
        links = [Link(get_current_span().get_span_context())]
        start = min(int(resting.since * 1e9), self._now())
        with self._span(name, resting.traceparent, SpanKind.PRODUCER, attributes, links=links, start=start):
            yield

    @contextmanager
    def job(self) -> Iterator[Callable[[Event], None]]:
        """Span for each stage that the job reports, under the message's; one cut short is an error."""
        stages = _Stages(self._tracer, set_span_in_context(get_current_span()), self._now)
        try:
            yield stages.report
        except BaseException as error:
            stages.end(error)
            raise
        stages.end(None)

    def observing(self, observe: Observer) -> Observer:
        """Observer that also adds events to the message's span."""

        def noting(event: dict[str, Any]) -> None:
            if event["event"] in _NOTED:
                _note(get_current_span(), event)
            observe(event)

        return noting

    @contextmanager
    def _span(
        self,
        name: str,
        parent: str | None,
        kind: SpanKind,
        attributes: Mapping[str, Any],
        *,
        links: Sequence[Link] = (),
        start: int | None = None,
    ) -> Iterator[None]:
        # An empty context, not the current one: a task may have been started while another message was handled.
        context = Context()
        if parent is not None:
            context = set_span_in_context(NonRecordingSpan(_context(parent)), context)
        with (
            self._tracer.start_as_current_span(
                name, context=context, kind=kind, attributes=_attributes(attributes), links=links, start_time=start
            ) as span,
            carrying(_traceparent(span.get_span_context())),
        ):
            yield


class _Stages:
    """The stages of one job, which runs one at a time."""

    def __init__(self, tracer: Tracer, parent: Context, now: Callable[[], int]) -> None:
        self._tracer = tracer
        self._parent = parent
        self._now = now
        self._begun: tuple[str, int] | None = None

    def report(self, event: Event) -> None:
        """Take note of a report of the job's process."""
        kind = event.get("event")
        if kind == "stage_started":
            self._begun = (event["stage"], self._now())
        elif kind == "stage":
            used = {name: event[name] for name in ("cpu_seconds", "rss") if name in event}
            self._made(event["stage"], event, {"stage": event["stage"], **used})
            self._begun = None
        elif kind == "stored":
            self._made(f"store {event['stage']}", event, {"stage": event["stage"], "bytes": event["bytes"]})

    def end(self, error: BaseException | None) -> None:
        """End the stage that did not say that it is done: it is the job's last, or the job failed in it."""
        if self._begun is None:
            return
        stage, start = self._begun
        span = self._start(stage, start, {"stage": stage})
        if error is not None:
            span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
        span.end(self._now())

    def _made(self, name: str, event: Event, attributes: Mapping[str, Any]) -> None:
        end = self._now()
        self._start(name, end - int(event["seconds"] * 1e9), attributes).end(end)

    def _start(self, name: str, start: int, attributes: Mapping[str, Any]) -> Span:
        return self._tracer.start_span(name, context=self._parent, start_time=start, attributes=_attributes(attributes))


def _note(span: Span, event: Mapping[str, Any]) -> None:
    if not span.is_recording():
        return
    span.add_event(event["event"], _attributes({name: value for name, value in event.items() if name != "event"}))
    if event["event"] == "dead_letter" or event.get("action") == "retry_later":
        span.set_status(StatusCode.ERROR, str(event.get("reason", event["event"])))


def _attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes under the project's name, but for those of OpenTelemetry's conventions; without what is not known."""
    found = {}
    for name, value in values.items():
        simple = isinstance(value, _CONTENT_TYPES) or (
            isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        )
        if simple:
            found[name if "." in name else f"rampstream.{name}"] = value
    return found


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


def _context(traceparent: str) -> SpanContext:
    _, trace, span, flags = traceparent.split("-")[:4]
    return SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _traceparent(context: SpanContext) -> str:
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"
