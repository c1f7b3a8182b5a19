"""Has the joint stage solve a close of an association, from the tie points of its members alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ops.closed_associations import MEMBERS_OF_A_PART, part_name
from ops.pipeline_jobs import Observer, PipelineJobs
from stages.pipeline import JOINT
from stream.aggregator import Solved
from stream.association import Close, ClosedMember
from stream.identity import canonical_json, joint_solution_identity
from stream.message import MemberMessage
from stream.results import Manifest, ObjectKind, Results, StoredObject, object_key
from stream.store import ObjectStore
from stream.store.cache import ObjectCache
from stream.together import together

__all__ = ["JointSolver"]

_TOGETHER = 32
"""Tie points fetched at once: some 10 kB each, of which there may be ten thousand, so that what counts is how long the
store takes to answer."""


class JointSolver:
    """The aggregator's solver.

    Parameters
    ----------
    jobs : PipelineJobs
        Runs the solution.
    store, results : ObjectStore, Results
        Where tie points and solutions lie.
    cache : ObjectCache
        Fetches tie points.
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
        observe: Observer = lambda _: None,
    ) -> None:
        self._jobs = jobs
        self._observe = observe
        self._store = store
        self._results = results
        self._cache = cache

    async def solve(self, close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        """Solve one close of an association; an equal solution that is stored is used again."""
        statuses = [(m.member, m.status, self._tie_digest(messages.get(m.member))) for m in close.members]
        if not any(digest for _, _, digest in statuses):
            return None
        facts = _first_facts(close, messages)
        known = await self._jobs.run_patiently("joint_recipe", {"facts": facts}, label=close.association, light=True)
        identity = joint_solution_identity(statuses, recipe=known["recipe"], star_list=known["star_list"])
        found = await self._results.find(identity)
        if found is None:
            found = await self._solve(close, messages, identity)
        else:
            self._observe({"event": "reused", "exposure": close.association, "stages": [JOINT]})
        return Solved(found.key, found.identity)

    @staticmethod
    def _tie_digest(message: MemberMessage | None) -> str | None:
        return None if message is None else message.tie_points_digest

    @staticmethod
    def _described(member: ClosedMember, message: MemberMessage | None, paths: Mapping[str, Path]) -> dict[str, Any]:
        path = paths.get(member.member)
        return {
            "id": member.member,
            "status": member.status if member.status != "missing" else "failed",
            "facts": dict(message.facts) if message else {},
            "tie_points": None if path is None else str(path),
        }

    async def _solve(self, close: Close, messages: dict[str, MemberMessage], identity: str) -> Manifest:
        wanted = [
            # their sizes are in no message: to ask for each would take as long as to fetch it
            StoredObject(message.member, message.tie_points, message.tie_points_digest, -1, ObjectKind.SIDE)
            for message in messages.values()
            if message.tie_points is not None and message.tie_points_digest is not None
        ]
        async with self._cache.lease(wanted, most=_TOGETHER) as paths:
            described = [self._described(member, messages.get(member.member), paths) for member in close.members]
            document = await self._jobs.run_patiently(
                "solve", {"members": described, "facts": _first_facts(close, messages)}, label=close.association,
                stars=True,
            )  # fmt: skip
        objects = await self._put(document, close, f"{close.revision}-{identity[:12]}")
        return await self._results.publish(
            Manifest(
                identity=identity, exposure=close.association, stage=JOINT, branch=JOINT, objects=objects,
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
