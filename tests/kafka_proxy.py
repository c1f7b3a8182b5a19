"""A proxy before a Kafka listener that loses requests or replies, or falls silent, when told to. It changes no bytes.

A broker tells its clients where to connect, so the proxy's address goes into the broker's settings: it listens from
before the broker starts, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from anyio.from_thread import start_blocking_portal


class Api(IntEnum):
    """Kinds of request (`Kafka protocol guide`_, API keys).

    .. _Kafka protocol guide: https://kafka.apache.org/protocol#protocol_api_keys
    """

    PRODUCE = 0
    OFFSET_COMMIT = 8
    INIT_PRODUCER_ID = 22


class Fault(StrEnum):
    """What happens to a request; the connection ends with it."""

    LOSE_REPLY = "lose_reply"
    """The broker does what was asked, and its reply never comes."""
    LOSE_REQUEST = "lose_request"
    """The broker never sees it."""


@dataclass
class Rule:
    """A fault for the next requests that match; ``part`` is looked for in the bytes of the request."""

    fault: Fault
    api: Api
    part: bytes = b""
    times: int = 1
    hits: int = 0

    def matches(self, frame: bytes) -> bool:
        api = int.from_bytes(frame[4:6], "big")
        return self.hits < self.times and api == self.api and self.part in frame


@dataclass(eq=False)
class _Link:
    """One connection of a client."""

    silent: bool = False
    doomed: set[bytes] = field(default_factory=set)
    """Correlation ids of the requests whose replies are to be lost."""


@dataclass
class KafkaProxy:
    """Use `running`; set ``upstream`` once the listener's port is known; then add rules at any time."""

    port: int = 0
    upstream: int = 0
    rules: list[Rule] = field(default_factory=list)
    away: bool = False
    """Whether connections that come now are silent too."""
    seen: Counter[int] = field(default_factory=Counter)
    """Requests that came by, by kind."""
    _links: set[_Link] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}"

    def fail(self, fault: Fault, api: Api, *, topic: str = "", times: int = 1) -> Rule:
        """Let the next requests of a kind (that name a topic) meet a fault, ``times`` times."""
        self.rules.append(Rule(fault, api, topic.encode(), times))
        return self.rules[-1]

    def vanish(self, *, for_good: bool = False) -> int:
        """Swallow what comes over the connections that there are, both ways, without ending them; how many there are.

        Those that are made later work, unless it is ``for_good``: until `come_back`.
        """
        links = list(self._links)
        for link in links:
            link.silent = True
        self.away = for_good
        return len(links)

    def come_back(self) -> None:
        """Let new connections work; what was silent stays so."""
        self.away = False

    def heal(self) -> None:
        """Forget all rules, and come back."""
        self.rules.clear()
        self.come_back()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(silent=self.away)
        self._links.add(link)
        upstream: asyncio.StreamWriter | None = None
        # Cancelled only at the end; asyncio's streams log what a handler raises.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if link.silent:
                await self._swallow(reader)
            from_broker, upstream = await asyncio.open_connection("127.0.0.1", self.upstream)
            await _first_to_end(self._requests(link, reader, upstream), self._replies(link, from_broker, writer))
        self._links.discard(link)
        writer.close()
        if upstream is not None:
            upstream.close()

    async def _requests(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            frame = await _frame(reader)
            if link.silent:
                await self._swallow(reader)
            self.seen[int.from_bytes(frame[4:6], "big")] += 1
            rule = next((rule for rule in list(self.rules) if rule.matches(frame)), None)
            if rule is not None:
                rule.hits += 1
                if rule.fault is Fault.LOSE_REQUEST:
                    return
                link.doomed.add(frame[8:12])
            writer.write(frame)
            await writer.drain()

    async def _replies(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                frame = await _frame(reader)
            except (OSError, asyncio.IncompleteReadError):
                if link.silent:  # the client must not hear of it
                    await asyncio.Event().wait()
                raise
            if frame[4:8] in link.doomed:
                return
            if not link.silent:
                writer.write(frame)
                await writer.drain()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        """Take what comes and answer nothing; the other side never hears that the connection ended."""
        while await reader.read(65536):
            pass
        await asyncio.Event().wait()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """Length and content of one request or reply."""
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length, "big"))


async def _first_to_end(*pumps: object) -> None:
    """Run until one ends, and end the others."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]  # type: ignore[call-overload]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


@contextlib.asynccontextmanager
async def _listening(proxy: KafkaProxy) -> AsyncIterator[None]:
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        await proxy._serve(reader, writer)
        serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        server.close()
        for task in list(serving):
            task.cancel()
        await asyncio.gather(*serving)
        await server.wait_closed()


@contextlib.contextmanager
def running() -> Iterator[KafkaProxy]:
    """A proxy that listens in a thread of its own."""
    proxy = KafkaProxy()
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(_listening(proxy)):
        yield proxy
