"""What the store has of closed associations for those who finalize: lists, closes, parts of solutions. Reads only.

An association may have ten thousand members, and each of them is finalized on its own: so what is the same for all of
them and never changes is read once in a process, and of what is said of each only the part that a member is in.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from stream.association import Close, CloseOutcome
from stream.failure import RetriableError
from stream.member_list import MemberList, load_close, read_member_list
from stream.results import Manifest, Results, StoredObject
from stream.store import ObjectStore

__all__ = ["MEMBERS_OF_A_PART", "ClosedAssociations", "part_name", "refusal_of"]

MEMBERS_OF_A_PART = 100
"""Members in one object of a solution. A member takes 1 kB there, so that each one reads 100 kB, and a manifest of ten
thousand has a hundred objects, 25 kB."""

_KEPT = 8
"""Of the largest kind 10 MB: messages of one association come one after the other."""

K = TypeVar("K")
V = TypeVar("V")


def part_name(number: int) -> str:
    """Name of one part of a solution in its manifest."""
    return "solution" if number == 0 else f"solution-{number}"


def refusal_of(close: Close | None) -> tuple[str, ...]:
    """What a close adds to the recipes of its members when it aligns nobody: their status is FAILED then."""
    return () if close is None or close.outcome is CloseOutcome.ALIGN else (close.outcome.value,)


class ClosedAssociations:
    """The closed associations of one run.

    Parameters
    ----------
    store, results : ObjectStore, Results
        Where lists, closes and solutions lie.
    run : str
        The run.
    """

    def __init__(self, store: ObjectStore, results: Results, run: str) -> None:
        self._store = store
        self._results = results
        self._run = run
        self._lists: dict[str, MemberList] = {}
        self._closes: dict[tuple[str, int], Close] = {}
        self._newest: dict[str, int] = {}
        self._places: dict[tuple[str, int], dict[str, int]] = {}
        self._solutions: dict[str, Manifest] = {}

    async def members(self, association: str) -> MemberList:
        """The member list of an association."""
        known = self._lists.get(association)
        return known or _kept(self._lists, association, await read_member_list(self._store, self._run, association))

    async def close(self, association: str, revision: int) -> Close | None:
        """One close of an association; None while there is none."""
        known = self._closes.get((association, revision))
        if known is not None:
            return known
        found = await load_close(self._store, self._run, association, revision)
        return None if found is None else _kept(self._closes, (association, revision), found)

    async def newest_close(self, association: str) -> Close | None:
        """The newest close of an association; None while there is none."""
        revision = self._newest.get(association, 0)
        close = await self.close(association, revision) if revision else None
        while (found := await self.close(association, revision + 1)) is not None:
            close, revision = found, _kept(self._newest, association, revision + 1)
        return close

    async def solution(self, key: str) -> Manifest:
        """The manifest of a joint solution."""
        return self._solutions.get(key) or _kept(self._solutions, key, await self._results.read(key))

    async def part(self, solution: Manifest | None, close: Close, exposure: str) -> dict[str, Any] | None:
        """What is said of one member at a close, by its solution; ``members`` has no other. None where nothing is.

        Raises
        ------
        stream.failure.RetriableError
            It is not in the store.
        """
        if solution is None:
            return _nobody_aligned(close, exposure) if close.outcome is CloseOutcome.FAIL else None
        stored = self._part(solution, close, exposure)
        data = None if stored is None else await self._store.get(stored.key)
        if data is None:
            raise RetriableError(f"{exposure}: its part of the solution {solution.key} is not in the store")
        document: dict[str, Any] = json.loads(data)
        told = document["members"].get(exposure)
        return {**document, "members": {} if told is None else {exposure: told}}

    def _part(self, solution: Manifest, close: Close, exposure: str) -> StoredObject | None:
        key = (close.association, close.revision)
        places = self._places.get(key)
        if places is None:
            places = _kept(self._places, key, {member: place for place, member in enumerate(close.expected)})
        whole = solution.object(part_name(0))  # also of an older version, which did not divide them
        return solution.object(part_name(places.get(exposure, 0) // MEMBERS_OF_A_PART)) or whole


def _nobody_aligned(close: Close, exposure: str) -> dict[str, Any]:
    """In place of a solution when too much is missing to align anyone: each member keeps its own WCS."""
    told: dict[str, Any] = {
        "status": "FAILED",
        "reason": f"not aligned: {len(close.used)} of {len(close.members)} members are there",
        "corrections": [],
        "wcs_fit_results": None,
        "name": None,
    }
    return {"members": {exposure: told}}


def _kept(known: dict[K, V], key: K, value: V) -> V:
    """Keep a value, and of the others the newest."""
    known[key] = value
    while len(known) > _KEPT:
        del known[next(iter(known))]
    return value
