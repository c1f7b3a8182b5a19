"""What the contract suites share."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The suites run on asyncio, for aiokafka and obstore do."""
    return "asyncio"
