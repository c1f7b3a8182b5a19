"""Fixtures that several folders of tests share: one small simulation a session, and running the command line."""

from __future__ import annotations

import argparse
import atexit
import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROWS = 128

settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")  # what lands is judged by the same examples each time; people's runs look for new ones


@dataclass(frozen=True)
class Simulated:
    """A simulation on disk."""

    root: Path

    @property
    def references(self) -> Path:
        return self.root / "references"

    @property
    def gaia(self) -> Path:
        return self.root / "gaia.parquet"

    @property
    def exposures(self) -> list[Path]:
        return sorted((self.root / "l1").glob("*_uncal.asdf"))

    @property
    def associations(self) -> list[Path]:
        return sorted((self.root / "associations").glob("*_asn.json"))


def simulate(out: Path, **options: Any) -> Simulated:
    """Simulate a small frame."""
    from ops.simulate import SimulateOptions
    from ops.simulate import simulate as run

    run(SimulateOptions(out=out, **{"rows": ROWS, **options}), lambda _: None)
    return Simulated(out)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest module first: begun in its turn, it would end minutes after all others."""
    items.sort(key=lambda item: item.path.name != "test_end_to_end.py")


@functools.cache
def share_warm_server() -> None:
    """Have the runs and workers that this process starts from now on share the imports of their job processes.

    They would be most of what a run of a small frame takes. What a run does without it is seen by the walk-through and
    by the demonstration.
    """
    from ops.warm import PRELOADED
    from stream.fork_server import job_environment

    folder = Path(tempfile.mkdtemp(prefix="rampstream-warm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    listen = folder / "socket"
    words = ["--listen", str(listen), "--parent", str(os.getpid()), "--preload", ",".join(PRELOADED)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "stream.warm_server", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=job_environment(os.environ),
            start_new_session=True,
        )
    atexit.register(server.kill)
    while not listen.exists():
        assert server.poll() is None, (folder / "log").read_text()
        time.sleep(0.01)
    os.environ["RAMPSTREAM_WARM_SERVER"] = str(listen)


def without_warm_server() -> dict[str, str]:
    """This process's environment, for a run that starts the server of its job processes itself."""
    return {name: value for name, value in os.environ.items() if name != "RAMPSTREAM_WARM_SERVER"}


def run_command(
    simulated: Simulated, inputs: Sequence[Path], out: Path, *options: str, check: bool = True
) -> dict[str, Any]:
    """Run ``rampstream run … --json`` in a process of its own and return its report."""
    process = subprocess.run(command(simulated, inputs, out, *options), capture_output=True, text=True, check=False)
    report: dict[str, Any] = json.loads(process.stdout) if process.stdout else {}
    report |= {"returncode": process.returncode, "stderr": process.stderr}
    if check:
        assert process.returncode == 0, report
    return report


def command(simulated: Simulated, inputs: Sequence[Path], out: Path, *options: str) -> list[str]:
    """Words of ``rampstream run``."""
    share_warm_server()
    return [
        sys.executable,
        "-m",
        "ops.cli",
        "run",
        *map(str, inputs),
        "--references",
        str(simulated.references),
        "--gaia",
        str(simulated.gaia),
        "--out",
        str(out),
        "--json",
        *options,
    ]


def run_in_process(simulated: Simulated, inputs: Sequence[Path], out: Path, *options: str) -> dict[str, Any]:
    """Run in this process (job processes are their own all the same), so that coverage sees it."""
    import anyio
    from rich.console import Console

    from ops import cli
    from ops.run import EmbeddedRun
    from ops.run_options import RunOptions

    words = command(simulated, inputs, out, *options)[3:]
    namespace: argparse.Namespace = cli.parse(words)
    report: dict[str, Any] = anyio.run(EmbeddedRun(RunOptions(namespace), Console(file=io.StringIO())).execute)
    return report


def digests(folder: Path) -> dict[str, str]:
    """Content digest of each product in a folder, or in those below it, by its name."""
    from stages.finalize.content_digest import content_digest

    products = [path for path in sorted(folder.rglob("r*_*.*")) if path.is_file() and ".rampstream" not in path.parts]
    return {path.name: content_digest(path) for path in products}


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """One imaging exposure of WFI01 on a frame of few rows."""
    return simulate(tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="session")
def simulated_association(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """Two detectors at two dither positions."""
    return simulate(tmp_path_factory.mktemp("association"), detectors=("WFI01", "WFI02"), dithers=2)
