"""Jobs that no worker counts the attempts of: what is tried again, and how."""

from __future__ import annotations

from typing import Any, Self

import anyio
import pytest

from ops.pipeline_jobs import PATIENCE, JobLimits, PipelineJobs
from stream.failure import FailureClass
from stream.jobs import Job, JobOutcome, Progress
from stream.worker import WorkFailedError

LIMITS = JobLimits(1, 60.0, 10**9)
OUTGROWN, OUTSIDE = {"class": "resource", "oom": True, "signal": "SIGKILL"}, {"class": "retriable"}
KILLED = {"class": "retriable", "signal": "SIGSEGV"}


class Runner:
    """Fails as told, then works."""

    def __init__(self, *failures: dict[str, Any]) -> None:
        self.failures = list(failures)
        self.ran: list[Job] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return

    async def run(self, job: Job, *, progress: Progress | None = None) -> JobOutcome:
        self.ran.append(job)
        return JobOutcome(failure=self.failures.pop(0)) if self.failures else JobOutcome("done")


def ran(runner: Runner) -> Any:
    jobs = PipelineJobs(runner=runner, environment={}, limits=LIMITS)

    async def run() -> Any:
        return await jobs.run_patiently("solve", {}, label="j")

    return anyio.run(run)


def test_one_that_outgrew_its_slot_is_tried_once_with_twice_of_memory_and_time() -> None:
    runner = Runner(OUTSIDE, OUTGROWN, OUTSIDE)
    assert ran(runner) == "done"
    limits = [(job.wall_seconds, job.memory_bytes) for job in runner.ran]
    assert limits == 2 * [(60.0, 10**9)] + 2 * [(120.0, 2 * 10**9)]
    with pytest.raises(WorkFailedError) as refused:
        ran(runner := Runner(OUTGROWN, OUTGROWN))
    assert (refused.value.failure_class, len(runner.ran)) == (FailureClass.RESOURCE, 2)


@pytest.mark.parametrize(
    ("failure", "failure_class", "tries"),
    [
        (OUTSIDE, FailureClass.RETRIABLE, PATIENCE),
        (KILLED, FailureClass.PERMANENT, PATIENCE),
        ({"class": "permanent"}, FailureClass.PERMANENT, 1),
    ],
)
def test_what_kills_its_process_each_time_is_given_up_and_what_is_outside_may_work_later(
    failure: dict[str, Any], failure_class: FailureClass, tries: int
) -> None:
    with pytest.raises(WorkFailedError) as refused:
        ran(runner := Runner(*PATIENCE * [failure]))
    assert (refused.value.failure_class, len(runner.ran)) == (failure_class, tries)
