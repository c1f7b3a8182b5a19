"""Sends traces to where the usual ``OTEL_*`` variables say; without them, or without OpenTelemetry, they are passed on.

Tracing is never a reason to stop: what is wrong with it is logged, and work goes on.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from stream.tracing import Forwarding, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["exported_tracing", "wanted"]

LOG = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"

FLUSH_SECONDS = 5.0
"""How long the end may wait for what is not sent: a batch takes milliseconds, and a collector that is down for good."""


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether the variables ask for traces, in a way that is supported: OTLP over HTTP."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter == "none" or not (exporter or any(environment.get(name) for name in ENDPOINTS)):
        return False
    protocol = next((value for name in PROTOCOLS if (value := environment.get(name, "").strip())), PROTOCOL)
    if exporter not in {"", "otlp"} or protocol != PROTOCOL:
        LOG.warning("no traces: exporter %r, protocol %r; only otlp over %s is supported", exporter, protocol, PROTOCOL)
        return False
    return True


@asynccontextmanager
async def exported_tracing(run: str, process: str) -> AsyncIterator[Tracing]:
    """Tracing of this process; enter it after the job runner, for it starts a thread.

    Leaving waits a while for what is not sent.

    Parameters
    ----------
    run : str
        The run, as an attribute of all spans.
    process : str
        Name of this process among those of the run.
    """
    provider = _provider(run, process) if wanted(os.environ) else None
    if provider is None:
        yield Forwarding()
        return
    from stream.opentelemetry_tracing import OpenTelemetryTracing

    try:
        yield OpenTelemetryTracing(provider.get_tracer("rampstream", version("rampstream")))
    finally:
        # A thread of its own that ends with the process: the SDK waits for a silent collector up to half a minute.
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(ending.join, FLUSH_SECONDS)


def _provider(run: str, process: str) -> TracerProvider | None:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        LOG.warning("no traces: %s; say pip install 'rampstream[tracing]'", error)
        return None
    known = {"service.name": "rampstream", "service.version": version("rampstream"), "service.instance.id": process}
    resource = Resource.create({**known, "rampstream.run": run})
    resource = resource.merge(OTELResourceDetector().detect())  # what the variables say wins
    try:
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        LOG.warning("no traces: a variable OTEL_… is wrong: %s", error)
        return None
    return provider
