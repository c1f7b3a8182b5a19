"""Members that come after their association was closed: by workers of the whole pipeline on Kafka and S3."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.asdf_container import open_container, plain
from tests.conftest import Simulated, share_warm_server
from tests.e2e.test_presets_distributed import digests
from tests.servers import KafkaCluster, S3Server, kafka_cluster, s3_server

BOTH = "--group-detectors=WFI01,WFI02"
PATIENCE = 240.0


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KafkaCluster, S3Server]]:
    with kafka_cluster(tmp_path_factory.mktemp("kafka")) as cluster, s3_server(tmp_path_factory.mktemp("s3")) as s3:
        yield cluster, s3


@pytest.fixture(scope="module")
def detectors(simulated_association: Simulated) -> list[Path]:
    """The two detectors of one exposure."""
    name = simulated_association.exposures[0].name.partition("_wfi")[0]
    found = [path for path in simulated_association.exposures if path.name.startswith(name)]
    assert len(found) == 2
    return found


class Site:
    """A run on the servers, its worker, and what an operator says."""

    def __init__(self, folder: Path, run: str, servers: tuple[KafkaCluster, S3Server]) -> None:
        cluster, s3 = servers
        share_warm_server()
        self.folder = folder
        self.environment = {
            **os.environ,
            **s3.environment,
            "RAMPSTREAM_BROKER": cluster.url,
            "RAMPSTREAM_STORE": f"s3://rampstream/{run}",
            "RAMPSTREAM_RUN": run,
            "RAMPSTREAM_PARTITIONS": "2",
            "RAMPSTREAM_WORK": str(folder / "client"),
        }

    def __call__(self, *words: str | Path) -> str:
        command = [sys.executable, "-m", "ops.cli", *map(str, words)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def apply(self, simulated: Simulated, rules: str) -> None:
        config = self.folder / "run.toml"
        config.write_text(f"[associations]\n{rules}\n")
        inputs = ("--references", simulated.references, "--gaia", simulated.gaia)
        self("topics", "apply", "--preset", "fused", "--config", config, *inputs)

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        words = [sys.executable, "-m", "ops.cli", "worker", "--work", str(self.folder / "worker")]
        with (self.folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log)
            try:
                yield
            finally:
                worker.send_signal(signal.SIGTERM)
                status = worker.wait(60)
        assert status == 0, (self.folder / "worker.log").read_text()

    def until(self, arrived: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The one association of the run, once it is as said."""
        end = time.monotonic() + PATIENCE
        while True:
            (told,) = json.loads(self("associations", "list", "--json"))
            if arrived(told):
                return dict(told)
            assert time.monotonic() < end, (told, (self.folder / "worker.log").read_text())
            time.sleep(0.5)

    def products(self, name: str) -> Path:
        out = self.folder / name
        self("products", "--out", out)
        return out


@pytest.fixture(scope="module")
def together(
    servers: tuple[KafkaCluster, S3Server],
    simulated_association: Simulated,
    detectors: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Products of a run to which both came in time."""
    site = Site(tmp_path_factory.mktemp("together"), "together", servers)
    site.apply(simulated_association, "deadline = 3600")
    with site.worker():
        site("ingest", *detectors, BOTH)
        told = site.until(lambda told: told["complete"])
        assert (told["revision"], told["closed"]) == (1, "complete")
    return digests(site.products("products"))


def members(folder: Path) -> dict[str, tuple[list[str], list[str], str]]:
    """Of each image: the members that it was expected to be made with, those that it was, and how it was aligned."""
    found = {}
    for path in folder.rglob("*_cal.asdf"):
        meta: dict[str, Any] = plain(
            {key: open_container(path).node("roman", "meta")[key] for key in ("asn", "cal_step")}
        )
        found[path.name.removesuffix("_cal.asdf")] = (
            meta["asn"]["expected_members"], meta["asn"]["used_members"], meta["cal_step"]["tweakreg"],
        )  # fmt: skip
    return found


def test_a_detector_that_misses_the_deadline_is_aligned_in_a_second_revision(
    servers: tuple[KafkaCluster, S3Server],
    simulated_association: Simulated,
    detectors: list[Path],
    together: dict[str, str],
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, "late", servers)
    site.apply(simulated_association, "deadline = 5\nrevision_delay = 1")
    first, second = (path.name.removesuffix("_uncal.asdf") for path in detectors)
    with site.worker():
        site("ingest", detectors[0], BOTH)
        told = site.until(lambda told: told["complete"])
        assert (told["revision"], told["closed"], told["expected"]) == (1, "deadline", 2)
        one = site.products("first")
        assert members(one) == {first: ([first, second], [first], "COMPLETE")}

        site("ingest", detectors[1], BOTH)
        told = site.until(lambda told: told["complete"] and told["revision"] == 2)
        assert (told["closed"], told["changes"], told["waited_for"]) == ("changed", 0, 0)
    assert set(members(one)) == {first}, "what was fetched stays as it was"
    two = site.products("second")
    used = ([first, second], [first, second], "COMPLETE")
    assert members(two) == {first: used, second: used}
    assert digests(two) == together
    image = f"{first}_cal.asdf"
    assert digests(one)[image] != together[image], "alone it was aligned otherwise, or at least labelled so"


def test_an_operator_closes_for_one_detector_and_reopens_for_the_other_while_no_worker_runs(
    servers: tuple[KafkaCluster, S3Server],
    simulated_association: Simulated,
    detectors: list[Path],
    together: dict[str, str],
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, "operated", servers)
    site.apply(simulated_association, 'deadline = "none"\nrevision_delay = 86400\non_missing = "wait"')
    first, second = (path.name.removesuffix("_uncal.asdf") for path in detectors)
    with site.worker():
        site("ingest", detectors[1], BOTH)
        told = site.until(lambda told: told["present"] == {"ok": 1})
        assert (told["closed"], told["deadline"], told["waited_for"]) == (None, None, 1)
        assert "would be ordered: align 1 of 2 members" in site("associations", "close", "*")
    site("associations", "close", "*", "--execute")
    with site.worker():
        told = site.until(lambda told: told["complete"])
        assert (told["revision"], told["closed"]) == (1, "operator")
        assert members(site.products("closed")) == {second: ([first, second], [second], "COMPLETE")}
        site("ingest", detectors[0], BOTH)
        told = site.until(lambda told: told["changes"] == 1)
        assert (told["revision"], told["complete"]) == (1, True), "it would wait for a day"
    site("associations", "reopen", "*", "--execute")
    with site.worker():
        site.until(lambda told: told["complete"] and told["revision"] == 2)
    assert digests(site.products("reopened")) == together
