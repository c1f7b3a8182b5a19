"""How a process ends: with its exit status, whatever of libraries' threads or of its parent's frames is left.

One of the command line (`run_process`): the object store's threads (tokio, behind obstore) take the interpreter's lock
when they hand over a result. One that does so while the interpreter is torn down aborts the process (SIGABRT or
SIGSEGV), though all its work was done (https://github.com/PyO3/pyo3-async-runtimes/issues/40). So the interpreter is
left before it is torn down.

One that was forked (`end_forked`): it never returns into the loop of the process that it was forked from.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn, TextIO

__all__ = ["NOT_PRINTED", "end_forked", "run_process"]

NOT_PRINTED = 120
"""Exit status when all went well but what was printed could not be written, as Python itself has it."""


def run_process(main: Callable[[], int]) -> int:
    """Run the main function of a process that ends afterwards; its status is that of the process.

    Threads are joined and all handlers of ``atexit`` run that are registered from now on. The interpreter's own end
    does not take place.

    Returns
    -------
    int
        What `main` returned, for `sys.exit`.
    """
    status = 1

    def leave() -> None:
        logging.shutdown()
        printed = _flush()
        os._exit(status or (0 if printed else NOT_PRINTED))

    atexit.register(leave)  # handlers run in reverse order: this is the last of those to come
    try:
        status = main()
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        raise
    return status


def end_forked(work: Callable[[], None]) -> NoReturn:
    """Do the work of a process that was just forked, and end it.

    Its exit status is 0, and 1 when the work raised anything but `BrokenPipeError` (who asked for it is gone), which is
    printed.
    """
    status = 1
    try:
        work()
        status = 0
    except BrokenPipeError:
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, nothing may get past
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _flush() -> bool:
    """Write out what was printed; False if that failed."""
    flushed = [_flushed(stream) for stream in (sys.stdout, sys.stderr)]
    return all(flushed)


def _flushed(stream: TextIO | None) -> bool:
    """Write out what a stream still holds, if there is one; False if that failed."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return False
    return True
