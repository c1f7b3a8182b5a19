"""The job of the light pipeline: a small payload made from its input and its stage, and what a test asks for."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stream.failure import PermanentError, RetriableError
from stream.stage import Slot


def content(exposure: str, stage: str, given: bytes) -> bytes:
    """What a stage makes of its input: 64 kB that tell of everything before."""
    return hashlib.sha256(f"{exposure}/{stage}/".encode() + given).hexdigest().encode() * 1024


def execute(arguments: dict[str, Any], slot: Slot, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    exposure, stage = arguments["exposure"], arguments["stage"]
    journal = os.open(arguments["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, f"{exposure} {stage} {time.time():.3f} {arguments['worker']}\n".encode())
    os.close(journal)
    act = arguments["act"] if stage == arguments["acts_at"] else None
    if act == "raise":
        raise PermanentError(f"{exposure} cannot be processed")
    if act == "flaky":
        raise RetriableError("something outside does not answer")
    if act == "bug":
        raise ZeroDivisionError
    if act == "hang":
        time.sleep(3600)
    if act == "eat":
        held = []
        while True:
            held.append(bytearray(os.urandom(1 << 20)) * 32)
    if act == "fails-first" and _executions(arguments) == 1:
        time.sleep(arguments["seconds"])
        raise PermanentError(f"{exposure} cannot be processed the first time")
    if act == "fails-twice" and _executions(arguments) <= 2:
        raise RetriableError("something outside does not answer yet")
    if act == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(arguments["seconds"])
    data = content(exposure, stage, Path(arguments["input"]).read_bytes())
    Path(arguments["out"]).write_bytes(data)
    return {"digest": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _executions(arguments: dict[str, Any]) -> int:
    wanted = f"{arguments['exposure']} {arguments['stage']} "
    return sum(line.startswith(wanted) for line in Path(arguments["journal"]).read_text().splitlines())
