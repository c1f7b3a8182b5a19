"""The lock under which one process at a time consumes an embedded log. Not on the log: others append and read."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from stream.failure import FatalError

__all__ = ["ConsumerLock"]

_HELD: dict[tuple[int, int], int] = {}
"""Process that holds a lock file (device, inode), as seen from this process. POSIX record locks do not exclude within a
process, and closing *any* descriptor of the file releases them: so who is about to open the file looks here first. The
value is a process id because a forked child inherits the table and not the lock."""


class ConsumerLock:
    """A POSIX record lock on a file.

    That kind, and not flock or OFD locks, because it belongs to the process: it ends with the process however that
    dies, and a forked job process that outlives its parent does not keep it.

    Parameters
    ----------
    path : Path
        The lock file, created when it does not exist; it holds the process id of its last holder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._file: tuple[int, int] | None = None

    def acquire(self) -> None:
        """Take the lock; nothing happens when this object holds it.

        Raises
        ------
        stream.failure.FatalError
            Somebody else holds it; the text names the process.
        """
        if self._descriptor is not None:
            return
        # Opened only if no descriptor of it is open here: closing this one would release the other's lock.
        if self.path.exists() and _HELD.get(_identity(self.path)) == os.getpid():
            raise FatalError(self._refusal(str(os.getpid())))
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise FatalError(self._refusal(holder or "unknown")) from error
        # Padded rather than truncated: a reader never finds the file empty.
        os.pwrite(descriptor, f"{os.getpid():<15}\n".encode(), 0)
        self._descriptor = descriptor
        self._file = _identity(self.path)
        _HELD[self._file] = os.getpid()

    def release(self) -> None:
        """Give the lock up; nothing happens when this object does not hold it."""
        if self._descriptor is None or self._file is None:
            return
        if _HELD.get(self._file) == os.getpid():
            del _HELD[self._file]
        os.close(self._descriptor)
        self._descriptor = self._file = None

    def held_by_another(self) -> bool:
        """Whether somebody else holds the lock; it is taken for a moment where nobody does."""
        if self._descriptor is not None or not self.path.exists():
            return False
        try:
            self.acquire()
        except FatalError:
            return True
        self.release()
        return False

    def _refusal(self, holder: str) -> str:
        return (
            f"process {holder} already consumes the log in {self.path.parent}; one process at a time may do so. "
            "Stop it, or use another work directory; publishing and reading need no lock"
        )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
