"""The AsyncAPI document of a run's topics: channels, messages and operations, made from topology, messages and headers.

It describes what is on the wire. What a message means for the pipeline is in ``docs/messages.md``.
"""

from __future__ import annotations

from typing import Any

from ops.schemas import changelog_schema, event_schema, header_schema, message_schema
from ops.settings import RunSettings
from ops.topics import wanted_topics
from stages.pipeline import TABLE
from stream.broker.protocol import TopicSpec
from stream.headers import DEAD_LETTER_HEADERS, EVENT_HEADERS, MESSAGE_HEADERS, RETRY_HEADERS
from stream.message import CONTENT_TYPE, SCHEMA_VERSION, MessageKind
from stream.topology import (
    Preset,
    StageRow,
    Topology,
    changelog_topic_name,
    dead_letter_topic_name,
    product_event_topic_name,
    retry_topic_name,
    topic_name,
)

__all__ = ["asyncapi", "default_topology"]

_CHANNEL_BINDING = "0.5.0"
"""Version of the Kafka bindings of AsyncAPI 3.0."""

_RUN, _STAGE, _TIER = "RUN", "stage_name", 7
"""What stands in a topic's name where the address has a parameter; no other part of an address has these texts."""

_DEFINED = "A topic has as many partitions as `topics apply --partitions` gave it; here: the default."


def default_topology() -> Topology:
    """The topology of the default table of stages."""
    return Topology(StageRow(row.name, row.branches, joint=row.joint, balanced_head=row.balanced_head) for row in TABLE)


def asyncapi(topology: Topology | None = None) -> dict[str, Any]:
    """Make the document.

    Parameters
    ----------
    topology : Topology, optional
        Stages; the default table's when not given.
    """
    topology = topology or default_topology()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Rampstream",
            "version": SCHEMA_VERSION,
            "description": "Topics of one run of Rampstream on Apache Kafka. Values are small JSON objects that point "
            "to results in object storage; headers are CloudEvents 1.0 in binary mode. Delivery is at least once: "
            "repeats of a message have equal `ce_id`.",
            "license": {"name": "BSD-3-Clause"},
        },
        "defaultContentType": CONTENT_TYPE.decode(),
        "servers": {
            "kafka": {
                "host": "{host}:{port}",
                "protocol": "kafka",
                "description": "What `--broker kafka://HOST:PORT` names.",
                "variables": {"host": {"default": "127.0.0.1"}, "port": {"default": "9092"}},
            }
        },
        "channels": _channels(topology),
        "operations": _operations(),
        "components": {
            "messages": _messages(),
            "schemas": {
                **{kind.value: message_schema(kind) for kind in MessageKind},
                "products": event_schema(),
                "changelog": changelog_schema(),
                "messageHeaders": header_schema("Headers of a message", MESSAGE_HEADERS),
                "eventHeaders": header_schema("Headers of an event about products", EVENT_HEADERS),
                "retryHeaders": header_schema("Headers in retry topics", (*MESSAGE_HEADERS, *RETRY_HEADERS)),
                "deadLetterHeaders": header_schema("Headers of a dead letter", DEAD_LETTER_HEADERS, open_ended=True),
            },
        },
    }


def _channels(topology: Topology) -> dict[str, Any]:
    joint = next(row.name for row in topology.rows if row.joint)
    single = [row.name for row in topology.rows if not row.joint]
    specs = _specs(topology)
    run = {"run": {"description": "Name of the run: letters, digits and `-`.", "default": "prompt"}}
    stage = {
        "stage": {
            "description": "First stage of a segment. A preset makes some of these the heads of segments, `granular` "
            "all of them; a stage that a user added has an inbox likewise.",
            "enum": single,
        }
    }
    tiers = len(RunSettings.model_fields["retry_seconds"].default)
    tier = {
        "tier": {
            "description": "How often the record was put off.",
            "enum": [str(number) for number in range(tiers)],
        }
    }
    first = single[0]
    return {
        "inbox": _channel(
            topic_name(_RUN, _STAGE), {**run, **stage}, specs[topic_name(_RUN, first)],
            "Inbox of a segment, named after its first stage.", "exposure", "finalize", note=_DEFINED,
        ),
        "retries": _channel(
            retry_topic_name(_RUN, _STAGE, _TIER), {**run, **stage, **tier}, specs[retry_topic_name(_RUN, first, 0)],
            "Records of an inbox that wait for another try; an eighth of the inbox's partitions.",
            "exposureAgain", "finalizeAgain", note=_DEFINED,
        ),
        "members": _channel(
            topic_name(_RUN, joint), run, specs[topic_name(_RUN, joint)],
            "Inbox of the aggregator: what became of the members of associations, and orders of operators.",
            "member", "order", note=_DEFINED,
        ),
        "changelog": _channel(
            changelog_topic_name(_RUN, joint), run, specs[changelog_topic_name(_RUN, joint)],
            "State of the aggregator; compacted.", "changelog",
        ),
        "deadLetters": _channel(
            dead_letter_topic_name(_RUN), run, specs[dead_letter_topic_name(_RUN)],
            "Records that no attempt can help.", "deadLetter",
        ),
        "productEvents": _channel(
            product_event_topic_name(_RUN), run, specs[product_event_topic_name(_RUN)],
            "Events about products that became visible: one for each revision of an association, and repeats.",
            "products",
        ),
    }  # fmt: skip


def _specs(topology: Topology) -> dict[str, TopicSpec]:
    # Not the settings of whoever runs this: the document must not depend on its environment.
    defaults = RunSettings.model_construct(run=_RUN)
    return {spec.name: spec for spec in wanted_topics(defaults, topology.segments(Preset.GRANULAR))}


