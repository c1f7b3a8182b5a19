"""Dead letters: records that no attempt can help, with key, value and headers untouched and the reasons added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from stream.broker.protocol import Broker, Record
from stream.topology import dead_letter_topic_name

__all__ = ["PREFIX", "bury", "reasons"]

PREFIX = "dead-letter-"
"""Start of the names of the headers that burying adds; every other header is the record's own."""


async def bury(
    broker: Broker, run: str, record: Record, *, stage: str, failure: Mapping[str, Any], attempts: int
) -> Record:
    """Publish a record to the run's dead-letter topic.

    Parameters
    ----------
    broker : Broker
        Where to publish.
    run, stage : str
        The run, and the stage at which the record failed.
    record : Record
        The record as it was consumed.
    failure : mapping
        ``class``, ``type`` and ``message`` of the failure, and what else is known of it.
    attempts : int
        How often it was tried.
    """
    added = {
        "stage": stage,
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp-ms": str(record.timestamp_ms),
        "class": str(failure.get("class", "")),
        "failure": json.dumps(dict(failure), default=str),
        "attempts": str(attempts),
        "software": f"rampstream {version('rampstream')}",
    }
    own = tuple((name, value) for name, value in record.headers if not name.startswith(PREFIX))
    extra = tuple((PREFIX + name, value.encode()) for name, value in added.items())
    return await broker.publish(dead_letter_topic_name(run), key=record.key, value=record.value, headers=own + extra)


def reasons(record: Record) -> dict[str, str]:
    """Return what burying added, without the prefix."""
    return {name.removeprefix(PREFIX): value.decode() for name, value in record.headers if name.startswith(PREFIX)}
