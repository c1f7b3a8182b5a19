"""Parts of the job processes that need no process: failure classes, environment, memory of a process."""

from __future__ import annotations

import errno
import os

import pytest

from stream import failure
from stream.fork_server import job_environment
from stream.job_process import failure_document
from stream.process_memory import oom_kills, process_memory
from stream.process_runner import ProcessJobRunner


@pytest.mark.parametrize(
    ("error", "failure_class"),
    [
        (failure.RetriableError("x"), "retriable"),
        (failure.FatalError("x"), "fatal"),
        (MemoryError(), "resource"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "resource"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "fatal"),
        (OSError(errno.ESTALE, "Stale file handle"), "retriable"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "permanent"),
        (ValueError("x"), "permanent"),
        (KeyboardInterrupt(), "permanent"),
    ],
)
def test_each_exception_has_a_failure_class(error: BaseException, failure_class: str) -> None:
    assert failure_document(error)["class"] == failure_class


def test_notes_of_an_exception_are_kept() -> None:
    error = ValueError("x")
    error.add_note("in stage flat_field of e1")
    assert failure_document(error)["notes"] == ["in stage flat_field of e1"]


def test_job_processes_have_one_thread_in_libraries_and_keep_the_users_settings() -> None:
    environment = job_environment({"HOME": "/h", "GLIBC_TUNABLES": "glibc.malloc.check=3", "OMP_NUM_THREADS": "8"})
    assert environment["HOME"] == "/h"
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "1"
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.check=3:glibc.malloc.hugetlb=1"


def test_memory_of_this_process_and_of_none() -> None:
    memory = process_memory(os.getpid())
    assert memory is not None
    assert 1_000_000 < memory.private <= memory.peak_rss
    assert memory.rss <= memory.peak_rss
    assert process_memory(2**22 + 1) is None
    assert oom_kills() >= 0


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"slots": 1, "recycle_after": 0}])
def test_settings_that_make_no_sense_are_refused(
    wrong: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ProcessJobRunner(log_dir=tmp_path_factory.mktemp("logs"), **wrong)
