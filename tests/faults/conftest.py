"""Servers that the fault tests share, and a bench for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.bench_of_aggregators import AggregatorBench
from tests.faults.bench_of_workers import FULL, Bench
from tests.servers import KafkaCluster, S3Server, kafka_cluster, s3_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give mutants another try, which are met by chance, and the slices that CI runs, where a busy machine may decide.

    A slice is tried again when a wait was too short or the cluster did not answer the test itself, never for a broken
    invariant. At full length nothing but a mutant is. Of the mutants of a file a slice meets the one that is marked so.
    """
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        mutant = item.get_closest_marker("mutant")
        if mutant or not FULL:
            item.add_marker(pytest.mark.flaky(reruns=2, rerun_except=[] if mutant else ["AssertionError"]))
        if mutant and not FULL and not mutant.kwargs.get("in_slice"):
            item.add_marker(pytest.mark.skip(reason="one mutant of a file beside other tests: make faults"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    # It looks for something to compact once a second, not every 15 s.
    settings = ("log.cleaner.backoff.ms=1000",)
    with kafka_cluster(tmp_path_factory.mktemp("kafka"), settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    with kafka_cluster(tmp_path_factory.mktemp("kafka-3"), nodes=3) as running:
        yield running


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def bench(tmp_path: Path, cluster: KafkaCluster, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    cluster.start_what_is_down()
    return Bench(tmp_path, cluster, s3)


@pytest.fixture
def bench_of_three(tmp_path: Path, three_nodes: KafkaCluster, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    three_nodes.start_what_is_down()
    return Bench(tmp_path, three_nodes, s3)


@pytest.fixture
def aggregators(
    tmp_path: Path, cluster: KafkaCluster, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], AggregatorBench]:
    """Benches by name: a test may have several at work at the same time."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    cluster.start_what_is_down()
    return lambda name: AggregatorBench(tmp_path / name, cluster, s3)
