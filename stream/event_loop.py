"""Runs what serves messages on the event loop that costs least. Commands that end soon need it not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple, Unpack

import anyio

__all__ = ["run"]

Arguments = TypeVarTuple("Arguments")
Returned = TypeVar("Returned")


def run(main: Callable[[Unpack[Arguments]], Awaitable[Returned]], *arguments: *Arguments) -> Returned:
    """Run an asynchronous function to its end on uvloop; returns what it returns."""
    return anyio.run(main, *arguments, backend_options={"use_uvloop": True})
