"""Has the joint stage solve a close of an association, from the tie points of its members alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ops.pipeline_jobs import PipelineJobs
from stages.pipeline import JOINT
from stream.aggregator import Solved
from stream.association import Close
from stream.identity import canonical_json, joint_solution_identity
from stream.message import MemberMessage
from stream.results import Manifest, ObjectKind, Results, StoredObject, object_key
from stream.store import ObjectStore

__all__ = ["JointSolver"]


class JointSolver:
    """The aggregator's solver.

    Parameters
    ----------
    jobs : PipelineJobs
        Runs the solution.
    store, results : ObjectStore, Results
        Where tie points and solutions lie.
    cache : Path
        For objects that are not local.
    """

    def __init__(self, *, jobs: PipelineJobs, store: ObjectStore, results: Results, cache: Path) -> None:
        self._jobs = jobs
        self._store = store
        self._results = results
        self._cache = cache

    async def solve(self, close: Close, messages: dict[str, MemberMessage]) -> Solved | None:
        """Solve one close of an association; an equal solution that is stored is used again."""
        statuses = [(m.member, m.status, self._tie_digest(messages.get(m.member))) for m in close.members]
        if not any(digest for _, _, digest in statuses):
            return None
        known = await self._jobs.run_patiently("joint_recipe", {}, label=close.association)
        identity = joint_solution_identity(statuses, recipe=known["recipe"], star_list=known["star_list"])
        found = await self._results.find(identity)
        if found is None:
            found = await self._solve(close, messages, identity)
        return Solved(found.key, found.identity)

    @staticmethod
    def _tie_digest(message: MemberMessage | None) -> str | None:
        return None if message is None else message.tie_points_digest

    async def _solve(self, close: Close, messages: dict[str, MemberMessage], identity: str) -> Manifest:
        described = []
        for member in close.members:
            message = messages.get(member.member)
            path = None
            if message is not None and message.tie_points is not None:
                path = str(await self._store.fetch(message.tie_points, self._cache))
            described.append(
                {"id": member.member, "status": member.status if member.status != "missing" else "failed",
                 "facts": dict(message.facts) if message else {}, "tie_points": path}
            )  # fmt: skip
        document = await self._jobs.run_patiently("solve", {"members": described}, label=close.association)
        data = canonical_json(document)
        key = object_key(close.association, JOINT, f"{close.revision}-{identity[:12]}", "solution.json")
        info = await self._store.put(key, data)
        stored = StoredObject("solution", key, _digest(data), info.size, ObjectKind.SIDE)
        return await self._results.publish(
            Manifest(
                identity=identity,
                exposure=close.association,
                stage=JOINT,
                branch=JOINT,
                objects=(stored,),
                extra={"expected": list(close.expected), "used": list(close.used)},
            )
        )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
