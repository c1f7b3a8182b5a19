"""The parent's side of the fork server: start it, ask for job processes, learn how they ended. Runs no job."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from stream.failure import FatalError
from stream.log_tail import log_tail
from stream.warm_server import CODE

__all__ = ["Child", "ForkServer", "job_environment"]

_LOG = logging.getLogger(__name__)

_PACKET = 1 << 16

# Importing what the stages need takes 10 s of CPU (see docs); on a machine with all cores taken, several times that.
_START_SECONDS = 180.0

_STOP_SECONDS = 5.0

# Kernels are threaded by the stages themselves, over rows, so libraries must not add threads of their own; and a
# library that has started threads cannot be forked.
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)

# The first touch of memory is what large arrays cost (seconds a GB where the host has not backed it). glibc gives
# arrays over 32 MB back to the kernel when they are freed, and the next one starts cold: with these limits it keeps
# them (320 MB arrays made and freed in turn: 0.02 s of system time instead of 1.4). Huge pages cut the faults.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
}
_TUNABLES = "glibc.malloc.hugetlb=1"


def job_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Environment of the server, and so of all job processes."""
    tunables = [text for text in (base.get("GLIBC_TUNABLES"), _TUNABLES) if text]
    return {
        **base,
        **dict.fromkeys(_ONE_THREAD, "1"),
        **_MALLOC,
        "GLIBC_TUNABLES": ":".join(tunables),
        "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        # The order of a set of texts must not decide the order of a sum.
        "PYTHONHASHSEED": "0",
    }


class Child:
    """One job process: its end of the socket, and how it ended once ``exited`` is set.

    ``status`` is a wait status, None when the server died before it could tell.
    """

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.pid = 0
        self.spawned = anyio.Event()
        self.exited = anyio.Event()
        self.status: int | None = None
        self.cpu_seconds = 0.0

    @property
    def signal_name(self) -> str | None:
        """Name of the signal that ended it, None when there was none or it is not known."""
        if self.status is None or not os.WIFSIGNALED(self.status):
            return None
        return signal.Signals(os.WTERMSIG(self.status)).name


