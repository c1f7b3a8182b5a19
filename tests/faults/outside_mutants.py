"""Ways to break the engine that faults of network, store and clock must show; for `tests.faults.light.mutate`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from obstore.exceptions import AlreadyExistsError

from stream.broker import kafka_errors
from stream.broker.kafka_buffer import PartitionBuffer
from stream.broker.protocol import NOT_BEFORE
from stream.failure import Failure, FailureClass, FatalError, PermanentError
from stream.inbox import Inbox
from stream.message import Message
from stream.store import cache, obstore_store
from stream.worker import WorkFailedError

__all__ = ["NETWORK_AND_STORE"]


def name_each_publish_anew() -> None:
    """Give a message that is published again another id."""
    headers = Message.headers

    def named(self: Message, *args: Any, **kwargs: Any) -> Any:
        given = headers(self, *args, **kwargs)
        return tuple((n, uuid.uuid4().hex.encode() if n == "ce_id" else value) for n, value in given)

    Message.headers = named  # type: ignore[method-assign]


def take_unheard_commits_for_done() -> None:
    """Count a commit whose reply did not come."""
    commit = Inbox._commit

    async def patched(self: Inbox, trackers: Mapping[Any, Any]) -> bool:
        pending = {tracker: tracker.pending() for tracker in trackers.values()}
        if not await commit(self, dict(trackers)):
            for tracker, position in pending.items():
                if position is not None:
                    tracker.acknowledge(position)
        return True

    Inbox._commit = patched  # type: ignore[method-assign]


def trust_refused_creations() -> None:
    """Take what exists for another's, though it may be what a lost reply did not tell of."""

    async def put_if_absent(self: Any, key: str, data: bytes) -> bool:
        with self._failures("create", key):
            try:
                await obstore_store.obstore.put_async(self._raw, key, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    obstore_store.ObstoreObjectStore.put_if_absent = put_if_absent  # type: ignore[method-assign]


def read_without_checking() -> None:
    """Use what was fetched as it came."""
    cache._check = lambda stored, found: None


def take_refusals_for_bad_exposures() -> None:
    """Blame the exposure when the store refuses, or a disk is full."""
    failure_from = obstore_store.failure_from

    def blame(error: Exception, what: str) -> Failure:
        failure = failure_from(error, what)
        return PermanentError(str(failure)) if isinstance(failure, FatalError) else failure

    obstore_store.failure_from = blame
    cache.FatalError = PermanentError  # type: ignore[misc,assignment]
    begin = WorkFailedError.__init__

    def blamed(self: WorkFailedError, outcome: Any) -> None:
        begin(self, outcome)
        if self.failure_class is FailureClass.FATAL:
            self.failure_class = FailureClass.PERMANENT

    WorkFailedError.__init__ = blamed  # type: ignore[method-assign]


def believe_the_clock() -> None:
    """Withhold a record by what the clock says alone."""

    def due_in(self: PartitionBuffer) -> float:
        return int(self.records[0].header(NOT_BEFORE) or 0) / 1000 - time.time()

    PartitionBuffer.due_in = due_in  # type: ignore[method-assign]


def wait_for_the_clock() -> None:
    """Try again and again what the broker refuses for its time."""
    kafka_errors._WRONG_CLOCK = ()  # type: ignore[assignment]


NETWORK_AND_STORE: dict[str, Callable[[], None]] = {
    "names-each-publish-anew": name_each_publish_anew,
    "takes-unheard-commits-for-done": take_unheard_commits_for_done,
    "trusts-a-refused-creation": trust_refused_creations,
    "reads-without-checking": read_without_checking,
    "takes-a-refusal-for-a-bad-exposure": take_refusals_for_bad_exposures,
    "believes-the-clock": believe_the_clock,
    "waits-for-the-clock": wait_for_the_clock,
}
