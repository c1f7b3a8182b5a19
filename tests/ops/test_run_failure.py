"""What ended a run is one failure that names a place, whatever groups of tasks it came through."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

import ops.projection
from ops.run_failure import first_failure, stopped
from stream.failure import FatalError, PermanentError
from stream.jobs import JobOutcome
from stream.worker import WorkFailedError


def test_the_failure_that_ended_a_run_is_found_in_nested_groups(tmp_path: Path) -> None:
    failure = PermanentError("the flat is of another detector")
    group = BaseExceptionGroup("a", [ValueError("x"), BaseExceptionGroup("b", [OSError("y"), failure])])
    assert first_failure(group, tmp_path) is failure
    ended = stopped(group, tmp_path)
    assert isinstance(ended, FatalError), "once work has begun the words were not at fault: status 1, not 2"
    assert str(ended) == str(failure)


def test_a_full_disk_stops_the_engine_and_names_the_place(tmp_path: Path) -> None:
    met = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "log"))
    ended = first_failure(BaseExceptionGroup("a", [met]), tmp_path)
    assert isinstance(ended, FatalError)
    assert str(ended) == f"{tmp_path / 'log'}: the disk is full"
    in_job = WorkFailedError(JobOutcome(failure={"class": "fatal", "message": "[Errno 28] No space left on device"}))
    ended = stopped(BaseExceptionGroup("a", [in_job]), tmp_path)
    assert isinstance(ended, FatalError)
    assert str(ended).startswith(f"{tmp_path}: ")
    assert "No space left" in str(ended)


def test_products_are_copied_between_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(bytes(range(256)) * 1000)

    def other_device(*_: Any) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.copy_file_range", other_device)
    ops.projection._copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()
