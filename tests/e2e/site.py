"""A run on Kafka and S3 as an operator has it: verbs in processes of their own, workers, products."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.conftest import Simulated, share_warm_server
from tests.servers import KafkaCluster, S3Server

__all__ = ["Servers", "Site"]

PATIENCE = 240.0

Servers = tuple[KafkaCluster, S3Server]


class Site:
    """One run on the servers, in a store of its own (the same results would be found again)."""

    def __init__(self, folder: Path, run: str, servers: Servers, environment: Mapping[str, str] | None = None) -> None:
        cluster, s3 = servers
        share_warm_server()
        self.folder = folder
        self.environment = {
            **(os.environ if environment is None else environment),
            **s3.environment,
            "RAMPSTREAM_WARM_SERVER": os.environ["RAMPSTREAM_WARM_SERVER"],
            "RAMPSTREAM_BROKER": cluster.url,
            "RAMPSTREAM_STORE": f"s3://rampstream/{run}",
            "RAMPSTREAM_RUN": run,
            "RAMPSTREAM_PARTITIONS": "2",
            "RAMPSTREAM_WORK": str(folder / "client"),
        }

    def __call__(self, *words: str | Path) -> str:
        """Say a verb; what it printed."""
        command = [sys.executable, "-m", "ops.cli", *map(str, words)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    def apply(self, simulated: Simulated, *words: str | Path, preset: str = "fused") -> None:
        """Set the run up, with references and stars of a simulation."""
        inputs = ("--references", simulated.references, "--gaia", simulated.gaia)
        self("topics", "apply", "--preset", preset, *inputs, *words)

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        """A worker of all segments, which is told to stop in the end."""
        words = [sys.executable, "-m", "ops.cli", "worker", "--work", str(self.folder / "worker")]
        with (self.folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log)
            try:
                yield
            finally:
                worker.send_signal(signal.SIGTERM)
                status = worker.wait(60)
        assert status == 0, self.log()

    def log(self) -> str:
        """What its workers printed."""
        return (self.folder / "worker.log").read_text()

    def ingest_and_wait(self, *inputs: str | Path) -> None:
        """Have a worker do all that is ingested."""
        with self.worker():
            self("ingest", *inputs)
            self("status", "--wait", str(int(PATIENCE)))

    def until(self, arrived: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The one association of the run, once it is as said."""
        end = time.monotonic() + PATIENCE
        while True:
            (told,) = json.loads(self("associations", "list", "--json"))
            if arrived(told):
                return dict(told)
            assert time.monotonic() < end, (told, self.log())
            time.sleep(0.5)

    def products(self, name: str = "products") -> Path:
        """A folder with the products that are visible now."""
        out = self.folder / name
        self("products", "--out", out)
        return out
