"""Runs jobs in forked processes that can be killed: limits, exit signals, logs, recycling. Not what the jobs do.

Why own code: `anyio.to_process` and `concurrent.futures` cannot kill one job and tell why it died; loky and pebble fork
or spawn from the parent, which has threads, pickle what crosses, and watch neither memory nor progress.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.abc
import anyio.lowlevel

from stream.failure import FailureClass
from stream.fork_server import Child, ForkServer
from stream.job_process import FRAME_HEADER, encode_frame
from stream.jobs import Job, JobOutcome, JobProgress, Progress
from stream.log_tail import log_tail
from stream.precedence import Tokens
from stream.process_memory import oom_kills, process_memory

__all__ = ["ProcessJobRunner"]

_LOG = logging.getLogger(__name__)

# Warm memory is touched at up to 7 GB/s, so a job overshoots its limit by at most 0.7 GB before it is seen; a look
# costs 30 µs.
_LOOK_SECONDS = 0.1

# The kernel kills at the cgroup's or the machine's limit, which a job nears while it is below its own.
_NEAR_LIMIT = 0.8

_REAP_SECONDS = 10.0

# Long enough for faulthandler to write the stacks of a few threads.
_STACKS_SECONDS = 0.2


class ProcessJobRunner:
    """A `stream.jobs.JobRunner` over a fork server.

    Parameters
    ----------
    slots : int
        Jobs that run at once, beside one light one.
    log_dir : Path
        A file for each job that prints something, and ``server.log``.
    preload : sequence of str
        What the server imports (``module``) or calls (``module:function``) before it forks. It starts with the runner,
        and only the first job waits for it.
    recycle_after : int
        Jobs that one process runs; also one that failed is not used again.
    memory_bytes : int, optional
        Limit for jobs that have none of their own.
    keep_logs : int
        The newest logs that are kept.
    count_oom_kills : callable
        How often the kernel has killed for memory so far.
    observe : callable
        Told of each job process that is not used again, and why.
    warm : Path, optional
        Socket of a `stream.warm_server`, which has made the imports.
    """

    def __init__(
        self,
        *,
        slots: int,
        log_dir: Path,
        preload: Sequence[str] = (),
        recycle_after: int = 50,
        memory_bytes: int | None = None,
        keep_logs: int = 1000,
        count_oom_kills: Callable[[], int] = oom_kills,
        observe: Callable[[dict[str, Any]], None] = lambda _: None,
        warm: Path | None = None,
    ) -> None:
        if slots < 1 or recycle_after < 1:
            msg = f"slots and recycle_after are at least 1, got {slots} and {recycle_after}"
            raise ValueError(msg)
        self._log_dir = log_dir.absolute()
        self._recycle_after = recycle_after
        self._memory_bytes = memory_bytes
        self._keep_logs = keep_logs
        self._count_oom_kills = count_oom_kills
        self._observe = observe
        # Apart, for a process that has computed holds on to its buffers.
        self._lanes = {False: _Lane(slots), True: _Lane(1)}
        self._server = ForkServer(preload=preload, log=self._log_dir / "server.log", warm=warm)
        self._tasks = anyio.create_task_group()
        self._jobs = 0

    async def __aenter__(self) -> Self:
        """Start the fork server, without waiting for its imports."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        await self._tasks.__aenter__()
        await self._server.start(self._tasks)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Kill all job processes and the server."""
        with anyio.CancelScope(shield=True):
            for lane in self._lanes.values():
                for process in lane.idle:
                    process.close()
                lane.idle.clear()
            await self._server.stop()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(*exc)  # type: ignore[arg-type]

    async def run(self, job: Job, *, progress: Progress | None = None) -> JobOutcome:
        """Run a job (see `stream.jobs.JobRunner.run`).

        On cancellation the process is killed and reaped before this returns, shielded, for at most 10 s.

        Raises
        ------
        stream.failure.FatalError
            No process can be made.
        """
        lane = self._lanes[job.light]
        async with lane.free.one(job.precedence):
            process = self._take_idle(lane) or _JobProcess(await self._server.spawn(self._tasks))
            reusable, why = False, "cancelled"
            log = self._new_log(job)
            started = time.monotonic()
            try:
                ending = await self._supervise(process, job, log, progress)
                reusable = ending.failure is None and process.jobs < self._recycle_after
                why = "recycled" if ending.failure is None else ending.why
                if not reusable:
                    await self._destroy(process)
                return self._outcome(process, ending, log, time.monotonic() - started)
            finally:
                if reusable:
                    lane.idle.append(process)
                else:
                    self._observe({"event": "job_process_ended", "reason": why})
                    if not process.closed:
                        with anyio.CancelScope(shield=True):
                            await self._destroy(process)

    def _take_idle(self, lane: _Lane) -> _JobProcess | None:
        while lane.idle:
            process = lane.idle.pop()  # the last one used has the warmest caches
            if not process.child.exited.is_set():
                return process
            process.close()
            self._observe({"event": "job_process_ended", "reason": "died"})
        return None

    async def _supervise(self, process: _JobProcess, job: Job, log: Path, progress: Progress | None) -> _Ending:
        deadline = time.monotonic() + job.wall_seconds
        limit = job.memory_bytes or self._memory_bytes
        kills_before = self._count_oom_kills()
        process.begin()
        await process.send(
            {"entry": job.entry, "arguments": job.arguments, "threads": job.threads, "log": str(log)}
        )  # fmt: skip
        next_look = time.monotonic() + _LOOK_SECONDS
        while True:
            with anyio.move_on_after(max(0.0, next_look - time.monotonic())):
                frame = await process.receive()
                if frame is None:
                    break
                if "report" in frame:
                    _tell(progress, JobProgress(job.label, frame["report"]))
                else:
                    process.finish(frame)
                    return _Ending(frame.get("result"), frame.get("failure"))
            await anyio.lowlevel.checkpoint()  # a flood of reports must not keep the others waiting
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _LOOK_SECONDS
                if limit is not None and process.look() > limit:
                    return _Ending(None, _too_large(process.private, limit), "memory")
                if time.monotonic() > deadline:
                    self._server.signal(process.child, signal.SIGUSR1)
                    await anyio.sleep(_STACKS_SECONDS)
                    return _Ending(None, _too_long(job.wall_seconds), "wall_time")
        await self._destroy(process)
        near = limit is not None and process.peak_private > _NEAR_LIMIT * limit
        oom = process.child.signal_name == "SIGKILL" and (near or self._count_oom_kills() > kills_before)
        return _Ending(None, _died(process, oom=oom), "oom" if oom else "died")

    async def _destroy(self, process: _JobProcess) -> None:
        self._server.signal(process.child, signal.SIGKILL)
        with anyio.move_on_after(_REAP_SECONDS) as patience:
            await process.child.exited.wait()
        if patience.cancelled_caught:
            _LOG.warning("The job process %d does not end though it was killed", process.child.pid)
        process.close()

    def _outcome(self, process: _JobProcess, ending: _Ending, log: Path, wall: float) -> JobOutcome:
        failure = ending.failure
        # An empty file for each job would soon be most of what is in the folder.
        printed = log.exists() and log.stat().st_size > 0
        if not printed:
            log.unlink(missing_ok=True)
        if failure is not None:
            tail = log_tail(log) if printed else []
            failure = {**failure, "log": str(log) if printed else None, "log_tail": tail}
        return JobOutcome(
            result=ending.result,
            failure=failure,
            wall_seconds=wall,
            cpu_seconds=process.cpu_seconds,
            peak_rss_bytes=process.peak_rss,
            peak_private_bytes=process.peak_private,
            log=str(log) if printed else None,
        )

    def _new_log(self, job: Job) -> Path:
        self._jobs += 1
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", job.label or job.entry)[:120]
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        if self._jobs % 100 == 0:
            for old in sorted(self._log_dir.glob("job-*.log"))[: -self._keep_logs]:
                old.unlink(missing_ok=True)
        return self._log_dir / f"job-{stamp}-{self._jobs:06d}-{name}.log"


class _Lane:
    """Room for some jobs at once, and the processes that ran such jobs and wait for more."""

    def __init__(self, room: int) -> None:
        self.free = Tokens(room)
        self.idle: list[_JobProcess] = []


class _Ending:
    def __init__(self, result: Any, failure: dict[str, Any] | None, why: str = "failed") -> None:
        self.result = result
        self.failure = failure
        self.why = why


class _JobProcess:
    """A job process as the runner sees it: a channel of frames, and what its current job has used."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.jobs = 0
        self.closed = False
        self.private = self.peak_private = self.peak_rss = 0
        self._buffer = bytearray()
        self._job_cpu: float | None = None
        self._earlier_cpu = 0.0

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of the current job; for one that died, what its process had used beyond earlier jobs."""
        return max(0.0, self.child.cpu_seconds - self._earlier_cpu) if self._job_cpu is None else self._job_cpu

    def begin(self) -> None:
        self.jobs += 1
        self._earlier_cpu += self._job_cpu or 0.0
        self._job_cpu = None
        self.private = self.peak_private = self.peak_rss = 0

    def finish(self, frame: dict[str, Any]) -> None:
        self.look()
        self._job_cpu = frame["cpu_seconds"]
        self.peak_rss = frame["peak_rss_bytes"]

    def look(self) -> int:
        """Private memory in bytes now."""
        memory = process_memory(self.child.pid)
        if memory is not None:
            self.private = memory.private
            self.peak_private = max(self.peak_private, memory.private)
            self.peak_rss = max(self.peak_rss, memory.peak_rss)
        return self.private

    async def send(self, document: dict[str, Any]) -> None:
        """Send a frame; that the process died meanwhile shows when it is asked for its answer."""
        rest = memoryview(encode_frame(document))
        with suppress(ConnectionError):
            while rest:
                try:
                    rest = rest[self.child.channel.send(rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(self.child.channel)

    async def receive(self) -> dict[str, Any] | None:
        """Receive the next frame, None when the process is gone; a cancelled call loses nothing."""
        while True:
            if len(self._buffer) >= FRAME_HEADER.size:
                end = FRAME_HEADER.size + FRAME_HEADER.unpack_from(self._buffer)[0]
                if len(self._buffer) >= end:
                    frame: dict[str, Any] = json.loads(self._buffer[FRAME_HEADER.size : end])
                    del self._buffer[:end]
                    return frame
            try:
                part = self.child.channel.recv(1 << 20)
            except BlockingIOError:
                await anyio.wait_readable(self.child.channel)
                continue
            except ConnectionError:
                return None
            if not part:
                return None
            self._buffer += part

    def close(self) -> None:
        self.closed = True
        with suppress(OSError):
            self.child.channel.shutdown(socket.SHUT_RDWR)
        self.child.channel.close()


def _tell(progress: Progress | None, report: JobProgress) -> None:
    if progress is None:
        return
    try:
        progress(report)
    except Exception:  # noqa: BLE001 - the job must not fail for its listener
        _LOG.exception("A progress listener failed for %s", report.label)


def _failure(failure_class: FailureClass, kind: str, message: str, **more: Any) -> dict[str, Any]:
    return {
        "class": str(failure_class), "type": kind, "message": message,
        "traceback": None, "signal": None, "oom": False, **more,
    }  # fmt: skip


def _too_large(private: int, limit: int) -> dict[str, Any]:
    message = f"killed with {private / 2**20:.0f} MiB of private memory, its slot has {limit / 2**20:.0f} MiB"
    return _failure(FailureClass.RESOURCE, "MemoryLimitExceeded", message, signal="SIGKILL", oom=True)


def _too_long(seconds: float) -> dict[str, Any]:
    message = f"killed after {seconds:g} s of wall clock, the limit of its slot (its log has the stacks)"
    return _failure(FailureClass.RESOURCE, "WallClockExceeded", message, signal="SIGKILL")


def _died(process: _JobProcess, *, oom: bool) -> dict[str, Any]:
    child = process.child
    if child.status is None:
        how = "its fork server died, or it did not end in time"
    elif child.signal_name:
        how = f"killed by {child.signal_name}"
    else:
        how = f"it left with status {child.status >> 8}"
    if oom:
        message = f"{how}, by the kernel for want of memory: it had {process.peak_private / 2**20:.0f} MiB of its own"
        return _failure(FailureClass.RESOURCE, "OutOfMemory", message, signal=child.signal_name, oom=True)
    message = f"the job process died: {how}"
    return _failure(FailureClass.RETRIABLE, "JobProcessDied", message, signal=child.signal_name)
