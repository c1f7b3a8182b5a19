"""Keeps what a run of parity tests saw, if asked to, for the writer of the page (``make parity``)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.parity.record import SEEN, save


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Also in each worker of a run in several processes: a failed run leaves nothing."""
    folder = os.environ.get("RAMPSTREAM_PARITY_RECORDS")
    if folder and SEEN and exitstatus == pytest.ExitCode.OK:
        save(Path(folder) / f"{os.getpid()}.json", SEEN)
