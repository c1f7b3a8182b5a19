"""The end of a process's log, as it is told with a failure: its last words, and where its threads were."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

__all__ = ["log_tail"]

_READ_BYTES = 64 * 1024

_WORDS = 20
"""Lines of what it said."""

_STACK_LINES = 40
"""Lines of its threads' stacks."""

_FRAMES = 6
"""Innermost calls of one thread's stack."""

_FRAME = re.compile(r'  File ".*", line \d+ in ')
_THREAD = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+ ")
_NO_NEWS = "Extension modules: "


def log_tail(path: Path) -> list[str]:
    """Return the last lines of a log.

    Stacks as `faulthandler` writes them, of many threads and up to a hundred calls each, leave room for what the
    process had said before: of each only the innermost calls are kept, and the two kinds of lines are counted apart.

    Parameters
    ----------
    path : Path
        The log. Its last 64 KiB are read.

    Returns
    -------
    list of str
        Up to 20 lines of what the process said and up to 40 of stacks, in their order.
    """
    with path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - _READ_BYTES))
        text = log.read().decode(errors="replace")
    lines = [line for line in _shortened(text.splitlines()) if line and not line.startswith(_NO_NEWS)]
    words: list[int] = []
    stacks: list[int] = []
    for index, line in enumerate(lines):
        (stacks if _of_stack(line) else words).append(index)
    return [lines[index] for index in sorted(words[-_WORDS:] + stacks[-_STACK_LINES:])]


def _of_stack(line: str) -> bool:
    return _FRAME.match(line) is not None or _THREAD.match(line) is not None or line.startswith("  … ")


def _shortened(lines: list[str]) -> Iterator[str]:
    for frames, run in groupby(lines, lambda line: _FRAME.match(line) is not None):
        if not frames:
            yield from run
            continue
        stack = list(run)
        yield from stack[:_FRAMES]
        if len(stack) > _FRAMES:
            yield f"  … and {len(stack) - _FRAMES} calls further out"
