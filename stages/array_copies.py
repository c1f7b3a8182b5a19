"""Unpacked or realigned copies of large reference arrays in a folder with a bound. Not how they are read or written.

A copy is held while it is in use, by a shared lock that ends with the process; a copy that anyone holds is not removed.
So the processes of a machine may share the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from weakref import finalize

__all__ = ["ArrayCopies", "Held"]

_STALE_SECONDS = 86_400.0
"""Age of half-written copies of killed processes: unpacking takes seconds."""


class Held:
    """What keeps a copy from being removed, until it is closed or forgotten."""

    def __init__(self, descriptor: int) -> None:
        self.close = finalize(self, os.close, descriptor)


class ArrayCopies:
    """Copies in one folder.

    Parameters
    ----------
    folder : Path
        Made when it does not exist.
    max_bytes : int, optional
        The least recently used go before it is exceeded; what is held stays, and may exceed it. None: no bound.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def hold(self, name: str, make: Callable[[Path], None]) -> tuple[Path, Held]:
        """Path of a copy and what holds it: close that when the copy is no longer used.

        Parameters
        ----------
        name : str
            Of the copy; another content has another name.
        make : callable
            Writes it to a path, when there is none. Two at once make the same, and one stays.
        """
        target = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.asdf"
        held = self._held(target)
        if held is not None:
            return target, held
        while held is None:
            self._make(target, make)
            held = self._held(target)
        self._make_room()
        return target, held

    @staticmethod
    def _held(target: Path) -> Held | None:
        try:
            descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        held = Held(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        found = os.fstat(descriptor)
        if found.st_nlink == 0:  # removed after it was opened and before it was held
            held.close()
            return None
        os.utime(descriptor, ns=(time.time_ns(), found.st_mtime_ns))
        return held

    def _make(self, target: Path, make: Callable[[Path], None]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=self._folder, suffix=".part")
        os.close(descriptor)
        try:
            make(Path(draft))
            Path(draft).replace(target)
        finally:
            Path(draft).unlink(missing_ok=True)

    def _make_room(self) -> None:
        if self._max_bytes is None:
            return
        found = []
        for path in self._folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path.suffix == ".asdf":
                found.append((status.st_atime_ns, status.st_size, path))
            elif path.suffix == ".part" and status.st_mtime < time.time() - _STALE_SECONDS:
                path.unlink(missing_ok=True)
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._max_bytes:
                return
            if _remove_unless_held(path):
                total -= size


def _remove_unless_held(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True
