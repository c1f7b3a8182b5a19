# ruff: noqa: ASYNC240
"""The local cache: what is leased is whole and stays readable; the rest keeps within its bytes."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream.failure import FatalError, RetriableError
from stream.results import file_digest
from stream.store import ObjectStore
from stream.store.cache import ObjectCache
from stream.store.obstore_store import open_store

SIZE = 1000
Make = Callable[..., ObjectCache]


@dataclass(frozen=True)
class Stored:
    name: str
    key: str
    digest: str
    size: int


async def put(store: ObjectStore, number: int, size: int = SIZE) -> Stored:
    content = bytes([number]) * size
    await store.put(f"objects/{number}/tree.asdf", content)
    return Stored(str(number), f"objects/{number}/tree.asdf", hashlib.sha256(content).hexdigest(), size)


def cached(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder / "checked").parent) for path in (folder / "checked").rglob("*.asdf"))


class CountingStore:
    """Passes on, counts what is fetched, and waits as long as it is told to."""

    def __init__(self) -> None:
        self.inner = open_store("memory:")
        self.fetched: list[str] = []
        self.together = self.most_together = 0
        self.delay = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def get(self, key: str) -> bytes | None:
        async with self.counted(key):
            return await self.inner.get(key)

    async def fetch(self, key: str, cache: Path) -> Path:
        async with self.counted(key):
            return await self.inner.fetch(key, cache)

    @asynccontextmanager
    async def counted(self, key: str) -> AsyncIterator[None]:
        self.fetched.append(key)
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            await anyio.sleep(self.delay)
            yield
        finally:
            self.together -= 1


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make(store: CountingStore, folder: Path) -> Make:
    def cache(max_bytes: int = 10 * SIZE, **what: Any) -> ObjectCache:
        return ObjectCache(store, folder, max_bytes=max_bytes, digest=file_digest, **what)  # type: ignore[arg-type]

    return cache


@pytest.mark.anyio
async def test_a_leased_file_has_the_content_and_its_keys_name(store: CountingStore, make: Make) -> None:
    events: list[dict[str, Any]] = []
    cache = make(observe=events.append)
    stored = [await put(store, number) for number in (1, 2)]
    for _ in range(2):
        async with cache.lease(stored) as paths:
            assert {name: path.read_bytes()[:1] for name, path in paths.items()} == {"1": b"\1", "2": b"\2"}
            assert all(path.name.endswith("tree.asdf") for path in paths.values())
    assert sorted(store.fetched) == [one.key for one in stored]
    assert [event["outcome"] for event in events] == ["miss", "miss", "hit", "hit"]


@pytest.mark.anyio
async def test_a_large_object_is_checked_kept_and_given_back_too(
    store: CountingStore, folder: Path, make: Make
) -> None:
    size = 1_500_000
    cache, stored = make(10 * size), await put(store, 1, size)
    for _ in range(2):
        async with cache.lease([stored]) as paths:
            assert paths["1"].read_bytes() == b"\1" * size
    assert store.fetched == [stored.key]
    assert [path.name for path in folder.glob(".leases-*/*")] == ["alive"]
    damaged = await put(store, 2, size)
    await store.put(damaged.key, b"\3" * size)
    with pytest.raises(RetriableError, match=r"objects/2/tree\.asdf is damaged"):
        async with cache.lease([damaged]):
            pytest.fail("leased")
    assert [path.name for path in folder.glob(".leases-*/*")] == ["alive"]
    assert cached(folder) == ["objects/1"]


@pytest.mark.anyio
async def test_objects_of_a_local_store_are_used_where_they_lie(tmp_path: Path, folder: Path) -> None:
    local = open_store(tmp_path / "store")
    cache = ObjectCache(local, folder, max_bytes=1, digest=file_digest)
    cache.sweep()
    async with cache.lease([await put(local, 1)]) as paths:
        assert paths["1"] == tmp_path / "store" / "objects/1/tree.asdf"
    assert not folder.exists()


@pytest.mark.anyio
async def test_the_least_recently_used_goes_first(store: CountingStore, folder: Path, make: Make) -> None:
    cache = make(3 * SIZE)
    stored = [await put(store, number) for number in range(4)]
    for used in (0, 1, 2, 0, 3):
        async with cache.lease([stored[used]]):
            await anyio.sleep(0.01)  # times of files are not finer
    assert cached(folder) == ["objects/0", "objects/2", "objects/3"]


@pytest.mark.anyio
async def test_what_is_in_use_is_not_evicted(store: CountingStore, folder: Path, make: Make) -> None:
    cache = make(2 * SIZE)
    first, second, third = [await put(store, number) for number in range(3)]
    async with cache.lease([first]) as paths:
        for other in (second, third):
            async with cache.lease([other]):
                pass
        assert cached(folder) == ["objects/0", "objects/2"]
        assert paths["0"].read_bytes() == bytes(SIZE)
    async with cache.lease([first]):
        assert store.fetched.count(first.key) == 1


@pytest.mark.anyio
async def test_a_lease_larger_than_the_cache_works_and_shrinks_again(
    store: CountingStore, folder: Path, make: Make
) -> None:
    cache = make(2 * SIZE)
    async with cache.lease([await put(store, number) for number in range(5)]) as paths:
        assert [paths[str(number)].stat().st_size for number in range(5)] == [SIZE] * 5
    async with cache.lease([await put(store, 9)]):
        assert len(cached(folder)) == 2


@pytest.mark.anyio
async def test_adopted_files_need_no_fetch_and_are_evicted_like_others(
    store: CountingStore, folder: Path, tmp_path: Path, make: Make
) -> None:
    cache = make(2 * SIZE)
    stored = [await put(store, number) for number in range(6)]
    for number, one in enumerate(stored):
        made = tmp_path / "made"
        made.write_bytes(bytes([number]) * SIZE)
        os.utime(made, (number, number))
        cache.adopt(one.key, made)
        made.unlink()
    async with cache.lease([stored[5]]) as paths:
        assert paths["5"].read_bytes() == b"\5" * SIZE
    assert store.fetched == []
    assert cached(folder) == ["objects/4", "objects/5"]


@pytest.mark.anyio
async def test_a_leased_file_outlives_its_eviction_by_another_process(
    store: CountingStore, folder: Path, make: Make
) -> None:
    async with make().lease([await put(store, 1)]) as paths:
        for path in (folder / "checked").rglob("*.asdf"):
            path.unlink()
        assert paths["1"].read_bytes() == b"\1" * SIZE


@pytest.mark.anyio
async def test_an_object_wanted_by_many_is_fetched_once(store: CountingStore, make: Make) -> None:
    cache = make()
    stored = await put(store, 1)
    store.delay = 0.05

    async def use() -> None:
        async with cache.lease([stored]) as paths:
            assert paths["1"].stat().st_size == SIZE

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(use)
    assert len(store.fetched) == 1


@pytest.mark.anyio
async def test_who_waits_for_a_fetch_that_is_cancelled_fetches_itself(store: CountingStore, make: Make) -> None:
    cache = make()
    stored = await put(store, 1)
    store.delay = 0.1

    async def impatient() -> None:
        with anyio.move_on_after(0.05):
            async with cache.lease([stored]):
                pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(impatient)
        await anyio.sleep(0.01)
        async with cache.lease([stored]) as paths:
            assert paths["1"].stat().st_size == SIZE
    assert len(store.fetched) == 2


@pytest.mark.anyio
async def test_few_are_fetched_at_once(store: CountingStore, make: Make) -> None:
    store.delay = 0.02
    async with make(100 * SIZE).lease([await put(store, number) for number in range(12)]):
        assert store.most_together == 4


@pytest.mark.anyio
async def test_who_wants_many_small_ones_may_have_more_fetched_at_once(store: CountingStore, make: Make) -> None:
    store.delay = 0.2
    wanted = [await put(store, number) for number in range(10)]
    async with make().lease(wanted, most=7):
        assert store.most_together == 7


@pytest.mark.anyio
async def test_an_object_of_unknown_size_is_fetched_once_and_counted(
    store: CountingStore, folder: Path, make: Make
) -> None:
    events: list[dict[str, Any]] = []
    cache = make(max_bytes=2 * SIZE, observe=events.append)
    wanted = [replace(await put(store, number), size=-1) for number in range(4)]
    for stored in (wanted[0], wanted[0]):
        async with cache.lease([stored]) as paths:
            assert paths["0"].read_bytes() == bytes(SIZE)
    assert store.fetched == [wanted[0].key]
    assert [(event["outcome"], event["bytes"]) for event in events] == [("miss", SIZE), ("hit", SIZE)]
    async with cache.lease(wanted[1:]):
        pass
    async with cache.lease([]):
        pass
    assert len(cached(folder)) <= 2


@pytest.mark.anyio
@pytest.mark.parametrize("content", [b"\2" * SIZE, b"\1" * (SIZE - 1)])
async def test_a_damaged_object_is_found_and_not_kept(
    store: CountingStore, folder: Path, make: Make, content: bytes
) -> None:
    stored = await put(store, 1)
    await store.put(stored.key, content)
    with pytest.raises(RetriableError, match=r"objects/1/tree\.asdf is damaged"):
        async with make().lease([stored]):
            pytest.fail("leased")
    assert list(folder.rglob("*.asdf*")) == []


@pytest.mark.anyio
async def test_a_file_that_was_cut_short_here_is_fetched_again(store: CountingStore, folder: Path, make: Make) -> None:
    cache = make()
    stored = await put(store, 1)
    async with cache.lease([stored]):
        pass
    (folder / "checked" / stored.key).write_bytes(b"")
    async with cache.lease([stored]) as paths:
        assert paths["1"].read_bytes() == b"\1" * SIZE


@pytest.mark.anyio
async def test_what_is_missing_is_named_and_no_lease_stays(store: CountingStore, folder: Path, make: Make) -> None:
    stored = [await put(store, 1), Stored("2", "objects/none", "", 1)]
    with pytest.raises(RetriableError, match="objects/none"):
        async with make().lease(stored):
            pytest.fail("leased")
    assert [path.name for path in folder.glob(".leases-*/*")] == ["alive"]


@pytest.mark.anyio
async def test_a_folder_that_cannot_be_made_is_fatal_and_named(store: CountingStore, folder: Path, make: Make) -> None:
    folder.write_text("a file")
    with pytest.raises(FatalError, match=f"the cache {folder} cannot be used"):
        async with make().lease([await put(store, 1)]):
            pytest.fail("leased")


@pytest.mark.anyio
async def test_sweeping_takes_what_the_dead_left_and_spares_the_living(
    store: CountingStore, folder: Path, make: Make
) -> None:
    script = (
        "import anyio, pathlib, os, sys, hashlib\n"
        "from tests.contract.test_store_cache import CountingStore, put\n"
        "from stream.results import file_digest\n"
        "from stream.store.cache import ObjectCache\n"
        "async def main():\n"
        "    store = CountingStore()\n"
        "    cache = ObjectCache(store, pathlib.Path(sys.argv[1]), max_bytes=10**6, digest=file_digest)\n"
        "    async with cache.lease([await put(store, 7)]):\n"
        "        os._exit(0)\n"
        "anyio.run(main)\n"
    )
    await anyio.run_process([sys.executable, "-c", script, str(folder)], cwd=Path(__file__).parents[2])
    (left,) = folder.glob(".leases-*")
    living = make()
    async with living.lease([await put(store, 1)]) as paths:
        make().sweep()
        assert not left.exists()
        assert paths["1"].read_bytes() == b"\1" * SIZE
    living.close()
    assert list(folder.glob(".leases-*")) == []


@pytest.mark.anyio
async def test_after_a_power_failure_everything_is_fetched_anew(store: CountingStore, folder: Path, make: Make) -> None:
    stored = await put(store, 1)
    cache = make()
    async with cache.lease([stored]):
        pass
    cache.sweep()
    assert cached(folder) == []  # nobody had noted when the machine was started
    async with cache.lease([stored]):
        pass
    cache.sweep()
    assert cached(folder) == ["objects/1"]
    (folder / ".boot").write_text("another start of the machine")
    cache.sweep()
    assert cached(folder) == []


@pytest.mark.anyio
async def test_caches_that_share_a_folder_keep_its_bound_together(
    store: CountingStore, folder: Path, make: Make
) -> None:
    bound = 16
    sharing = [make(bound * SIZE) for _ in range(8)]
    for number in range(6):
        for place, cache in enumerate(sharing):
            async with cache.lease([await put(store, 10 * number + place)]):
                assert len(cached(folder)) <= bound
    assert len(cached(folder)) > bound // 2


@pytest.mark.anyio
async def test_a_fetch_does_not_look_at_all_that_is_kept(
    store: CountingStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[object] = []
    walk = os.walk

    def counted(top: Path) -> Any:
        walks.append(top)
        return walk(top)

    cache = make(1000 * SIZE)
    monkeypatch.setattr(os, "walk", counted)
    for number in range(60):
        async with cache.lease([await put(store, number)]):
            pass
    assert len(walks) == 1
