"""However the pipeline is cut, through Kafka and S3 the products are those of the embedded engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.finalize.content_digest import content_digest
from tests.conftest import Simulated, run_command
from tests.faults.bench_of_workers import FULL
from tests.servers import KafkaCluster, S3Server, kafka_cluster, s3_server


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KafkaCluster, S3Server]]:
    with kafka_cluster(tmp_path_factory.mktemp("kafka")) as cluster, s3_server(tmp_path_factory.mktemp("s3")) as s3:
        yield cluster, s3


@pytest.fixture(scope="module")
def expected(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Products of the embedded engine."""
    out = tmp_path_factory.mktemp("embedded")
    run_command(simulated, simulated.exposures, out)
    return digests(out)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: content_digest(path) for path in sorted(folder.rglob("r*_*.*")) if path.is_file()}


def rampstream(environment: dict[str, str], *words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


WALKED = pytest.mark.skipif(not FULL, reason="the walk-through of docs/distributed.md runs it, by many workers")


@pytest.mark.parametrize("preset", ["fused", pytest.param("balanced", marks=WALKED), "granular"])
def test_every_preset_gives_the_products_of_the_embedded_engine(
    preset: str,
    simulated: Simulated,
    servers: tuple[KafkaCluster, S3Server],
    expected: dict[str, str],
    tmp_path: Path,
) -> None:
    cluster, s3 = servers
    environment = {
        **os.environ,
        **s3.environment,
        "RAMPSTREAM_BROKER": cluster.url,
        "RAMPSTREAM_STORE": f"s3://rampstream/{preset}",  # apart, for the same results would be found again
        "RAMPSTREAM_RUN": preset,
        "RAMPSTREAM_PARTITIONS": "2",
        "RAMPSTREAM_WORK": str(tmp_path / "client"),
    }
    references = ("--references", simulated.references, "--gaia", simulated.gaia)
    rampstream(environment, "topics", "apply", "--preset", preset, *references)
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "ops.cli", "worker", "--work", str(tmp_path / "worker")],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            rampstream(environment, "ingest", *simulated.exposures)
            rampstream(environment, "status", "--wait", "300")
        finally:
            worker.send_signal(signal.SIGTERM)
            status = worker.wait(60)
    assert status == 0, (tmp_path / "worker.log").read_text()
    rampstream(environment, "products", "--out", tmp_path / "products")
    assert len(expected) == 4
    assert digests(tmp_path / "products") == expected
