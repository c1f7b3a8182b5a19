"""The plan of a replay: which exposures start from which stored result, under which definition. A file people read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio.to_thread

from ops.connect import Connection, RunView
from ops.work import ingest_key
from stages.standing import starting_stage
from stream.failure import PermanentError
from stream.identity import chain
from stream.message import MemberMessage, Message
from stream.replay import Link, plan_start
from stream.results import Manifest
from stream.stage import Slot

__all__ = ["ReplayPlan", "definition_with_changes", "planned_exposure"]

FORMAT = "rampstream-replay-1"


@dataclass(slots=True)
class ReplayPlan:
    """What is replayed.

    ``exposures`` hold a message each and what is computed or reused for it; ``members`` are statuses for the joint
    stage; all of them name the new run. ``associations`` maps each association that is touched to members that the
    selection lacks.
    """

    from_run: str
    run: str
    topic: str
    definition: dict[str, Any]
    layout: dict[str, Any]
    exposures: list[dict[str, Any]] = field(default_factory=list)
    members: dict[str, MemberMessage] = field(default_factory=dict)
    associations: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    selected: dict[str, Message] = field(default_factory=dict)

    def encode(self) -> str:
        """The plan as JSON."""
        document = {
            "format": FORMAT,
            **self.summary(),
            "definition": self.definition,
            "layout": self.layout,
            "associations": self.associations,
            "work": self.exposures,
            "members": [member.model_dump(mode="json") for member in self.members.values()],
        }
        return json.dumps(document, indent=1) + "\n"

    @classmethod
    def decode(cls, text: str) -> ReplayPlan:
        """Read what `encode` gave. Raises PermanentError for anything else, and where names do not agree."""
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise PermanentError(f"not a replay plan of format {FORMAT}: {document['format']!r}")
            members = [MemberMessage.model_validate_json(json.dumps(value)) for value in document["members"]]
            plan = cls(
                document["from_run"], document["run"], document["topic"], document["definition"], document["layout"],
                document["work"], {f"{m.association}/{m.member}": m for m in members}, document["associations"],
                document["refused"],
            )  # fmt: skip
            plan._check_names()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PermanentError(f"not a replay plan: {type(error).__name__} {error}") from error
        return plan

    def _check_names(self) -> None:
        if self.run == self.from_run:
            raise PermanentError(f"replay plan: run is {self.run!r}, as from_run is; a replay is a run of its own")
        runs = [("definition.salt", self.definition.get("salt") or self.run)]
        for n, exposure in enumerate(self.exposures):
            message = Message.model_validate_json(json.dumps(exposure["message"]))
            runs.append((f"work[{n}].message.run", message.run))
            if message.exposure != exposure["exposure"]:
                raise PermanentError(
                    f"replay plan: work[{n}].message.exposure is {message.exposure!r}, "
                    f"but work[{n}].exposure is {exposure['exposure']!r}"
                )
        runs += [(f"members[{n}].run", member.run) for n, member in enumerate(self.members.values())]
        for name, run in runs:
            if run != self.run:
                raise PermanentError(
                    f"replay plan: {name} is {run!r}, but run is {self.run!r}; for another run, plan again with --run"
                )

    @property
    def anything(self) -> bool:
        """Whether there is something to replay."""
        return bool(self.exposures or self.members)

    def summary(self) -> dict[str, Any]:
        """Numbers for people."""
        return {
            "from_run": self.from_run,
            "run": self.run,
            "topic": self.topic,
            "exposures": len(self.exposures) + len(self.members),
            "start_after": dict(Counter(exposure["after"] for exposure in self.exposures)),
            "computed": dict(Counter(stage for exposure in self.exposures for stage in exposure["computed"])),
            "reused": dict(Counter(stage for exposure in self.exposures for stage in exposure["reused"])),
            "refused": self.refused,
            "incomplete_associations": {known: lacking for known, lacking in self.associations.items() if lacking},
        }


def definition_with_changes(
    definition: Mapping[str, Any],
    *,
    parameters: Mapping[str, Mapping[str, Any]],
    references: Any,
    pins: Mapping[str, Path],
    gaia: Any,
    salt: str | None,
) -> dict[str, Any]:
    """Return the definition of the new run; references and star table as `ops.run_inputs` found them, None to keep.

    Raises
    ------
    PermanentError
        A parameter is set for a stage that the run does not have.
    """
    changed = {name: value for name, value in definition.items() if name != "salt"}
    stages = [row["name"] for row in definition["topology"]]
    unknown = [name for name in parameters if name not in stages]
    if unknown:
        raise PermanentError(f"--set {unknown[0]}: there is no such stage; the run has {', '.join(stages)}")
    changed["parameters"] = {
        name: {**definition["parameters"].get(name, {}), **parameters.get(name, {})}
        for name in sorted({*definition["parameters"], *parameters})
    }
    if references is not None:
        changed["references"] = references
    if gaia is not None:
        changed["gaia"] = gaia
    changed["pins"] = {**definition["pins"], **{kind: str(path) for kind, path in pins.items()}}
    return changed if salt is None else {**changed, "salt": salt}


async def planned_exposure(
    connection: Connection, view: RunView, environment: Mapping[str, Any], message: Message, plan: ReplayPlan
) -> None:
    """Add one exposure to a plan, or why it cannot be replayed."""
    try:
        await _planned(connection, view, environment, message, plan)
    except PermanentError as error:
        plan.refused[message.exposure] = str(error)


async def _planned(
    connection: Connection, view: RunView, environment: Mapping[str, Any], message: Message, plan: ReplayPlan
) -> None:
    results = connection.results
    record = await connection.store.get(ingest_key(plan.from_run, message.exposure))
    if record is None:
        raise PermanentError("it was never ingested into the run that is replayed")
    ingested = await results.read(str(json.loads(record)["manifest"]))
    if environment.get("salt") is not None:
        # A salt changes every recipe: what was computed before the topic's stage holds all the same.
        before = await results.read(message.manifest)
        root, facts = Link(before.stage, message.identity, message.manifest), message.facts
        if await results.missing(before):
            raise PermanentError(f"its stored input of {plan.topic} is gone")
        branch, first = message.branch, message.stage
    else:
        root, facts = Link(ingested.stage, ingested.identity, ingested.key), dict(ingested.facts)
        branch, first = ingested.branch, None
    links, manifests = await _links(connection, view, environment, root.identity, branch, facts, first)
    start = plan_start(root, links, topic=plan.topic, segments=view.pipeline.segments)
    origin = manifests.get(start.after)
    again = Message(
        run=plan.run,
        exposure=message.exposure,
        stage=start.stage,
        branch=origin.branch if origin else branch,
        identity=start.identity,
        manifest=start.manifest,
        facts=dict(origin.facts) if origin else facts,
        associations=message.associations,
    ).following(message)
    plan.exposures.append(
        {
            "exposure": message.exposure,
            "after": start.after,
            "computed": list(start.computed),
            "reused": list(start.reused),
            "message": again.model_dump(mode="json"),
        }
    )


async def _links(
    connection: Connection,
    view: RunView,
    environment: Mapping[str, Any],
    identity: str,
    branch: str,
    facts: dict[str, Any],
    first: str | None,
) -> tuple[list[Link], dict[str, Manifest]]:
    """The chain of an exposure under the new definition, as far as its branch is known."""
    topology = view.pipeline.segments.topology
    stage = first if first is not None else starting_stage(topology, branch, facts.get("done", ()))
    links: list[Link] = []
    manifests: dict[str, Manifest] = {}
    while stage is not None and not topology.row(stage).joint:
        recipe = await anyio.to_thread.run_sync(_recipe, environment, stage, facts)
        identity = chain(identity, recipe)
        found = await connection.results.find(identity)
        if found is not None:
            branch, manifests[stage] = found.branch, found
        links.append(Link(stage, identity, None if found is None else found.key))
        stage = topology.next_stage(stage, branch)
    return links, manifests


_SLOT = Slot()


def _recipe(environment: Mapping[str, Any], stage: str, facts: dict[str, Any]) -> str:
    from ops.workbench import Workbench

    return Workbench.of(environment, _SLOT).recipe(stage, facts)
