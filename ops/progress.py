"""What a person sees of a run: bars while it works and a closing table. Nothing is decided here."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["ProgressBars", "closing_table"]


class ProgressBars:
    """One bar for the exposures, and one for the stages of each exposure at work.

    Parameters
    ----------
    console : Console
        Where to draw.
    exposures : int
        How many exposures there are.
    stages : int
        Stages of a whole pipeline.
    enabled : bool
        False draws nothing (``--json``).
    """

    def __init__(self, console: Console, *, exposures: int, stages: int, enabled: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
            disable=not enabled,
            transient=True,
        )
        self._all = self._progress.add_task("exposures", total=exposures, now="")
        self._stages = stages
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage_started(self, exposure: str, stage: str) -> None:
        """Show which stage an exposure is in."""
        task = self._tasks.get(exposure)
        if task is None:
            task = self._tasks[exposure] = self._progress.add_task(f"  {exposure}", total=self._stages, now=stage)
        self._progress.update(task, now=stage)

    def stages_done(self, exposure: str, count: int) -> None:
        """Show how many stages of an exposure are behind it."""
        task = self._tasks.get(exposure)
        if task is not None:
            self._progress.update(task, completed=count)

    def exposure_done(self, exposure: str) -> None:
        """Count an exposure as done and remove its bar."""
        self._progress.advance(self._all)
        task = self._tasks.pop(exposure, None)
        if task is not None:
            self._progress.remove_task(task)


def closing_table(report: dict[str, Any]) -> Table:
    """Table of a run's exposures: stages, sources, alignment, seconds, or the reason why there are no products."""
    table = Table(title=f"run {report['run']}", title_justify="left", box=SIMPLE)
    for heading, justify in (
        ("exposure", "left"),
        ("status", "left"),
        ("stages", "right"),
        ("sources", "right"),
        ("shift [mas]", "right"),
        ("RMS [mas]", "right"),
        ("seconds", "right"),
        ("products or reason", "left"),
    ):
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=heading == "exposure")  # type: ignore[arg-type]
    for row in report["exposures"]:
        done = row["status"] == "done"
        table.add_row(
            row["exposure"],
            row["status"],
            f"{row['stages_run']} + {row['stages_reused']} reused" if row["stages_reused"] else str(row["stages_run"]),
            _number(row["sources"], "{:d}"),
            _number(row["shift_mas"], "{:.1f}"),
            _number(row["rms_mas"], "{:.2f}"),
            _number(row["seconds"], "{:.1f}"),
            _result(row) if done else str(row["reason"]),
        )
    return table


def _result(row: dict[str, Any]) -> str:
    products = ", ".join(_suffix(name) for name in row["products"])
    return f"{products}; not aligned: {row['tweakreg_reason']}" if row.get("tweakreg_reason") else products


def _suffix(name: str) -> str:
    return "_" + name.rpartition("_")[2]


def _number(value: Any, form: str) -> str:
    return "-" if value is None else form.format(value)
