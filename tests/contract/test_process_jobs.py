"""Forked job processes keep the contract; recycling, death of the server or the parent, and isolation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from stream import event_loop
from stream.failure import FatalError
from stream.fork_server import job_environment
from stream.jobs import JobProgress
from stream.process_runner import ProcessJobRunner
from tests.contract.jobs_suite import TOY, JobRunnerContract, alive, content, gone, job, until


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().split()[3])


def start_parent(log_dir: Path, warm: Path | None) -> subprocess.Popen[bytes]:
    program = (
        "import anyio, sys\n"
        "from pathlib import Path\n"
        "from stream.process_runner import ProcessJobRunner\n"
        "from tests.contract.jobs_suite import job\n"
        "async def main():\n"
        "    warm = Path(sys.argv[2]) if sys.argv[2:] else None\n"
        "    async with ProcessJobRunner(slots=1, log_dir=Path(sys.argv[1]), warm=warm) as runner:\n"
        "        await runner.run(job('sleep'), progress=lambda p: print(p.report['pid'], flush=True))\n"
        "anyio.run(main)\n"
    )
    words = [str(log_dir)] if warm is None else [str(log_dir), str(warm)]
    return subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def warm_server(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    listen = folder / "socket"
    words = ["--listen", str(listen), "--parent", str(os.getpid()), "--preload", "json"]
    environment = {**job_environment(os.environ), "OF_THE_WARM_SERVER": "1"}
    with subprocess.Popen([sys.executable, "-m", "stream.warm_server", *words], env=environment) as process:
        try:
            while not listen.exists():
                assert process.poll() is None
                time.sleep(0.01)
            yield process, listen
        finally:
            process.kill()


@pytest.fixture(scope="module", params=["own", "warm"])
def warm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """Whose fork makes the job server: none's, or a warm server's at this socket."""
    if request.param == "own":
        yield None
        return
    with warm_server(tmp_path_factory.mktemp("warm")) as (_, listen):
        yield listen


class TestProcessJobs(JobRunnerContract):
    @pytest.fixture(scope="class")
    async def runner(
        self, warm: Path | None, tmp_path_factory: pytest.TempPathFactory
    ) -> AsyncIterator[ProcessJobRunner]:
        async with ProcessJobRunner(slots=2, log_dir=tmp_path_factory.mktemp("logs"), warm=warm) as runner:
            yield runner


def test_jobs_run_and_are_killed_on_the_loop_of_workers(tmp_path: Path) -> None:
    async def scenario() -> list[str | None]:
        async with ProcessJobRunner(slots=2, log_dir=tmp_path) as runner:
            outcomes = [await runner.run(job("echo", text=str(number))) for number in range(3)]
            outcomes += [await runner.run(job("sleep", wall=0.3)), await runner.run(job("echo", text="after"))]
        return [None if outcome.failure is None else str(outcome.failure["class"]) for outcome in outcomes]

    assert event_loop.run(scenario) == [None, None, None, "resource", None]


class TestProcesses:
    @pytest.fixture
    async def runner(self, warm: Path | None, tmp_path: Path) -> AsyncIterator[ProcessJobRunner]:
        async with ProcessJobRunner(
            slots=2, log_dir=tmp_path / "logs", preload=[f"{TOY}:preload"], recycle_after=4, warm=warm
        ) as runner:
            yield runner

    @pytest.mark.anyio
    async def test_a_process_is_recycled_after_so_many_jobs(self, runner: ProcessJobRunner) -> None:
        outcomes = [await runner.run(job("count_in_slot")) for _ in range(5)]
        assert [outcome.result["count"] for outcome in outcomes] == [1, 2, 3, 4, 1]
        assert await gone(outcomes[0].result["pid"])
        assert alive(outcomes[4].result["pid"])

    @pytest.mark.anyio
    @pytest.mark.parametrize("log", ["/dev/full", "/no/such/folder/log"])
    async def test_a_log_that_cannot_be_written_does_not_hide_how_a_job_ended(
        self, runner: ProcessJobRunner, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        link = tmp_path / "log"
        link.symlink_to(log)  # the runner removes logs that are empty
        monkeypatch.setattr(runner, "_new_log", lambda _: link)
        printed = await runner.run(job("print_and_log", text="x"))
        assert printed.failure is None or printed.failure["class"] == "fatal"
        full = await runner.run(job("fail", kind="ENOSPC"))
        assert full.failure is not None
        assert full.failure["class"] == "fatal"

    @pytest.mark.anyio
    async def test_a_process_that_failed_is_not_used_again(self, runner: ProcessJobRunner) -> None:
        await runner.run(job("count_in_slot"))
        await runner.run(job("fail", kind="other"))
        assert (await runner.run(job("count_in_slot"))).result["count"] == 1

    @pytest.mark.anyio
    async def test_modules_are_preloaded_in_the_server_alone(self, runner: ProcessJobRunner) -> None:
        outcome = await runner.run(job("echo"))
        assert outcome.result["preloaded"] != []
        assert outcome.result["pid"] not in outcome.result["preloaded"]
        assert os.getpid() not in outcome.result["preloaded"]

    @pytest.mark.anyio
    async def test_nothing_of_the_parent_is_inherited(self, runner: ProcessJobRunner, tmp_path: Path) -> None:
        lock = tmp_path / "lock"
        with lock.open("w") as file:
            os.set_inheritable(file.fileno(), True)
            outcome = await runner.run(job("environment"))
        targets = list(outcome.result["descriptors"].values())
        assert str(lock) not in targets
        assert sum(target.startswith("socket:") for target in targets) == 1
        environment = outcome.result["environment"]
        assert "OF_THE_WARM_SERVER" not in environment
        assert environment["OMP_NUM_THREADS"] == environment["NUMBA_NUM_THREADS"] == "1"
        assert "hugetlb=1" in environment["GLIBC_TUNABLES"]

    @pytest.mark.anyio
    async def test_the_death_of_the_fork_server_fails_its_job_and_the_next_one_works(
        self, runner: ProcessJobRunner
    ) -> None:
        seen: list[JobProgress] = []

        def kill_server(report: JobProgress) -> None:
            seen.append(report)
            os.kill(parent_of(report.report["pid"]), signal.SIGKILL)

        outcome = await runner.run(job("sleep"), progress=kill_server)
        assert outcome.failure is not None
        assert outcome.failure["class"] == "retriable"
        assert await gone(seen[0].report["pid"])
        assert (await runner.run(job("echo"))).failure is None

    @pytest.mark.anyio
    async def test_an_idle_process_that_was_killed_is_replaced(self, runner: ProcessJobRunner) -> None:
        pid = (await runner.run(job("echo"))).result["pid"]
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        await anyio.sleep(0.1)
        assert (await runner.run(job("echo"))).failure is None

    @pytest.mark.anyio
    async def test_leaving_the_runner_kills_everything(self, warm: Path | None, tmp_path: Path) -> None:
        seen: list[JobProgress] = []
        async with (
            anyio.create_task_group() as tasks,
            ProcessJobRunner(slots=1, log_dir=tmp_path, warm=warm) as runner,
        ):
            server = (await runner.run(job("environment"))).result["server"]
            tasks.start_soon(lambda: runner.run(job("sleep"), progress=seen.append))
            assert await until(lambda: bool(seen))
        assert await gone(seen[0].report["pid"])
        assert await gone(server)

    @pytest.mark.anyio
    async def test_the_death_of_the_parent_kills_everything(self, warm: Path | None, tmp_path: Path) -> None:
        with start_parent(tmp_path, warm) as parent:
            assert parent.stdout is not None
            pid = int(await anyio.to_thread.run_sync(parent.stdout.readline))
            server = parent_of(pid)
            parent.kill()
            assert await gone(pid)
            assert await gone(server)

    @pytest.mark.anyio
    async def test_a_preload_that_fails_is_fatal_and_says_why(self, warm: Path | None, tmp_path: Path) -> None:
        preload = [f"{TOY}:refuse_to_load"]
        async with ProcessJobRunner(slots=1, log_dir=tmp_path, preload=preload, warm=warm) as runner:
            with pytest.raises(FatalError, match="no such library"):
                await runner.run(job("echo"))

    @pytest.mark.anyio
    async def test_a_preload_that_starts_threads_is_refused(self, warm: Path | None, tmp_path: Path) -> None:
        preload = [f"{TOY}:start_a_thread"]
        async with ProcessJobRunner(slots=1, log_dir=tmp_path, preload=preload, warm=warm) as runner:
            with pytest.raises(FatalError, match="started threads"):
                await runner.run(job("echo"))

    @pytest.mark.anyio
    async def test_a_kill_by_the_kernel_for_memory_is_called_oom_without_a_limit(self, tmp_path: Path) -> None:
        kills = iter([3, 4])
        async with ProcessJobRunner(slots=1, log_dir=tmp_path, count_oom_kills=lambda: next(kills)) as runner:
            outcome = await runner.run(job("die", signal="SIGKILL"))
        assert outcome.failure is not None
        assert (outcome.failure["class"], outcome.failure["oom"]) == ("resource", True)

    @pytest.mark.anyio
    async def test_the_stacks_of_a_job_that_hangs_are_in_its_log(self, runner: ProcessJobRunner) -> None:
        outcome = await runner.run(job("sleep", wall=0.3))
        assert 'toy_jobs.py", line' in content(outcome.log)


class TestWarmServer:
    @pytest.mark.anyio
    async def test_its_death_fails_the_job_and_the_next_server_is_the_runners_own(self, tmp_path: Path) -> None:
        seen: list[JobProgress] = []
        with warm_server(tmp_path) as (process, listen):

            def kill(report: JobProgress) -> None:
                seen.append(report)
                process.kill()

            async with ProcessJobRunner(slots=1, log_dir=tmp_path / "logs", warm=listen) as runner:
                outcome = await runner.run(job("sleep"), progress=kill)
                assert outcome.failure is not None
                assert outcome.failure["class"] == "retriable"
                assert await gone(seen[0].report["pid"])
                again = await runner.run(job("environment"))
                assert parent_of(again.result["server"]) == os.getpid()

    @pytest.mark.anyio
    async def test_one_that_nobody_listens_at_is_done_without(self, tmp_path: Path) -> None:
        async with ProcessJobRunner(slots=1, log_dir=tmp_path / "logs", warm=tmp_path / "nobody") as runner:
            assert (await runner.run(job("echo"))).failure is None

    @pytest.mark.anyio
    async def test_one_of_other_code_refuses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("stream.fork_server.CODE", [sys.executable, "/elsewhere/stream"])
        with warm_server(tmp_path) as (_, listen):
            async with ProcessJobRunner(slots=1, log_dir=tmp_path / "logs", warm=listen) as runner:
                with pytest.raises(FatalError, match=r"not .*/elsewhere/stream"):
                    await runner.run(job("echo"))

    def test_only_its_user_can_ask_and_a_second_one_does_not_take_its_place(self, tmp_path: Path) -> None:
        with warm_server(tmp_path) as (_, listen):
            assert listen.stat().st_mode & 0o777 == 0o600
            words = [sys.executable, "-m", "stream.warm_server", "--listen", str(listen)]
            second = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            assert (second.returncode, "another warm server" in second.stderr) == (1, True)
