"""Keeps the outputs of chosen stages as files beside the products of a run, as the field's ``save_results`` does.

They are made from stored results, so that no identity and no product depends on whether they are asked for. A file that
is right already is left alone. Nothing of this is in the distributed engine.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread

from ops.ingest import digest_file
from ops.pipeline_jobs import PipelineJobs
from ops.projection import bring_in_line
from ops.work import PipelineWork, ingest_key
from stages.product_names import IN_PRODUCTS
from stages.standing import starting_stage
from stream.failure import Failure
from stream.identity import canonical_json, chain
from stream.message import Message
from stream.results import Manifest, ObjectKind, Results
from stream.store import ObjectStore
from stream.store.cache import ObjectCache
from stream.topology import Topology

__all__ = ["StepOutputs"]

LOG = logging.getLogger(__name__)

_CAL = "_cal.asdf"


class StepOutputs:
    """Files of the stages' outputs, of one run.

    Parameters
    ----------
    run : str
        The run.
    stages : sequence of str
        Whose outputs are asked for.
    topology : Topology
        Of the run.
    store, results, cache : ObjectStore, Results, ObjectCache
        Of the engine.
    jobs, work : PipelineJobs, PipelineWork
        Of the engine.
    scratch : Path
        Folder for files being made.
    """

    def __init__(
        self,
        *,
        run: str,
        stages: Sequence[str],
        topology: Topology,
        store: ObjectStore,
        results: Results,
        cache: ObjectCache,
        jobs: PipelineJobs,
        work: PipelineWork,
        scratch: Path,
    ) -> None:
        self._run = run
        self._stages = [name for name in topology.stages if name in stages and name not in IN_PRODUCTS]
        self._topology = topology
        self._store = store
        self._results = results
        self._cache = cache
        self._jobs = jobs
        self._work = work
        self._scratch = scratch

    async def write(self, exposure: str, folder: Path, products: Sequence[str]) -> list[Path]:
        """Bring the files of one exposure in line; of one that failed those of the stages before that are written.

        Parameters
        ----------
        exposure : str
            Its id.
        folder : Path
            Where its products are.
        products : sequence of str
            Paths of its products, none where it has failed.

        Returns
        -------
        list of Path
            The files, in the order of the stages.
        """
        record = await self._store.get(ingest_key(self._run, exposure))
        if record is None or not self._stages:
            return []
        root = await self._root(exposure, json.loads(record))
        placed: list[Path] = []
        try:
            identities = await self._identities(root)
            for stage in self._stages:
                if self._topology.row(stage).joint:
                    found = await self._aligned(exposure, stage, folder, products)
                else:
                    found = await self._output(root, stage, identities.get(stage), folder)
                placed += [] if found is None else [found]
        except Failure as error:
            LOG.warning("%s: outputs of stages are kept up to the one that failed: %s", exposure, error)
        return placed

    async def _root(self, exposure: str, record: dict[str, Any]) -> Message:
        """The message by which an exposure began."""
        manifest = await self._results.read(record["manifest"])
        first = starting_stage(self._topology, manifest.branch, manifest.facts.get("done", ()))
        return Message(
            run=self._run, exposure=exposure, stage=first or "", branch=manifest.branch,
            identity=manifest.identity, manifest=manifest.key, facts=dict(manifest.facts),
        )  # fmt: skip

    async def _identities(self, root: Message) -> dict[str, str]:
        """Identity of each stage's result, as far as it can be told."""
        route = [name for name in self._topology.route(root.branch) if not self._topology.row(name).joint]
        route = route[route.index(root.stage) :]
        known = await self._jobs.recipes(tuple(route), root)
        identities, identity = {}, root.identity
        for name, recipe in known["recipes"]:
            identities[name] = identity = chain(identity, recipe)
        return identities

    async def _output(self, root: Message, stage: str, identity: str | None, folder: Path) -> Path | None:
        what = f"{folder.name}/{stage}"
        note = await self._note(root.exposure, what)
        if identity is not None and note.get("identity") == identity and note["name"] is None:
            return None
        if (kept := await _kept(note, identity, folder)) is not None:
            return kept
        attempt = f"output-{uuid.uuid4().hex[:12]}"
        found = await self._work.result_of(root, stage, attempt=attempt)
        if found is None or _was_skipped(found):
            # a skipped stage leaves no file in the field's pipeline either
            await self._take_note(root.exposure, what, identity, name=None, digest=None)
            return None
        wanted = [o for o in found.objects if o.kind in {ObjectKind.ARRAY, ObjectKind.TREE}]
        staging = self._staging(attempt)
        try:
            async with self._cache.lease(wanted) as paths:
                arguments = {
                    "tree": next(str(paths[o.name]) for o in wanted if o.kind is ObjectKind.TREE),
                    "arrays": {o.name: str(paths[o.name]) for o in wanted if o.kind is ObjectKind.ARRAY},
                    "facts": root.facts,
                    "stage": stage,
                    "out_dir": str(staging),
                }
                name = await self._jobs.run("step_output", arguments, label=root.exposure)
            return await self._place(root.exposure, what, identity, staging / name, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    async def _aligned(self, exposure: str, stage: str, folder: Path, products: Sequence[str]) -> Path | None:
        """The output of the joint stage is the image product under another name."""
        product = next((Path(name) for name in products if name.endswith(_CAL)), None)
        if product is None:
            return None
        identity = await anyio.to_thread.run_sync(digest_file, product)
        what = f"{folder.name}/{stage}"
        if (kept := await _kept(await self._note(exposure, what), identity, folder)) is not None:
            return kept
        staging = self._staging(f"output-{uuid.uuid4().hex[:12]}")
        try:
            arguments = {"product": str(product), "stage": stage, "out_dir": str(staging)}
            name = await self._jobs.run("renamed_image", arguments, label=exposure)
            return await self._place(exposure, what, identity, staging / name, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _staging(self, attempt: str) -> Path:
        folder = self._scratch / attempt
        folder.mkdir(parents=True)
        return folder

    async def _place(self, exposure: str, what: str, identity: str | None, made: Path, folder: Path) -> Path:
        digest = await anyio.to_thread.run_sync(digest_file, made)
        target = folder / made.name
        await anyio.to_thread.run_sync(bring_in_line, made, target, digest)
        await self._take_note(exposure, what, identity, name=made.name, digest=digest)
        return target

    def _key(self, exposure: str, what: str) -> str:
        return f"runs/{self._run}/outputs/{exposure}/{what}"

    async def _note(self, exposure: str, what: str) -> dict[str, Any]:
        """What was written last: of which result, under which name, with which digest."""
        data = await self._store.get(self._key(exposure, what))
        note: dict[str, Any] = {} if data is None else json.loads(data)
        return note

    async def _take_note(
        self, exposure: str, what: str, identity: str | None, *, name: str | None, digest: str | None
    ) -> None:
        note = {"identity": identity, "name": name, "digest": digest}
        await self._store.put(self._key(exposure, what), canonical_json(note))


def _was_skipped(result: Manifest) -> bool:
    """Whether the result's stage was left out by its parameters."""
    steps = result.extra.get("steps", ())
    return bool(steps) and bool(steps[-1]["parameters"].get("skip"))


async def _kept(note: dict[str, Any], identity: str | None, folder: Path) -> Path | None:
    """The file that a note tells of, where it is that of this result and still as it was written."""
    if identity is None or note.get("identity") != identity:
        return None
    path: Path = folder / note["name"]
    return path if await anyio.to_thread.run_sync(_is, path, note["digest"]) else None


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and digest_file(path) == digest
