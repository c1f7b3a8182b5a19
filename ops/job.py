"""What runs inside a job process: the glue between the engine's segments and the stages. No decisions about messages.

Each function is a job's entry (`stream.jobs.Job`): called with JSON arguments, the process's slot and a function for
reports; returns a JSON value. ``arguments["environment"]`` (see `Environment`) says which stages, parameters and
references a run has; what is made from it is kept for the life of the process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ops.gaia_option import is_queried
from ops.job_references import reference_source
from stages.crds_context import client_version
from stages.crds_references import CrdsReferences
from stages.indexed_references import IndexedContextReferences, IndexedReferences
from stages.parameter_references import ParameterReferences
from stages.payload import ExposurePayload
from stages.pipeline import FINALIZE, JOINT, make_stage
from stream.failure import PermanentError
from stream.identity import hash_parts, recipe_digest
from stream.results import file_digest
from stream.segment import execute_segment, stage_recipe
from stream.stage import Member, Slot, StageParameters

__all__ = [
    "Workbench",
    "ask_stars",
    "check",
    "execute",
    "finalize",
    "joint_recipe",
    "library_versions",
    "recipes",
    "renamed_image",
    "search_cone",
    "solve",
    "step_output",
]

Report = Callable[[dict[str, Any]], None]

SCHEMA_PACKAGES = ("roman_datamodels", "rad")

_BY_CONTEXT = (CrdsReferences, IndexedContextReferences)


class Workbench:
    """Stages, parameters and references of one run, made once in a process.

    Parameters
    ----------
    environment : mapping
        ``entries`` (stage to ``module:Class``), ``parameters`` (stage to values), ``references``, ``pins``, ``cache``
        and ``cache_bytes`` (see `ops.job_references`), and ``gaia`` (see `ops.star_sources`).
    """

    def __init__(self, environment: Mapping[str, Any], slot: Slot) -> None:
        self.environment = environment
        self._stages: dict[str, Any] = {}
        self._parameters: dict[str, StageParameters] = {}
        self.payload = ExposurePayload(threads=slot.threads)
        self.references = reference_source(environment)
        self._parameter_references: ParameterReferences | None = None
        if isinstance(self.references, _BY_CONTEXT) and environment["references"]["parameters"]:
            self._parameter_references = ParameterReferences(self.references.context)

    @classmethod
    def lent(cls, arguments: Mapping[str, Any], slot: Slot) -> Workbench:
        """Return the process's workbench for a job that opens references: those that were fetched come with it."""
        bench = cls.of(arguments["environment"], slot)
        if isinstance(bench.references, IndexedReferences):
            bench.references.lend(arguments.get("files", {}))
        return bench

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

    @property
    def crds(self) -> dict[str, str] | None:
        """What products say about CRDS: version of the client, and context; None where references come elsewhere."""
        if not isinstance(self.references, _BY_CONTEXT):
            return None
        return {"version": client_version(), "context": self.references.context.name}

    def parameters(self, name: str, facts: Mapping[str, Any] | None = None) -> Any:
        """Return the stage's parameters for an exposure, checked; without facts those that the run is defined with.

        Parameters from CRDS give way to those of the definition.
        """
        values = self.environment["parameters"].get(name, {})
        if facts and self._parameter_references is not None:
            values = {**self._parameter_references.parameters(name, dict(facts)), **values}
        key = json.dumps([name, values], sort_keys=True)
        if key not in self._parameters:
            model = self.stage(name).parameters_type
            try:
                self._parameters[key] = model(**values)
            except ValidationError as error:
                raise PermanentError(
                    "; ".join(_wrong_parameter(name, model, item) for item in error.errors())
                ) from None
        return self._parameters[key]

    def recipe(self, name: str, facts: Mapping[str, Any]) -> str:
        """Digest of everything that decides the stage's result apart from its input."""
        recipe = stage_recipe(
            self.stage(name),
            self.parameters(name, facts),
            self.references,
            dict(facts),
            schema_generation=schema_generation(),
            salt=self.environment.get("salt"),
        )
        recipe = self._with_named_files(recipe, name, facts)
        # The products name the context: equal files chosen by another one are the same numbers in other products.
        return hash_parts("crds", recipe, self.crds) if name == FINALIZE and self.crds is not None else recipe

    def _with_named_files(self, recipe: str, name: str, facts: Mapping[str, Any]) -> str:
        """The recipe, with the content of files that parameters name."""
        paths = self.parameters(name, facts).named_files()
        if not paths:
            return recipe
        missing = [path for path in paths if not Path(path).is_file()]
        if missing:
            raise PermanentError(f"a parameter of {name} names the file {missing[0]}, which does not exist")
        return hash_parts("named files", recipe, [file_digest(Path(path)) for path in paths])

    def needed(self, name: str, facts: Mapping[str, Any]) -> list[str]:
        """References that the stage opens and that must be lent to the job."""
        if not isinstance(self.references, IndexedReferences):
            return []
        types = self.stage(name).references_for(dict(facts), self.parameters(name, facts))
        selected = [self.references.select(reference_type, dict(facts)) for reference_type in types]
        return [found for found in selected if found is not None and self.references.needs(found)]

    def reference_digests(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """Digest of every reference file that any stage uses on an exposure, by its path."""
        found: dict[str, str] = {}
        for name in self.environment["entries"]:
            stage = self.stage(name)
            if facts["exposure_type"] not in stage.branches or not hasattr(stage, "references_for"):
                continue
            for reference_type in stage.references_for(dict(facts), self.parameters(name, facts)):
                selected = self.references.select(reference_type, dict(facts))
                if selected is not None:
                    found[selected] = self.references.digest(selected)
        return found


def _star_list(arguments: Mapping[str, Any]) -> Any:
    """The star table that was fetched for the job or is named by the run; no stars where nobody asked for them."""
    from stages.gaia import NO_STARS, read_star_table

    gaia = arguments["environment"]["gaia"]
    path = arguments.get("stars") or (gaia if isinstance(gaia, str) else None)
    return NO_STARS if path is None else read_star_table(path)


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
    bench = Workbench.of(arguments["environment"], slot)
    for name in arguments["stages"]:
        bench.parameters(name)
    if arguments.get("stars_matter", True) and is_queried(bench.environment["gaia"]):
        from ops.star_sources import check_source

        check_source(bench.environment["gaia"])
    _star_list(arguments)


def recipes(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Recipes of stages for one exposure's facts, in order; stops before the first that has an error, and tells it.

    ``needed`` names the references, by stage, that must be fetched before it can run.
    """
    del report
    bench = Workbench.of(arguments["environment"], slot)
    found: list[list[str]] = []
    needed: dict[str, list[str]] = {}
    error: str | None = None
    for name in arguments["stages"]:
        try:
            found.append([name, bench.recipe(name, arguments["facts"])])
            needed[name] = bench.needed(name, arguments["facts"])
        except PermanentError as wrong:
            error = str(wrong)
            break
    return {"recipes": found, "needed": needed, "error": error}


def joint_recipe(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Recipe of the joint stage, and the digest of the star list; ``facts`` are those of the first member that came.

    Where the stars must be asked for the digest is None, and ``source`` and ``salt`` tell of whom.
    """
    del report
    from stages.gaia import star_table_digest

    bench = Workbench.of(arguments["environment"], slot)
    stage, parameters = bench.stage(JOINT), bench.parameters(JOINT, arguments["facts"])
    recipe = recipe_digest(
        stage=JOINT,
        version=stage.version,
        parameters=parameters.model_dump(mode="json"),
        libraries=library_versions(stage.libraries),
        schema_generation=schema_generation(),
        salt=bench.environment.get("salt"),
    )
    gaia = bench.environment["gaia"]
    if is_queried(gaia):
        return {"recipe": recipe, "star_list": None, "source": gaia, "salt": bench.environment.get("salt")}
    return {"recipe": recipe, "star_list": star_table_digest(Path(gaia)) if isinstance(gaia, str) else gaia["digest"]}


def search_cone(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Where the joint stage needs stars (None: nowhere), and how long a service may take to tell them."""
    del report
    bench = Workbench.of(arguments["environment"], slot)
    stage, parameters = bench.stage(JOINT), bench.parameters(JOINT, arguments["facts"])
    if not hasattr(stage, "cone"):
        raise PermanentError(f"{JOINT} does not tell where it needs stars: give it a table with --gaia")
    cone = stage.cone(_members(arguments), parameters)
    timeout = getattr(parameters, "vo_timeout", None)
    return {"cone": None if cone is None else asdict(cone), "timeout": timeout}


def ask_stars(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Ask the run's catalog for the stars in a cone, and write them as a star table."""
    del slot, report
    from ops.star_sources import stars_in
    from stages.gaia import star_table_digest, write_star_table
    from stages.tweakreg.cone import SearchCone

    found = stars_in(arguments["environment"]["gaia"], SearchCone(**arguments["cone"]), timeout=arguments["timeout"])
    out = Path(arguments["out"])
    write_star_table(out, found)
    return {"stars": len(found["ra"]), "digest": star_table_digest(out)}


def _members(arguments: Mapping[str, Any]) -> list[Member]:
    return [
        Member(m["id"], m["status"], m["facts"], Path(m["tie_points"]) if m["tie_points"] else None)
        for m in arguments["members"]
    ]


def execute(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Run a segment, or the rest of one, on one exposure (see `stream.segment.execute_segment`)."""
    bench = Workbench.lent(arguments, slot)
    plan = arguments["plan"]
    names, facts = plan["stages"], plan["manifest"]["facts"]
    return execute_segment(
        plan,
        stages={name: bench.stage(name) for name in names},
        parameters={name: bench.parameters(name, facts) for name in names},
        payload=bench.payload,
        references=bench.references,
        slot=slot,
        report=report,
    )


def solve(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Run the joint stage on the tie points of an association's members."""
    bench = Workbench.of(arguments["environment"], slot)
    with _told(JOINT, report):
        stars = _star_list(arguments)
        parameters = bench.parameters(JOINT, arguments["facts"])
        document: dict[str, Any] = bench.stage(JOINT).solve(_members(arguments), stars, parameters, slot)
    return document


def finalize(arguments: dict[str, Any], slot: Slot, report: Report) -> dict[str, Any]:
    """Write the products of one exposure into a folder; returns their names, content digests and a summary."""
    bench = Workbench.lent(arguments, slot)
    stage = bench.stage(FINALIZE)
    facts = arguments["facts"]
    item = bench.payload.load(Path(arguments["tree"]), {name: Path(path) for name, path in arguments["arrays"].items()})
    references: dict[str, Any] = {}
    for reference_type in stage.references_for(facts, bench.parameters(FINALIZE, facts)):
        selected = bench.references.select(reference_type, facts)
        references[reference_type] = None if selected is None else bench.references.open(selected)
    out = Path(arguments["out_dir"])
    with _told(FINALIZE, report):
        result: dict[str, Any] = stage.finalize(
            item,
            solution=arguments["solution"],
            association=arguments["association"],
            references=references,
            versions={"rampstream": version("rampstream"), "python": sys.version.split()[0]},
            out_dir=out,
            reference_digests=bench.reference_digests(facts),
            crds=bench.crds,
            slot=slot,
        )
    began = time.monotonic()
    result["stored"] = {
        name: {"digest": file_digest(out / name), "size": (out / name).stat().st_size} for name in result["files"]
    }
    size = sum(stored["size"] for stored in result["stored"].values())
    report({"event": "stored", "stage": FINALIZE, "bytes": size, "seconds": time.monotonic() - began})
    return result


def step_output(arguments: dict[str, Any], slot: Slot, report: Report) -> str:
    """Write an exposure as it left a stage into a folder (see `stages.finalize.step_output`); returns the name."""
    del report
    from stages.assign_wcs import read_distortion
    from stages.finalize import SOFTWARE_NAME
    from stages.finalize.step_output import write_step_output

    bench = Workbench.lent(arguments, slot)
    item = bench.payload.load(Path(arguments["tree"]), {name: Path(path) for name, path in arguments["arrays"].items()})
    distortion = None
    if item.wcs is not None:
        selected = bench.references.select("distortion", arguments["facts"])
        distortion = None if selected is None else read_distortion(bench.references.open(selected))
    return write_step_output(
        Path(arguments["out_dir"]),
        item,
        arguments["stage"],
        distortion=distortion,
        software={"name": SOFTWARE_NAME, "version": version("rampstream")},
    )


def renamed_image(arguments: dict[str, Any], slot: Slot, report: Report) -> str:
    """Write a ``_cal`` product as the output of a stage into a folder; returns the name."""
    del slot, report
    from stages.finalize.step_output import rename_image

    product, out = Path(arguments["product"]), Path(arguments["out_dir"])
    return rename_image(out, product, product.name, arguments["stage"])


@contextmanager
def _told(stage: str, report: Report) -> Iterator[None]:
    """Report a stage that no segment runs, as a segment does: its start, and what it took."""
    report({"event": "stage_started", "stage": stage})
    began, cpu = time.monotonic(), time.process_time()
    yield
    used = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    report({"event": "stage", "stage": stage, **used})
