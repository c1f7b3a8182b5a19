"""Entries for the tests of job processes."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stream import failure
from stream.stage import Slot

Report = Callable[[dict[str, Any]], None]

PRELOADED: list[int] = []


def preload() -> None:
    PRELOADED.append(os.getpid())


def refuse_to_load() -> None:
    msg = "no such library"
    raise ImportError(msg)


def start_a_thread() -> None:
    import threading

    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def echo(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    report({"event": "started"})
    return {"arguments": arguments, "threads": slot.threads, "pid": os.getpid(), "preloaded": PRELOADED}


def count_in_slot(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    slot.scratch["count"] = slot.scratch.get("count", 0) + 1
    return {"count": slot.scratch["count"], "pid": os.getpid()}


def burn(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    end = time.process_time() + arguments["seconds"]
    while time.process_time() < end:
        pass


def many_reports(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    for number in range(arguments["count"]):
        report({"number": number, "text": "x" * 1000})
    return "y" * 3_000_000


def sleep(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) if arguments.get("child") else None
    report({"pid": os.getpid(), "child": child.pid if child else None})
    time.sleep(arguments.get("seconds", 60))


def die(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    sys.stderr.write("last words\n")
    os.kill(os.getpid(), getattr(signal, arguments["signal"]))
    time.sleep(60)


def leave(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    os._exit(arguments["status"])


def fill_memory(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    kept = []
    for _ in range(arguments["megabytes"]):
        kept.append(bytearray(os.urandom(4096) * 256))
        time.sleep(arguments.get("pause", 0.002))
    report({"event": "full"})
    time.sleep(arguments.get("hold", 0))
    if "signal" in arguments:
        os.kill(os.getpid(), getattr(signal, arguments["signal"]))
        time.sleep(60)
    return len(kept)


def fail(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    kind = arguments["kind"]
    if hasattr(failure, kind):
        raise getattr(failure, kind)("said by the stage")
    if kind == "ENOSPC":
        raise OSError(errno.ENOSPC, "No space left on device", "/store/objects/x")
    if kind == "EIO":
        raise OSError(errno.EIO, "Input/output error")
    if kind == "MemoryError":
        raise MemoryError
    if kind == "SystemExit":
        sys.exit(3)
    if kind == "not JSON":
        return {"set": {1}}
    if kind == "NaN":
        return float("nan")
    return {}["no such key"]


def print_and_log(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    print("printed", arguments["text"])  # noqa: T201
    os.write(2, b"from C\n")
    logging.getLogger("stages.toy").info("logged %s", arguments["text"])


def run_segment(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    from stream.segment import execute_segment
    from tests.stream.toy_stages import ToyPayload, ToyReferences, toy_stages

    def reported(document: dict[str, Any]) -> None:
        report(document)
        if document.get("event") == "stored" and arguments["die"]:
            os.kill(os.getpid(), signal.SIGKILL)

    stages = {stage.name: stage for stage in toy_stages()}
    return execute_segment(
        arguments["plan"],
        stages=stages,
        parameters={name: stage.parameters_type() for name, stage in stages.items()},
        payload=ToyPayload(),
        references=ToyReferences(gain=2.0),
        slot=slot,
        report=reported,
    )


def environment(arguments: dict[str, Any], slot: Slot, report: Report) -> Any:
    descriptors = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            descriptors[path.name] = str(path.readlink())
        except FileNotFoundError:
            continue
    return {"environment": dict(os.environ), "descriptors": descriptors, "server": os.getppid()}
