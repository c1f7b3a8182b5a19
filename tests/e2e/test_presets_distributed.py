"""However the pipeline is cut, through Kafka and S3 the products are those of the embedded engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Simulated, digests, run_command
from tests.e2e.site import Servers, Site
from tests.faults.bench_of_workers import FULL


@pytest.fixture(scope="module")
def expected(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Products of the embedded engine."""
    out = tmp_path_factory.mktemp("embedded")
    run_command(simulated, simulated.exposures, out)
    return digests(out)


WALKED = pytest.mark.skipif(not FULL, reason="the walk-through of docs/distributed.md runs it, by many workers")


@pytest.mark.parametrize("preset", ["fused", pytest.param("balanced", marks=WALKED), "granular"])
def test_every_preset_gives_the_products_of_the_embedded_engine(
    preset: str, simulated: Simulated, servers: Servers, expected: dict[str, str], tmp_path: Path
) -> None:
    site = Site(tmp_path, preset, servers)
    site.apply(simulated, preset=preset)
    site.ingest_and_wait(*simulated.exposures)
    assert len(expected) == 4
    assert digests(site.products()) == expected
