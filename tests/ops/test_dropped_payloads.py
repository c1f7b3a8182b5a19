"""A run that keeps nothing deletes what it made, never what it found."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.dropped_payloads import drop_payloads, dropped_key
from stream.results import Manifest, ObjectKind, Results, StoredObject, file_digest, object_key
from stream.run_records import RunRecords
from stream.store.obstore_store import open_store

pytestmark = pytest.mark.anyio


async def test_only_the_maker_of_a_payload_drops_it(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    payload = tmp_path / "payload"
    payload.write_bytes(b"pixels")
    key = object_key("e1", "flat_field", "1-a", "data")
    await store.put(key, payload)
    array = StoredObject("data", key, file_digest(payload), 6, ObjectKind.ARRAY)
    results = Results(store)
    manifest = await results.publish(
        Manifest(identity="1" * 64, exposure="e1", stage="flat_field", branch="WFI_IMAGE", objects=(array,))
    )
    maker, finder = RunRecords(store, "kept"), RunRecords(store, "other")
    await maker.point(manifest)
    await finder.adopt(manifest)
    await drop_payloads(store, results, finder, "e1", ["flat_field"])
    assert await results.find(manifest.identity) is not None
    await drop_payloads(store, results, maker, "e1", ["flat_field"])
    assert await store.head(key) is None
    assert await store.head(dropped_key(manifest.identity)) is not None
