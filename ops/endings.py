"""Remembers, in a worker's folder, how the workers of that folder ended, for counters die with their process.

A watchdog and a breaker end the process before anyone can scrape it, so the next worker tells what became of the last
one. Not the log of what went wrong: that is in ``run.log`` and ``stacks.log``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["BREAKER", "FAILED", "KILLED", "STOPPED", "Endings"]

LOG = logging.getLogger(__name__)

STOPPED = "stopped"
FAILED = "failed"
BREAKER = "breaker"
KILLED = "killed"
_BEGUN = "begun"


class Endings:
    """Beginnings and endings of workers, a line each.

    Parameters
    ----------
    file : Path
        Where they are written; its folder is made.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def begin(self) -> list[dict[str, Any]]:
        """Say that a worker begins; returns how each earlier one ended, as events for `stream.metrics`.

        One that left no word was killed, unless it still runs.
        """
        lines = self._lines()
        if lines and lines[-1][0] == _BEGUN and not _runs(lines[-1][1:]):
            self.note(KILLED)
            lines.append([KILLED])
        self._write(_BEGUN, str(os.getpid()))
        return [
            {"event": "worker_ended", "reason": reason, "segments": segments}
            for reason, *segments in lines
            if reason != _BEGUN
        ]

    def note(self, reason: str, segments: Iterable[str] = ()) -> None:
        """Say how this worker ends, and which segments a breaker stopped."""
        self._write(reason, *segments)

    def _lines(self) -> list[list[str]]:
        try:
            return [line.split() for line in self._file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError:
            return []

    def _write(self, *words: str) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(" ".join(words) + "\n")
        except OSError as error:  # a full disk must not hide why a worker ends
            LOG.warning("%s cannot be written: %s", self._file, error)


def _runs(words: list[str]) -> bool:
    # In a container a worker has the number of the one before.
    return bool(words) and words[0] != str(os.getpid()) and Path(f"/proc/{words[0]}").exists()
