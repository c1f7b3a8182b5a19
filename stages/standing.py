"""Where a partly processed input stands: the stages behind it, by its ``cal_step``. Not a reader of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stages.exposure import Level, StepStatus
from stream.topology import Topology

__all__ = ["STAGES_BEFORE_CATALOG", "stages_done", "starting_stage"]

STAGES_BEFORE_CATALOG = {
    "dq_init": "dq_init",
    "saturation": "saturation",
    "refpix": "refpix",
    "dark_decay": "dark_decay",
    "wfi18_transient": "wfi18_transient",
    "linearity": "linearity",
    "ramp_fit": "ramp_fit",
    "dark_current": "dark",
    "assign_wcs": "assign_wcs",
    "photom": "photom",
    "flat_field": "flat_field",
}
"""Key of ``meta.cal_step`` of each stage whose work a file can hold, in order. A catalog is in a file of its own."""

_FIT = list(STAGES_BEFORE_CATALOG).index("ramp_fit")


def stages_done(level: Level, cal_step: Mapping[str, Any]) -> tuple[str, ...]:
    """Stages that an input has behind it: all up to the last one that is COMPLETE.

    Parameters
    ----------
    level : Level
        Of the input. Raw counts have none behind them, a rate image those up to the fit at least.
    cal_step : mapping
        ``meta.cal_step``.

    Returns
    -------
    tuple of str
        In order. dq_init counts too where it is SKIPPED: without a mask it makes the ramp all the same.
    """
    if level is Level.RAW:
        return ()
    names = list(STAGES_BEFORE_CATALOG)
    last = _FIT if level is Level.IMAGE else -1
    for position, (name, key) in enumerate(STAGES_BEFORE_CATALOG.items()):
        status = cal_step.get(key)
        done = status == StepStatus.COMPLETE or (name == "dq_init" and status == StepStatus.SKIPPED)
        if done and (level is Level.IMAGE or position < _FIT):
            last = max(last, position)
    return tuple(names[: last + 1])


def starting_stage(topology: Topology, branch: str, done: Iterable[str]) -> str | None:
    """Return the stage at which an input starts, None where no stage runs on its branch.

    An input that has every stage before the joint one behind it starts at the last of them, which leaves it as it is.
    """
    route = [name for name in topology.route(branch) if not topology.row(name).joint]
    joint = [topology.index(row.name) for row in topology.rows if row.joint]
    single = [name for name in route if not joint or topology.index(name) < joint[0]]
    behind = set(done)
    if "ramp_fit" not in behind:
        behind.discard("saturation")  # it is visited again, for it alone tells that nothing is left of a ramp
    left = [name for name in single if name not in behind]
    if left:
        return left[0]
    return single[-1] if single else topology.first_stage(branch)
