"""The job seam: CPU work in killable processes. Not what the work is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

__all__ = ["Job", "JobOutcome", "JobProgress", "JobRunner", "Progress"]


@dataclass(frozen=True, slots=True)
class Job:
    """One call of ``entry`` in a job process.

    Parameters
    ----------
    entry : str
        ``module:function``; called as ``function(arguments, slot, report)`` with ``slot`` a `stream.stage.Slot` that
        lives as long as the process, and ``report(dict)`` to send progress. Returns a JSON value.
    arguments : dict
        JSON values only; arrays cross processes as files.
    threads : int
        Threads that compiled kernels may use.
    wall_seconds, memory_bytes : float, int
        Limits; past either the process is killed and the failure class is RESOURCE.
    label : str
        For logs and metrics.
    light : bool
        It looks things up and computes nothing to speak of: it does not wait for a slot, but has a process beside them.
    precedence : int
        Of jobs that wait for a slot the one with the highest gets it, and the first come among equals.
    """

    entry: str
    arguments: dict[str, Any]
    threads: int = 1
    wall_seconds: float = 1800.0
    memory_bytes: int | None = None
    label: str = ""
    light: bool = False
    precedence: int = 0


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What became of a job; ``failure`` is None when it returned.

    ``failure`` has ``class`` (a `stream.failure.FailureClass` value), ``type``, ``message``, ``traceback``, ``signal``
    (name or None) and ``oom`` (bool). A process that dies is told by its exit signal; SIGKILL with memory at its limit
    is OOM.

    ``peak_rss_bytes`` counts mapped files too, ``peak_private_bytes`` only memory of the process's own (what the limit
    is about), as it was seen at intervals. ``log`` is the file with what the job printed, None when it printed nothing.
    """

    result: Any = None
    failure: dict[str, Any] | None = None
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0
    peak_private_bytes: int = 0
    log: str | None = None


@dataclass(frozen=True, slots=True)
class JobProgress:
    """A report from inside a running job."""

    label: str
    report: dict[str, Any] = field(default_factory=dict)


Progress = Callable[[JobProgress], None]


class JobRunner(Protocol):
    """Runs jobs in processes of their own. Use as an async context manager."""

    async def __aenter__(self) -> Self:
        """Start what is needed."""
        ...

    async def __aexit__(self, *exc: object) -> None:
        """Kill what still runs."""
        ...

    async def run(self, job: Job, *, progress: Progress | None = None) -> JobOutcome:
        """Run a job; cancelling kills its process. At most ``slots`` run at once and a light one, others wait.

        A failure inside the job is returned, not raised.
        """
        ...
