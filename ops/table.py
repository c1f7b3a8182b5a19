"""The topology of a run: the default table of stages with those that a user adds or replaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from ops.settings import CustomStage, RunSettings
from stages.pipeline import JOINT, TABLE, make_stage
from stream.failure import PermanentError
from stream.topology import Segments, StageRow, Topology

__all__ = ["ENTRY_POINTS", "Pipeline", "build_pipeline", "defined_pipeline"]

ENTRY_POINTS = "rampstream.stages"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Segments, and where the class of each stage is."""

    segments: Segments
    entries: dict[str, str]
    settings: RunSettings = field(repr=False)

    def definition(self) -> dict[str, Any]:
        """Return the part of a run's definition that it decides: topology and parameters, not the preset."""
        topology = self.segments.topology
        return {
            "topology": [
                {
                    "name": row.name,
                    "branches": sorted(row.branches),
                    "entry": self.entries[row.name],
                    "joint": row.joint,
                    "balanced_head": row.balanced_head,
                }
                for row in topology.rows
            ],
            "parameters": self.settings.parameters,
        }


def defined_pipeline(definition: Mapping[str, Any], settings: RunSettings) -> Pipeline:
    """Make the pipeline of a run that is defined, cut by the preset of the settings."""
    topology = Topology(
        StageRow(row["name"], frozenset(row["branches"]), joint=row["joint"], balanced_head=row["balanced_head"])
        for row in definition["topology"]
    )
    entries = {row["name"]: row["entry"] for row in definition["topology"]}
    return Pipeline(topology.segments(settings.preset), entries, settings)


def build_pipeline(settings: RunSettings) -> Pipeline:
    """Make the topology and cut it by the preset.

    Raises
    ------
    PermanentError
        A parameter is given for a stage that does not exist, or ``keep_after`` or ``save_results`` names one, or a
        stage of the user's cannot be found or placed.
    """
    topology = Topology(
        StageRow(row.name, row.branches, joint=row.joint, balanced_head=row.balanced_head) for row in TABLE
    )
    entries = {row.name: row.entry for row in TABLE}
    for name, custom in settings.stages.items():
        topology, entries = _with_custom(topology, entries, name, custom)
    unknown = [name for name in settings.parameters if name not in topology]
    if unknown:
        raise PermanentError(f"parameters: there is no stage {unknown[0]!r}; stages are {', '.join(topology.stages)}")
    for setting in ("keep_after", "save_results"):
        unknown = [name for name in getattr(settings, setting) if name not in topology]
        if unknown:
            stages = ", ".join(topology.stages)
            raise PermanentError(f"{setting}: there is no stage {unknown[0]!r}; stages are {stages}")
    return Pipeline(topology.segments(settings.preset), entries, settings)


def _with_custom(
    topology: Topology, entries: dict[str, str], name: str, custom: CustomStage
) -> tuple[Topology, dict[str, str]]:
    entry = custom.entry
    if ":" not in entry:
        found = entry_points(group=ENTRY_POINTS, name=entry)
        if not found:
            raise PermanentError(
                f"stages.{name}.entry: there is no entry point {entry!r} in the group {ENTRY_POINTS!r}"
            )
        entry = next(iter(found)).value
    try:
        stage = make_stage(entry)
    except (ImportError, AttributeError, TypeError) as error:
        raise PermanentError(f"stages.{name}.entry: {entry!r} cannot be loaded: {error}") from error
    if stage.name != name:
        raise PermanentError(f"stages.{name}.entry: the stage's own name is {stage.name!r}, expected {name!r}")
    if (custom.after is None) == (custom.replaces is None):
        raise PermanentError(f"stages.{name}: say either after or replaces, and one of them")
    fixed = {row.name for row in topology.rows[topology.index(JOINT) :]}
    if fixed & {custom.after, custom.replaces}:
        raise PermanentError(
            f"stages.{name}: {JOINT} and what follows it cannot be replaced or followed by another stage; "
            f"choose a stage before {JOINT}"
        )
    if custom.replaces is not None:
        if custom.replaces not in topology:
            raise PermanentError(f"stages.{name}.replaces: there is no stage {custom.replaces!r}")
        old = topology.row(custom.replaces)
        row = StageRow(name, stage.branches, joint=old.joint, balanced_head=old.balanced_head)
        rows = [row if known.name == custom.replaces else known for known in topology.rows]
        kept = {known: where for known, where in entries.items() if known != custom.replaces}
        return Topology(rows), {**kept, name: entry}
    return topology.inserted(StageRow(name, stage.branches), after=custom.after), {**entries, name: entry}
