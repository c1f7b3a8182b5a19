"""The local folder and the memory store keep the contract; the local one moves files instead of copying them."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import anyio
import pytest

from stream.failure import FatalError, RetriableError
from stream.store import ObjectStore
from stream.store.locations import StoreLimits, bodies_may_be_unsigned, s3_endpoint
from stream.store.obstore_store import LocalObjectStore, failure_from, open_store
from tests.contract.store_suite import StoreContract, keys


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return open_store("memory:")


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        return open_store(tmp_path / "store")

    @pytest.mark.anyio
    async def test_a_staged_file_is_moved_not_copied(self, store: ObjectStore) -> None:
        staged = store.staging("cube")
        assert staged is not None
        staged.parent.mkdir(parents=True)
        staged.write_bytes(b"content")
        inode = staged.stat().st_ino
        await store.put("objects/cube.asdf", staged)
        assert not staged.exists()
        assert (await store.fetch("objects/cube.asdf", Path("unused"))).stat().st_ino == inode

    @pytest.mark.anyio
    async def test_fetch_gives_the_objects_own_file(self, store: LocalObjectStore, tmp_path: Path) -> None:
        await store.put("objects/a", b"1")
        assert await store.fetch("objects/a", tmp_path / "cache") == store.root / "objects/a"
        assert not (tmp_path / "cache").exists()

    @pytest.mark.anyio
    async def test_sweeping_takes_only_what_is_old(self, store: ObjectStore) -> None:
        old, young = store.staging("old"), store.staging("young")
        assert old is not None
        assert young is not None
        for folder in (old, young):
            folder.mkdir(parents=True)
            (folder / "x").write_bytes(b"1")
        for path in (old / "x", old):
            os.utime(path, (time.time() - 1000,) * 2)
        assert store.sweep_staging(500) == 1
        assert not old.exists()
        assert young.exists()

    @pytest.mark.anyio
    async def test_of_racing_processes_exactly_one_creates(self, tmp_path: Path) -> None:
        # spawn: a fork would copy obstore's threads' locks.
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            won = await anyio.to_thread.run_sync(pool.map, _create, [str(tmp_path / "store")] * 4)
        assert [sum(column) for column in zip(*won, strict=True)] == [1] * 20

    @pytest.mark.anyio
    async def test_a_full_disk_is_fatal_and_names_the_path(
        self, store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        staged = store.staging("cube")
        assert staged is not None

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(staged))

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(FatalError, match=r"cannot write objects/cube\.asdf in .*store.*No space left"):
            await store.put("objects/cube.asdf", staged)

    @pytest.mark.anyio
    async def test_file_urls_and_folders_are_the_same(self, tmp_path: Path) -> None:
        await open_store(f"file://{tmp_path}/with%20space").put("a", b"1")
        assert await keys(open_store(str(tmp_path / "with space")), "") == ["a"]


def _create(root: str) -> list[bool]:
    async def create() -> list[bool]:
        store = open_store(root)
        return [await store.put_if_absent(f"race/{number}", os.urandom(8)) for number in range(20)]

    return anyio.run(create)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FatalError),
        (PermissionError(errno.EACCES, "Permission denied"), FatalError),
        (ValueError("Generic LocalFileSystem error: Unable to copy data (os error 28)\n\nDebug source:"), FatalError),
        (OSError(errno.EIO, "Input/output error"), RetriableError),
        (ValueError("Generic S3 error: error sending request"), RetriableError),
        (ValueError("status code: 503 Service Unavailable: <Error><Code>SlowDown</Code></Error>"), RetriableError),
        (ValueError("status code: 400 Bad Request: <Error><Code>RequestTimeout</Code></Error>"), RetriableError),
        (ValueError("status code: 400 Bad Request: <Error><Code>ExpiredToken</Code></Error>"), FatalError),
        (ValueError("status code: 403 Forbidden: <Error><Code>AccessDenied</Code></Error>"), FatalError),
        (ValueError("status code: 404 Not Found: <Error><Code>NoSuchBucket</Code></Error>"), FatalError),
        (ValueError("status code: 404 Not Found: <Error><Code>NoSuchUpload</Code></Error>"), RetriableError),
        (FileNotFoundError("status code: 404 Not Found: <Error><Code>NoSuchUpload</Code></Error>"), RetriableError),
        (ValueError("status code: 507 Insufficient Storage"), FatalError),
        (ValueError("status code: 301 Moved Permanently: <Error><Code>PermanentRedirect</Code></Error>"), FatalError),
    ],
)
def test_refused_and_full_are_fatal_the_rest_may_work_next_time(error: Exception, failure: type[Exception]) -> None:
    found = failure_from(error, "cannot write k in s")
    assert type(found) is failure
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "location", ["ftp://x/y", "s3:///prefix", "az://account", "s3://bucket/prefix?region=here", "gs://bucket#part"]
)
def test_an_address_that_is_not_understood_is_refused_in_words(location: str) -> None:
    with pytest.raises(
        FatalError, match=r"cannot open the object store .*: .*expected .*az://ACCOUNT/CONTAINER/PREFIX"
    ):
        open_store(location)


@pytest.mark.parametrize(
    "location", ["s3://bucket/prefix", "s3://bucket", "gs://bucket/pre/fix", "az://account/container/prefix/"]
)
def test_remote_stores_open_without_a_request(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    store = open_store(location)
    assert location in repr(store)
    assert store.staging("x") is None


def test_the_parts_of_an_azure_address_are_account_container_and_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
    raw = open_store("az://account/container/pre/fix")._raw  # type: ignore[attr-defined]
    assert (raw.config["account_name"], raw.config["container_name"], raw.prefix) == ("account", "container", "pre/fix")


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, None),
        ({"AWS_ENDPOINT_URL": "http://s3.local:9000"}, "http://s3.local:9000"),
        ({"AWS_ENDPOINT_URL": "http://any", "AWS_ENDPOINT_URL_S3": "http://s3.local"}, "http://s3.local"),
        (
            {"AWS_ENDPOINT_URL": "https://s3.local:9000", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"},
            "https://bucket.s3.local:9000",
        ),
        (
            {"AWS_ENDPOINT_URL": "https://bucket.s3.local", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"},
            "https://bucket.s3.local",
        ),
        ({"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"}, None),
    ],
)
def test_the_endpoint_is_the_environments(environment: dict[str, str], endpoint: str | None) -> None:
    assert s3_endpoint("bucket", environment) == endpoint


def test_the_limits_leave_time_for_an_object_of_1_gb_on_a_shared_link() -> None:
    limits = StoreLimits()
    assert limits.transfer > 1e9 / (10e6 / 8), "1 GB at an eighth of 10 MB/s"
    assert limits.parts_together * limits.part / limits.stall < 10e6 / 8, "what an upload needs not to seem stalled"
    assert limits.retry + limits.wait + limits.stall < 300, "what a signature holds"


@pytest.mark.parametrize(
    ("endpoint", "unsigned"),
    [
        (None, True), ("https://s3.example.org", True), ("http://127.0.0.1:7070", True), ("http://localhost:1", True),
        ("http://[::1]:7070", True), ("http://s3.example.org", False), ("http://10.0.0.7:7070", False),
    ],
)  # fmt: skip
def test_bodies_are_signed_where_nothing_else_guards_them(endpoint: str | None, unsigned: bool) -> None:
    assert bodies_may_be_unsigned(endpoint, {}) is unsigned
    assert not bodies_may_be_unsigned(endpoint, {"AWS_UNSIGNED_PAYLOAD": "false"})
