"""The S3 server of a test module: started when first wanted, with a prefix of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stream.store import ObjectStore
from stream.store.locations import StoreLimits
from stream.store.obstore_store import open_store
from tests.servers import S3Server, s3_server

__all__ = ["Opener", "left_parts", "opener", "server"]

Opener = Callable[..., ObjectStore]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def opener(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Opens the test's own prefix, by another address if one is given."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    prefix = uuid.uuid4().hex

    def open_at(url: str | None = None, *, limits: StoreLimits | None = None) -> ObjectStore:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url or server.environment["AWS_ENDPOINT_URL"])
        return open_store(f"s3://rampstream/{prefix}", limits=limits)

    return open_at


def left_parts(server: S3Server) -> list[Path]:
    """Parts of uploads that were neither completed nor aborted."""
    return [path for path in (server.root / ".sgwtmp").rglob("*") if path.is_file()]
