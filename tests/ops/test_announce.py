"""Announcing is done once; an edited list takes its product name from the one before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ops.announce import Announcer
from ops.ingest import Entry, Ingest
from stream.member_list import MemberList, superseded_by
from stream.message import Message
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
