"""The right to make an outcome known: held while the record's partition is, and lost for good with it."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Lease", "OrphanedError"]


class OrphanedError(Exception):
    """The partition of the record at hand went to another member: publish nothing, that member will."""


class Lease:
    """What a handler asks before it publishes.

    Results may be stored without it, for they are equal whoever makes them; a commit, a retry, a dead letter or the
    next message may not be published.

    Parameters
    ----------
    held : callable
        Whether it is held now.
    starts : callable
        Whether work may begin under it: not any more once the partition is about to go.
    """

    def __init__(self, held: Callable[[], bool] = lambda: True, starts: Callable[[], bool] = lambda: True) -> None:
        self._held = held
        self._starts = starts

    @property
    def held(self) -> bool:
        """Whether the partition is still this member's."""
        return self._held()

    def check(self) -> None:
        """Raise OrphanedError when it is lost."""
        if not self._held():
            raise OrphanedError

    def check_start(self) -> None:
        """Raise OrphanedError when it is lost, or about to be: what has not begun is for the next owner."""
        if not (self._starts() and self._held()):
            raise OrphanedError
