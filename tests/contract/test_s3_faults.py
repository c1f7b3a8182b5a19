# ruff: noqa: ASYNC240
"""What an S3 server that fails, stalls or loses its replies does to the store, seen through a misbehaving proxy."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from stream.failure import FatalError, RetriableError
from stream.store import ObjectStore
from stream.store.locations import StoreLimits
from tests import s3_proxy, s3_server
from tests.s3_proxy import Fault, S3Proxy
from tests.s3_server import Opener, left_parts
from tests.servers import S3Server

opener, server = s3_server.opener, s3_server.server

PART = 5 * 1024 * 1024  # the least that S3 takes
LIMITS = StoreLimits(connect=1, stall=1.0, transfer=30, retries=4, wait=0.3, retry=3, part=PART, parts_together=2)


@pytest.fixture
async def proxy(server: S3Server) -> AsyncIterator[S3Proxy]:
    async with s3_proxy.running(server.environment["AWS_ENDPOINT_URL"]) as running:
        yield running


@pytest.fixture
def store(proxy: S3Proxy, opener: Opener) -> ObjectStore:
    return opener(proxy.url, limits=LIMITS)


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.REFUSE_AFTER])
async def test_a_creation_whose_reply_was_lost_counts_as_ours(store: ObjectStore, proxy: S3Proxy, fault: Fault) -> None:
    proxy.fail(fault, method="PUT")
    assert await store.put_if_absent("results/a/1", b"mine")
    assert len(proxy.requests("PUT")) == 2, "the driver asked once more, and was told that the object exists"
    assert not await store.put_if_absent("results/a/1", b"another's")


@pytest.mark.anyio
async def test_a_creation_that_is_given_up_counts_as_ours_when_it_was_stored(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    proxy.fail(Fault.REFUSE_AFTER, method="PUT", times=5)  # the driver's tries, all of them
    assert await store.put_if_absent("results/a/1", b"mine")


@pytest.mark.anyio
async def test_a_creation_that_is_given_up_loses_to_anothers_object(
    store: ObjectStore, proxy: S3Proxy, opener: Opener
) -> None:
    await opener().put("results/a/1", b"another's")
    proxy.fail(Fault.REPLY, method="PUT", times=5)
    assert not await store.put_if_absent("results/a/1", b"mine")


@pytest.mark.anyio
async def test_a_creation_that_never_arrived_may_be_tried_again(store: ObjectStore, proxy: S3Proxy) -> None:
    proxy.fail(Fault.REPLY, method="PUT", times=5)
    with pytest.raises(RetriableError, match="503"):
        await store.put_if_absent("results/a/1", b"mine")
    assert await store.put_if_absent("results/a/1", b"mine")


@pytest.mark.anyio
async def test_a_conflict_without_an_object_is_tried_again(store: ObjectStore, proxy: S3Proxy) -> None:
    # Amazon answers 409 while another creation is under way, whose outcome nobody knows yet.
    proxy.fail(Fault.REPLY, method="PUT", status=409)
    assert await store.put_if_absent("results/a/1", b"mine")
    assert await store.get("results/a/1") == b"mine"


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.REFUSE_AFTER, Fault.CUT])
async def test_a_write_whose_reply_was_lost_is_repeated_without_harm(
    store: ObjectStore, proxy: S3Proxy, fault: Fault
) -> None:
    proxy.fail(fault, method="PUT")
    assert (await store.put("objects/a", b"content")).size == 7
    assert await store.get("objects/a") == b"content"


@pytest.mark.anyio
async def test_a_burst_of_refusals_is_waited_out(store: ObjectStore, proxy: S3Proxy) -> None:
    await store.put("objects/a", b"content")
    proxy.fail(Fault.REPLY, status=503, times=3)
    assert await store.get("objects/a") == b"content"


@pytest.mark.anyio
async def test_a_reply_that_breaks_off_is_taken_up_where_it_broke(
    store: ObjectStore, proxy: S3Proxy, tmp_path: Path
) -> None:
    content = os.urandom(3_000_000)
    await store.put("objects/a", content)
    proxy.fail(Fault.TRUNCATE, method="GET", size=1_000_000)
    assert (await store.fetch("objects/a", tmp_path)).read_bytes() == content
    proxy.fail(Fault.TRUNCATE, method="GET", size=1_000_000)
    assert await store.get("objects/a") == content


@pytest.mark.anyio
async def test_a_reply_that_always_breaks_off_is_found_and_leaves_no_file(
    store: ObjectStore, proxy: S3Proxy, tmp_path: Path
) -> None:
    await store.put("objects/a", bytes(3_000_000))
    proxy.fail(Fault.TRUNCATE, method="GET", size=100_000, times=99)
    with pytest.raises(RetriableError, match=r"objects/a broke off: expected 3000000 bytes, got \d+ "):
        await store.fetch("objects/a", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(RetriableError, match="objects/a broke off: expected 3000000 bytes"):
        await store.get("objects/a")


@pytest.mark.anyio
async def test_a_refusal_is_fatal_and_is_not_asked_again(store: ObjectStore, proxy: S3Proxy) -> None:
    proxy.fail(Fault.REPLY, status=403, times=99)
    for operation in (store.get("a"), store.put("a", b""), store.put_if_absent("a", b""), store.head("a")):
        before = len(proxy.seen)
        with pytest.raises(FatalError, match="check the store's credentials"):
            await operation
        assert len(proxy.seen) == before + 1


@pytest.mark.anyio
@pytest.mark.parametrize("operation", ["get", "put", "put_if_absent"])
async def test_a_store_that_stalls_is_given_up_in_time(store: ObjectStore, proxy: S3Proxy, operation: str) -> None:
    proxy.fail(Fault.STALL, seconds=30, times=99)
    began = time.monotonic()
    with pytest.raises(RetriableError, match="objects/a"):
        await (store.get("objects/a") if operation == "get" else getattr(store, operation)("objects/a", b"content"))
    # A creation is not repeated, but looked for.
    assert LIMITS.stall <= time.monotonic() - began < LIMITS.retry + LIMITS.wait + LIMITS.stall + 1


@pytest.mark.anyio
async def test_a_slow_but_steady_reply_is_no_stall(store: ObjectStore, proxy: S3Proxy) -> None:
    await store.put("objects/a", b"content")
    proxy.fail(Fault.STALL, seconds=0.7 * LIMITS.stall, method="GET")
    assert await store.get("objects/a") == b"content"
    assert len(proxy.requests("GET")) == 1


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(5 * PART + 17))
    return path


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["partNumber=3", "?uploadId="])
async def test_a_failed_upload_leaves_no_parts(
    store: ObjectStore, proxy: S3Proxy, server: S3Server, large: Path, what: str
) -> None:
    proxy.fail(Fault.REPLY, path=what, times=5)
    with pytest.raises(RetriableError, match="cannot write objects/large"):
        await store.put("objects/large", large)
    assert left_parts(server) == []
    assert await store.get("objects/large") is None
    await store.put("objects/large", large)
    assert await store.get("objects/large") == large.read_bytes()


@pytest.mark.anyio
async def test_an_upload_whose_last_reply_was_lost_is_whole(
    store: ObjectStore, proxy: S3Proxy, server: S3Server, large: Path
) -> None:
    proxy.fail(Fault.LOSE_REPLY, path="?uploadId=")
    await store.put("objects/large", large)
    assert await store.get("objects/large") == large.read_bytes()
    assert left_parts(server) == []


@pytest.mark.anyio
async def test_a_cancelled_upload_leaves_no_parts(
    store: ObjectStore, proxy: S3Proxy, server: S3Server, large: Path
) -> None:
    rule = proxy.fail(Fault.STALL, seconds=0.5, path="partNumber=", times=99)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.put, "objects/large", large)
        with anyio.fail_after(5):
            await rule.met.wait()
        tasks.cancel_scope.cancel()
    proxy.rules.clear()
    with anyio.move_on_after(20):  # a part that was under way may come after the upload's end, and is removed with it
        while not proxy.requests("DELETE") or left_parts(server):  # noqa: ASYNC110 - another process removes them
            await anyio.sleep(0.1)
    assert proxy.requests("DELETE"), "it was aborted"
    assert left_parts(server) == []
    assert await store.head("objects/large") is None


@pytest.mark.anyio
async def test_parts_under_way_are_bounded(store: ObjectStore, proxy: S3Proxy, large: Path) -> None:
    proxy.fail(Fault.STALL, seconds=0.2, path="partNumber=", times=99)
    await store.put("objects/large", large)
    assert proxy.most_stalled == LIMITS.parts_together
