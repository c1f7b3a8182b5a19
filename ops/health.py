"""Answers ``/healthz``, ``/readyz`` and ``/metrics`` of one worker over HTTP. Reads only, and trusts nobody."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress

import anyio
from anyio.abc import SocketStream, TaskStatus
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from stream.failure import PermanentError

__all__ = ["HealthServer", "parse_address"]

LOG = logging.getLogger(__name__)

_LONGEST = 8192
"""Bytes of a request's head; more is not a probe's."""

_PATIENCE = 5.0
"""Seconds for a request and for its answer: probes are local."""

_CONNECTIONS = 32

Problem = Callable[[], str | None]


def parse_address(text: str) -> tuple[str, int]:
    """Split ``HOST:PORT``. Raises PermanentError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        msg = f"health {text!r}: expected HOST:PORT, for example 127.0.0.1:9464 (port 0 for any)"
        raise PermanentError(msg)
    return host, int(port)


class HealthServer:
    """The server.

    Parameters
    ----------
    registry : CollectorRegistry
        What ``/metrics`` shows.
    live, ready : callable
        What is wrong, None when nothing is: for ``/healthz`` (restart me) and ``/readyz`` (do not count on me yet).
    """

    def __init__(self, *, registry: CollectorRegistry, live: Problem, ready: Problem) -> None:
        self._registry = registry
        self._problems = {"/healthz": live, "/readyz": ready}
        self._limit = anyio.CapacityLimiter(_CONNECTIONS)

    async def serve(self, host: str, port: int, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled; tells the port that it listens on."""
        async with await anyio.create_tcp_listener(local_host=host, local_port=port) as listener:
            address = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django's
            task_status.started(address)
            await listener.serve(self._connection)

    async def _connection(self, stream: SocketStream) -> None:
        broken = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)
        async with stream, self._limit:
            with anyio.move_on_after(_PATIENCE), suppress(*broken):
                head = b""
                while b"\r\n\r\n" not in head and len(head) <= _LONGEST:
                    head += await stream.receive()
                await stream.send(self._answer(head))

    def _answer(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(head) > _LONGEST or len(words) != 3:
            return _response(400, "text/plain", b"bad request\n")
        method, target, _ = words
        path = target.partition("?")[0]
        if path not in {*self._problems, "/metrics"}:
            return _response(404, "text/plain", b"not found\n")
        if method not in {"GET", "HEAD"}:
            return _response(405, "text/plain", b"method not allowed\n")
        if path == "/metrics":
            answer = 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        else:
            problem = self._problems[path]()
            document = {"ok": problem is None, "problem": problem}
            answer = 200 if problem is None else 503, "application/json", json.dumps(document).encode()
        return _response(*answer, body=method == "GET")


_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


def _response(status: int, content_type: str, content: bytes, *, body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (content if body else b"")
