"""Has the joint stage solve a close of an association, from the tie points of its members alone."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ops.closed_associations import MEMBERS_OF_A_PART, part_name
from ops.pipeline_jobs import Observer, PipelineJobs
from ops.star_answers import StarAnswers
from stages.pipeline import JOINT
from stream.aggregator import Solved
from stream.association import Close, ClosedMember
from stream.failure import PermanentError
from stream.identity import canonical_json, joint_solution_identity
from stream.message import MemberMessage
from stream.results import Manifest, ObjectKind, Results, StoredObject, object_key
from stream.store import ObjectStore
from stream.store.cache import ObjectCache
from stream.store.gathered import Gathered, gathered
from stream.together import together

__all__ = ["JointSolver"]

_NOBODY = "nobody"
"""In place of the digest of a star list that nobody needs."""

_TOGETHER = 32
"""Parts of a solution that are written at once."""


class JointSolver:
    """The aggregator's solver.

    Parameters
    ----------
    jobs : PipelineJobs
        Runs the solution.
    store, results : ObjectStore, Results
        Where tie points and solutions lie.
    cache : ObjectCache
        Fetches the table of an earlier answer.
    scratch : Path
        For the file in which a job finds the tie points.
    stars : StarAnswers, optional
        Asks for reference stars, where they are no table.
    precedence : int
        Of the jobs (see `stream.jobs.Job`).
    observe : callable
        Told when a stored solution is used again.
    """

    def __init__(
        self,
        *,
        jobs: PipelineJobs,
        store: ObjectStore,
        results: Results,
        cache: ObjectCache,
        scratch: Path,
        stars: StarAnswers | None = None,
        precedence: int = 0,
        observe: Observer = lambda _: None,
    ) -> None:
        self._jobs = jobs
        self._observe = observe
        self._store = store
        self._results = results
        self._cache = cache
        self._scratch = scratch
        self._stars = stars
        self._precedence = precedence

    async def solve(self, close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        """Solve one close of an association; an equal solution that is stored is used again."""
        statuses = [(m.member, m.status, self._tie_digest(messages.get(m.member))) for m in close.members]
        if not any(digest for _, _, digest in statuses):
            return None
        facts = _first_facts(close, messages)
        known = await self._jobs.run_patiently("joint_recipe", {"facts": facts}, label=close.association, light=True)
        stars, star_list = None, known["star_list"]
        if star_list is None:
            stars = await self._answered(close, messages, known)
            star_list = _NOBODY if stars is None else stars.digest
        identity = joint_solution_identity(statuses, recipe=known["recipe"], star_list=star_list)
        found = await self._results.find(identity)
        if found is None:
            found = await self._solve(close, messages, identity, stars)
        else:
            self._observe({"event": "reused", "exposure": close.association, "stages": [JOINT]})
        return Solved(found.key, found.identity)

    @staticmethod
    def _tie_digest(message: MemberMessage | None) -> str | None:
        return None if message is None else message.tie_points_digest

    @staticmethod
    def _described(member: ClosedMember, message: MemberMessage | None, tie_points: Gathered) -> dict[str, Any]:
        return {
            "id": member.member,
            "status": member.status if member.status != "missing" else "failed",
            "facts": dict(message.facts) if message else {},
            "tie_points": tie_points.places.get(member.member),
        }

    async def _answered(
        self, close: Close, messages: dict[str, MemberMessage], known: Mapping[str, Any]
    ) -> StoredObject | None:
        """The table of the stars that the catalog answers for this close; None where nobody is aligned."""
        if self._stars is None:
            raise PermanentError(f"{close.association}: there is nobody here to ask for reference stars")
        async with self._described_members(close, messages) as arguments:
            asked = await self._jobs.run_patiently(
                "search_cone", arguments, label=close.association, precedence=self._precedence
            )
        if asked["cone"] is None:
            return None
        return await self._stars.answer(
            known["source"], asked["cone"], patience=asked["timeout"], salt=known["salt"], label=close.association
        )

    @asynccontextmanager
    async def _described_members(
        self, close: Close, messages: dict[str, MemberMessage]
    ) -> AsyncIterator[dict[str, Any]]:
        """A job's arguments, with tie points on this machine as long as the context lasts."""
        wanted = [
            # their sizes are in no message: to ask for each would take as long as to fetch it
            StoredObject(message.member, message.tie_points, message.tie_points_digest, -1, ObjectKind.SIDE)
            for message in messages.values()
            if message.tie_points is not None and message.tie_points_digest is not None
        ]
        async with gathered(self._store, wanted, self._scratch) as tie_points:
            yield {
                "members": [self._described(m, messages.get(m.member), tie_points) for m in close.members],
                "facts": _first_facts(close, messages),
                "tie_points": str(tie_points.path),
            }

    async def _solve(
        self, close: Close, messages: dict[str, MemberMessage], identity: str, stars: StoredObject | None
    ) -> Manifest:
        more = () if stars is None else (stars,)
        async with self._described_members(close, messages) as arguments, self._cache.lease(more) as paths:
            if stars is not None:
                arguments["stars"] = str(paths[stars.name])
            document = await self._jobs.run_patiently(
                "solve", arguments, label=close.association, stars=True, precedence=self._precedence
            )
        objects = await self._put(document, close, f"{close.revision}-{identity[:12]}")
        return await self._results.publish(
            Manifest(
                identity=identity, exposure=close.association, stage=JOINT, branch=JOINT, objects=(*objects, *more),
                extra={"summary": document["summary"]},
            )
        )  # fmt: skip

    async def _put(self, document: Mapping[str, Any], close: Close, attempt: str) -> tuple[StoredObject, ...]:
        """Write a solution in parts, of which a member needs one to be finalized."""
        objects: dict[str, StoredObject] = {}

        async def put(name: str, part: Mapping[str, Any]) -> None:
            data = canonical_json(part)
            key = object_key(close.association, JOINT, attempt, f"{name}.json")
            info = await self._store.put(key, data)
            objects[name] = StoredObject(name, key, _digest(data), info.size, ObjectKind.SIDE)

        parts = {part_name(number): part for number, part in enumerate(_parts(document, close))}
        await together([partial(put, name, part) for name, part in parts.items()], most=_TOGETHER)
        return tuple(objects[name] for name in parts)


def _parts(document: Mapping[str, Any], close: Close) -> Iterator[dict[str, Any]]:
    members = iter(close.expected)
    while chosen := list(islice(members, MEMBERS_OF_A_PART)):
        told = {member: document["members"][member] for member in chosen if member in document["members"]}
        yield {**document, "members": told}


def _first_facts(close: Close, messages: Mapping[str, MemberMessage]) -> dict[str, Any]:
    """Facts of the first member that has come, in canonical order: as the mission has it, they choose parameters."""
    return next((dict(messages[m.member].facts) for m in close.members if m.member in messages), {})


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
