"""What every object store promises. Implementations inherit these tests and give the ``store`` fixture."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from stream.failure import FatalError, PermanentError, RetriableError
from stream.store import ObjectStore, probe_put_if_absent
from stream.store.locations import StoreLimits


async def keys(store: ObjectStore, prefix: str) -> list[str]:
    return [info.key async for info in store.list(prefix)]


class StoreContract:
    """Inherit, and give a fixture ``store``."""

    @pytest.mark.anyio
    async def test_what_was_put_is_got(self, store: ObjectStore) -> None:
        info = await store.put("results/a/1", b"content")
        assert (info.key, info.size) == ("results/a/1", 7)
        assert await store.get("results/a/1") == b"content"
        head = await store.head("results/a/1")
        assert head is not None
        assert head.size == 7
        assert head.modified > 1_600_000_000

    @pytest.mark.anyio
    async def test_put_replaces(self, store: ObjectStore) -> None:
        await store.put("pointer", b"old and long")
        await store.put("pointer", b"new")
        assert await store.get("pointer") == b"new"

    @pytest.mark.anyio
    async def test_what_does_not_exist_is_none(self, store: ObjectStore) -> None:
        assert await store.get("no/such") is None
        assert await store.head("no/such") is None
        assert await keys(store, "no/") == []
        await store.delete("no/such")

    @pytest.mark.anyio
    async def test_a_deleted_object_is_gone_and_can_be_created_again(self, store: ObjectStore) -> None:
        await store.put("a/b", b"1")
        await store.delete("a/b")
        assert await store.get("a/b") is None
        assert await store.put_if_absent("a/b", b"2")

    @pytest.mark.anyio
    async def test_put_if_absent_changes_nothing_that_exists(self, store: ObjectStore) -> None:
        assert await store.put_if_absent("results/x/1", b"first")
        assert not await store.put_if_absent("results/x/1", b"second")
        assert await store.get("results/x/1") == b"first"

    @pytest.mark.anyio
    async def test_of_many_racers_exactly_one_creates(self, store: ObjectStore) -> None:
        won: list[int] = []

        async def race(number: int) -> None:
            if await store.put_if_absent("race", str(number).encode() * 1000):
                won.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(32):
                tasks.start_soon(race, number)
        assert len(won) == 1
        assert await store.get("race") == str(won[0]).encode() * 1000

    @pytest.mark.anyio
    async def test_a_creation_that_is_repeated_changes_nothing(self, store: ObjectStore) -> None:
        # Whether the second one gets True is the store's: it may not be able to tell it from a lost reply.
        assert await store.put_if_absent("results/x/1", b"equal")
        await store.put_if_absent("results/x/1", b"equal")
        assert not await store.put_if_absent("results/x/1", b"other")
        assert await store.get("results/x/1") == b"equal"

    @pytest.mark.anyio
    async def test_racers_with_equal_bytes_leave_one_object_and_at_least_one_wins(self, store: ObjectStore) -> None:
        won: list[bool] = []

        async def race() -> None:
            won.append(await store.put_if_absent("race", b"equal"))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(race)
        assert any(won)
        assert await store.get("race") == b"equal"

    @pytest.mark.anyio
    async def test_list_is_by_characters_of_the_key_and_in_order(self, store: ObjectStore) -> None:
        for key in ("runs/b/1", "runs/a/10", "runs/a/2", "runs/ab/1", "runs-old/a", "other"):
            await store.put(key, b"x")
        assert await keys(store, "runs/") == ["runs/a/10", "runs/a/2", "runs/ab/1", "runs/b/1"]
        assert await keys(store, "runs/a") == ["runs/a/10", "runs/a/2", "runs/ab/1"]
        assert await keys(store, "runs/a/") == ["runs/a/10", "runs/a/2"]
        assert len(await keys(store, "")) == 6

    @pytest.mark.anyio
    async def test_list_orders_whole_keys_not_their_parts(self, store: ObjectStore) -> None:
        # "-" and "." come before "/", "0" comes after it.
        ordered = ["r/a-b/1", "r/a.b", "r/a/1", "r/a0", "r/b"]
        for key in reversed(ordered):
            await store.put(key, b"x")
        assert await keys(store, "r/") == ordered

    @pytest.mark.anyio
    async def test_a_local_file_can_be_put_and_stays(self, store: ObjectStore, tmp_path: Path) -> None:
        source = tmp_path / "source.asdf"
        source.write_bytes(os.urandom(3_000_000))
        info = await store.put("objects/a/big.asdf", source)
        assert info.size == 3_000_000
        assert await store.get("objects/a/big.asdf") == source.read_bytes()

    @pytest.mark.anyio
    async def test_a_fetched_file_has_the_content(self, store: ObjectStore, tmp_path: Path) -> None:
        content = os.urandom(20_000_000)
        await store.put("objects/a/cube.asdf", content)
        first = await store.fetch("objects/a/cube.asdf", tmp_path / "cache")
        again = await store.fetch("objects/a/cube.asdf", tmp_path / "cache")
        assert first.read_bytes() == content
        assert again == first

    @pytest.mark.anyio
    async def test_an_object_may_be_empty(self, store: ObjectStore, tmp_path: Path) -> None:
        await store.put("objects/empty", b"")
        assert await store.get("objects/empty") == b""
        assert (await store.fetch("objects/empty", tmp_path / "cache")).read_bytes() == b""

    @pytest.mark.anyio
    async def test_a_file_larger_than_a_part_is_put_whole(self, store: ObjectStore, tmp_path: Path) -> None:
        source = tmp_path / "large"
        content = os.urandom(2 * StoreLimits().part + 17)
        source.write_bytes(content)
        assert (await store.put("objects/large", source)).size == len(content)
        assert await store.get("objects/large") == content

    @pytest.mark.anyio
    async def test_a_file_that_is_not_there_is_named_and_puts_nothing(self, store: ObjectStore, tmp_path: Path) -> None:
        with pytest.raises(RetriableError, match="objects/a"):
            await store.put("objects/a", tmp_path / "none")
        assert await store.get("objects/a") is None

    @pytest.mark.anyio
    async def test_fetched_by_many_at_once_it_is_whole_for_each(self, store: ObjectStore, tmp_path: Path) -> None:
        content = os.urandom(3_000_000)
        await store.put("objects/a", content)

        async def fetch() -> None:
            assert (await store.fetch("objects/a", tmp_path / "cache")).read_bytes() == content

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(fetch)

    @pytest.mark.anyio
    async def test_fetching_what_does_not_exist_names_it(self, store: ObjectStore, tmp_path: Path) -> None:
        with pytest.raises(RetriableError, match=r"objects/none\.asdf"):
            await store.fetch("objects/none.asdf", tmp_path / "cache")

    @pytest.mark.anyio
    async def test_what_is_staged_is_invisible_until_put(self, store: ObjectStore, tmp_path: Path) -> None:
        staged = store.staging("attempt/1") or tmp_path / "attempt"
        assert not staged.exists()
        staged.mkdir(parents=True)
        (staged / "tree.asdf").write_bytes(b"half")
        assert await keys(store, "") == []
        await store.put("objects/a/tree.asdf", staged / "tree.asdf")
        assert await keys(store, "") == ["objects/a/tree.asdf"]

    @pytest.mark.anyio
    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b", "a b", "a#1", "ü", "a%41", ".staging/x"])
    async def test_a_key_that_some_store_would_change_is_refused(self, store: ObjectStore, key: str) -> None:
        with pytest.raises(PermanentError, match="cannot name an object"):
            await store.put(key, b"")
        with pytest.raises(PermanentError, match="cannot name an object"):
            await store.get(key)

    @pytest.mark.anyio
    async def test_the_probe_accepts_the_store_and_leaves_nothing(self, store: ObjectStore) -> None:
        await probe_put_if_absent(store)
        assert await keys(store, "") == []

    @pytest.mark.anyio
    async def test_the_probe_refuses_a_store_that_ignores_put_if_absent(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def ignoring(key: str, data: bytes) -> bool:
            await store.put(key, data)
            return True

        monkeypatch.setattr(store, "put_if_absent", ignoring)
        with pytest.raises(FatalError, match="does not honour put-if-absent"):
            await probe_put_if_absent(store)
