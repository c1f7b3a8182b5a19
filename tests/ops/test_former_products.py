"""A folder has no products that its set has not: those of the sets before are removed, and nothing of anybody else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from ops.product_sets import ProductSet, ProductSets
from ops.projection import Projection
from stream.failure import FatalError
from stream.identity import canonical_json
from stream.member_list import MemberList, take_product_name
from stream.results import Results
from stream.store import ObjectStore
from stream.store.obstore_store import open_store

pytestmark = pytest.mark.anyio

RUN, NAME = "r", "pair"


class Site:
    """A store with product sets, and a folder that shows one after the other, as ``rampstream run`` does."""

    def __init__(self, folder: Path) -> None:
        self.store: ObjectStore = open_store(folder / "store")
        self.sets = ProductSets(store=self.store, results=Results(self.store), run=RUN, visible=self.show)
        self.out = folder / "out"
        self.projection = Projection(store=self.store, out=self.out, cache=folder / "cache")

    async def show(self, complete: ProductSet) -> None:
        await self.projection.project(complete)
        await self.projection.remove_former(complete, await self.sets.former(complete))

    async def made(
        self, association: str, revision: int, contents: dict[str, str], *failed: str, name: str | None = NAME
    ) -> ProductSet:
        """A complete set, whose record is in the store: of each exposure a product of some content."""
        members: dict[str, dict[str, Any]] = {}
        for exposure, text in contents.items():
            data = text.encode()
            digest = hashlib.sha256(data).hexdigest()
            key = f"objects/{exposure}/{association}/{revision}/{digest}"
            await self.store.put(key, data)
            product = {"name": f"{exposure}_cal.asdf", "key": key, "digest": digest, "size": len(data), "content": None}
            members[exposure] = {"manifest": "", "identity": "", "summary": {}, "products": [product]}
        made = ProductSet(association, revision, name, members, dict.fromkeys(failed, "failed"))
        await self.store.put(f"runs/{RUN}/products/{association}/{revision}", canonical_json(made.to_json()))
        if name is not None:
            await take_product_name(self.store, RUN, MemberList(association, tuple(contents), name))
        return made

    def shown(self, name: str = NAME) -> dict[str, str]:
        return {
            path.name.removesuffix("_cal.asdf"): path.read_text()
            for path in (self.out / name).iterdir()
            if path.is_file()
        }


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_products_of_a_member_that_failed_in_a_later_revision_are_removed(site: Site) -> None:
    await site.show(await site.made("a", 1, {"e1": "one", "e2": "two"}))
    await site.show(await site.made("a", 2, {"e1": "one anew", "e2": "two anew"}))
    last = await site.made("a", 3, {"e1": "one anew"}, "e2")
    for _ in range(2):  # stopped in between and started again
        await site.show(last)
        assert site.shown() == {"e1": "one anew"}


async def test_products_of_a_longer_list_are_removed_when_the_shorter_one_is_back(site: Site) -> None:
    short = await site.made("short", 1, {"e1": "of two", "e2": "of two"})
    assert await site.sets.former(short) == {}
    await site.show(short)
    await site.show(await site.made("long", 1, {"e1": "of three", "e2": "of three", "e3": "of three"}))
    assert site.shown() == dict.fromkeys(("e1", "e2", "e3"), "of three")
    await site.show(await site.made("short", 1, {"e1": "of two", "e2": "of two"}))
    assert site.shown() == dict.fromkeys(("e1", "e2"), "of two")
    assert [path.name for path in site.out.iterdir()] == [NAME]


async def test_what_somebody_changed_or_made_stays(site: Site, tmp_path: Path) -> None:
    await site.show(await site.made("a", 1, {"e1": "one", "e2": "two", "e3": "three", "e4": "four"}))
    folder = site.out / NAME
    (folder / "e2_cal.asdf").write_text("two, edited")
    (folder / "notes.txt").write_text("mine")
    own = tmp_path / "own.asdf"
    (folder / "e3_cal.asdf").rename(own)
    (folder / "e3_cal.asdf").symlink_to(own)
    await site.show(await site.made("a", 2, {"e1": "one"}, "e2", "e3", "e4"))
    assert site.shown() == {"e1": "one", "e2": "two, edited", "e3": "three", "notes.txt": "mine"}


async def test_other_names_and_later_revisions_do_not_count(site: Site) -> None:
    other = await site.made("other", 1, {"e1": "one", "e2": "two"}, name="other")
    later = await site.made("a", 2, {"e1": "one", "e2": "two"})
    for made in (other, later):
        await site.projection.project(made)
    await site.show(await site.made("a", 1, {"e1": "one"}))
    assert site.shown() == site.shown("other") == {"e1": "one", "e2": "two"}


async def test_of_a_plain_file_its_own_products_alone_are_removed(site: Site) -> None:
    neighbour = await site.made("e2", 1, {"e2": "two"}, name=None)
    await site.show(neighbour)
    await site.show(await site.made("e1", 1, {"e1": "one", "e2": "two"}, name=None))
    assert site.shown("") == {"e1": "one", "e2": "two"}
    failed = await site.made("e1", 2, {}, "e1", name=None)
    assert set(await site.sets.former(failed)) == {"e1_cal.asdf"}
    await site.show(failed)
    assert site.shown("") == {"e2": "two"}


async def test_one_that_cannot_be_removed_is_told_of(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.show(await site.made("a", 1, {"e1": "one", "e2": "two"}))

    def refused(_: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    last = await site.made("a", 2, {"e1": "one"}, "e2")
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(FatalError, match=r"e2_cal\.asdf: the former product cannot be removed: Permission denied"):
        await site.projection.remove_former(last, await site.sets.former(last))
