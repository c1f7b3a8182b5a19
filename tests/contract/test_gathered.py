"""Many small objects in one file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from stream.failure import FatalError, RetriableError
from stream.results import ObjectKind, StoredObject
from stream.store import ObjectStore
from stream.store.gathered import gathered
from stream.store.obstore_store import open_store

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path / "store")


def described(name: str, content: bytes) -> StoredObject:
    digest = hashlib.sha256(content).hexdigest()
    return StoredObject(name, f"ties/{name}", digest, -1, ObjectKind.SIDE)


async def test_each_object_lies_aligned_at_its_place_and_the_file_goes_with_the_context(
    store: ObjectStore, tmp_path: Path
) -> None:
    contents = {f"m{number}": bytes([number % 251]) * (50_000 + number) for number in range(200)} | {"empty": b""}
    objects = [described(*one) for one in contents.items()]
    for one in objects:
        await store.put(one.key, contents[one.name])
    async with gathered(store, objects, tmp_path / "scratch") as found:
        whole = found.path.read_bytes()
        assert {name: whole[at : at + size] for name, (at, size) in found.places.items()} == contents
        assert {at % 64 for at, _ in found.places.values()} == {0}
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_nothing_is_a_file_too(store: ObjectStore, tmp_path: Path) -> None:
    async with gathered(store, [], tmp_path) as found:
        assert (found.path.read_bytes(), found.places) == (b"", {})


@pytest.mark.parametrize("stored", [None, b"damaged"])
async def test_missing_and_damaged_objects_are_named_and_leave_no_file(
    store: ObjectStore, tmp_path: Path, stored: bytes | None
) -> None:
    objects = [described("a", b"good"), described("b", b"better")]
    await store.put("ties/a", b"good")
    if stored is not None:
        await store.put("ties/b", stored)
    with pytest.raises(RetriableError, match="ties/b"):
        async with gathered(store, objects, tmp_path / "scratch"):
            pytest.fail("it is told before anyone reads the file")
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_folder_that_cannot_be_used_is_named(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FatalError, match="file"):
        async with gathered(store, [], tmp_path / "file"):
            pytest.fail("there is no file to read")
