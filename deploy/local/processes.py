"""Starts servers on loopback for development and tests, remembers what it started, and stops that alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

STOP_SECONDS = 20.0


def cache_folder() -> Path:
    """Where what is built once is kept: $RAMPSTREAM_CACHE, else below the user's cache folder."""
    given = os.environ.get("RAMPSTREAM_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rampstream"


def built_once(name: str, build: Callable[[Path], None]) -> Path:
    """A folder of the cache; made by ``build`` in a folder beside it, and visible only when complete."""
    target = cache_folder() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{name}.") as partial:
                build(Path(partial))
                (Path(partial) / "content").rename(target)
    return target


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a build command; its output is shown only when it fails."""
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def need(program: str, what_for: str) -> None:
    """Say clearly that a program is missing."""
    if shutil.which(program) is None:
        sys.exit(f"{program} is needed {what_for}, and is not on PATH")


def free_port() -> int:
    """A port that nobody listens on now, and that the kernel gives to nobody's outgoing connection.

    A server that is down for a while would lose one of those: even a client that tries to connect to it may be given
    its port, and then is connected to itself.
    """
    try:
        first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        first_given = 32768
    for port in random.sample(range(10000, max(first_given, 11000)), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    sys.exit("no free port was found on loopback")


def _started_at(pid: int) -> str | None:
    """Start time of a process in clock ticks: with its number it names a process for good."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def start(name: str, command: Sequence[str], *, data: Path, env: Mapping[str, str] | None = None) -> int:
    """Start a server that outlives this script; its output goes to NAME.log in the data folder."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})},
            start_new_session=True,
        )  # fmt: skip
    (data / f"{name}.pid").write_text(json.dumps({"pid": process.pid, "started": _started_at(process.pid)}))
    return process.pid


def running(data: Path) -> Iterator[tuple[str, int]]:
    """Name and number of each server that was started with this data folder and still runs."""
    for file in sorted(data.glob("*.pid")):
        known = json.loads(file.read_text())
        if _started_at(known["pid"]) == known["started"]:
            yield file.stem, known["pid"]


def stop(data: Path, names: Sequence[str] | None = None) -> None:
    """Stop what was started with this data folder, and wait until it is gone."""
    found = [(name, pid) for name, pid in running(data) if names is None or name in names]
    for _, pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for name, pid in found:
        while _alive(pid):
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        (data / f"{name}.pid").unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # when it is this process's own child
    return _started_at(pid) is not None


def wait_for(answers: Callable[[], bool], *, what: str, log: Path, seconds: float = 60.0) -> None:
    """Wait until a server answers; show its log when it does not."""
    deadline = time.monotonic() + seconds
    while not answers():
        if time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            sys.exit(f"{what} did not answer within {seconds:.0f} s; its log ends:\n{tail}")
        time.sleep(0.1)


def accepts(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
