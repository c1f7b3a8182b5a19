"""How a process of the command line ends: with its exit status, whatever threads of libraries are still at work.

The object store's threads (tokio, behind obstore) take the interpreter's lock when they hand over a result. One that
does so while the interpreter is torn down aborts the process (SIGABRT or SIGSEGV), though all its work was done
(https://github.com/PyO3/pyo3-async-runtimes/issues/40). So the interpreter is left before it is torn down.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from typing import TextIO

__all__ = ["NOT_PRINTED", "run_process"]

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
        flushed = [_flushed(stream) for stream in (sys.stdout, sys.stderr)]
        os._exit(status or (0 if all(flushed) else NOT_PRINTED))

    atexit.register(leave)  # handlers run in reverse order: this is the last of those to come
    try:
        status = main()
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        raise
    return status


def _flushed(stream: TextIO | None) -> bool:
    """Write out what a stream still holds, if there is one; False if that failed."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return False
    return True
