"""A real S3 server keeps the contract."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from stream.failure import FatalError
from stream.store import ObjectStore, probe_put_if_absent
from stream.store.obstore_store import open_store
from tests.contract.store_suite import StoreContract, keys
from tests.servers import S3Server, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def opened(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://rampstream/{uuid.uuid4().hex}")


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, opened: ObjectStore) -> ObjectStore:
        return opened

    @pytest.mark.anyio
    async def test_it_honours_put_if_absent(self, store: ObjectStore) -> None:
        await probe_put_if_absent(store)

    @pytest.mark.anyio
    async def test_of_many_racers_exactly_one_creates(self, store: ObjectStore) -> None:
        won: list[int] = []

        async def race(number: int) -> None:
            if await store.put_if_absent("raced", str(number).encode()):
                won.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(32):
                tasks.start_soon(race, number)
        assert [str(number).encode() for number in won] == [await store.get("raced")]

    @pytest.mark.anyio
    async def test_a_large_file_goes_in_parts_and_leaves_none_behind(
        self, store: ObjectStore, server: S3Server, tmp_path: Path
    ) -> None:
        large = tmp_path / "large"
        content = bytes(range(256)) * (96 * 4096)  # 96 MiB: several parts
        large.write_bytes(content)
        info = await store.put("large", large)
        assert info.size == len(content)
        assert (await store.fetch("large", tmp_path / "cache")).read_bytes() == content
        assert [path for path in (server.root / ".sgwtmp").rglob("*") if path.is_file()] == []

    @pytest.mark.anyio
    async def test_listing_goes_on_past_a_thousand_objects(self, store: ObjectStore) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(1100):
                tasks.start_soon(store.put, f"many/{number:04d}", b"x")
        assert await keys(store, "many/") == [f"many/{number:04d}" for number in range(1100)]


@pytest.mark.anyio
async def test_wrong_credentials_are_fatal(opened: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    del opened
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(FatalError):
        await open_store("s3://rampstream/other").put("key", b"content")


@pytest.mark.anyio
async def test_a_bucket_that_does_not_exist_is_fatal(opened: ObjectStore) -> None:
    del opened
    with pytest.raises(FatalError, match="nowhere"):
        await open_store("s3://nowhere/other").put("key", b"content")
