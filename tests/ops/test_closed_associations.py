"""Each member of a large association is finalized without reading what is said of all the others."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ops.closed_associations import MEMBERS_OF_A_PART, ClosedAssociations, part_name
from ops.joint import JointSolver
from ops.product_sets import ProductSet, ProductSets
from stream.association import Close, ClosedMember, CloseOutcome, CloseReason
from stream.identity import canonical_json, hash_parts
from stream.member_list import MemberList, put_close, put_member_list
from stream.message import MemberMessage, MemberStatus
from stream.results import Manifest, ObjectKind, Results, StoredObject, file_digest
from stream.store import ObjectStore
from stream.store.cache import ObjectCache
from stream.store.obstore_store import open_store

pytestmark = pytest.mark.anyio

RUN, ID = "r", "many-1"
COUNT = 2 * MEMBERS_OF_A_PART + 50
MEMBERS = tuple(f"e{number:04d}" for number in range(COUNT))


class CountedStore:
    """A store that counts what is asked of it."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.asked: Counter[str] = Counter()
        self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def get(self, key: str) -> bytes | None:
        data = await self.inner.get(key)
        self.asked["get"] += 1
        self.bytes += len(data or b"")
        return data

    async def list(self, prefix: str) -> AsyncIterator[Any]:
        async for info in self.inner.list(prefix):
            self.asked["listed"] += 1
            yield info


class Jobs:
    """The two jobs of a joint solution, without the science."""

    async def run_patiently(self, entry: str, arguments: dict[str, Any], **_: Any) -> dict[str, Any]:
        if entry == "joint_recipe":
            return {"recipe": "recipe", "star_list": "stars"}
        members = {member["id"]: {"status": "COMPLETE", "of": member["id"]} for member in arguments["members"]}
        return {"members": members, "summary": {"complete": len(members)}}


def closed(outcome: CloseOutcome = CloseOutcome.ALIGN, revision: int = 1) -> Close:
    members = tuple(ClosedMember(name, "ok", hash_parts(name)) for name in MEMBERS)
    return Close(ID, revision, CloseReason.COMPLETE, outcome, members)


@pytest.fixture
def store(tmp_path: Path) -> CountedStore:
    return CountedStore(open_store(tmp_path / "store"))


async def test_a_member_reads_its_own_part_of_a_solution(store: CountedStore, tmp_path: Path) -> None:
    messages = {}
    await store.put("points", b"points")
    for name in MEMBERS:
        identity = hash_parts(name)
        messages[name] = MemberMessage(
            run=RUN, association=ID, member=name, status=MemberStatus.OK, branch="x", identity=identity,
            manifest=f"results/{identity}/1", tie_points="points",
            tie_points_digest=hashlib.sha256(b"points").hexdigest(),
        )  # fmt: skip
    results = Results(store)  # type: ignore[arg-type]
    cache = ObjectCache(store.inner, tmp_path / "cache", max_bytes=10**9, digest=file_digest)
    solver = JointSolver(jobs=Jobs(), store=store, results=results, cache=cache, scratch=tmp_path)  # type: ignore[arg-type]
    close = closed()
    solved = await solver.solve(close, messages)
    assert solved is not None
    found = ClosedAssociations(store, results, RUN)  # type: ignore[arg-type]
    solution = await found.solution(solved.manifest)
    assert [stored.name for stored in solution.objects] == [part_name(number) for number in range(3)]
    store.asked.clear()
    store.bytes = 0
    for name in (MEMBERS[0], MEMBERS[MEMBERS_OF_A_PART], MEMBERS[-1]):
        part = await found.part(solution, close, name)
        assert part == {"members": {name: {"status": "COMPLETE", "of": name}}, "summary": {"complete": COUNT}}
    assert store.asked["get"] == 3
    assert store.bytes <= sum(stored.size for stored in solution.objects)
    assert (await solver.solve(close, messages)) == solved, "found again, whoever asks"


async def test_a_solution_that_is_not_divided_is_read_whole(store: CountedStore) -> None:
    whole = {"members": {name: {"of": name} for name in MEMBERS}}
    await store.put("whole", canonical_json(whole))
    stored = StoredObject("solution", "whole", "0" * 64, 1, ObjectKind.SIDE)
    solution = Manifest(identity="i", exposure=ID, stage="tweakreg", branch="tweakreg", objects=(stored,))
    found = ClosedAssociations(store, Results(store), RUN)  # type: ignore[arg-type]
    part = await found.part(solution, closed(), MEMBERS[-1])
    assert part == {"members": {MEMBERS[-1]: {"of": MEMBERS[-1]}}}


async def test_members_of_a_close_that_aligns_nobody_have_failed_and_others_without_a_solution_have_not(
    store: CountedStore,
) -> None:
    found = ClosedAssociations(store, Results(store), RUN)  # type: ignore[arg-type]
    part = await found.part(None, closed(CloseOutcome.FAIL), MEMBERS[3])
    assert part is not None
    assert list(part["members"]) == [MEMBERS[3]]
    assert part["members"][MEMBERS[3]]["status"] == "FAILED"
    assert await found.part(None, closed(), MEMBERS[3]) is None


async def finalized(results: Results, name: str) -> Manifest:
    """A finalized member without products: what it takes to look at those is not counted here."""
    return await results.publish(
        Manifest(identity=hash_parts("final", name), exposure=name, stage="finalize", branch="x")
    )


async def test_a_large_set_is_complete_once_with_all_and_each_member_costs_the_same(store: CountedStore) -> None:
    await put_member_list(store.inner, RUN, MemberList(ID, MEMBERS, "many"))
    await put_close(store.inner, RUN, closed())
    results = Results(store)  # type: ignore[arg-type]
    seen: list[ProductSet] = []

    async def see(complete: ProductSet) -> None:
        seen.append(complete)

    # Two workers, each of which finalizes every other member and hears of the rest from the store alone.
    workers = [ProductSets(store=store, results=results, run=RUN, visible=see) for _ in range(2)]  # type: ignore[arg-type]
    manifests = [await finalized(results, name) for name in MEMBERS]
    asked = []
    for number, manifest in enumerate(manifests[:-1]):
        store.asked.clear()
        await workers[number % 2].finalized(ID, 1, manifest)
        asked.append(sum(store.asked.values()))
    assert seen == []
    # Not one listing of all for each: that would be more than a hundred on the average.
    assert sum(asked) / len(asked) < 12
    await workers[1].failed(ID, 1, MEMBERS[-1], "no disk")
    (complete,) = seen
    assert tuple(complete.members) == MEMBERS[:-1]
    assert complete.failed == {MEMBERS[-1]: "no disk"}
    store.asked.clear()
    await workers[1].finalized(ID, 1, manifests[0])
    assert store.asked["listed"] < 10, "a repeat changes nothing, so that nothing is looked at again"
    assert len(seen) == 1
    await workers[1].check(ID)
    assert seen == [complete, complete]
