"""Products of two revisions of an association: whoever stops in between, all that is visible is of one of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ops.product_sets import ProductSet, ProductSets
from ops.projection import Projection
from stream.association import Close, ClosedMember, CloseOutcome, CloseReason, MemberRecord
from stream.failure import RetriableError
from stream.identity import hash_parts
from stream.member_list import MemberList, put_close, put_member_list
from stream.member_statuses import KeptMember, MemberStatuses
from stream.message import MemberMessage, MemberStatus
from stream.product_event import ProductEvent
from stream.results import Manifest, ObjectKind, Results, StoredObject
from stream.store import ObjectStore
from stream.store.obstore_store import open_store
from stream.tracing import Resting

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
        self.published: list[ProductEvent] = []

    async def show(self, complete: ProductSet) -> None:
        await self.projection.project(complete)
        self.told.append(complete.revision)

    def worker(self) -> ProductSets:
        """One that knows what the store tells, as after a start."""
        return ProductSets(store=self.store, results=self.results, run=RUN, visible=self.show, publish=self.publish)

    async def publish(self, event: ProductEvent) -> None:
        self.published.append(event)

    async def close(self, revision: int, *members: str) -> None:
        await self.close_of(revision, *(ClosedMember(name, "ok", hash_parts(name, str(revision))) for name in members))

    async def close_of(self, revision: int, *members: ClosedMember) -> None:
        await put_close(self.store, RUN, Close(ID, revision, CloseReason.COMPLETE, CloseOutcome.ALIGN, members))

    async def came(self, name: str, content: str, status: MemberStatus = MemberStatus.SKIPPED) -> ClosedMember:
        """A member with a result of this content, of whose status the association took note."""
        identity = result(name, content)
        message = MemberMessage(
            run=RUN, association=ID, member=name, status=status, branch="x", identity=identity,
            manifest=f"results/{identity}/1",
        )  # fmt: skip
        record = MemberRecord(name, status, message.digest, 0, 0.0)
        await MemberStatuses(self.store, RUN).keep(ID, 0, KeptMember.of(record, message, Resting(None, 0.0)))
        return ClosedMember(name, status.value, message.digest)

    async def finalized(self, exposure: str, of: int | str) -> Manifest:
        data = f"{exposure} of revision {of}".encode()
        key = f"objects/{exposure}/{of}"
        await self.store.put(key, data)
        name = f"{exposure}_cal.asdf"
        product = StoredObject(name, key, hashlib.sha256(data).hexdigest(), len(data), ObjectKind.PRODUCT)
        identity = hash_parts("final", exposure, str(of))
        return await self.results.publish(
            Manifest(identity=identity, exposure=exposure, stage="finalize", branch="x", objects=(product,))
        )

    async def visible(self) -> int:
        """Which revision readers of the store are shown: of one association, so there is one."""
        (shown,) = [found async for found in self.worker().all()]
        manifests = [await self.finalized(name, shown.revision) for name in shown.members]
        assert [member["manifest"] for member in shown.members.values()] == [known.key for known in manifests]
        return shown.revision

    async def record(self, revision: int) -> bytes | None:
        return await self.store.get(f"runs/{RUN}/products/{ID}/{revision}")

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


def result(name: str, content: str) -> str:
    """Identity of a member's result."""
    return hash_parts("result", name, content)


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


@pytest.fixture
async def mixed(tmp_path: Path) -> Site:
    """An association of two of which the second waits for no close, closed once and complete."""
    site = Site(tmp_path)
    await put_member_list(site.store, RUN, MemberList(ID, (FIRST, SECOND), NAME))
    worker = site.worker()
    second = await site.came(SECOND, "old")
    await worker.finalized(ID, result(SECOND, "old"), await site.finalized(SECOND, "old"))
    await site.close_of(1, await site.came(FIRST, "old", MemberStatus.OK), second)
    await worker.finalized(ID, 1, await site.finalized(FIRST, 1))
    assert site.told == [1]
    assert site.shown() == mixed_content(1, "old")
    return site


