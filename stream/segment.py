"""Runs consecutive stages on one exposure in memory, inside a job process. Publishes nothing.

A worker plans (`plan_identities`), fetches the input's objects, lets a job process call `execute_segment`, puts the
files that it made and publishes the manifests (`stream.results.Results.publish_made`). The identity of each stage's
result is chained stage by stage, so it does not depend on how the pipeline is cut into segments.

A payload format may offer more than `stream.stage.PayloadFormat` asks for: ``collect_logs(item)``, a context in which
the stages' log lines become part of the item, and ``content_digest(item)`` of what is not in arrays. A reference source
may offer ``release(opened)``, called with the opened references of a stage once it is done.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from stream.failure import PermanentError, RetriableError
from stream.identity import chain, recipe_digest
from stream.process_memory import process_memory
from stream.results import Manifest, ObjectKind, StoredObject, object_key
from stream.stage import Facts, Item, PayloadFormat, ReferenceSource, Slot, Stage
from stream.staged_objects import StagedObjects

__all__ = ["PlannedStage", "SegmentPlan", "execute_segment", "plan_identities", "stage_recipe"]

Report = Callable[[dict[str, Any]], None]

TREE = "tree"
"""Name of the object that holds everything but the large arrays."""


class SegmentPlan(BaseModel):
    """What a job process is told; JSON.

    Attributes
    ----------
    manifest : dict
        Document of the input's manifest: an ingested exposure (one object of kind INPUT) or the result of a stage.
    paths : dict of str to Path
        Local file of each of its objects, by name.
    stages : tuple of str
        Stages to run, in order; one that does not run on the exposure's branch is passed over.
    keep : frozenset of str
        Stages whose results are stored besides the last one's.
    recipes : dict of str
        Recipes of the stages where they are known already; others are computed.
    attempt : str
        Unique; part of the keys of all objects written.
    staging : Path
        Folder for what is written, best on the store's own file system.
    schema_generation, salt : str
        Part of the recipes that are computed (see `stream.identity.recipe_digest`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: dict[str, Any]
    paths: dict[str, Path]
    stages: tuple[str, ...]
    keep: frozenset[str] = frozenset()
    recipes: dict[str, str] = Field(default_factory=dict)
    attempt: str
    staging: Path
    schema_generation: str = ""
    salt: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage that will run, with the identity that its result will have."""

    stage: str
    recipe: str
    identity: str


def stage_recipe(
    stage: Stage,
    parameters: Any,
    references: ReferenceSource,
    facts: Facts,
    *,
    schema_generation: str = "",
    salt: str | None = None,
) -> str:
    """Digest of everything that decides the stage's result apart from its input.

    Raises
    ------
    stream.failure.PermanentError
        A reference that the stage needs does not exist.
    """
    digests = {
        kind: None if name is None else references.digest(name)
        for kind, name in _selected(stage, parameters, references, facts).items()
    }
    return recipe_digest(
        stage=stage.name,
        version=stage.version,
        parameters=parameters.model_dump(mode="json"),
        references=digests,
        libraries={name: version(name) for name in stage.libraries},
        schema_generation=schema_generation,
        salt=salt,
    )


def plan_identities(
    identity: str,
    branch: str,
    facts: Facts,
    *,
    stages: Sequence[Stage],
    parameters: Mapping[str, Any],
    references: ReferenceSource,
    schema_generation: str = "",
    salt: str | None = None,
) -> list[PlannedStage]:
    """Identities of the results of consecutive stages, without running them.

    They hold as long as no stage sets another branch; a stored result that did ends the chain, for its manifest has
    the branch that it went on.

    Parameters
    ----------
    identity, branch, facts : str, str, dict
        Of the input.
    stages : sequence of Stage
        In order; those that do not run on the branch are left out.
    parameters : mapping
        Parameters of each stage by its name.
    references, schema_generation, salt
        As for `stage_recipe`.
    """
    planned = []
    for stage in stages:
        if branch in stage.branches:
            recipe = stage_recipe(
                stage, parameters[stage.name], references, facts, schema_generation=schema_generation, salt=salt
            )
            identity = chain(identity, recipe)
            planned.append(PlannedStage(stage.name, recipe, identity))
    return planned


def execute_segment(
    plan: Mapping[str, Any],
    *,
    stages: Mapping[str, Stage],
    parameters: Mapping[str, Any],
    payload: PayloadFormat,
    references: ReferenceSource,
    slot: Slot,
    report: Report,
) -> dict[str, Any]:
    """Run the stages of a plan and write what is to be kept to its staging folder.

    Parameters
    ----------
    plan : mapping
        A `SegmentPlan` as JSON.
    stages, parameters : mapping
        Stage and parameters by name.
    payload : PayloadFormat
        Reads and writes the item.
    references : ReferenceSource
        Selects by the input's facts.
    slot : Slot
        Threads and buffers.
    report : callable
        Gets ``{"event": "stage_started", "stage"}``, ``{"event": "stage", "stage", "seconds", "cpu_seconds", "rss"}``
        and ``{"event": "stored", "stage", "bytes", "seconds"}``.

    Returns
    -------
    dict
        ``manifests``: documents of the results to be published, in order, the last one the segment's (none when no
        stage runs on the branch); ``files``: path of each new object by its key; ``branch``: on which it goes on.

    Raises
    ------
    stream.failure.RetriableError
        An object of the input is not there, or has another size.
    stream.failure.PermanentError
        A stage cannot process it, or the manifest is none.
    """
    segment = _Segment(
        SegmentPlan.model_validate(plan),
        stages=stages, parameters=parameters, payload=payload, references=references, slot=slot, report=report,
    )  # fmt: skip
    try:
        return segment.run()
    except BaseException:
        shutil.rmtree(segment.plan.staging, ignore_errors=True)
        raise


@dataclass(slots=True)
class _Known:
    """An array as it was last stored: unchanged as long as its token is."""

    stored: StoredObject
    token: Any


@dataclass(slots=True)
class _Made:
    manifests: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


class _Segment:
    def __init__(
        self,
        plan: SegmentPlan,
        *,
        stages: Mapping[str, Stage],
        parameters: Mapping[str, Any],
        payload: PayloadFormat,
        references: ReferenceSource,
        slot: Slot,
        report: Report,
    ) -> None:
        self.plan = plan
        self._stages = [stages[name] for name in plan.stages]
        self._parameters = parameters
        self._payload = payload
        self._references = references
        self._slot = slot
        self._report = report
        self._input = Manifest.from_document(plan.manifest)
        self._facts = dict(self._input.facts)
        self._identity = self._input.identity
        self._branch = self._input.branch
        self._known: dict[str, _Known] = {}
        self._made = _Made()
        self._steps: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        item = None
        for position, stage in enumerate(self._stages):
            if self._branch not in stage.branches:
                continue
            item = self._load() if item is None else item
            item = self._step(stage, item)
            last = not any(self._branch in later.branches for later in self._stages[position + 1 :])
            if last or stage.name in self.plan.keep:
                self._store(stage.name, item)
        return {"manifests": self._made.manifests, "files": self._made.files, "branch": self._branch}

    def _load(self) -> Item:
        for stored in self._input.objects:
            path = self.plan.paths.get(stored.name)
            if path is None or not path.exists() or path.stat().st_size != stored.size:
                msg = f"{stored.key} of {self._input.exposure} is not there as its manifest has it (expected {path})"
                raise RetriableError(msg)
        paths = {o.name: self.plan.paths[o.name] for o in self._input.objects}
        kinds = {kind: [o for o in self._input.objects if o.kind is kind] for kind in ObjectKind}
        if kinds[ObjectKind.INPUT]:
            return self._payload.load_input(paths[kinds[ObjectKind.INPUT][0].name], self._facts)
        if not kinds[ObjectKind.TREE]:
            msg = f"{self._input.key} of {self._input.exposure} has neither an input file nor a tree to go on from"
            raise PermanentError(msg)
        arrays = {o.name: paths[o.name] for o in kinds[ObjectKind.ARRAY]}
        item = self._payload.load(paths[kinds[ObjectKind.TREE][0].name], arrays)
        for stored in kinds[ObjectKind.ARRAY]:
            self._known[stored.name] = _Known(stored, self._payload.array_token(item, stored.name))
        return item

    def _step(self, stage: Stage, item: Item) -> Item:
        self._report({"event": "stage_started", "stage": stage.name})
        began, cpu = time.monotonic(), time.process_time()
        parameters = self._parameters[stage.name]
        recipe = self.plan.recipes.get(stage.name) or stage_recipe(
            stage, parameters, self._references, self._facts,
            schema_generation=self.plan.schema_generation, salt=self.plan.salt,
        )  # fmt: skip
        selected = _selected(stage, parameters, self._references, self._facts)
        opened = {kind: None if name is None else self._references.open(name) for kind, name in selected.items()}
        try:
            with _collecting(self._payload, item):
                result = stage.run(item, opened, parameters, self._slot)
        except Exception as error:
            error.add_note(f"in stage {stage.name} of {self._input.exposure}")
            raise
        finally:
            release = getattr(self._references, "release", None)
            if release is not None:
                release([reference for reference in opened.values() if reference is not None])
        self._branch = result.branch or self._branch
        self._identity = chain(self._identity, recipe)
        used = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu, "rss": _resident()}
        self._steps.append(
            {
                "stage": stage.name, "version": stage.version, "identity": self._identity, "recipe": recipe,
                "parameters": parameters.model_dump(mode="json"), "references": selected, **used,
            }
        )  # fmt: skip
        self._report({"event": "stage", "stage": stage.name, **used})
        return result.item

    def _store(self, stage: str, item: Item) -> None:
        began = time.monotonic()
        writer = StagedObjects(
            self.plan.staging / stage,
            partial(object_key, self._input.exposure, stage, self.plan.attempt),
            threads=self._slot.threads,
        )
        with writer:
            names = list(self._payload.array_names(item))
            tokens = {name: self._payload.array_token(item, name) for name in names}
            for name in names:
                known = self._known.get(name)
                if known is not None and known.token == tokens[name]:
                    writer.refer(known.stored)
                else:
                    path = writer.path(f"{name}.asdf")
                    self._payload.save_array(item, name, path)
                    writer.add(name, path, ObjectKind.ARRAY)
            path = writer.path(f"{TREE}.asdf")
            self._payload.save_tree(item, path)
            writer.add(TREE, path, ObjectKind.TREE)
            for name, data in self._payload.side_objects(item).items():
                path = writer.path(name)
                path.write_bytes(data)
                writer.add(name, path, ObjectKind.SIDE)
        objects = writer.objects()
        self._known = {o.name: _Known(o, tokens[o.name]) for o in objects if o.kind is ObjectKind.ARRAY}
        self._made.files.update(writer.files)
        self._made.manifests.append(self._manifest(stage, item, objects).document())
        size = sum(o.size for o in objects if o.key in writer.files)
        self._report({"event": "stored", "stage": stage, "bytes": size, "seconds": time.monotonic() - began})

    def _manifest(self, stage: str, item: Item, objects: tuple[StoredObject, ...]) -> Manifest:
        extra: dict[str, Any] = {"input": self._input.key, "steps": list(self._steps)}
        content_digest = getattr(self._payload, "content_digest", None)
        if content_digest is not None:
            extra["content"] = content_digest(item)
        return Manifest(
            identity=self._identity,
            exposure=self._input.exposure,
            stage=stage,
            branch=self._branch,
            facts={**self._facts, **self._payload.facts(item)},
            objects=objects,
            attempt=self.plan.attempt,
            extra=extra,
        )


def _selected(stage: Stage, parameters: Any, references: ReferenceSource, facts: Facts) -> dict[str, str | None]:
    return {kind: references.select(kind, facts) for kind in stage.references_for(facts, parameters)}


def _collecting(payload: PayloadFormat, item: Item) -> contextlib.AbstractContextManager[Any]:
    collect = getattr(payload, "collect_logs", None)
    return contextlib.nullcontext() if collect is None else collect(item)


def _resident() -> int:
    memory = process_memory(os.getpid())
    return 0 if memory is None else memory.rss
