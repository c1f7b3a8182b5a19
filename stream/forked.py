"""How a forked process ends: it never returns into the loop of the process that it was forked from."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

__all__ = ["end_with"]


def end_with(work: Callable[[], None]) -> NoReturn:
    """Do the work of a process that was just forked, and end it.

    Its exit status is 0, and 1 when the work raised anything but `BrokenPipeError` (who asked for it is gone), which is
    printed.
    """
    code = 1
    try:
        work()
        code = 0
    except BrokenPipeError:
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, nothing may get past
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
