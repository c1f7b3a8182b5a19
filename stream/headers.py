"""The headers of records, each with what it means: the table that the schemas of headers are made from. Sets none.

`stream.message` writes those of messages, `stream.worker` the one of retry topics, `stream.dead_letters` those that
burying adds.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream.broker.protocol import NOT_BEFORE
from stream.dead_letters import PREFIX
from stream.failure import FailureClass
from stream.message import CONTENT_TYPE, MessageKind
from stream.tracing import TRACEPARENT

__all__ = ["DEAD_LETTER_HEADERS", "EVENT_HEADERS", "MESSAGE_HEADERS", "RETRY_HEADERS", "HeaderSpec"]

_NUMBER = r"^(0|[1-9][0-9]*)$"


@dataclass(frozen=True, slots=True)
class HeaderSpec:
    """One header; its value is text in UTF-8 that matches ``pattern``."""

    name: str
    meaning: str
    required: bool = True
    pattern: str | None = None


def _one_of(*values: str) -> str:
    return f"^({'|'.join(value.replace('.', chr(92) + '.') for value in values)})$"


MESSAGE_HEADERS = (
    HeaderSpec("ce_specversion", "Version of CloudEvents.", pattern=_one_of("1.0")),
    HeaderSpec(
        "ce_id",
        "Digest of topic and content: equal whenever the same message is published again, so that readers can drop "
        "repeats.",
        pattern="^[0-9a-f]{64}$",
    ),
    HeaderSpec("ce_source", "`/rampstream/` and the run.", pattern=r"^/rampstream/[^/\s]+$"),
    HeaderSpec("ce_type", "Kind of the message.", pattern=_one_of(*(f"rampstream.{kind}" for kind in MessageKind))),
    HeaderSpec("ce_subject", "Id of the exposure, the member, or the association of an order or of products."),
    HeaderSpec("ce_dataref", "Key of the manifest that the message points to.", required=False),
    HeaderSpec(
        "ce_time",
        "When it was published, as RFC 3339 has it.",
        required=False,
        pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$",
    ),
    HeaderSpec("content-type", "Media type of the value.", pattern=_one_of(CONTENT_TYPE.decode())),
    HeaderSpec("schema_version", "As in the message.", pattern=r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$"),
    HeaderSpec(
        TRACEPARENT,
        "W3C trace context of the exposure, where there is one.",
        required=False,
        pattern="^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$",
    ),
)

EVENT_HEADERS = tuple(
    HeaderSpec("ce_type", "Kind of the event.", pattern=_one_of("rampstream.products"))
    if header.name == "ce_type"
    else header
    for header in MESSAGE_HEADERS
)

RETRY_HEADERS = (
    HeaderSpec(
        NOT_BEFORE,
        "Unix time in ms: consumers withhold the record, and what follows in its partition, until then.",
        pattern=_NUMBER,
    ),
)

DEAD_LETTER_HEADERS = (
    HeaderSpec(PREFIX + "stage", "First stage of the segment at which the record failed."),
    HeaderSpec(PREFIX + "topic", "Where the record lay: topic."),
    HeaderSpec(PREFIX + "partition", "Where the record lay: partition.", pattern=_NUMBER),
    HeaderSpec(PREFIX + "offset", "Where the record lay: offset.", pattern=_NUMBER),
    HeaderSpec(PREFIX + "timestamp-ms", "Time of the record: Unix time in ms.", pattern=r"^-?[0-9]+$"),
    HeaderSpec(PREFIX + "class", "Class of the failure.", pattern=_one_of(*FailureClass)),
    HeaderSpec(
        PREFIX + "failure",
        "The failure as a JSON object: `class`, `type`, `message`, and what else is known (traceback, signal, the end "
        "of the job's log).",
    ),
    HeaderSpec(PREFIX + "attempts", "How often it was tried.", pattern=_NUMBER),
    HeaderSpec(PREFIX + "software", "Name and version of the software that gave it up.", pattern="^rampstream "),
)
