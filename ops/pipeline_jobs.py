"""Runs the entries of `ops.job` in job processes, with the run's environment and limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ops.run_inputs import RunInputs
from stream.failure import FailureClass
from stream.jobs import Job, JobProgress, JobRunner
from stream.message import Message
from stream.tracing import Forwarding, Tracing
from stream.worker import WorkFailedError

__all__ = ["JobLimits", "Observer", "PipelineJobs"]

PATIENCE = 5
"""Tries of a job that no worker counts: as many killed processes in a row as a message may meet."""

Observer = Callable[[dict[str, Any]], None]
"""Told what happens, as small dicts with an ``event``."""


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What one job may use."""

    threads: int
    wall_seconds: float
    memory_bytes: int


class PipelineJobs:
    """The jobs of one run.

    Parameters
    ----------
    runner : JobRunner
        Runs them.
    environment : mapping
        What job processes need to know (see `ops.workbench.Workbench`).
    limits : JobLimits
        Of each job.
    observe : callable
        Told about progress.
    tracing : Tracing, optional
        Told about progress too.
    inputs : RunInputs, optional
        Lends the files that jobs open where they lie in object storage.
    """

    def __init__(
        self,
        *,
        runner: JobRunner,
        environment: Mapping[str, Any],
        limits: JobLimits,
        observe: Observer = lambda _: None,
        tracing: Tracing | None = None,
        inputs: RunInputs | None = None,
    ) -> None:
        self._runner = runner
        self._environment = dict(environment)
        self._limits = limits
        self._observe = observe
        self._tracing = tracing or Forwarding()
        self._inputs = inputs

    async def run(
        self,
        entry: str,
        arguments: dict[str, Any],
        *,
        label: str,
        bigger_slot: bool = False,
        references: Sequence[str] = (),
        stars: bool = False,
        light: bool = False,
        precedence: int = 0,
    ) -> Any:
        """Run one entry of `ops.job`; returns what it returns, or raises `WorkFailedError`.

        ``references`` and ``stars`` say which references it opens, and whether it reads the star table; a
        ``light`` one waits for no slot, and others by ``precedence`` (see `stream.jobs.Job`).
        """
        factor = 2 if bigger_slot else 1
        job = Job(
            entry=f"ops.job:{entry}",
            arguments={"environment": self._environment, **arguments},
            threads=self._limits.threads,
            wall_seconds=self._limits.wall_seconds * factor,
            memory_bytes=self._limits.memory_bytes * factor,
            label=label,
            light=light,
            precedence=precedence,
        )
        if self._inputs is None:
            return await self._run(entry, job)
        async with self._inputs.lease(references, stars=stars) as lent:
            return await self._run(entry, replace(job, arguments={**job.arguments, **lent}))

    async def _run(self, entry: str, job: Job) -> Any:
        label = job.label
        with self._tracing.job() as trace:

            def progress(report: JobProgress) -> None:
                self._observe({"exposure": label, **report.report})
                trace(report.report)

            outcome = await self._runner.run(job, progress=progress)
            if outcome.failure is not None:
                self._observe(
                    {"event": "job_failed", "exposure": label, "entry": entry, "seconds": outcome.wall_seconds,
                     "death": "oom" if outcome.failure.get("oom") else outcome.failure.get("signal")}
                )  # fmt: skip
                raise WorkFailedError(outcome)
        self._observe(
            {"event": "job_done", "exposure": label, "entry": entry, "seconds": outcome.wall_seconds,
             "cpu_seconds": outcome.cpu_seconds, "peak_rss_bytes": outcome.peak_rss_bytes}
        )  # fmt: skip
        return outcome.result

    async def run_patiently(
        self,
        entry: str,
        arguments: dict[str, Any],
        *,
        label: str,
        stars: bool = False,
        light: bool = False,
        precedence: int = 0,
    ) -> Any:
        """As `run`, but tried again when the job's process was killed or something outside failed.

        For jobs that no message stands behind, whose attempts a worker would count. One that outgrew its slot is tried
        once with the bigger one; one whose process was killed each time is given up.
        """
        run = partial(self.run, entry, arguments, label=label, stars=stars, light=light, precedence=precedence)
        bigger, failed, killed = False, 0, 0
        while True:
            try:
                return await run(bigger_slot=bigger)
            except WorkFailedError as error:
                if error.failure_class is FailureClass.RESOURCE and not bigger:
                    bigger = True
                    continue
                failed += 1
                killed += error.failure.get("signal") is not None
                if killed == PATIENCE:
                    error.failure_class = FailureClass.PERMANENT
                if error.failure_class is not FailureClass.RETRIABLE or failed == PATIENCE:
                    raise

    async def recipes(self, stages: tuple[str, ...], message: Message) -> Any:
        """Recipes of stages for a message's exposure (see `ops.job.recipes`)."""
        arguments = {"stages": list(stages), "facts": message.facts}
        return await self.run("recipes", arguments, label=message.exposure, light=True)
