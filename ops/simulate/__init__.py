"""Simulated L1 exposures with the references, star table, associations and truth that belong to them.

Nothing here is part of the calibration; it makes data whose right answer is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ops.simulate.cli import add_arguments, run
from ops.simulate.options import SimulateOptions, Variant

if TYPE_CHECKING:
    from collections.abc import Callable

    from ops.simulate.simulation import SimulationSummary

__all__ = ["SimulateOptions", "Variant", "add_arguments", "run", "simulate"]


def simulate(
    options: SimulateOptions, report: Callable[[str], None] = lambda _line: None, **timing: Any
) -> SimulationSummary:
    """Simulate exposures; see `ops.simulate.simulation.simulate`, which is imported only now, being slow to import."""
    from ops.simulate import simulation

    return simulation.simulate(options, report, **timing)
