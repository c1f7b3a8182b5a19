"""How a worker ended is known to the next one in its folder: killed, stopped, bitten, failed, or still there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ops.endings import FAILED, KILLED, STOPPED, Endings
from ops.serve import Server
from ops.settings import RunSettings
from stream.watchdog import EXIT_STATUS
from tests.ops.small_run import define_run


def reasons(file: Path) -> list[str]:
    return [event["reason"] for event in Endings(file).begin()]


def in_a_process(code: str, *arguments: Path) -> int:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *arguments], check=False).returncode


def test_a_worker_that_left_no_word_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "endings.log"
    code = """
        import os, signal, sys
        from pathlib import Path
        from ops.endings import Endings
        Endings(Path(sys.argv[1])).begin()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert in_a_process(code, file) == -9
    assert in_a_process(code, file) == -9
    assert reasons(file) == [KILLED, KILLED]


def test_a_worker_that_said_how_it_ends_was_not_killed(tmp_path: Path) -> None:
    file = tmp_path / "endings.log"
    for ending, segments in ((STOPPED, []), ("breaker", ["photom", "flat_field"])):
        endings = Endings(file)
        endings.begin()
        endings.note(ending, segments)
    assert Endings(file).begin() == [
        {"event": "worker_ended", "reason": "stopped", "segments": []},
        {"event": "worker_ended", "reason": "breaker", "segments": ["photom", "flat_field"]},
    ]


def test_another_worker_of_the_folder_that_still_runs_was_not_killed(tmp_path: Path) -> None:
    file = tmp_path / "endings.log"
    file.write_text(f"begun {os.getppid()}\n")
    assert reasons(file) == []


def test_a_container_whose_worker_always_has_one_number_tells_of_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "endings.log"
    assert reasons(file) == []
    assert reasons(file) == [KILLED]


def test_a_folder_that_cannot_be_written_ends_no_worker(tmp_path: Path) -> None:
    file = tmp_path / "file" / "endings.log"
    file.parent.write_text("in the way")
    Endings(file).note(STOPPED)
    assert not file.exists()


def test_a_watchdog_that_bites_leaves_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    server = Server(RunSettings(store=str(tmp_path), work=tmp_path))
    server._endings.begin()
    with pytest.raises(SystemExit) as left:
        server._bitten("loop")
    assert left.value.code == EXIT_STATUS
    assert reasons(tmp_path / "logs" / "endings.log") == ["loop"]


@pytest.mark.anyio
async def test_a_worker_that_fails_leaves_word_and_the_next_one_counts_it(tmp_path: Path) -> None:
    work = tmp_path / "work"
    in_the_way = work / "logs" / "jobs"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("no folder")
    for before in (None, 1.0):
        server = Server(RunSettings(store=str(tmp_path / "store"), work=work))
        with pytest.raises(FileExistsError):
            await server.serve()
        counted = server._metrics.registry.get_sample_value("rampstream_worker_restarts_total", {"reason": FAILED})
        assert counted == before


@pytest.mark.parametrize("begun", [False, True], ids=["while it imports", "while it starts"])
def test_a_worker_that_is_told_to_stop_before_it_serves_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, begun: bool
) -> None:
    define_run(tmp_path, monkeypatch)
    endings = tmp_path / "work" / "logs" / "endings.log"
    code = "import sys; from ops.cli import entry; print('imported', flush=True); sys.exit(entry())"
    with subprocess.Popen([sys.executable, "-c", code, "worker"], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "imported\n"
        if begun:
            deadline = time.monotonic() + 60
            while not endings.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        else:
            time.sleep(0.2)  # its own handler is set at once, and the imports take a second
        worker.terminate()
        assert worker.wait(60) == 0
    if begun:
        assert reasons(endings) == [STOPPED]
