"""What was read of one partition of Kafka and not handed out yet. Not the reading."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from stream.broker.kafka_settings import BUFFERED_BYTES, BUFFERED_RECORDS
from stream.broker.protocol import NOT_BEFORE, Record

__all__ = ["PartitionBuffer", "record_from"]

_OVERHEAD = 100
"""Bytes of a record beside its value, roughly."""


def record_from(message: Any) -> Record:
    """A record as the client gives it."""
    headers = tuple((name, value or b"") for name, value in message.headers)
    return Record(
        message.topic, message.partition, message.offset, message.key, message.value, headers, message.timestamp
    )


class PartitionBuffer:
    """Records of one partition in order.

    Parameters
    ----------
    position : int
        Offset of the next record to hand out; what lies before it is not taken in.
    """

    __slots__ = ("_head_since", "held", "position", "records", "size")

    def __init__(self, position: int) -> None:
        self.position = position
        self.records: deque[Record] = deque()
        self.size = 0
        self.held = False
        self._head_since: float | None = None

    def add(self, record: Record) -> None:
        """Take in a record, unless it was before."""
        if record.offset >= (self.records[-1].offset + 1 if self.records else self.position):
            self.records.append(record)
            self.size += len(record.value or b"") + _OVERHEAD

    def take(self) -> Record:
        """Hand out the next record."""
        record = self.records.popleft()
        self.size -= len(record.value or b"") + _OVERHEAD
        self.position = record.offset + 1
        self._head_since = None
        return record

    def due_in(self) -> float:
        """Seconds until the head, which there must be, may be handed out; none or less for now.

        The time in its header is by the clock of who withheld it. That clock and this one may differ by hours, and be
        set meanwhile: so it is never withheld longer, from when it came to be the head, than it was meant to be.
        """
        head = self.records[0]
        try:
            not_before_ms = int(head.header(NOT_BEFORE) or 0)
        except ValueError:
            return 0.0
        now = time.monotonic()
        if self._head_since is None:
            self._head_since = now
        meant = (not_before_ms - head.timestamp_ms) / 1000
        return min(not_before_ms / 1000 - time.time(), self._head_since + meant - now)

    @property
    def full(self) -> bool:
        """Whether nothing more should be read."""
        return len(self.records) >= BUFFERED_RECORDS or self.size >= BUFFERED_BYTES

    @property
    def roomy(self) -> bool:
        """Whether half of it is free, and reading may go on."""
        return len(self.records) < BUFFERED_RECORDS // 2 and self.size < BUFFERED_BYTES // 2