def _channel(
    topic: str, parameters: dict[str, Any], spec: TopicSpec, description: str, *messages: str, note: str | None = None
) -> dict[str, Any]:
    configuration: dict[str, Any] = {"cleanup.policy": ["compact" if spec.compacted else "delete"]}
    if "retention.ms" in spec.config:
        configuration["retention.ms"] = int(spec.config["retention.ms"])
    return {
        "address": _address(topic),
        "description": description if note is None else f"{description} {note}",
        "parameters": parameters,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {
            "kafka": {
                "partitions": spec.partitions,
                "topicConfiguration": configuration,
                "bindingVersion": _CHANNEL_BINDING,
            }
        },
    }


def _address(topic: str) -> str:
    address = topic.replace(_RUN, "{run}", 1).replace(_STAGE, "{stage}")
    return address.removesuffix(str(_TIER)) + "{tier}" if address.endswith(f"-{_TIER}") else address


def _messages() -> dict[str, Any]:
    exposure_key = _key("Id of the exposure: its records stay in order in one partition.")
    association_key = _key("Id of the association, so that one reader sees all its members in order.")
    state_key = _key("`<association>/<member>/<source offset>`, `<association>/#dispatched`, or `#whole/<partition>`.")
    any_key = {"description": "Key of the record as it was.", "type": ["string", "null"]}
    return {
        "exposure": _message(MessageKind.EXPOSURE, "messageHeaders", exposure_key),
        "finalize": _message(MessageKind.FINALIZE, "messageHeaders", exposure_key),
        "exposureAgain": _message(MessageKind.EXPOSURE, "retryHeaders", exposure_key),
        "finalizeAgain": _message(MessageKind.FINALIZE, "retryHeaders", exposure_key),
        "member": _message(MessageKind.MEMBER, "messageHeaders", association_key),
        "order": _message(MessageKind.ORDER, "messageHeaders", association_key),
        "products": {
            "name": "rampstream.products",
            "title": "products event",
            "contentType": CONTENT_TYPE.decode(),
            "headers": {"$ref": "#/components/schemas/eventHeaders"},
            "payload": {"$ref": "#/components/schemas/products"},
            "bindings": _message_binding(_key("Id of the association, so that its revisions stay in order.")),
        },
        "changelog": {
            "title": "State of a member, or of an association",
            "payload": {"$ref": "#/components/schemas/changelog"},
            "bindings": _message_binding(state_key),
        },
        "deadLetter": {
            "title": "A record that was given up",
            "summary": "Key, value and headers of the record, untouched, with the reasons as further headers.",
            "headers": {"$ref": "#/components/schemas/deadLetterHeaders"},
            "payload": {"description": "The value as it was: a message, or bytes that are none."},
            "bindings": _message_binding(any_key),
        },
    }


def _message(kind: MessageKind, headers: str, key: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"rampstream.{kind.value}",
        "title": f"{kind.value} message",
        "contentType": CONTENT_TYPE.decode(),
        "headers": {"$ref": f"#/components/schemas/{headers}"},
        "payload": {"$ref": f"#/components/schemas/{kind.value}"},
        "bindings": _message_binding(key),
    }


def _message_binding(key: dict[str, Any]) -> dict[str, Any]:
    return {"kafka": {"key": key, "bindingVersion": _CHANNEL_BINDING}}


def _key(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _operations() -> dict[str, Any]:
    return {
        "announce": _operation("send", "inbox", "Ingest announces an exposure to the first stage.", "exposure"),
        "takeWork": _operation("receive", "inbox", "A worker takes work.", "exposure", "finalize", group=True),
        "forward": _operation("send", "inbox", "A worker sends an exposure on to the next segment.", "exposure"),
        "putOff": _operation(
            "send", "retries", "A worker puts a record off that failed for a reason outside.",
            "exposureAgain", "finalizeAgain",
        ),
        "tryAgain": _operation(
            "receive", "retries", "A worker takes a record once its time has come.",
            "exposureAgain", "finalizeAgain", group=True,
        ),
        "report": _operation("send", "members", "A worker, or ingest, tells what became of a member.", "member"),
        "order": _operation("send", "members", "`rampstream associations` has an association closed.", "order"),
        "gather": _operation(
            "receive", "members", "The aggregator gathers the members of associations, and does what is ordered.",
            "member", "order", group=True,
        ),
        "sendOn": _operation("send", "inbox", "The aggregator sends the members of a close on.", "finalize"),
        "keepState": _operation("send", "changelog", "The aggregator keeps its state.", "changelog"),
        "restoreState": _operation(
            "receive", "changelog", "An aggregator reads the state of its partitions before it consumes.", "changelog"
        ),
        "tellOfProducts": _operation(
            "send", "productEvents", "A worker tells that all products of an association are visible.", "products"
        ),
        "waitForProducts": _operation(
            "receive", "productEvents", "Whoever waits for products is told. The engine does not read it.", "products"
        ),
        "giveUp": _operation("send", "deadLetters", "A worker gives a record up.", "deadLetter"),
        "lookAtDeadLetters": _operation(
            "receive", "deadLetters", "`rampstream dlq` reads dead letters, without a group.", "deadLetter"
        ),
    }  # fmt: skip


def _operation(action: str, channel: str, summary: str, *messages: str, group: bool = False) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
    }
    if group:
        described = {"type": "string", "description": "Named after the segment's inbox: `<run>.<first stage>`."}
        operation["bindings"] = {"kafka": {"groupId": described, "bindingVersion": _CHANNEL_BINDING}}
    return operation