class ForkServer:
    """Starts a server process when one is needed, and another when it died.

    Parameters
    ----------
    preload : sequence of str
        ``module`` to import, or ``module:function`` to import and call, before the first fork.
    log : Path
        What the server prints.
    warm : Path, optional
        Socket of a `stream.warm_server` that is asked for a server first.
    """

    def __init__(self, *, preload: Sequence[str], log: Path, warm: Path | None = None) -> None:
        self._preload = tuple(preload)
        self._log = log
        self._warm = warm
        self._pid: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready = anyio.Event()
        self._closed = anyio.Event()
        self._failed: str | None = None
        self._children: dict[int, Child] = {}
        self._numbers: dict[int, Child] = {}
        self._next = 0
        self._starting = anyio.Lock()

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return None if self._control is None else self._pid

    async def start(self, tasks: TaskGroup) -> None:
        """Start a server unless one runs; does not wait until it has imported everything."""
        async with self._starting:
            if self._control is not None:
                return
            await self._wait_for_exit()
            self._ready, self._closed, self._failed = anyio.Event(), anyio.Event(), None
            self._control = self._asked_for() or self._started()
            tasks.start_soon(self._listen, self._control)

    def _started(self) -> socket.socket:
        """Our end of the control socket of a server of our own."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        with theirs, self._log.open("ab") as log:
            # exec with one descriptor: no lock file, database or socket of ours lives on in a job process.
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "stream.job_server", "--control", str(theirs.fileno())),
                    *("--parent", str(os.getpid()), "--preload", ",".join(self._preload)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                env=job_environment(os.environ),
                start_new_session=True,
            )
        self._pid = self._process.pid
        return ours

    def _asked_for(self) -> socket.socket | None:
        """The same of one that the warm server forks; None when there is none, or nobody listens."""
        self._pid = None
        if self._warm is None:
            return None
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = {
            "code": CODE,
            "preload": self._preload,
            "environment": job_environment(os.environ),
            "folder": str(Path.cwd()),
            "path": sys.path,
        }
        try:
            control.connect(str(self._warm))
            with self._log.open("ab") as log:
                socket.send_fds(control, [json.dumps(asked).encode()], [log.fileno()])
        except OSError as error:
            control.close()
            _LOG.warning("the warm server at %s is not used: %s", self._warm, error)
            return None
        control.settimeout(0)
        return control

    async def spawn(self, tasks: TaskGroup) -> Child:
        """Fork a job process.

        Raises
        ------
        stream.failure.FatalError
            The server cannot start, or dies again and again.
        """
        for _ in range(3):
            await self.start(tasks)
            await self._until_ready()
            if self._control is None:
                continue
            ours, theirs = socket.socketpair()
            ours.settimeout(0)
            child = Child(ours)
            self._next += 1
            self._numbers[self._next] = child
            with theirs:
                try:
                    socket.send_fds(
                        self._control, [json.dumps({"spawn": self._next}).encode()], [theirs.fileno()]
                    )  # fmt: skip
                except OSError as error:
                    _LOG.warning("The job server does not answer: %s", error)
            try:
                await child.spawned.wait()
            except BaseException:
                ours.close()  # the child, should there be one, sees the end and leaves
                raise
            if child.pid:
                return child
            ours.close()
        msg = f"the server of job processes died three times in a row; it printed:\n{self._log_tail()}"
        raise FatalError(msg)

    def signal(self, child: Child, number: int) -> None:
        """Send a signal to a job process (with SIGKILL also to all that it started)."""
        # Through the server: it alone knows that the process is not reaped and its number not another's.
        if self._control is not None and not child.exited.is_set():
            try:
                self._control.send(json.dumps({"kill": child.pid, "signal": int(number)}).encode())
            except OSError as error:
                _LOG.warning("The job server does not answer: %s", error)

    async def stop(self) -> None:
        """Let the server kill all job processes and leave; kill it when it does not."""
        if self._control is not None:
            self._control.shutdown(socket.SHUT_RDWR)
            with anyio.move_on_after(_STOP_SECONDS):
                await self._closed.wait()
            if self._process is None and self._pid is not None and not self._closed.is_set():
                os.kill(self._pid, signal.SIGKILL)
        await self._wait_for_exit()

    async def _until_ready(self) -> None:
        with anyio.move_on_after(_START_SECONDS):
            await self._ready.wait()
        if self._failed is not None or not self._ready.is_set():
            msg = (
                f"the server of job processes did not start: {self._failed or f'not ready after {_START_SECONDS} s'}; "
                f"it printed:\n{self._log_tail()}"
            )
            raise FatalError(msg)

    async def _listen(self, control: socket.socket) -> None:
        with control:
            try:
                while packet := await _packet(control):
                    self._take(json.loads(packet))
            except ConnectionError as error:
                _LOG.warning("The connection to the job server broke: %s", error)
            if not self._ready.is_set() and self._failed is None:
                self._failed = "it died while it was starting"
            self._control = None
            # Its job processes die with it, by the kernel's hand.
            for child in [*self._children.values(), *self._numbers.values()]:
                child.spawned.set()
                child.exited.set()
            self._children.clear()
            self._numbers.clear()
            self._ready.set()
            self._closed.set()

    def _take(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._pid = message["ready"]
            self._ready.set()
        elif "failed" in message:
            self._failed = message["failed"]
            self._ready.set()
        elif "spawned" in message:
            child = self._numbers.pop(message["spawned"])
            child.pid = message["pid"]
            self._children[child.pid] = child
            child.spawned.set()
        elif "exited" in message and (gone := self._children.pop(message["exited"], None)) is not None:
            gone.status = message["status"]
            gone.cpu_seconds = message["cpu_seconds"]
            gone.exited.set()

    async def _wait_for_exit(self) -> None:
        if self._process is None:
            return
        try:
            await anyio.to_thread.run_sync(self._process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await anyio.to_thread.run_sync(self._process.wait)
        self._process = None

    def _log_tail(self) -> str:
        return "\n".join(log_tail(self._log))


async def _packet(control: socket.socket) -> bytes:
    while True:
        try:
            return control.recv(_PACKET)
        except BlockingIOError:
            await anyio.wait_readable(control)
