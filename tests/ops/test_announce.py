"""Announcing is done once; an edited list takes its product name from the one before; who is in stays in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from ops.announce import Announcer
from ops.ingest import Entry, Ingest
from stream.member_list import MemberList, superseded_by
from stream.message import MemberMessage, Message
from stream.results import file_digest
from stream.tracing import Forwarding
from tests.stream.toy_run import RUN, ToyRun

OLD = MemberList("j-1", ("e1", "e2"), "j")
EDITED = MemberList("j-2", ("e1",), "j")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_members_of_a_list_that_is_the_newest_again_are_told_of_again(tmp_path: Path) -> None:
    path = tmp_path / "e1.npy"
    np.save(path, np.zeros((4, 5), np.float32))
    facts = {"exposure_type": "image", "detector": "WFI01"}
    entry = Entry("e1", path, facts, file_digest(path), path.stat().st_size, path.stat().st_mtime_ns)
    async with ToyRun.opened(tmp_path, Forwarding()) as run:

        async def announce(listed: MemberList) -> str:
            announcer = Announcer(store=run.store, results=run.results, router=run.router, clock=run.clock, upload=True)
            await announcer.lists(Ingest(lists=[listed]))
            return (await announcer.exposure(entry, [listed])).outcome

        assert [await announce(listed) for listed in (OLD, OLD, EDITED, EDITED)] == [
            "announced", "known", "announced", "known",
        ]  # fmt: skip
        assert await superseded_by(run.store, RUN, OLD.association, "j") == EDITED.association
        assert [await announce(OLD), await announce(OLD)] == ["announced", "known"]
        told = [Message.from_record(record).associations for record in await run.records(f"{RUN}.offset")]
        assert told == [("j-1",), ("j-2",), ("j-1",)]


class Site:
    """A toy run to which files are announced, each time by a new announcer, as each command has its own."""

    def __init__(self, run: ToyRun) -> None:
        self.run = run

    def entry(self, content: int, *, error: str | None = None) -> Entry:
        path = self.run.folder / f"e1-{content}.npy"
        np.save(path, np.full((4, 5), content, np.float32))
        facts = {"exposure_type": "image", "detector": "WFI01"}
        status = path.stat()
        return Entry("e1", path, facts, file_digest(path), status.st_size, status.st_mtime_ns, error)

    def announcer(self, **options: bool) -> Announcer:
        run = self.run
        return Announcer(
            store=run.store, results=run.results, router=run.router, clock=run.clock, upload=True, **options
        )

    async def told(self) -> list[tuple[str, ...]]:
        return [Message.from_record(record).associations for record in await self.run.records(f"{RUN}.offset")]

    async def failed(self) -> list[str]:
        """Associations that were told of a member that failed."""
        records = await self.run.records(f"{RUN}.align")
        return [MemberMessage.from_record(record).association for record in records]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with ToyRun.opened(tmp_path, Forwarding()) as run:
        yield Site(run)


OTHER = MemberList("o-1", ("e1", "e3"), "o")


@pytest.mark.anyio
@pytest.mark.parametrize("bad", ["other content", "unreadable"])
async def test_a_refused_file_leaves_members_in_that_came_before(site: Site, bad: str) -> None:
    good = site.entry(1)
    assert (await site.announcer().exposure(good, [OLD])).outcome == "announced"
    worse = site.entry(2) if bad == "other content" else site.entry(1, error="e1: cut off")
    assert (await site.announcer().exposure(worse, [OLD, OTHER])).outcome == "refused"
    assert await site.failed() == ["o-1"], "which has nothing better"
    assert (await site.announcer().exposure(good, [OLD, OTHER])).outcome == "announced"
    assert await site.told() == [("j-1",), ("o-1",)]
    assert (await site.announcer().exposure(good, [OLD, OTHER])).outcome == "known"


@pytest.mark.anyio
async def test_whoever_is_told_of_all_again_hears_of_a_member_whose_file_is_refused_as_it_was(site: Site) -> None:
    await site.announcer().exposure(site.entry(1), [OLD])
    assert (await site.announcer(again=True).exposure(site.entry(2), [OLD])).outcome == "refused"
    first, again = [Message.from_record(record) for record in await site.run.records(f"{RUN}.offset")]
    assert (again.identity, again.facts) == (first.identity, first.facts)


@pytest.mark.anyio
async def test_a_replaced_file_reaches_all_associations_of_the_one_before(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.announcer().exposure(site.entry(1), [OLD, OTHER])
    new = site.entry(2)

    async def killed(_: Message) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(site.run.router, "send", killed)
        with pytest.raises(InterruptedError):
            await site.announcer(replace=True).exposure(new, [OTHER])
    assert (await site.announcer(replace=True).exposure(new, [OTHER])).outcome == "announced"
    first, second = [Message.from_record(record) for record in await site.run.records(f"{RUN}.offset")]
    assert first.identity != second.identity
    assert set(second.associations) == {"j-1", "o-1"}
    assert (await site.announcer(replace=True).exposure(new, [OLD])).outcome == "known"


@pytest.mark.anyio
async def test_a_member_that_comes_later_joins_the_associations_that_wait_for_it(site: Site) -> None:
    assert (await site.announcer().absent("e1", [OLD])).outcome == "awaited"
    alone = MemberList("e1-0", ("e1",))
    named = Ingest(lists=[alone])
    await site.announcer().join_awaited(named)
    assert named.lists == [], "it is no association of its own"
    entry = site.entry(1)
    assert (await site.announcer().exposure(entry, named.lists)).outcome == "announced"
    assert (await site.announcer().exposure(entry, named.lists)).outcome == "known"
    assert (await site.announcer().absent("e1", [OTHER])).outcome == "announced", "as it came before"
    assert await site.told() == [("j-1",), ("o-1",)]


@pytest.mark.anyio
async def test_an_awaited_member_whose_file_is_bad_is_told_to_who_waits(site: Site) -> None:
    await site.announcer().absent("e1", [OLD])
    assert (await site.announcer().exposure(site.entry(1, error="e1: cut off"), [])).outcome == "refused"
    assert await site.failed() == ["j-1"]
