"""A proxy in front of an S3 server that misbehaves when told to. It forwards headers unchanged, for they are signed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import urlsplit

_CHUNK = 256 * 1024


class Fault(StrEnum):
    """What happens to a request."""

    REPLY = "reply"
    """It is answered with a status, and the server never sees it."""
    STALL = "stall"
    """It is held back for a while, then forwarded."""
    LOSE_REPLY = "lose_reply"
    """The server does what was asked, but the connection ends before it can say so."""
    REFUSE_AFTER = "refuse_after"
    """The server does what was asked, but a status of failure is answered in its place."""
    TRUNCATE = "truncate"
    """The connection ends after so many bytes of the reply's body."""
    SHORTEN = "shorten"
    """The reply's body is so many bytes, and its headers say that this is all of it."""
    CUT = "cut"
    """The connection ends before the server sees the request."""


@dataclass
class Rule:
    """A fault for the next requests that match."""

    fault: Fault
    method: str = ""
    path: str = ""
    times: int = 1
    status: int = 503
    seconds: float = 0.0
    size: int = 0
    hits: int = 0
    met: asyncio.Event = field(default_factory=asyncio.Event)

    def matches(self, method: str, target: str) -> bool:
        return self.hits < self.times and self.method in {"", method} and self.path in target


@dataclass(frozen=True)
class Seen:
    """A request that came by, and the fault that it met."""

    method: str
    target: str
    fault: Fault | None


@dataclass
class S3Proxy:
    """Use `running`, then add rules at any time."""

    host: str
    port: int
    url: str = ""
    rules: list[Rule] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    most_stalled: int = 0
    """Most requests that were held back at once: those that wait are counted, as a client may send the next one while
    the connection of the last is still being closed."""
    _stalled: int = 0
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    def fail(self, fault: Fault, **what: object) -> Rule:
        """Let the next requests that match (``method``, part of ``path``) meet a fault, ``times`` times."""
        self.rules.append(Rule(fault, **what))  # type: ignore[arg-type]
        return self.rules[-1]

    def requests(self, method: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        # Cancelled only by `stop`, at the end of the task: asyncio's streams log what a handler raises.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._one(reader, writer)
        self._serving.discard(task)
        writer.close()

    async def stop(self) -> None:
        """Let go of the requests that are held back."""
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
        rule = next((rule for rule in self.rules if rule.matches(method, target)), None)
        self.seen.append(Seen(method, target, rule.fault if rule else None))
        if rule is not None:
            rule.hits += 1
            rule.met.set()
            if rule.fault is Fault.CUT:
                return
            if rule.fault is Fault.STALL:
                await self._stall(rule.seconds)
            if rule.fault is Fault.REPLY:
                await self._drain(reader, head)
                await self._answer(writer, rule.status)
                return
        await self._forward(head, reader, writer, rule)

    async def _stall(self, seconds: float) -> None:
        self._stalled += 1
        self.most_stalled = max(self.most_stalled, self._stalled)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._stalled -= 1

    async def _forward(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rule: Rule | None
    ) -> None:
        from_server, to_server = await asyncio.open_connection(self.host, self.port)
        try:
            # One request a connection: the reply ends where the connection does.
            to_server.write(head[:-2] + b"Connection: close\r\n\r\n")
            await self._drain(reader, head, to_server)
            await to_server.drain()
            if rule is not None and rule.fault in {Fault.LOSE_REPLY, Fault.REFUSE_AFTER}:
                await from_server.read(-1)
                if rule.fault is Fault.REFUSE_AFTER:
                    await self._answer(writer, rule.status)
                return
            answer = await from_server.readuntil(b"\r\n\r\n")
            left = rule.size if rule is not None and rule.fault in {Fault.TRUNCATE, Fault.SHORTEN} else None
            if rule is not None and rule.fault is Fault.SHORTEN:
                answer = re.sub(rb"(?i)(content-length:) *\d+", rb"\1 %d" % rule.size, answer)
            writer.write(answer)
            while (chunk := await from_server.read(_CHUNK if left is None else min(left, _CHUNK))) != b"":
                writer.write(chunk)
                await writer.drain()
                left = None if left is None else left - len(chunk)
        finally:
            to_server.close()

    @staticmethod
    async def _drain(reader: asyncio.StreamReader, head: bytes, writer: asyncio.StreamWriter | None = None) -> None:
        left = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )  # fmt: skip
        while left:
            chunk = await reader.read(min(left, _CHUNK))
            if not chunk:
                raise asyncio.IncompleteReadError(chunk, left)
            left -= len(chunk)
            if writer is not None:
                writer.write(chunk)
                await writer.drain()

    @staticmethod
    async def _answer(writer: asyncio.StreamWriter, status: int) -> None:
        codes = {403: "AccessDenied", 404: "NoSuchBucket", 500: "InternalError", 503: "SlowDown"}
        body = f"<Error><Code>{codes.get(status, 'Fault')}</Code><Message>as told</Message></Error>"
        writer.write(
            f"HTTP/1.1 {status} Told\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n\r\n{body}".encode()
        )
        await writer.drain()


@contextlib.asynccontextmanager
async def running(endpoint: str) -> AsyncIterator[S3Proxy]:
    """A proxy in front of a server, in this event loop; its own address is ``url``."""
    server_at = urlsplit(endpoint)
    assert server_at.hostname is not None
    assert server_at.port is not None
    proxy = S3Proxy(server_at.hostname, server_at.port)
    server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()
        await server.wait_closed()
