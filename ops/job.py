"""What runs inside a job process: the glue between the engine's segments and the stages. No decisions about messages.

Each function is a job's entry (`stream.jobs.Job`): called with JSON arguments, the process's slot and a function for
reports; returns a JSON value. ``arguments["environment"]`` says which stages, parameters and references a run has; what
is made from it is kept for the life of the process (see `ops.workbench`).
"""

from __future__ import annotations

import mmap
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ops.gaia_option import is_queried
from ops.workbench import Workbench, library_versions, schema_generation
from stages.pipeline import FINALIZE, JOINT
from stream.failure import PermanentError
from stream.identity import recipe_digest
from stream.results import file_digest
from stream.segment import execute_segment
from stream.stage import Member, Slot

__all__ = [
    "ask_stars",
    "check",
    "execute",
    "finalize",
    "joint_recipe",
    "recipes",
    "renamed_image",
    "search_cone",
    "solve",
    "step_output",
]

Report = Callable[[dict[str, Any]], None]


def _star_list(arguments: Mapping[str, Any]) -> Any:
    """The star table that was fetched for the job or is named by the run; no stars where nobody asked for them."""
    from stages.gaia import NO_STARS, read_star_table

    gaia = arguments["environment"]["gaia"]
    path = arguments.get("stars") or (gaia if isinstance(gaia, str) else None)
    return NO_STARS if path is None else read_star_table(path)


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
    """The members, with tie points as parts of one mapped file."""
    whole = memoryview(b"")
    if any(m["tie_points"] is not None for m in arguments["members"]):
        with Path(arguments["tie_points"]).open("rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def content(place: Sequence[int] | None) -> memoryview | None:
        return None if place is None else whole[place[0] : place[0] + place[1]]

    return [Member(m["id"], m["status"], m["facts"], content(m["tie_points"])) for m in arguments["members"]]


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
