"""Real servers for tests: Kafka and S3 as `deploy/local` starts them. Each belongs to who started it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

LOCAL = Path(__file__).parents[1] / "deploy" / "local"


def _processes() -> ModuleType:
    """The module that `deploy/local`'s scripts start servers by; it is in no package."""
    spec = importlib.util.spec_from_file_location("deploy_local_processes", LOCAL / "processes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


processes = _processes()
free_port = processes.free_port


def _output(script: str, *arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, LOCAL / script, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class KafkaCluster:
    """A running cluster; nodes count from 1."""

    data: Path
    servers: str

    @property
    def url(self) -> str:
        return f"kafka://{self.servers}"

    def password(self, user: str) -> str:
        """Password of a user of a cluster that was started with ``secure``."""
        return str(json.loads((self.data / "users.json").read_text())[user])

    def _pid(self, node: int) -> int:
        return int(json.loads((self.data / f"kafka-{node}.pid").read_text())["pid"])

    def signal(self, node: int, number: signal.Signals) -> None:
        os.kill(self._pid(node), number)

    def kill(self, node: int = 1) -> None:
        """End a node as a power failure would."""
        self.signal(node, signal.SIGKILL)

    def start(self, node: int = 1) -> None:
        subprocess.run(
            [sys.executable, LOCAL / "kafka", "start-node", "--data", self.data, "--node", str(node)], check=True
        )

    def start_what_is_down(self, seconds: float = 60.0) -> None:
        """Start the nodes that a test left dead, and wait until all accept connections."""
        running = dict(processes.running(self.data))
        addresses = self.servers.split(",")
        for node in range(1, len(addresses) + 1):
            if f"kafka-{node}" not in running:
                self.start(node)
        deadline = time.monotonic() + seconds
        for node, address in enumerate(addresses, 1):
            while not processes.accepts(int(address.rpartition(":")[2])):
                tail = (self.data / f"kafka-{node}.log").read_text(errors="replace")[-2000:]
                assert time.monotonic() < deadline, f"node {node} is not up; its log ends: {tail}"
                time.sleep(0.1)

    def stop(self, node: int = 1) -> None:
        subprocess.run(
            [sys.executable, LOCAL / "kafka", "stop-node", "--data", self.data, "--node", str(node)], check=True
        )


@contextlib.contextmanager
def kafka_cluster(
    data: Path, *, nodes: int = 1, port: int | None = None, settings: Sequence[str] = (), secure: bool = False
) -> Iterator[KafkaCluster]:
    options = [] if port is None else ["--port", str(port)]
    options += ["--secure"] if secure else []
    options += [word for setting in settings for word in ("--setting", setting)]
    _output("kafka", "up", "--nodes", str(nodes), "--data", data, *options)
    try:
        yield KafkaCluster(data, (data / "servers").read_text())
    finally:
        subprocess.run([sys.executable, LOCAL / "kafka", "down", "--data", data], check=True)


@dataclass
class S3Server:
    """A running S3 server and the variables that lead to it."""

    data: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Where its objects lie as files."""
        return self.data / "root" / "rampstream"


@contextlib.contextmanager
def s3_server(data: Path) -> Iterator[S3Server]:
    lines = [line.removeprefix("export ").split("=", 1) for line in _output("s3", "up", "--data", data).splitlines()]
    try:
        yield S3Server(data, dict(lines))
    finally:
        subprocess.run([sys.executable, LOCAL / "s3", "down", "--data", data], check=True)
