"""A real S3 server keeps the contract."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from stream.failure import FatalError
from stream.store import ObjectStore
from stream.store.obstore_store import open_store
from tests import s3_server
from tests.contract.store_suite import StoreContract, keys
from tests.s3_server import Opener, left_parts
from tests.servers import S3Server

opener, server = s3_server.opener, s3_server.server


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, opener: Opener) -> ObjectStore:
        return opener()

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
        assert left_parts(server) == []

    @pytest.mark.anyio
    async def test_listing_goes_on_past_a_thousand_objects(self, store: ObjectStore) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(1100):
                tasks.start_soon(store.put, f"many/{number:04d}", b"x")
        assert await keys(store, "many/") == [f"many/{number:04d}" for number in range(1100)]

    @pytest.mark.anyio
    async def test_an_object_of_half_the_size_is_seen_at_once(
        self, store: ObjectStore, server: S3Server, tmp_path: Path
    ) -> None:
        await store.put("objects/cube", bytes(1000))
        (found,) = server.root.rglob("objects/cube")
        found.write_bytes(bytes(500))
        info = await store.head("objects/cube")
        assert info is not None
        assert info.size == 500  # what Results compares with the manifest


@pytest.mark.anyio
async def test_wrong_credentials_are_fatal(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    opener()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store("s3://rampstream/other")
    with pytest.raises(FatalError, match=r"403 SignatureDoesNotMatch.*check the store's credentials"):
        await store.put("key", b"content")


@pytest.mark.anyio
async def test_an_unknown_account_is_not_taken_for_a_missing_object(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This server answers 404 here, Amazon 403.
    opener()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    store = open_store("s3://rampstream/other")
    for operation in (store.get("key"), store.head("key"), store.delete("key")):
        with pytest.raises(FatalError, match="the key of the account is not known"):
            await operation


@pytest.mark.anyio
async def test_a_bucket_that_does_not_exist_is_fatal_whatever_is_asked_first(opener: Opener, tmp_path: Path) -> None:
    opener()
    for ask in (
        lambda store: store.put("key", b"content"),
        lambda store: store.put_if_absent("key", b"content"),
        lambda store: store.get("key"),
        lambda store: store.head("key"),
        lambda store: store.fetch("key", tmp_path),
        lambda store: store.delete("key"),
        lambda store: keys(store, ""),
    ):
        with pytest.raises(FatalError, match=r"in s3://nowhere/other.*there is no such bucket: make it first"):
            await ask(open_store("s3://nowhere/other"))
