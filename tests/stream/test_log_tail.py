"""The end of a log: the last words of a process are told, however long the stacks are that follow them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from stream.log_tail import log_tail

KILLED = """
import faulthandler, os, signal, sys, threading
import numpy
faulthandler.enable()
for number in range(30):
    print("word", number, flush=True)
started = threading.Barrier(9)
for _ in range(8):
    threading.Thread(target=lambda: (started.wait(), threading.Event().wait()), daemon=True).start()
started.wait()

def deep(calls):
    if calls:
        deep(calls - 1)
    os.kill(os.getpid(), signal.SIGSEGV)

deep(60)
"""


def test_last_words_are_told_before_the_stacks_of_a_process_that_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    with log.open("wb") as file:
        subprocess.run([sys.executable, "-c", KILLED], stdout=file, stderr=file, check=False)
    told = log_tail(log)
    words = [*(f"word {number}" for number in range(11, 30)), "Fatal Python error: Segmentation fault"]
    assert told[: len(words)] == words
    stacks = told[len(words) :]
    assert len(stacks) == 40
    current = next(index for index, line in enumerate(stacks) if line.startswith("Current thread 0x"))
    assert stacks[current + 1 : current + 7] == [
        '  File "<string>", line 15 in deep',
        *['  File "<string>", line 14 in deep'] * 5,
    ]
    assert stacks[current + 7] == "  … and 56 calls further out"
    assert len(log.read_text().splitlines()) > 100


def test_a_traceback_is_told_whole(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    with log.open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", "def f(n): return f(n - 1) if n else 1 / n\nf(3)"], stderr=file, check=False
        )
    assert log_tail(log) == log.read_text().splitlines()
    assert log_tail(log)[-1] == "ZeroDivisionError: division by zero"


def test_only_the_end_of_a_large_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_bytes(b"\xff" * 10_000_000 + b"\n" + b"\n".join(b"%d" % number for number in range(5)))
    assert log_tail(log)[1:] == ["0", "1", "2", "3", "4"]
    log.write_bytes(b"")
    assert log_tail(log) == []
