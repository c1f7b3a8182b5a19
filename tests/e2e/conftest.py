"""Servers that the end-to-end tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.site import Servers
from tests.servers import kafka_cluster, s3_server


@pytest.fixture(scope="package")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with kafka_cluster(tmp_path_factory.mktemp("kafka")) as cluster, s3_server(tmp_path_factory.mktemp("s3")) as s3:
        yield cluster, s3
