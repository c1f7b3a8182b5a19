"""What ended a run, in the words that a person reads: one failure out of the nested groups of concurrent tasks."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from stream.failure import Failure, FailureClass, FatalError
from stream.worker import WorkFailedError

__all__ = ["disk_trouble", "first_failure", "stopped"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def disk_trouble(error: OSError) -> str:
    """What an operating system's error means for a file that was to be written."""
    if error.errno in _FULL:
        return "the disk is full"
    return error.strerror or str(error)


def first_failure(error: BaseException, work: Path) -> BaseException:
    """Return the failure that ended a group of tasks.

    Parameters
    ----------
    error : BaseException
        An exception, or a group of them.
    work : Path
        The run's work folder: where job processes write.

    Returns
    -------
    BaseException
        The first `Failure` (or interruption) in the group, else the first exception. One of class FATAL is always a
        `FatalError`, and so is an error of the operating system: it met the engine, not an exposure.
    """
    leaves = list(_leaves(error))
    found = next((leaf for leaf in leaves if isinstance(leaf, Failure | KeyboardInterrupt)), leaves[0])
    if isinstance(found, WorkFailedError) and found.failure_class is FailureClass.FATAL:
        return FatalError(f"{work}: a job could not write there: {found}; what is done so far is kept")
    if isinstance(found, OSError):
        return FatalError(f"{found.filename or work}: {disk_trouble(found)}")
    return found


def stopped(error: BaseException, work: Path) -> BaseException:
    """Return what ended a run that had begun: any `Failure` then means that the engine stopped, whatever its class."""
    found = first_failure(error, work)
    if isinstance(found, Failure) and not isinstance(found, FatalError):
        return FatalError(str(found))
    return found


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
