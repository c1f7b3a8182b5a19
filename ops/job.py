"""What runs inside a job process: the glue between the engine's segments and the stages. No decisions about messages.

Each function is a job's entry (`stream.jobs.Job`): called with JSON arguments, the process's slot and a function for
reports; returns a JSON value. ``arguments["environment"]`` (see `Environment`) says which stages, parameters and
references a run has; what is made from it is kept for the life of the process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from stages.payload import ExposurePayload
from stages.pipeline import FINALIZE, JOINT, make_stage
from stages.reference_selection import DirectoryReferences
from stream.failure import PermanentError
from stream.identity import recipe_digest
from stream.results import file_digest
from stream.segment import execute_segment, stage_recipe
from stream.stage import Member, Slot, StageParameters

__all__ = ["Workbench", "check", "execute", "finalize", "joint_recipe", "library_versions", "recipes", "solve"]

Report = Callable[[dict[str, Any]], None]

SCHEMA_PACKAGES = ("roman_datamodels", "rad")


class Workbench:
    """Stages, parameters and references of one run, made once in a process.

    Parameters
    ----------
    environment : mapping
        ``entries`` (stage to ``module:Class``), ``parameters`` (stage to values), ``references`` (folder), ``pins``
        (type to file), ``cache`` (folder) and ``gaia`` (table).
    """

    def __init__(self, environment: Mapping[str, Any], slot: Slot) -> None:
        self.environment = environment
        self._stages: dict[str, Any] = {}
        self._parameters: dict[str, StageParameters] = {}
        self.payload = ExposurePayload(threads=slot.threads)
        self.references = DirectoryReferences(
            Path(environment["references"]), pinned=environment["pins"], cache=Path(environment["cache"])
        )

    @classmethod
    def of(cls, environment: Mapping[str, Any], slot: Slot) -> Workbench:
        """Return the process's workbench for this environment."""
        key = "workbench:" + json.dumps(environment, sort_keys=True)
        bench = slot.scratch.get(key)
        if bench is None:
            bench = slot.scratch[key] = cls(environment, slot)
        found: Workbench = bench
        return found

    def stage(self, name: str) -> Any:
        """Return the stage of that name."""
        if name not in self._stages:
            self._stages[name] = make_stage(self.environment["entries"][name])
        return self._stages[name]

    def parameters(self, name: str) -> Any:
        """Return the stage's parameters, checked."""
        if name not in self._parameters:
            values = self.environment["parameters"].get(name, {})
            model = self.stage(name).parameters_type
            try:
                self._parameters[name] = model(**values)
            except ValidationError as error:
                raise PermanentError(
                    "; ".join(_wrong_parameter(name, model, item) for item in error.errors())
                ) from None
        return self._parameters[name]

    def recipe(self, name: str, facts: Mapping[str, Any]) -> str:
        """Digest of everything that decides the stage's result apart from its input."""
        return stage_recipe(
            self.stage(name),
            self.parameters(name),
            self.references,
            dict(facts),
            schema_generation=schema_generation(),
            salt=self.environment.get("salt"),
        )

    def reference_digests(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """Digest of every reference file that any stage uses on an exposure, by its path."""
        found: dict[str, str] = {}
        for name in self.environment["entries"]:
            stage = self.stage(name)
            if facts["exposure_type"] not in stage.branches or not hasattr(stage, "references_for"):
                continue
            for reference_type in stage.references_for(dict(facts), self.parameters(name)):
                selected = self.references.select(reference_type, dict(facts))
                if selected is not None:
                    found[selected] = self.references.digest(selected)
        return found


def _wrong_parameter(stage: str, model: type[BaseModel], item: Any) -> str:
    """One validation error: stage and parameter, what was expected, what was found."""
    field = ".".join([stage, *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        return f"{field}: there is no such parameter; expected one of {', '.join(model.model_fields)}"
    return f"{field}: {item['msg']} (got {item['input']!r})"


def library_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of distributions by name."""
    return {name: version(name) for name in names}


def schema_generation() -> str:
    """Generation of the schemas that products follow."""
    return " ".join(f"{name}-{version(name)}" for name in SCHEMA_PACKAGES)


def check(arguments: dict[str, Any], slot: Slot, report: Report) -> None:
    """Make every stage and its parameters and open the star table: what is wrong is told before any work."""
    del report
    from stages.gaia import read_star_table

    bench = Workbench.of(arguments["environment"], slot)
    for name in arguments["stages"]:
        bench.parameters(name)
    read_star_table(Path(bench.environment["gaia"]))


def recipes(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Recipes of stages for one exposure's facts, in order; stops before the first that has an error, and tells it."""
    del report
    bench = Workbench.of(arguments["environment"], slot)
    found: list[list[str]] = []
    for name in arguments["stages"]:
        try:
            found.append([name, bench.recipe(name, arguments["facts"])])
        except PermanentError as error:
            return {"recipes": found, "error": str(error)}
    return {"recipes": found, "error": None}


def joint_recipe(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, str]:
    """Recipe of the joint stage, and the digest of the star list."""
    del report
    from stages.gaia import star_table_digest

    bench = Workbench.of(arguments["environment"], slot)
    stage, parameters = bench.stage(JOINT), bench.parameters(JOINT)
    recipe = recipe_digest(
        stage=JOINT,
        version=stage.version,
        parameters=parameters.model_dump(mode="json"),
        libraries=library_versions(stage.libraries),
        schema_generation=schema_generation(),
        salt=bench.environment.get("salt"),
    )
    return {"recipe": recipe, "star_list": star_table_digest(Path(bench.environment["gaia"]))}


def execute(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Run a segment, or the rest of one, on one exposure (see `stream.segment.execute_segment`)."""
    bench = Workbench.of(arguments["environment"], slot)
    plan = arguments["plan"]
    names = plan["stages"]
    return execute_segment(
        plan,
        stages={name: bench.stage(name) for name in names},
        parameters={name: bench.parameters(name) for name in names},
        payload=bench.payload,
        references=bench.references,
        slot=slot,
        report=report,
    )


def solve(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Run the joint stage on the tie points of an association's members."""
    from stages.gaia import read_star_table

    bench = Workbench.of(arguments["environment"], slot)
    report({"event": "stage_started", "stage": JOINT})
    members = [
        Member(m["id"], m["status"], m["facts"], Path(m["tie_points"]) if m["tie_points"] else None)
        for m in arguments["members"]
    ]
    stars = read_star_table(Path(bench.environment["gaia"]))
    document: dict[str, Any] = bench.stage(JOINT).solve(members, stars, bench.parameters(JOINT), slot)
    return document


def finalize(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Write the products of one exposure into a folder; returns their names, content digests and a summary."""
    bench = Workbench.of(arguments["environment"], slot)
    report({"event": "stage_started", "stage": FINALIZE})
    stage = bench.stage(FINALIZE)
    facts = arguments["facts"]
    item = bench.payload.load(Path(arguments["tree"]), {name: Path(path) for name, path in arguments["arrays"].items()})
    references: dict[str, Any] = {}
    for reference_type in stage.references_for(facts, bench.parameters(FINALIZE)):
        selected = bench.references.select(reference_type, facts)
        references[reference_type] = None if selected is None else bench.references.open(selected)
    out = Path(arguments["out_dir"])
    result: dict[str, Any] = stage.finalize(
        item,
        solution=arguments["solution"],
        association=arguments["association"],
        references=references,
        versions={"rampstream": version("rampstream"), "python": sys.version.split()[0]},
        out_dir=out,
        reference_digests=bench.reference_digests(facts),
        slot=slot,
    )
    result["stored"] = {
        name: {"digest": file_digest(out / name), "size": (out / name).stat().st_size} for name in result["files"]
    }
    return result