def mixed_content(first: int | str, second: int | str) -> dict[str, str]:
    return {f"{name}_cal.asdf": f"{name} of revision {of}" for name, of in ((FIRST, first), (SECOND, second))}


async def test_one_that_waits_for_no_close_and_is_replaced_is_shown_with_the_next_revision(mixed: Site) -> None:
    first = await mixed.record(1)
    second = await mixed.came(SECOND, "new")
    replaced = await mixed.finalized(SECOND, "new")
    for worker in (mixed.worker(), mixed.worker()):  # the first is killed before its commit, the second does it again
        await worker.finalized(ID, result(SECOND, "new"), replaced)
        await worker.check(ID)
        assert (await mixed.record(1), mixed.shown()) == (first, mixed_content(1, "old"))
    await mixed.close_of(2, await mixed.came(FIRST, "old", MemberStatus.OK), second)
    await mixed.worker().check(ID)
    await mixed.worker().finalized(ID, result(SECOND, "old"), await mixed.finalized(SECOND, "old"))  # a late repeat
    assert (await mixed.record(1), await mixed.record(2)) == (first, None)
    assert mixed.shown() == mixed_content(1, "old")
    assert {event.revision for event in mixed.published} == {1}
    assert len({event.record_digest for event in mixed.published}) == 1, "told of again, and not of other products"
    await mixed.worker().finalized(ID, 2, await mixed.finalized(FIRST, 2))
    assert mixed.shown() == mixed_content(2, "new")
    assert await mixed.record(1) == first
    assert mixed.published[-1].revision == 2
    third = await mixed.came(SECOND, "old")  # as it was at first: finalized already, and sent on no more
    await mixed.close_of(3, await mixed.came(FIRST, "old", MemberStatus.OK), third)
    await mixed.worker().finalized(ID, 3, await mixed.finalized(FIRST, 3))
    assert mixed.shown() == mixed_content(3, "old")


async def test_one_that_waited_for_the_close_and_does_so_no_more_and_the_other_way_round(mixed: Site) -> None:
    first = await mixed.record(1)
    changed = await mixed.came(FIRST, "new"), await mixed.came(SECOND, "new", MemberStatus.OK)
    await mixed.worker().finalized(ID, result(FIRST, "new"), await mixed.finalized(FIRST, "new"))
    assert (await mixed.record(1), mixed.shown()) == (first, mixed_content(1, "old"))
    await mixed.close_of(2, *changed)
    await mixed.worker().check(ID)
    assert mixed.shown() == mixed_content(1, "old")
    await mixed.worker().finalized(ID, 2, await mixed.finalized(SECOND, 2))
    assert mixed.shown() == mixed_content("new", 2)
    assert await mixed.record(1) == first


async def test_one_that_cannot_be_finalized_anew_is_in_the_next_revision_alone(mixed: Site) -> None:
    first = await mixed.record(1)
    second = await mixed.came(SECOND, "new")
    await mixed.worker().failed(ID, result(SECOND, "new"), SECOND, "no disk")
    assert await mixed.record(1) == first
    await mixed.close_of(2, await mixed.came(FIRST, "old", MemberStatus.OK), second)
    await mixed.worker().finalized(ID, 2, await mixed.finalized(FIRST, 2))
    (shown,) = [found async for found in mixed.worker().all()]
    assert (shown.revision, list(shown.members), shown.failed) == (2, [FIRST], {SECOND: "no disk"})


async def test_a_close_whose_member_no_status_tells_of_is_tried_again_later(mixed: Site) -> None:
    await mixed.close_of(2, ClosedMember(FIRST, "missing", None), ClosedMember(SECOND, "skipped", "0" * 64))
    with pytest.raises(RetriableError, match=f"the status of {SECOND}"):
        await mixed.worker().check(ID)
