"""Tokens that whoever is further on gets first, so that what is begun is finished before more is begun.

Not what a token stands for: messages in flight (`stream.inbox`), job processes (`stream.process_runner`).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
import anyio.lowlevel

__all__ = ["Capacity", "Tokens"]


class Capacity(Protocol):
    """What an inbox takes tokens from; `anyio.CapacityLimiter` is one that knows no precedence."""

    @property
    def total_tokens(self) -> float:
        """How many there are."""
        ...

    @property
    def borrowed_tokens(self) -> int:
        """How many are taken."""
        ...

    async def acquire_on_behalf_of(self, borrower: object, /) -> None:
        """Take one, and wait for it."""
        ...

    def release_on_behalf_of(self, borrower: object, /) -> None:
        """Give it back."""
        ...


class Tokens:
    """A number of tokens. Of those who wait the highest precedence is served first, and the first among equals.

    Parameters
    ----------
    total : int
        How many.
    kept : int
        How many of them whoever has precedence 0 leaves to the others, who so never wait for a beginner to end.
    """

    def __init__(self, total: int, *, kept: int = 0) -> None:
        self._total = total
        self._kept = kept
        self._borrowers: set[object] = set()
        self._waiting: list[tuple[int, int, object, anyio.Event]] = []
        self._turns = itertools.count()

    def of(self, precedence: int) -> Capacity:
        """The tokens as one precedence sees them."""
        return _Share(self, precedence)

    @asynccontextmanager
    async def one(self, precedence: int) -> AsyncIterator[None]:
        """A token for as long as the block lasts."""
        borrower = object()
        await self.acquire(borrower, precedence)
        try:
            yield
        finally:
            self.release(borrower)

    async def acquire(self, borrower: object, precedence: int) -> None:
        """Take a token, and wait for it. Cancelled meanwhile, it takes none."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        # Whoever waits with at least this precedence would have taken what is free.
        if self._has_room(precedence):
            self._borrowers.add(borrower)
            await anyio.lowlevel.cancel_shielded_checkpoint()  # who takes many at once must not keep the others waiting
            return
        given = anyio.Event()
        waiter = (-precedence, next(self._turns), borrower, given)
        heapq.heappush(self._waiting, waiter)
        try:
            await given.wait()
        except BaseException:
            if given.is_set():
                self.release(borrower)
            else:
                self._waiting.remove(waiter)
                heapq.heapify(self._waiting)
            raise

    def release(self, borrower: object) -> None:
        """Give a token back, to the next in line."""
        self._borrowers.remove(borrower)
        while self._waiting and self._has_room(-self._waiting[0][0]):
            _, _, following, given = heapq.heappop(self._waiting)
            self._borrowers.add(following)
            given.set()

    def total(self, precedence: int) -> int:
        """How many one precedence may take at most."""
        return self._total - (self._kept if precedence == 0 else 0)

    @property
    def borrowed(self) -> int:
        """How many are taken."""
        return len(self._borrowers)

    def _has_room(self, precedence: int) -> bool:
        return self.borrowed < self.total(precedence)


class _Share:
    """Implements `Capacity`."""

    def __init__(self, tokens: Tokens, precedence: int) -> None:
        self._tokens = tokens
        self._precedence = precedence

    @property
    def total_tokens(self) -> float:
        return self._tokens.total(self._precedence)

    @property
    def borrowed_tokens(self) -> int:
        return self._tokens.borrowed

    async def acquire_on_behalf_of(self, borrower: object, /) -> None:
        await self._tokens.acquire(borrower, self._precedence)

    def release_on_behalf_of(self, borrower: object, /) -> None:
        self._tokens.release(borrower)
