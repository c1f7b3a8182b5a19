"""What a worker does for one message of the calibration pipeline: which job, with what, and what to keep of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ops.alignment_result import alignment_reason
from ops.closed_associations import refusal_of
from ops.dropped_payloads import dropped_key
from ops.pipeline_jobs import Observer, PipelineJobs
from ops.product_sets import ProductSets
from stages.pipeline import FINALIZE, JOINT
from stages.standing import starting_stage
from stream.failure import PermanentError, RetriableError
from stream.identity import chain, final_identity, hash_parts
from stream.message import Message, MessageKind
from stream.results import Manifest, ObjectKind, Results, StoredObject, object_key
from stream.router import Router
from stream.run_records import RunRecords
from stream.segment import SegmentPlan
from stream.store import ObjectStore
from stream.store.cache import ObjectCache
from stream.together import together
from stream.topology import Segment

__all__ = ["PipelineWork", "ingest_key"]


def ingest_key(run: str, exposure: str) -> str:
    """Key of the record that says what was ingested under an exposure's id."""
    return f"runs/{run}/{exposure}/ingest"


class PipelineWork:
    """Implements `stream.worker.SegmentWork`.

    Parameters
    ----------
    jobs : PipelineJobs
        Runs the jobs.
    store, results, records, router : ObjectStore, Results, RunRecords, Router
        The engine's parts.
    products : ProductSets
        Told about finalized exposures.
    cache : ObjectCache
        Fetches objects.
    scratch : Path
        Folder for files being made.
    keep_after : tuple of str
        Stages inside a segment whose results are stored too.
    observe : callable
        Told what happens.
    """

    def __init__(
        self,
        *,
        jobs: PipelineJobs,
        store: ObjectStore,
        results: Results,
        records: RunRecords,
        router: Router,
        products: ProductSets,
        cache: ObjectCache,
        scratch: Path,
        keep_after: tuple[str, ...] = (),
        observe: Observer = lambda _: None,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._results = results
        self._records = records
        self._router = router
        self._products = products
        self._associations = products.associations
        self._cache = cache
        self._scratch = scratch
        self._keep_after = keep_after
        self._observe = observe

    async def process(self, message: Message, segment: Segment, *, attempt: str, bigger_slot: bool) -> Manifest:
        """Store the result of the message's segment, or find the one that exists."""
        if message.kind is MessageKind.FINALIZE:
            return await self._finalize(message, attempt=attempt, bigger_slot=bigger_slot)
        return await self._segment(message, segment, attempt=attempt, bigger_slot=bigger_slot)

    async def finish(self, message: Message, manifest: Manifest) -> None:
        """Make a finalized exposure part of its product set."""
        if message.association is None:
            msg = f"a finalize message of {message.exposure} names no association"
            raise PermanentError(msg)
        summary = manifest.extra.get("summary", {})
        aligned = summary.get("statuses", {}).get(JOINT) == "COMPLETE"
        rms = summary.get("rms") if aligned else None  # one that failed has that of the relative alignment
        record = json.loads(await self._store.get(ingest_key(message.run, message.exposure)) or b"{}")
        arrived = record.get("arrived")
        self._observe(
            {"event": "finalized", "exposure": message.exposure, "association": message.association,
             "revision": message.revision, "rms_mas": None if rms is None else 1e3 * rms,
             "latency": None if arrived is None else time.time() - arrived}
        )  # fmt: skip
        await self._products.finalized(message.association, message.revision or message.identity, manifest)

    async def abandon(self, message: Message, reason: str) -> None:
        """Let a product set be complete without this exposure."""
        self._observe(
            {"event": "finalize_failed", "exposure": message.exposure, "association": message.association,
             "revision": message.revision, "reason": reason}
        )  # fmt: skip
        of = message.revision or message.identity
        await self._products.failed(str(message.association), of, message.exposure, reason)

    async def _stored(self, identity: str) -> Manifest | None:
        """Result that is whole, or whose payload was dropped on purpose while its small objects are still there."""
        found, damaged = await self._results.look(identity)
        if damaged is None or await self._store.head(dropped_key(identity)) is None:
            return found
        lost = {stored.kind for stored in await self._results.missing(damaged)}
        return damaged if lost <= {ObjectKind.TREE, ObjectKind.ARRAY} else None

    async def _segment(
        self, message: Message, segment: Segment, *, attempt: str, bigger_slot: bool, force: bool = False
    ) -> Manifest:
        first = segment.stages.index(message.stage)
        stages = tuple(
            name
            for name in segment.stages[first:]
            if message.branch in self._router.segments.topology.row(name).branches
        )
        known = await self._jobs.recipes(stages, message)
        identities, identity = [], message.identity
        for name, recipe in known["recipes"]:
            identity = chain(identity, recipe)
            identities.append((name, identity))
        start: Manifest | None = None
        for position, (name, found_identity) in reversed(list(enumerate(identities))):
            found = await (self._results.find(found_identity) if force else self._stored(found_identity))
            if found is None:
                continue
            self._observe(
                {"event": "reused", "exposure": message.exposure, "stages": [n for n, _ in identities[: position + 1]]}
            )
            if name == segment.stages[-1] or self._router.segments.next_inside(name, found.branch) is None:
                await self._records.adopt(found)
                return found
            whole = await self._results.find(found_identity)
            if whole is not None:
                await self._records.adopt(whole)
                start, stages = whole, stages[position + 1 :]
                break
        if known["error"] is not None:
            raise PermanentError(f"{message.exposure}: {known['error']}")
        if start is None:
            start = await self._input(message)
        return await self._execute(message, start, stages, known, attempt=attempt, bigger_slot=bigger_slot)

    async def _input(self, message: Message) -> Manifest:
        # The manifest that is named first: of an ingested file another one may say where it lies on another machine.
        named = await self._results.read(message.manifest)
        if not await self._results.missing(named, trusting=True):
            return named
        found = await self._results.find(message.identity)
        if found is None:
            raise RetriableError(f"{message.exposure}: the payload of {message.manifest} is not in the store")
        return found

    async def _execute(
        self,
        message: Message,
        start: Manifest,
        stages: tuple[str, ...],
        known: Mapping[str, Any],
        *,
        attempt: str,
        bigger_slot: bool,
    ) -> Manifest:
        staging, recipes = self._staging(attempt), dict(known["recipes"])
        try:
            async with self._local(start) as (manifest, paths):
                plan = SegmentPlan(
                    manifest=manifest.document(),
                    paths=paths,
                    stages=stages,
                    keep=frozenset(self._keep_after),
                    recipes=recipes,
                    attempt=attempt,
                    staging=staging,
                )
                made = await self._jobs.run(
                    "execute", {"plan": plan.model_dump(mode="json")}, label=message.exposure,
                    bigger_slot=bigger_slot, references=_needed(known, stages), precedence=self._place(message),
                )  # fmt: skip
            self._check_unchanged(start)
            await self._check_references(message, recipes)
            published = await self._results.publish_made(made)
            for key, path in made["files"].items():
                self._cache.adopt(key, Path(path))
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        if not published:
            msg = f"{message.exposure}: no stage of {', '.join(stages)} runs on branch {start.branch}"
            raise PermanentError(msg)
        for kept in published:
            await self._records.point(kept)
        return published[-1]

    def _place(self, message: Message) -> int:
        return self._router.segments.topology.index(message.stage)

    def _staging(self, attempt: str) -> Path:
        return self._store.staging(attempt) or self._scratch / attempt

    @asynccontextmanager
    async def _local(self, manifest: Manifest) -> AsyncIterator[tuple[Manifest, dict[str, Path]]]:
        """Local files of a result's objects; an ingested exposure that was not uploaded is read where it lies."""
        if "path" not in manifest.extra:
            async with self._cache.lease(manifest.objects) as paths:
                yield manifest, paths
            return
        self._check_unchanged(manifest)
        extra = manifest.extra
        stored = StoredObject("input", "input", str(extra["digest"]), int(extra["size"]), ObjectKind.INPUT)
        yield replace(manifest, objects=(stored,)), {"input": Path(extra["path"])}

    @staticmethod
    def _check_unchanged(manifest: Manifest) -> None:
        """Refuse an input file that is not the one that was ingested."""
        if "path" not in manifest.extra:
            return
        path = Path(manifest.extra["path"])
        try:
            found = path.stat()
        except OSError as error:
            raise PermanentError(f"{path}: the input cannot be read: {error.strerror}") from error
        if (found.st_size, found.st_mtime_ns) != (manifest.extra["size"], manifest.extra["mtime_ns"]):
            raise PermanentError(f"{path}: the file changed after it was ingested; run again with what it is now")

    async def _check_references(self, message: Message, recipes: Mapping[str, str]) -> None:
        """Refuse a result whose references are not those that its identity tells of.

        A job process notices a file that changes under it, but not one that changed before it first looked, after
        another process had planned with it.
        """
        known = await self._jobs.recipes(tuple(recipes), message)
        if known["error"] is not None:
            raise PermanentError(f"{message.exposure}: {known['error']}")
        changed = [name for name, recipe in known["recipes"] if recipe != recipes[name]]
        if changed:
            raise PermanentError(
                f"{message.exposure}: a reference of {', '.join(changed)} changed while the exposure was processed; "
                "start again to use the new one"
            )

    async def _finalize(self, message: Message, *, attempt: str, bigger_slot: bool) -> Manifest:
        association = str(message.association)
        members = await self._associations.members(association)
        close = None
        if message.revision is not None:
            close = await self._associations.close(association, message.revision)
        used = close.used if close is not None else ()
        solution = None if message.solution is None else await self._associations.solution(message.solution)
        known = await self._jobs.recipes((FINALIZE,), message)
        if known["error"] is not None:
            raise PermanentError(f"{message.exposure}: {known['error']}")
        identity = final_identity(
            message.identity,
            solution=solution.identity if solution else None,
            expected=members.members,
            used=used,
            recipe=hash_parts("association", known["recipes"][0][1], members.extra, *refusal_of(close)),
        )
        found = await self._results.find(identity)
        if found is not None:
            self._observe({"event": "reused", "exposure": message.exposure, "stages": [FINALIZE]})
            return found
        document = None
        if close is not None:
            document = await self._associations.part(solution, close, message.exposure)
        payload = await self._results.find(message.identity)
        if payload is None:
            payload = await self._recompute(message, attempt=attempt)
        described = {**members.extra, "expected": list(members.members), "used": list(used)}
        return await self._write_products(
            message, payload, identity, document, described, attempt,
            bigger_slot=bigger_slot, references=_needed(known, (FINALIZE,)),
        )  # fmt: skip

    async def _recompute(self, message: Message, *, attempt: str) -> Manifest:
        """Make a payload anew that was dropped, from the ingested input."""
        record = await self._store.get(ingest_key(message.run, message.exposure))
        if record is None:
            raise PermanentError(f"{message.exposure}: its payload was dropped and its input is not known in this run")
        value = json.loads(record)
        topology = self._router.segments.topology
        root = await self._results.read(value["manifest"])
        current: Manifest | None = root
        while current is not None and current.identity != message.identity:
            stage = (
                starting_stage(topology, root.branch, root.facts.get("done", ()))
                if current is root
                else topology.next_stage(current.stage, current.branch)
            )
            if stage is None or topology.row(stage).joint:
                raise PermanentError(f"{message.exposure}: its recipe changed while it waited; run it again")
            step = Message(
                run=message.run, exposure=message.exposure, stage=stage, branch=current.branch,
                identity=current.identity,
                manifest=current.key, facts=dict(current.facts),
            )  # fmt: skip
            segment = self._router.segments.containing(stage)
            current = await self._segment(step, segment, attempt=attempt, bigger_slot=False, force=True)
        if current is None:
            raise PermanentError(f"{message.exposure}: its payload cannot be made again")
        await self._store.delete(dropped_key(message.identity))
        return current

    async def result_of(self, root: Message, stage: str, *, attempt: str) -> Manifest | None:
        """The whole result of a stage of an ingested exposure, made again where it is not stored.

        None where the exposure does not come to the stage.
        """
        topology = self._router.segments.topology
        route = [name for name in topology.route(root.branch) if not topology.row(name).joint]
        route = route[route.index(root.stage) :]
        if stage not in route:
            return None
        stages = tuple(route[: route.index(stage) + 1])
        found = await self._segment(root, Segment(stages[0], stages), attempt=attempt, bigger_slot=False, force=True)
        return found if found.stage == stage else None

    async def _write_products(
        self,
        message: Message,
        payload: Manifest,
        identity: str,
        solution: Any,
        association: Mapping[str, Any],
        attempt: str,
        *,
        bigger_slot: bool,
        references: Sequence[str],
    ) -> Manifest:
        wanted = [o for o in payload.objects if o.kind in {ObjectKind.ARRAY, ObjectKind.TREE}]
        tree = next(o.name for o in wanted if o.kind is ObjectKind.TREE)
        folder = self._staging(attempt)
        try:
            async with self._cache.lease(wanted) as paths:
                made = await self._jobs.run(
                    "finalize",
                    {
                        "tree": str(paths[tree]),
                        "arrays": {o.name: str(paths[o.name]) for o in wanted if o.kind is ObjectKind.ARRAY},
                        "facts": message.facts,
                        "solution": solution,
                        "association": association,
                        "out_dir": str(folder),
                    },
                    label=message.exposure,
                    bigger_slot=bigger_slot,
                    references=references,
                    precedence=self._place(message),
                )
            objects = [
                StoredObject(
                    name, object_key(message.exposure, FINALIZE, attempt, name), **made["stored"][name],
                    kind=ObjectKind.PRODUCT,
                )
                for name in made["files"]
            ]  # fmt: skip
            await together([partial(self._store.put, stored.key, folder / stored.name) for stored in objects])
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return await self._results.publish(
            Manifest(
                identity=identity,
                exposure=message.exposure,
                stage=FINALIZE,
                branch=message.branch,
                facts=message.facts,
                objects=tuple(objects),
                attempt=attempt,
                extra={
                    "content": made["digests"],
                    "summary": {**made["summary"], "alignment_reason": alignment_reason(solution, message.exposure)},
                },
            )
        )


def _needed(known: Mapping[str, Any], stages: Sequence[str]) -> list[str]:
    """References that must be fetched for the stages."""
    return [name for stage in stages for name in known["needed"].get(stage, ())]
