"""Products of two revisions of an association: whoever stops in between, all that is visible is of one of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ops.product_sets import ProductSet, ProductSets
from ops.projection import Projection
from stream.association import Close, ClosedMember, CloseOutcome, CloseReason
from stream.identity import hash_parts
from stream.member_list import MemberList, put_close, put_member_list
from stream.results import Manifest, ObjectKind, Results, StoredObject
from stream.store import ObjectStore
from stream.store.obstore_store import open_store

pytestmark = pytest.mark.anyio

RUN, ID, NAME = "r", "pair-1", "pair"
FIRST, SECOND = (f"r0001_wfi{number:02d}" for number in (1, 2))


class Site:
    """A store with one association, and a folder that shows its products."""

    def __init__(self, folder: Path) -> None:
        self.store: ObjectStore = open_store(folder / "store")
        self.results = Results(self.store)
        self.out = folder / "out"
        self.projection = Projection(store=self.store, out=self.out, cache=folder / "cache")
        self.told: list[int] = []

    async def show(self, complete: ProductSet) -> None:
        await self.projection.project(complete)
        self.told.append(complete.revision)

    def worker(self) -> ProductSets:
        """One that knows what the store tells, as after a start."""
        return ProductSets(store=self.store, results=self.results, run=RUN, visible=self.show)

    async def close(self, revision: int, *members: str) -> None:
        closed = tuple(ClosedMember(name, "ok", hash_parts(name, str(revision))) for name in members)
        await put_close(self.store, RUN, Close(ID, revision, CloseReason.COMPLETE, CloseOutcome.ALIGN, closed))

    async def finalized(self, exposure: str, revision: int) -> Manifest:
        data = f"{exposure} of revision {revision}".encode()
        key = f"objects/{exposure}/{revision}"
        await self.store.put(key, data)
        name = f"{exposure}_cal.asdf"
        product = StoredObject(name, key, hashlib.sha256(data).hexdigest(), len(data), ObjectKind.PRODUCT)
        identity = hash_parts("final", exposure, str(revision))
        return await self.results.publish(
            Manifest(identity=identity, exposure=exposure, stage="finalize", branch="x", objects=(product,))
        )

    async def visible(self) -> int:
        """Which revision readers of the store are shown: of one association, so there is one."""
        (shown,) = [found async for found in self.worker().all()]
        manifests = [await self.finalized(name, shown.revision) for name in shown.members]
        assert [member["manifest"] for member in shown.members.values()] == [known.key for known in manifests]
        return shown.revision

    def shown(self) -> dict[str, str]:
        """What is in the folder, with hidden files."""
        return {path.name: path.read_text() for path in (self.out / NAME).iterdir()}


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    """An association of two, both finalized with its first close."""
    site = Site(tmp_path)
    await put_member_list(site.store, RUN, MemberList(ID, (FIRST, SECOND), NAME))
    await site.close(1, FIRST, SECOND)
    worker = site.worker()
    for name in (FIRST, SECOND):
        await worker.finalized(ID, 1, await site.finalized(name, 1))
    assert site.told == [1]
    return site


def content(revision: int) -> dict[str, str]:
    return {f"{name}_cal.asdf": f"{name} of revision {revision}" for name in (FIRST, SECOND)}


async def test_a_worker_that_stops_half_way_leaves_the_old_revision_and_the_next_one_shows_the_new(site: Site) -> None:
    await site.close(2, FIRST, SECOND)
    assert (await site.visible(), site.shown()) == (1, content(1)), "closed, and nobody is finalized"
    await site.worker().finalized(ID, 2, await site.finalized(FIRST, 2))
    assert (await site.visible(), site.shown()) == (1, content(1)), "one of two is finalized"
    # That worker is gone; another one finalizes the rest, and what is visible changes with its last step.
    await site.worker().finalized(ID, 2, await site.finalized(SECOND, 2))
    assert (await site.visible(), site.shown()) == (2, content(2))
    assert site.told == [1, 2]


async def test_a_late_product_of_the_old_revision_does_not_come_back(site: Site) -> None:
    await site.close(2, FIRST, SECOND)
    worker = site.worker()
    for name in (FIRST, SECOND):
        await worker.finalized(ID, 2, await site.finalized(name, 2))
    await site.worker().finalized(ID, 1, await site.finalized(SECOND, 1))
    assert (await site.visible(), site.shown()) == (2, content(2))


async def test_a_folder_that_was_left_half_way_is_brought_in_line_and_holds_whole_files_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.close(2, FIRST, SECOND)
    worker = site.worker()
    await worker.finalized(ID, 2, await site.finalized(FIRST, 2))
    last = await site.finalized(SECOND, 2)
    replace = Path.replace

    def stopped(self: Path, target: Path) -> Path:
        if target.name.startswith(SECOND):
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            await worker.finalized(ID, 2, last)
    assert await site.visible() == 2, "the record is what counts"
    assert site.shown() == {**content(1), **{k: v for k, v in content(2).items() if k.startswith(FIRST)}}
    await site.worker().check(ID)
    assert site.shown() == content(2)
