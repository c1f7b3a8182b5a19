"""The fork server: a single-threaded process that has imported what jobs need, and forks job processes. Runs no job.

Started by `stream.process_runner` as ``python -m stream.job_server --control FD --preload MODULE[:FUNCTION],…``. A fork
copies one thread only: had another one held a lock (of obstore, SQLite, numba, BLAS), the child would wait for it for
ever. So this process starts from exec, with no descriptor of its parent's but the control socket, and starts no thread.

Messages on the control socket are JSON, one a packet. From the parent: ``{"spawn": N}`` with the job process's end of a
socket pair attached, ``{"kill": PID, "signal": S}``. To the parent: ``ready``, ``failed``, ``spawned``, ``exited``.
When the parent closes it, or dies, everything here is killed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from stream import job_process
from stream.process_end import end_forked

__all__ = ["die_with", "main", "preload", "run"]

_PR_SET_PDEATHSIG = 1
_PACKET = 1 << 16


def main() -> None:
    """Import, say so, and serve until the parent is gone."""
    parser = argparse.ArgumentParser(prog="stream.job_server")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--preload", default="")
    arguments = parser.parse_args()
    control = socket.socket(fileno=arguments.control)
    die_with(arguments.parent)
    run(control, [name for name in arguments.preload.split(",") if name])


def run(control: socket.socket, names: list[str]) -> None:
    """Import, tell the parent, and serve it until it is gone."""
    try:
        preload(names)
    except BaseException as error:  # noqa: BLE001 - told to the parent, whatever it was
        traceback.print_exc()
        _send(control, {"failed": f"{type(error).__name__}: {error}"[:4000]})
        return
    gc.collect()
    gc.freeze()  # a collection in a child would otherwise write to, and so copy, every page of the modules
    _send(control, {"ready": os.getpid()})
    _Server(control).serve()


def preload(names: list[str]) -> None:
    """Import modules, and call those functions of them that are named; refuses when that starts a thread."""
    for name in names:
        module, _, function = name.partition(":")
        loaded = importlib.import_module(module)
        if function:
            getattr(loaded, function)()
    threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    if len(threads) > 1:
        msg = (
            f"preloading {', '.join(names)} started threads ({', '.join(threads)}): a process forked now could wait "
            "for ever for a lock that one of them holds; start threads in the stage, not on import"
        )
        raise RuntimeError(msg)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(0)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.send(json.dumps(message).encode())


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: set[int] = set()
        self._woken, self._waker = socket.socketpair()
        self._woken.settimeout(0)
        self._waker.settimeout(0)

    def serve(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler there is no wake-up
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ, self._obey)
            selector.register(self._woken, selectors.EVENT_READ, self._reap)
            try:
                while all(key.data() for key, _ in selector.select()):
                    pass
            except ConnectionError:
                pass
        for pid in self._children:
            self._signal(pid, signal.SIGKILL)

    def _obey(self) -> bool:
        packet, descriptors, *_ = socket.recv_fds(self._control, _PACKET, 1)
        if not packet:
            return False
        message = json.loads(packet)
        if "spawn" in message:
            _send(self._control, {"spawned": message["spawn"], "pid": self._spawn(descriptors[0])})
        elif message["kill"] in self._children:  # else it is reaped, and its number may be another's
            self._signal(message["kill"], message["signal"])
        return True

    def _spawn(self, descriptor: int) -> int:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            end_forked(lambda: self._become_job_process(descriptor, server))
        os.close(descriptor)
        with suppress(OSError):
            os.setpgid(pid, pid)  # both sides do it, so that neither can come too early
        self._children.add(pid)
        return pid

    def _become_job_process(self, descriptor: int, server: int) -> None:
        os.setpgid(0, 0)
        die_with(server)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for end in (self._control, self._woken, self._waker):
            end.close()
        job_process.serve(socket.socket(fileno=descriptor))

    def _reap(self) -> bool:
        with suppress(BlockingIOError):
            self._woken.recv(_PACKET)
        while self._children:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid in self._children:
                self._children.discard(pid)
                # What it had started itself dies with it: the group outlives its leader.
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                cpu = usage.ru_utime + usage.ru_stime
                _send(self._control, {"exited": pid, "status": status, "cpu_seconds": cpu})
        return True

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(pid, number)
            else:
                os.kill(pid, number)


if __name__ == "__main__":
    main()
