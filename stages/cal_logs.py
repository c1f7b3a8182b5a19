"""Collect the stages' log lines for ``meta.cal_logs`` of the image. Not the logging of the engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.exposure import Exposure

__all__ = ["collect_logs", "format_line"]

_LOGGER = "stages"


@contextmanager
def collect_logs(exposure: Exposure, *, level: int = logging.INFO) -> Iterator[None]:
    """Append what the stages log inside the block to ``exposure.logs``, one formatted line a record."""
    logger = logging.getLogger(_LOGGER)
    handler = _Lines(exposure.logs, level)
    before = logger.level
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > level:
        logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def format_line(record: logging.LogRecord) -> str:
    """``YYYY-MM-DDTHH:MM:SS.mmmZ :: logger :: LEVEL :: text``, in UTC."""
    time = datetime.fromtimestamp(record.created, UTC)
    stamp = f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03}Z"
    return f"{stamp} :: {record.name} :: {record.levelname} :: {record.getMessage()}"


class _Lines(logging.Handler):
    def __init__(self, lines: list[str], level: int) -> None:
        super().__init__(level)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(format_line(record))
