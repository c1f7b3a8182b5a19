"""Traces arrive at a collector, and no collector, none that answers and no OpenTelemetry stop no work."""

from __future__ import annotations

import gzip
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ops import trace_export
from ops.trace_export import exported_tracing, wanted
from stages.pipeline import TABLE
from stream.tracing import Forwarding
from tests.conftest import Simulated, run_in_process

COLLECTOR = "http://127.0.0.1:4318"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*trace_export.ENDPOINTS, *trace_export.PROTOCOLS, "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


class Collector:
    """What an OTLP collector on loopback was sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.url = ""

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({one.key: one.value.string_value for one in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": COLLECTOR}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, False),
        ({"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, True),
        (
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR,
            },
            True,
        ),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": COLLECTOR}, False),
    ],
)
def test_the_usual_variables_decide(variables: dict[str, str], *, expected: bool) -> None:
    assert wanted(variables) is expected


@pytest.mark.anyio
async def test_without_the_packages_a_warning_says_what_to_install_and_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", COLLECTOR)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with caplog.at_level(logging.WARNING):
        async with exported_tracing("prompt", "w") as tracing:
            assert isinstance(tracing, Forwarding)
    assert "rampstream[tracing]" in caplog.text


@pytest.mark.anyio
async def test_a_wrong_variable_is_told_and_work_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", COLLECTOR)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")  # less than a batch
    with caplog.at_level(logging.WARNING):
        async with exported_tracing("prompt", "w") as tracing:
            assert isinstance(tracing, Forwarding)
    assert "OTEL_" in caplog.text


@pytest.mark.anyio
async def test_spans_arrive_at_the_collector_with_the_run_and_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=calibration")
        async with exported_tracing("prompt", "host-1") as tracing:
            with tracing.starting("ingest", exposure="e1"):
                pass
        assert [span.name for span in collector.spans] == ["ingest"]
        [resource] = collector.resources
        assert resource["service.name"] == "calibration"  # the variables win
        assert resource["service.version"]
        assert resource["rampstream.run"] == "prompt"
        assert resource["service.instance.id"] == "host-1"
        assert resource["deployment.environment.name"] == "test"


@pytest.mark.anyio
async def test_a_collector_that_never_answers_delays_the_end_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trace_export, "FLUSH_SECONDS", 0.3)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "4")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        async with exported_tracing("prompt", "w") as tracing:
            with tracing.starting("ingest", exposure="e1"):
                pass
            began = time.monotonic()
        assert time.monotonic() - began < 3.0
    others = [thread for thread in threading.enumerate() if "shutdown" in thread.name]
    for thread in others:
        thread.join()  # it must not log into another test


def test_a_whole_run_is_one_trace_an_exposure_with_a_span_for_each_stage(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        report = run_in_process(simulated, simulated.exposures, tmp_path / "out", "--preset", "balanced")
        assert report["exit"] == 0
    [root] = collector.named("ingest")
    assert root.parent_span_id == b""
    [close] = collector.named("close tweakreg")
    stages = {span.name: span for row in TABLE for span in collector.named(row.name)}
    ran = set(report["exposures"][0]["stages"]) | {"tweakreg", "finalize"}
    assert stages.keys() >= ran
    assert len(ran) > 10
    assert {span.trace_id for name, span in stages.items() if name != "tweakreg"} == {root.trace_id}
    assert stages["tweakreg"].trace_id == close.trace_id != root.trace_id
    assert [link.trace_id for link in close.links] == [root.trace_id]
    [finalized] = collector.named("process finalize")
    assert stages["finalize"].parent_span_id == finalized.span_id
