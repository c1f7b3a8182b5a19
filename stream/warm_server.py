"""A process that has imported what jobs need, and forks a job server for each process that asks. Runs no job.

::

    python -m stream.warm_server --listen SOCKET --preload MODULE[:FUNCTION],…

Imports cost each worker, and each run, some ten seconds of CPU and 200 MB. Where many start on one machine, they may
have their job servers (`stream.job_server`) forked from here: those start at once and share the memory. Whoever asks
connects to the socket, which then is the job server's control socket, and sends one packet: which code it is, its
environment, and what is to be imported, with its log attached. A job server ends with its asker or with this process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from stream import job_server
from stream.process_end import end_forked

__all__ = ["CODE", "main"]

CODE = [sys.executable, str(Path(__file__).parent)]
"""Which interpreter and code this is: a job server of another one would run other stages than its asker believes."""

_PACKET = 1 << 18
_BACKLOG = 64
_CREDENTIALS = struct.Struct("3i")


def main() -> None:
    """Listen, import, and fork job servers until killed."""
    parser = argparse.ArgumentParser(prog="stream.warm_server")
    parser.add_argument("--listen", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="end with this process")
    parser.add_argument("--preload", default="")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        job_server.die_with(arguments.parent)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _bind(listener, arguments.listen)
    # Before the imports: who asks meanwhile waits for them.
    job_server.preload([name for name in arguments.preload.split(",") if name])
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for job servers: the kernel reaps them
    while True:
        connection, _ = listener.accept()
        with connection:
            _answer(connection, listener)


def _bind(listener: socket.socket, path: Path) -> None:
    """Listen at a path that only this user can connect to; one left by a process that is gone is replaced."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.connect(str(path))
        sys.exit(f"{path}: another warm server listens there")
    path.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)


def _answer(connection: socket.socket, listener: socket.socket) -> None:
    """Fork a job server for a process of this user with this code."""
    descriptors: list[int] = []
    try:
        _, user, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        connection.settimeout(5.0)
        packet, descriptors, *_ = socket.recv_fds(connection, _PACKET, 1)
        connection.settimeout(None)
        if user != os.getuid() or not packet or len(descriptors) != 1:
            return
        asked: dict[str, Any] = json.loads(packet)
        if asked["code"] != CODE:
            refused = f"the warm server runs {' with '.join(CODE)}, and not {' with '.join(asked['code'])}"
            connection.send(json.dumps({"failed": refused}).encode())
            return
        server = os.getpid()
        if os.fork() == 0:
            listener.close()
            log = descriptors[0]
            end_forked(lambda: _become_job_server(asked, connection, log, server))
    except (OSError, ValueError, KeyError):
        traceback.print_exc()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _become_job_server(asked: dict[str, Any], control: socket.socket, log: int, server: int) -> None:
    job_server.die_with(server)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.path[:] = asked["path"]
    job_server.run(control, asked["preload"])


if __name__ == "__main__":
    main()
