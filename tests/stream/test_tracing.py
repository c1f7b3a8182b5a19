"""Traces: the context goes with every message, by the letter of the standard; OpenTelemetry spans tell the way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from stream.broker.protocol import Headers, Record
from stream.failure import FailureClass
from stream.member_list import MemberList
from stream.opentelemetry_tracing import OpenTelemetryTracing
from stream.topology import changelog_topic_name, retry_topic_name, topic_name
from stream.tracing import Forwarding, carrying, current_traceparent, parse_traceparent, traceparent_of
from tests.stream.toy_run import JOINT, LAST, RUN, ToyRun

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{SPAN}-01"

MALFORMED = [
    "", "00", GIVEN[:-1], GIVEN + "0", GIVEN + "-", GIVEN + "-00", GIVEN + "\n", " " + GIVEN, GIVEN.upper(),
    f"ff-{TRACE}-{SPAN}-01", f"0-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE}-{SPAN}-0x", f"00-{TRACE}-{SPAN}", f"00-{TRACE[:-1]}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01.x",
    f"01-{TRACE}-{SPAN}-01-a b", GIVEN.replace("-", "_"), GIVEN.replace("0af", "0äf"),
]  # fmt: skip

PAIR = MemberList("pair", ("e1", "e2"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def recorder(sampler: Sampler = ParentBased(ALWAYS_ON)) -> tuple[OpenTelemetryTracing, InMemorySpanExporter]:  # noqa: B008
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OpenTelemetryTracing(provider.get_tracer("test")), exporter


def record(headers: Headers) -> Record:
    return Record("toy.offset", 0, 7, b"e1", b"{}", headers, 0)


def trace_ids(records: Sequence[Record]) -> list[str | None]:
    found = [traceparent_of(one.headers) for one in records]
    return [None if one is None else one.split("-")[1] for one in found]


def spans_by_name(exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    """Spans in the order of their exposures."""
    found: dict[str, list[ReadableSpan]] = {}
    for span in sorted(
        exporter.get_finished_spans(), key=lambda s: str((s.attributes or {}).get("rampstream.exposure"))
    ):
        found.setdefault(span.name, []).append(span)
    return found


async def with_traceparent(run: ToyRun, exposure: str, value: bytes) -> None:
    """Publish the message of an exposure once more, with another header."""
    topic = topic_name(RUN, "offset")
    [announced] = [one for one in await run.records(topic) if one.key == exposure.encode()]
    headers = tuple((name, value if name == "traceparent" else old) for name, old in announced.headers)
    await run.broker.publish(topic, key=announced.key, value=announced.value, headers=headers)


def test_a_context_by_the_letter_is_taken() -> None:
    for text in [GIVEN, f"00-{TRACE}-{SPAN}-00", f"cc-{TRACE}-{SPAN}-09", f"cc-{TRACE}-{SPAN}-01-what-comes.later"]:
        assert parse_traceparent(text.encode()) == text


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_context_is_dropped(text: str) -> None:
    assert parse_traceparent(text.encode()) is None


@given(st.binary(max_size=80) | st.text(alphabet="0123456789abcdef-", max_size=80).map(str.encode))
def test_any_bytes_are_a_context_or_none(value: bytes) -> None:
    found = parse_traceparent(value)
    assert found is None or (found.encode() == value and len(found) >= 55)


def test_two_contexts_are_none() -> None:
    assert traceparent_of((("traceparent", GIVEN.encode()),)) == GIVEN
    assert traceparent_of((("traceparent", GIVEN.encode()), ("traceparent", GIVEN.encode()))) is None
    assert traceparent_of((("Traceparent", GIVEN.encode()),)) is None


def test_each_exposure_starts_a_trace_of_its_own() -> None:
    tracing, seen = Forwarding(), set()
    for _ in range(10):
        with tracing.starting("ingest", exposure="e1"):
            started = current_traceparent()
            assert started is not None
            assert parse_traceparent(started.encode()) == started
            seen.add(started)
    assert len(seen) == 10
    assert current_traceparent() is None


@pytest.mark.anyio
async def test_messages_handled_at_once_do_not_mix_their_traces() -> None:
    found: dict[str, list[str | None]] = {"a": [], "b": []}

    async def handle(name: str, value: str) -> None:
        with Forwarding().handling(record((("traceparent", value.encode()),)), "offset"):
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
                found[name].append(current_traceparent())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle, "a", GIVEN)
        tasks.start_soon(handle, "b", GIVEN.replace("b7ad", "0001"))
    assert found == {"a": [GIVEN] * 5, "b": [GIVEN.replace("b7ad", "0001")] * 5}


@pytest.mark.anyio
async def test_without_opentelemetry_every_message_carries_its_exposures_context_unchanged(tmp_path: Path) -> None:
    async with ToyRun.opened(tmp_path, Forwarding()) as run:
        await run.ingest(PAIR, "e1", "e2")
        async with run.serving():
            await run.until(lambda: run.count("finalized") == 2)
        announced = {one.key: traceparent_of(one.headers) for one in await run.records(topic_name(RUN, "offset"))}
        assert None not in announced.values()
        assert len(set(announced.values())) == 2
        for name in ("shift", LAST):
            records = await run.records(topic_name(RUN, name))
            assert {one.key: traceparent_of(one.headers) for one in records} == announced
        members = await run.records(topic_name(RUN, JOINT))
        assert {one.header("ce_subject"): traceparent_of(one.headers) for one in members} == announced


@pytest.mark.anyio
async def test_a_malformed_context_goes_no_further_and_a_dead_letter_keeps_it_as_it_was(tmp_path: Path) -> None:
    async with ToyRun.opened(tmp_path, Forwarding()) as run:
        await run.ingest(PAIR, "e1", "e2")
        await with_traceparent(run, "e1", b"00-a-b-01")
        run.runner.failures["execute", "e2"] = [FailureClass.PERMANENT] * 2
        await with_traceparent(run, "e2", b"00-a-b-02")
        async with run.serving("offset"):
            await run.until(lambda: run.count("record_done") == 4)
        passed_on = [one for one in await run.records(topic_name(RUN, "shift")) if one.key == b"e1"]
        assert [traceparent_of(one.headers) is None for one in passed_on] == [False, True]
        assert "traceparent" not in dict(passed_on[1].headers)
        came = [one.header("traceparent") for one in await run.records(topic_name(RUN, "offset")) if one.key == b"e2"]
        buried = [letter.header("traceparent") for letter in await run.dead_letters()]
        assert came[1] == b"00-a-b-02"
        assert sorted(map(str, came)) == sorted(map(str, buried))


@pytest.mark.anyio
async def test_the_context_enters_no_id_of_a_message_and_no_identity(tmp_path: Path) -> None:
    async with ToyRun.opened(tmp_path, Forwarding()) as run:
        await run.ingest(PAIR, "e1")
        await with_traceparent(run, "e1", GIVEN.encode())
        async with run.serving("offset"):
            await run.until(lambda: run.count("record_done") == 2)
        first, second = await run.records(topic_name(RUN, "shift"))
        assert traceparent_of(first.headers) != traceparent_of(second.headers)
        assert first.header("ce_id") == second.header("ce_id")
        assert first.value == second.value


@pytest.mark.anyio
async def test_retries_dead_letters_and_the_failed_member_keep_the_context(tmp_path: Path) -> None:
    async with ToyRun.opened(tmp_path, Forwarding()) as run:
        await run.ingest(PAIR, "e1")
        run.runner.failures["execute", "e1"] = [FailureClass.RETRIABLE] * 2 + [FailureClass.PERMANENT]
        async with run.serving("offset"):
            await run.until(lambda: run.count("failed") == 1 and run.count("record_done") == 2)
        found = [
            await run.records(topic)
            for topic in (topic_name(RUN, "offset"), retry_topic_name(RUN, "offset", 0), topic_name(RUN, JOINT))
        ]
        values = [[traceparent_of(one.headers) for one in records] for records in [*found, await run.dead_letters()]]
        assert values[0][0] is not None
        assert values == [values[0]] * 4


@pytest.mark.anyio
@pytest.mark.parametrize("recorded", [False, True])
async def test_a_new_aggregator_goes_on_with_the_traces_in_the_changelog(tmp_path: Path, *, recorded: bool) -> None:
    tracing = recorder()[0] if recorded else Forwarding()
    async with ToyRun.opened(tmp_path, tracing) as run:
        await run.ingest(PAIR, "e1")
        async with run.serving("offset", "shift", JOINT):
            await run.until(lambda: run.count("member") == 1)
        assert [one.key for one in await run.records(changelog_topic_name(RUN, JOINT))] == [b"#whole/0", b"pair/e1/0"]
        await run.ingest(PAIR, "e2")
        async with run.serving("offset", "shift", JOINT):
            await run.until(lambda: run.count("dispatched") == 1)
        begun = dict(zip(["e1", "e2"], trace_ids(await run.records(topic_name(RUN, "offset"))), strict=True))
        last = await run.records(topic_name(RUN, LAST))
        assert {str(one.header("ce_subject"), "ascii"): trace_ids([one])[0] for one in last} == begun
        assert None not in begun.values()


@pytest.mark.anyio
async def test_one_trace_leads_from_ingest_through_workers_and_aggregator_to_the_end(tmp_path: Path) -> None:
    tracing, exporter = recorder()
    async with ToyRun.opened(tmp_path, tracing) as run:
        await run.ingest(PAIR, "e1", "e2")
        async with run.serving():
            await run.until(lambda: run.count("finalized") == 2)
            await run.until(lambda: len(spans_by_name(exporter).get(f"process {LAST}", ())) == 2)
    spans = spans_by_name(exporter)
    for number in range(2):
        way = ["ingest", "process offset", "process shift", f"process {JOINT}", f"await {JOINT}", f"process {LAST}"]
        steps = [spans[name][number] for name in way]
        assert [span.attributes["rampstream.exposure"] for span in steps if span.attributes] == [f"e{number + 1}"] * 6
        assert len({span.context.trace_id for span in steps}) == 1
        assert steps[0].parent is None
        assert [span.parent.span_id for span in steps[1:] if span.parent] == [s.context.span_id for s in steps[:-1]]
    assert spans["ingest"][0].context.trace_id != spans["ingest"][1].context.trace_id
    assert spans["process offset"][0].kind is SpanKind.CONSUMER


@pytest.mark.anyio
async def test_the_close_is_a_trace_of_its_own_with_a_link_to_each_member(tmp_path: Path) -> None:
    tracing, exporter = recorder()
    async with ToyRun.opened(tmp_path, tracing) as run:
        await run.ingest(PAIR, "e1", "e2")
        async with run.serving():
            await run.until(lambda: run.count("finalized") == 2)
    spans = spans_by_name(exporter)
    [close], [solve] = spans[f"close {JOINT}"], spans[JOINT]
    assert close.parent is None
    assert solve.parent is not None
    assert solve.parent.span_id == close.context.span_id
    handled = [span.context for span in spans[f"process {JOINT}"]]
    assert close.context.trace_id not in {context.trace_id for context in handled}
    assert [(link.context.trace_id, link.context.span_id) for link in close.links] == [
        (context.trace_id, context.span_id) for context in handled
    ]
    # ... and from each exposure's trace one finds the close that it waited for.
    for rest in spans[f"await {JOINT}"]:
        assert [link.context.span_id for link in rest.links] == [close.context.span_id]
        assert rest.start_time is not None
        assert rest.end_time is not None
        assert rest.start_time < rest.end_time
    assert close.attributes is not None
    assert close.attributes["rampstream.association"] == "pair"
    assert close.attributes["rampstream.used"] == 2


@pytest.mark.anyio
async def test_each_stage_is_a_span_under_its_message_with_the_time_that_it_took(tmp_path: Path) -> None:
    tracing, exporter = recorder()
    async with ToyRun.opened(tmp_path, tracing) as run:
        await run.ingest(MemberList("one", ("e1",)), "e1")
        async with run.serving():
            await run.until(lambda: run.count("finalized") == 1)
            await run.until(lambda: f"process {LAST}" in spans_by_name(exporter))
    spans = spans_by_name(exporter)
    took = {event["stage"]: event["seconds"] for event in run.events if event["event"] == "stage"}
    assert list(took) == ["offset", "flag", "shift", "catalog"]
    under = {"offset": "offset", "flag": "offset", "shift": "shift", "catalog": "shift", LAST: LAST}
    for stage, message in under.items():
        [span], [parent] = spans[stage], spans[f"process {message}"]
        assert span.parent is not None
        assert span.parent.span_id == parent.context.span_id
        times = (parent.start_time, span.start_time, span.end_time, parent.end_time)
        assert list(times) == sorted(time for time in times if time is not None)
        if stage in took:
            assert span.end_time is not None
            assert span.start_time is not None
            assert (span.end_time - span.start_time) / 1e9 == pytest.approx(took[stage], abs=1e-6)
            assert span.attributes is not None
            assert span.attributes["rampstream.rss"] > 0
    assert {name for name in spans if name.startswith("store ")} == {"store flag", "store catalog"}


@pytest.mark.anyio
async def test_a_failure_is_an_error_of_the_message_and_of_the_stage_that_was_cut_short(tmp_path: Path) -> None:
    tracing, exporter = recorder()
    async with ToyRun.opened(tmp_path, tracing) as run:
        await run.ingest(MemberList("one", ("e1",)), "e1")
        run.runner.failures["finalize", "e1"] = [FailureClass.RETRIABLE, FailureClass.PERMANENT]
        async with run.serving():
            await run.until(lambda: run.count("finalize_failed") == 1)
            await run.until(lambda: f"process {LAST}" in spans_by_name(exporter))
    spans = spans_by_name(exporter)
    [handled] = spans[f"process {LAST}"]
    assert [span.status.status_code for span in spans[LAST]] == [StatusCode.ERROR] * 2
    assert handled.status.status_code is StatusCode.ERROR
    assert spans["process shift"][0].status.status_code is StatusCode.UNSET
    told = [(event.name, (event.attributes or {}).get("rampstream.class")) for event in handled.events]
    assert ("attempt_failed", "retriable") in told
    assert ("dead_letter", "permanent") in told


@pytest.mark.anyio
async def test_what_is_not_sampled_at_ingest_is_recorded_nowhere_and_keeps_its_trace(tmp_path: Path) -> None:
    tracing, exporter = recorder(ParentBased(ALWAYS_OFF))
    async with ToyRun.opened(tmp_path, tracing) as run:
        await run.ingest(MemberList("one", ("e1",)), "e1")
        async with run.serving():
            await run.until(lambda: run.count("finalized") == 1)
        [first] = trace_ids(await run.records(topic_name(RUN, "offset")))
        assert first is not None
        assert trace_ids(await run.records(topic_name(RUN, LAST))) == [first]
    assert exporter.get_finished_spans() == ()


@pytest.mark.anyio
async def test_a_task_started_while_a_message_is_handled_does_not_record_under_it() -> None:
    tracing, exporter = recorder()
    with tracing.handling(record((("traceparent", GIVEN.encode()),)), "offset"), tracing.closing("close", [GIVEN]):
        inside = current_traceparent()
    close, handled = exporter.get_finished_spans()
    assert f"{handled.context.trace_id:032x}" == TRACE
    assert close.parent is None
    assert inside is not None
    assert inside.split("-")[1] == f"{close.context.trace_id:032x}" != TRACE


def test_a_context_is_left_as_it_was_also_after_an_error() -> None:
    tracing, exporter = recorder()
    with carrying(GIVEN):
        with pytest.raises(ZeroDivisionError), tracing.handling(record(()), "offset"):
            raise ZeroDivisionError
        assert current_traceparent() == GIVEN
    [span] = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR


def test_the_engine_does_not_import_opentelemetry_by_itself() -> None:
    code = (
        "import sys, ops.serve, ops.run, ops.ingesting, ops.replaying\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
