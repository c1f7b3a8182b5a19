"""Inside a job process: take a job from the socket, call its entry, send back what came of it. Not its limits."""

from __future__ import annotations

import errno
import faulthandler
import gc
import importlib
import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stream.failure import Failure, FailureClass
from stream.process_memory import process_memory
from stream.stage import Slot

__all__ = ["FRAME_HEADER", "encode_frame", "failure_document", "serve"]

FRAME_HEADER = struct.Struct("<Q")
"""Length of the JSON text that follows."""

_FATAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_RETRIABLE_ERRNOS = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.EAGAIN})


def encode_frame(document: dict[str, Any]) -> bytes:
    """One message as length and JSON."""
    text = json.dumps(document, allow_nan=False).encode()
    return FRAME_HEADER.pack(len(text)) + text


def serve(channel: socket.socket) -> None:
    """Run jobs one after the other until the other end closes.

    The slot lives as long as the process, so that its buffers stay warm.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what stops
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # asked for before a job that hangs is killed
    _log_to_stderr()
    slot = Slot()
    while (message := _receive(channel)) is not None:
        _redirect_output(message["log"])
        channel.sendall(_run(message, slot, channel))
        gc.collect()


def _run(message: dict[str, Any], slot: Slot, channel: socket.socket) -> bytes:
    slot.threads = message["threads"]
    sending = threading.Lock()

    def report(document: dict[str, Any]) -> None:
        frame = encode_frame({"report": document})
        with sending:
            channel.sendall(frame)

    _forget_peak()
    cpu = _cpu_seconds()
    try:
        result = _entry(message["entry"])(message["arguments"], slot, report)
        answer: dict[str, Any] = {"result": result}
        json.dumps(result, allow_nan=False)
    except BaseException as error:  # noqa: BLE001 - the job boundary: everything becomes a typed failure
        answer = {"failure": failure_document(error)}
        with suppress(OSError):
            traceback.print_exc()
    answer["cpu_seconds"] = _cpu_seconds() - cpu
    memory = process_memory(os.getpid())
    answer["peak_rss_bytes"] = 0 if memory is None else memory.peak_rss
    _flush()
    with sending:
        return encode_frame(answer)


def failure_document(error: BaseException) -> dict[str, Any]:
    """Describe an exception as `stream.jobs.JobOutcome` has it."""
    return {
        "class": str(_class_of(error)),
        "type": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "traceback": "".join(traceback.format_exception(error)),
        "signal": None,
        "oom": isinstance(error, MemoryError),
        "notes": list(getattr(error, "__notes__", ())),
    }


def _class_of(error: BaseException) -> FailureClass:
    if isinstance(error, Failure):
        return error.failure_class
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return FailureClass.RESOURCE
    if isinstance(error, OSError) and error.errno in _FATAL_ERRNOS:
        return FailureClass.FATAL
    if isinstance(error, OSError) and error.errno in _RETRIABLE_ERRNOS:
        return FailureClass.RETRIABLE
    return FailureClass.PERMANENT


def _entry(name: str) -> Callable[[dict[str, Any], Slot, Callable[[dict[str, Any]], None]], Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _receive(channel: socket.socket) -> dict[str, Any] | None:
    header = _receive_exactly(channel, FRAME_HEADER.size)
    if header is None:
        return None
    text = _receive_exactly(channel, FRAME_HEADER.unpack(header)[0])
    if text is None:
        return None
    message: dict[str, Any] = json.loads(text)
    return message


def _receive_exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _flush() -> None:
    """Write out what was printed. On a full disk it is lost, but not the process and the answer that tells of it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


def _redirect_output(log: str) -> None:
    _flush()
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        file = os.open(os.devnull, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _log_to_stderr() -> None:
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ :: %(name)s :: %(levelname)s :: %(message)s")
    formatter.converter = time.gmtime
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
    formatter.datefmt = "%Y-%m-%dT%H:%M:%S"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM, so that the peak is this job's
    except OSError:
        return  # not writable in some sandboxes: the peak is then the process's
