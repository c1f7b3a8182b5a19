"""Large objects that a run that keeps nothing deletes once its products are there: their manifests still count."""

from __future__ import annotations

from collections.abc import Sequence

from stream.results import ObjectKind, Results
from stream.run_records import RunRecords
from stream.store import ObjectStore

__all__ = ["drop_payloads", "dropped_key"]


def dropped_key(identity: str) -> str:
    """Key of the mark that a result's payload was dropped on purpose, and its manifest still counts."""
    return f"dropped/{identity}"


async def drop_payloads(
    store: ObjectStore, results: Results, records: RunRecords, exposure: str, stages: Sequence[str]
) -> None:
    """Delete the large objects of results that the run made; marked first, so that the manifests still count.

    What it adopted belongs to the run that made it, which may have been told to keep it.
    """
    for stage in stages:
        pointer = await records.pointer(exposure, stage)
        if pointer is None or pointer.adopted:
            continue
        manifest = await results.read(pointer.manifest)
        large = [stored for stored in manifest.objects if stored.kind in {ObjectKind.TREE, ObjectKind.ARRAY}]
        if large:
            await store.put(dropped_key(manifest.identity), b"{}")
        for stored in large:
            await store.delete(stored.key)
