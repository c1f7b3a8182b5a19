"""Which offsets of a partition are finished, and so how far may be committed. One tracker per partition and epoch.

Records finish in any order, but a commit says that everything below it is finished: so only the contiguous finished
prefix is committed, and finished offsets above it travel as a hint in the commit's metadata. A lost or damaged hint
costs repeated work, never a record.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator

from stream.broker.protocol import Commit

__all__ = ["HINT_LIMIT", "OffsetTracker", "decode_hints", "encode_hints"]

HINT_LIMIT = 2048
"""Longest metadata in characters. Kafka's ``offset.metadata.max.bytes`` is 4096; half of it leaves room for brokers set
lower. A range takes 2 characters when it is one record behind one unfinished record, so that pattern, the worst, still
carries 1000 finished records: more than a partition has in flight."""

_MOST_HINTS = 1_000_000
"""More finished offsets than any partition holds above its prefix; a damaged text must not fill the memory."""

_FORMAT = re.compile(r"f1 (0|[1-9][0-9]{0,18})((?: [1-9][0-9]{0,18}(?:-[1-9][0-9]{0,18})?)+)")


def encode_hints(offset: int, finished: Iterable[int], *, limit: int = HINT_LIMIT) -> str:
    """Write finished offsets above a commit as text of at most ``limit`` characters.

    The text is ``f1 OFFSET GAP[-MORE] …``: ``GAP`` is the distance from the end of the last range (from OFFSET for the
    first) to the start of the next, and MORE is how many further offsets the range has. The offset it belongs to is
    part of it, so that it is never read against another. What does not fit is left out, highest first.
    """
    text = f"f1 {offset}"
    hints = ""
    end = offset
    for first, last in _ranges(finished):
        if first <= offset:
            continue
        part = f" {first - end}" + (f"-{last - first}" if last > first else "")
        if len(text) + len(hints) + len(part) > limit:
            break
        hints += part
        end = last
    return text + hints if hints else ""


def decode_hints(commit: Commit) -> frozenset[int]:
    """Read the finished offsets above a commit; none when the metadata is not ours or belongs to another offset."""
    match = _FORMAT.fullmatch(commit.metadata)
    if match is None or len(commit.metadata) > HINT_LIMIT or int(match[1]) != commit.offset:
        return frozenset()
    finished: set[int] = set()
    end = commit.offset
    for part in match[2].split():
        gap, _, more = part.partition("-")
        first = end + int(gap)
        end = first + int(more or 0)
        if len(finished) + end - first > _MOST_HINTS:
            return frozenset()
        finished.update(range(first, end + 1))
    return frozenset(finished)


class OffsetTracker:
    """The finished prefix of one partition under one epoch.

    Every record that is fetched must be passed to `start`, in the order of offsets; offsets that the log skips (after
    compaction) need no mention.

    Parameters
    ----------
    epoch : int
        The assignment under which the records are worked on.
    start : int
        First offset that will be fetched.
    finished : iterable of int
        Offsets at or above ``start`` that are known to be finished.
    """

    def __init__(self, *, epoch: int, start: int, finished: Iterable[int] = ()) -> None:
        self.epoch = epoch
        self._next = start
        self._open: set[int] = set()
        self._given_up: set[int] = set()
        self._heap: list[int] = []
        self._finished = {offset for offset in finished if offset >= start}
        self._committed = Commit(start, "")
        self._closed = False

    @classmethod
    def restored(cls, commit: Commit | None, *, epoch: int, start: int) -> OffsetTracker:
        """Take up where a commit left off.

        Parameters
        ----------
        commit : Commit or None
            The group's commit; its hints are used only when fetching starts at it.
        epoch : int
            The new epoch.
        start : int
            First offset that will be fetched.
        """
        if commit is None or commit.offset != start:
            return cls(epoch=epoch, start=start)
        tracker = cls(epoch=epoch, start=start, finished=decode_hints(commit))
        tracker._committed = commit
        return tracker

    @property
    def closed(self) -> bool:
        """Whether its epoch has ended."""
        return self._closed

    @property
    def in_flight(self) -> int:
        """Records started, not finished, and not given up."""
        return len(self._open) - len(self._given_up)

    @property
    def position(self) -> int:
        """One more than the highest offset seen."""
        return self._next

    @property
    def prefix(self) -> int:
        """The offset that may be committed: the lowest that is not known to be finished."""
        while self._heap and self._heap[0] not in self._open:
            heapq.heappop(self._heap)
        if self._heap:
            return self._heap[0]
        prefix = self._next
        while prefix in self._finished:
            prefix += 1
        return prefix

    def start(self, offset: int) -> bool:
        """Take note of a fetched record; False when there is nothing to do for it.

        That is so when it is finished (a hint says so, or it was fetched again) or is being worked on already, and
        once the tracker is closed.
        """
        if self._closed or offset in self._open or offset < self._next:
            return False
        self._next = offset + 1
        if offset in self._finished:
            return False
        self._open.add(offset)
        heapq.heappush(self._heap, offset)
        return True

    def finish(self, offset: int) -> bool:
        """Take note that the effects of a record are durable; False when that changes nothing.

        Raises
        ------
        ValueError
            The record was never started.
        """
        if self._closed:
            return False
        if offset not in self._open:
            if offset >= self._next:
                msg = f"offset {offset} was finished and never started: next is {self._next}"
                raise ValueError(msg)
            return False
        self._open.remove(offset)
        self._given_up.discard(offset)
        self._finished.add(offset)
        return True

    def give_up(self, offset: int) -> None:
        """Take note that nobody works on a started record here any more: unfinished, it still holds the prefix back."""
        if offset in self._open:
            self._given_up.add(offset)

    def close(self) -> None:
        """End the epoch: nothing more starts, finishes or is committed through this tracker."""
        self._closed = True

    def pending(self) -> Commit | None:
        """Return what should be committed now; None when the last commit says as much, or the tracker is closed."""
        if self._closed:
            return None
        commit = self.commit()
        return None if commit == self._committed else commit

    def commit(self) -> Commit:
        """Return the finished prefix, with hints of what is finished above it."""
        prefix = self.prefix
        # A hint that the prefix has passed before its record was fetched is still needed when that comes.
        needed = min(prefix, self._next)
        self._finished = {offset for offset in self._finished if offset >= needed}
        return Commit(prefix, encode_hints(prefix, self._finished))

    def acknowledge(self, commit: Commit) -> None:
        """Take note that the broker has stored this commit."""
        if commit.offset >= self._committed.offset:
            self._committed = commit


def _ranges(offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = None
    for offset in sorted(offsets):
        if first is None or last is None:
            first = last = offset
        elif offset == last + 1:
            last = offset
        else:
            yield first, last
            first = last = offset
    if first is not None and last is not None:
        yield first, last
