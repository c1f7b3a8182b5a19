"""The whole simulation: references, exposures one after another, star table and associations."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ops.simulate.associations import write_associations
from ops.simulate.expose import expose_detector
from ops.simulate.files import write_json, write_table
from ops.simulate.focal_plane import DetectorGeometry
from ops.simulate.plan import PlannedExposure, corners, plan_exposures
from ops.simulate.references import ReferenceSet
from ops.simulate.sky import Sky, Tile
from ops.simulate.star_table import star_table
from stream.failure import PermanentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ops.simulate.options import SimulateOptions

__all__ = ["SimulationSummary", "simulate"]

GENERATION = 1
"""Raised whenever equal options may give other references; a folder holds references of one generation."""


@dataclass(frozen=True)
class SimulationSummary:
    """What was written."""

    exposures: tuple[Path, ...]
    references: Path
    gaia: Path
    associations: tuple[Path, ...]
    truth: Path


def simulate(
    options: SimulateOptions,
    report: Callable[[str], None] = lambda _line: None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> SimulationSummary:
    """Simulate exposures and everything that is needed to calibrate them.

    References, star table and associations come first, so that whoever watches ``l1/`` finds them with an exposure.

    Parameters
    ----------
    options : SimulateOptions
    report : callable
        Gets a line of text for each thing done.
    clock, sleep : callable
        Seconds, and waiting for seconds, for a steady stream (``options.rate``).

    Raises
    ------
    PermanentError
        The folder already holds references of another seed, frame or generation.
    """
    plan = plan_exposures(options)
    references = ReferenceSet(options.out / "references", seed=options.seed, rows=options.rows)
    _claim(options)
    for detector in dict.fromkeys(name for exposure in plan for name in exposure.detectors):
        elements = {exposure.element for exposure in plan if detector in exposure.detectors}
        references.ensure(detector, elements, report)
    sky = Sky(options)
    gaia = options.out / "gaia.parquet"
    write_table(gaia, _star_columns(options, plan, sky))
    associations = write_associations(options.out / "associations", plan)
    files = []
    begin = clock()
    for number, exposure in enumerate(plan):
        if options.rate is not None:
            sleep(max(0.0, begin + number * 3600.0 / options.rate - clock()))
        for detector in exposure.detectors:
            path = expose_detector(exposure, detector, options=options, references=references, sky=sky)
            report(f"exposed {path.name}")
            files.append(path)
    return SimulationSummary(tuple(files), references.folder, gaia, tuple(associations), options.out / "truth")


def _claim(options: SimulateOptions) -> None:
    """Make sure that references already in the folder are those that these options would write."""
    path = options.out / "truth" / "references.json"
    wanted = {"generation": GENERATION, "seed": options.seed, "rows": options.rows}
    if path.exists():
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if found != wanted:
            raise PermanentError(
                f"{options.out} holds a simulation with {_spell(found)}, but {_spell(wanted)} is asked for; "
                "give another --out or remove that folder"
            )
        return
    write_json(path, wanted)


def _spell(values: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _star_columns(options: SimulateOptions, plan: list[PlannedExposure], sky: Sky) -> dict[str, Any]:
    tiles: set[Tile] = set()
    for exposure in plan:
        for detector in exposure.detectors:
            tiles |= sky.tiles(*corners(exposure, DetectorGeometry.of(detector, options.science_rows)))
    return dict(star_table(sky.stars(tiles), options.seed, plan[0].start, proper_motions=options.proper_motions))
