"""A measured store keeps the contract and tells what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stream.failure import RetriableError
from stream.store import ObjectStore
from stream.store.measured import MeasuredStore
from stream.store.obstore_store import open_store
from tests.contract.store_suite import StoreContract, keys


class TestMeasuredStore(StoreContract):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MeasuredStore(open_store("memory:"), lambda _: None)


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def store(events: list[dict[str, Any]]) -> ObjectStore:
    return MeasuredStore(open_store("memory:"), events.append)


@pytest.mark.anyio
async def test_each_operation_is_told_once(store: ObjectStore, events: list[dict[str, Any]], tmp_path: Path) -> None:
    await store.put("a/1", b"12345")
    await store.put_if_absent("a/2", b"123")
    await store.get("a/1")
    await store.get("none")
    await store.head("a/1")
    await keys(store, "a/")
    await store.fetch("a/1", tmp_path)
    await store.delete("a/1")
    assert [(event["operation"], event["bytes"], event["outcome"]) for event in events] == [
        ("put", 5, "ok"), ("create", 3, "ok"), ("get", 5, "ok"), ("get", 0, "ok"), ("head", 0, "ok"), ("list", 0, "ok"),
        ("fetch", 5, "ok"), ("delete", 0, "ok"),
    ]  # fmt: skip
    assert all(event["event"] == "store" and 0 <= event["seconds"] < 10 for event in events)


@pytest.mark.anyio
async def test_a_failure_is_told_by_its_class_and_goes_on(
    store: ObjectStore, events: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(RetriableError):
        await store.fetch("none", tmp_path)
    assert [event["outcome"] for event in events] == ["retriable"]


@pytest.mark.anyio
async def test_what_did_not_end_is_not_told_as_well_done(store: ObjectStore, events: list[dict[str, Any]]) -> None:
    async def cancelled(key: str) -> bytes | None:
        raise KeyboardInterrupt

    store._inner.get = cancelled  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        await store.get("a")
    assert [event["outcome"] for event in events] == ["unfinished"]


@pytest.mark.anyio
async def test_files_of_a_local_store_are_not_counted_as_moved(events: list[dict[str, Any]], tmp_path: Path) -> None:
    store = MeasuredStore(open_store(tmp_path / "store"), events.append)
    await store.put("a", b"12345")
    await store.fetch("a", tmp_path / "cache")
    assert events[-1]["bytes"] == 0
