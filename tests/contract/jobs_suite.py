"""What every job runner promises. Implementations inherit these tests and give the ``runner`` fixture (two slots)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream.jobs import Job, JobProgress, JobRunner

TOY = "tests.stream.toy_jobs"


def job(
    name: str, *, label: str = "", threads: int = 1, wall: float = 60.0, memory: int | None = None, **args: Any
) -> Job:
    return Job(f"{TOY}:{name}", args, threads=threads, wall_seconds=wall, memory_bytes=memory, label=label)


def alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    with anyio.move_on_after(seconds):
        while not condition():  # noqa: ASYNC110 - what other processes do sets no event here
            await anyio.sleep(0.01)
    return condition()


async def gone(pid: int) -> bool:
    return await until(lambda: not alive(pid))


def content(log: str | None) -> str:
    assert log is not None
    return Path(log).read_text()


class JobRunnerContract:
    """Inherit, and give an entered ``runner`` with two slots."""

    @pytest.mark.anyio
    async def test_a_job_gets_its_arguments_and_returns_a_value(self, runner: JobRunner) -> None:
        outcome = await runner.run(job("echo", threads=2, text="grüße", numbers=[1, 2.5, None]))
        assert outcome.failure is None
        assert outcome.result["arguments"] == {"text": "grüße", "numbers": [1, 2.5, None]}
        assert outcome.result["threads"] == 2
        assert outcome.peak_rss_bytes > 1_000_000

    @pytest.mark.anyio
    async def test_cpu_time_is_the_jobs_own(self, runner: JobRunner) -> None:
        long = await runner.run(job("burn", seconds=0.4))
        short = await runner.run(job("burn", seconds=0.1))
        assert 0.35 < long.cpu_seconds < 0.7
        assert 0.08 < short.cpu_seconds < 0.3
        assert long.wall_seconds >= 0.35

    @pytest.mark.anyio
    async def test_reports_come_while_the_job_runs_and_large_answers_too(self, runner: JobRunner) -> None:
        reports: list[JobProgress] = []
        outcome = await runner.run(job("many_reports", label="exposure-1", count=500), progress=reports.append)
        assert [p.report["number"] for p in reports] == list(range(500))
        assert {p.label for p in reports} == {"exposure-1"}
        assert len(outcome.result) == 3_000_000

    @pytest.mark.anyio
    async def test_a_listener_that_fails_harms_no_job(self, runner: JobRunner) -> None:
        def listener(report: JobProgress) -> None:
            raise RuntimeError(report.label)

        assert (await runner.run(job("echo"), progress=listener)).failure is None

    @pytest.mark.anyio
    @pytest.mark.parametrize(
        ("kind", "failure_class", "type_name"),
        [
            ("RetriableError", "retriable", "RetriableError"),
            ("ResourceError", "resource", "ResourceError"),
            ("PermanentError", "permanent", "PermanentError"),
            ("PoisonError", "poison", "PoisonError"),
            ("FatalError", "fatal", "FatalError"),
            ("MemoryError", "resource", "MemoryError"),
            ("ENOSPC", "fatal", "OSError"),
            ("EIO", "retriable", "OSError"),
            ("SystemExit", "permanent", "SystemExit"),
            ("not JSON", "permanent", "TypeError"),
            ("NaN", "permanent", "ValueError"),
            ("other", "permanent", "KeyError"),
        ],
    )
    async def test_an_exception_is_returned_with_its_class(
        self, runner: JobRunner, kind: str, failure_class: str, type_name: str
    ) -> None:
        outcome = await runner.run(job("fail", kind=kind))
        assert outcome.failure is not None
        assert outcome.failure["class"] == failure_class
        assert outcome.failure["type"] == type_name
        assert outcome.failure["oom"] == (kind == "MemoryError")
        assert outcome.failure["message"]
        assert "Traceback" in outcome.failure["traceback"]

    @pytest.mark.anyio
    async def test_an_entry_that_does_not_exist_is_a_failure_of_the_job(self, runner: JobRunner) -> None:
        outcome = await runner.run(job("no_such_entry"))
        assert outcome.failure is not None
        assert outcome.failure["type"] == "AttributeError"

    @pytest.mark.anyio
    async def test_no_more_than_slots_run_at_once(self, runner: JobRunner) -> None:
        running, most = 0, 0

        async def one() -> None:
            nonlocal running, most

            def started(_: JobProgress) -> None:
                nonlocal running, most
                running += 1
                most = max(most, running)

            await runner.run(job("sleep", seconds=0.1), progress=started)
            running -= 1

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(one)
        assert most == 2

    @pytest.mark.anyio
    async def test_a_light_job_does_not_wait_for_a_slot(self, runner: JobRunner) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(runner.run, job("sleep"))
            await anyio.sleep(0.2)
            with anyio.fail_after(30):
                assert (await runner.run(replace(job("echo"), light=True))).failure is None
            with anyio.move_on_after(0.5) as waited:
                await runner.run(job("echo"))
            assert waited.cancelled_caught
            tasks.cancel_scope.cancel()

    @pytest.mark.anyio
    async def test_cancelling_kills_the_process_and_all_it_started(self, runner: JobRunner) -> None:
        seen: list[JobProgress] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: runner.run(job("sleep", child=True), progress=seen.append))
            assert await until(lambda: bool(seen))
            assert alive(seen[0].report["pid"])
            tasks.cancel_scope.cancel()
        assert not alive(seen[0].report["pid"])
        assert await gone(seen[0].report["child"])
        assert (await runner.run(job("echo"))).failure is None

    @pytest.mark.anyio
    async def test_a_job_past_its_wall_clock_is_killed_as_resource(self, runner: JobRunner) -> None:
        seen: list[JobProgress] = []
        began = time.monotonic()
        outcome = await runner.run(job("sleep", wall=0.3), progress=seen.append)
        assert time.monotonic() - began < 5
        assert outcome.failure is not None
        assert (outcome.failure["class"], outcome.failure["oom"]) == ("resource", False)
        assert "0.3 s" in outcome.failure["message"]
        assert not alive(seen[0].report["pid"])

    @pytest.mark.anyio
    async def test_a_job_past_its_memory_is_killed_as_oom(self, runner: JobRunner) -> None:
        outcome = await runner.run(job("fill_memory", memory=200 * 2**20, megabytes=2000))
        assert outcome.failure is not None
        assert (outcome.failure["class"], outcome.failure["oom"]) == ("resource", True)
        assert outcome.peak_private_bytes > 200 * 2**20

    @pytest.mark.anyio
    @pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT"])
    async def test_a_process_that_dies_is_told_by_its_signal(self, runner: JobRunner, name: str) -> None:
        outcome = await runner.run(job("die", signal=name))
        assert outcome.failure is not None
        assert outcome.failure["class"] == "retriable"
        assert outcome.failure["signal"] == name
        assert outcome.failure["oom"] is False
        assert "last words" in outcome.failure["log_tail"]
        assert (await runner.run(job("echo"))).failure is None

    @pytest.mark.anyio
    async def test_a_process_that_leaves_is_a_failure(self, runner: JobRunner) -> None:
        outcome = await runner.run(job("leave", status=7))
        assert outcome.failure is not None
        assert outcome.failure["class"] == "retriable"
        assert "status 7" in outcome.failure["message"]

    @pytest.mark.anyio
    async def test_a_process_killed_near_its_limit_ran_out_of_memory(self, runner: JobRunner) -> None:
        outcome = await runner.run(job("fill_memory", memory=300 * 2**20, megabytes=250, hold=0.3, signal="SIGKILL"))
        assert outcome.failure is not None
        assert (outcome.failure["class"], outcome.failure["oom"]) == ("resource", True)
        assert outcome.failure["signal"] == "SIGKILL"

    @pytest.mark.anyio
    async def test_what_a_job_prints_is_kept(self, runner: JobRunner) -> None:
        first = await runner.run(job("print_and_log", text="one", label="a/b c"))
        second = await runner.run(job("print_and_log", text="two"))
        text = content(first.log)
        assert "printed one" in text
        assert "from C" in text
        assert "logged one" in text
        assert "two" not in text
        assert "printed two" in content(second.log)
        assert (await runner.run(job("echo"))).log is None

    @pytest.mark.anyio
    async def test_buffers_of_the_slot_outlive_a_job(self, runner: JobRunner) -> None:
        counts = [(await runner.run(job("count_in_slot"))).result["count"] for _ in range(3)]
        assert counts == [counts[0], counts[0] + 1, counts[0] + 2]
