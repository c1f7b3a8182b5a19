"""A process of the command line ends with the status of what it did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UNFINISHED = """
import asyncio
import sys
import obstore
from obstore.store import LocalStore
from stream.process_end import run_process

def main() -> int:
    async def read() -> None:
        store = LocalStore(sys.argv[1])
        reads = [asyncio.ensure_future(obstore.get_async(store, "object")) for _ in range(300)]
        await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)

    asyncio.run(read())
    print("read")
    return 0

sys.exit(run_process(main) if sys.argv[2] == "left" else main())
"""
"""Ends while the store's threads still hand results over."""


def ended(source: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", source, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "object").write_bytes(bytes(1000))
    return tmp_path


def test_threads_of_the_store_do_not_abort_a_process_that_has_ended(store: Path) -> None:
    for _ in range(12):
        done = ended(UNFINISHED, store, "left")
        assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr


def test_without_it_they_do(store: Path) -> None:
    """The mutant: about one in three such processes is aborted."""
    assert any(ended(UNFINISHED, store, "torn down").returncode < 0 for _ in range(60))


@pytest.mark.parametrize(
    ("main", "status", "said"),
    [
        ("print('much', file=sys.stderr); return 3", 3, "much"),
        ("sys.exit(2)", 2, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('no such file')", 1, "no such file"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong"),
        ("atexit.register(lambda: print('handled', file=sys.stderr)); return 0", 0, "handled"),
        ("threading.Timer(0.1, print, ['joined'], {'file': sys.stderr}).start(); return 0", 0, "joined"),
        ("sys.stdout = open('/dev/full', 'w'); print('lost'); return 0", 120, ""),
        ("sys.stdout = open('/dev/full', 'w'); print('lost'); return 4", 4, ""),
    ],
)
def test_status_and_output_are_those_of_any_process(main: str, status: int, said: str) -> None:
    source = f"""
import atexit, sys, threading
from stream.process_end import run_process

def main():
    {main}

sys.exit(run_process(main))
"""
    done = ended(source)
    assert done.returncode == status
    assert said in done.stderr
