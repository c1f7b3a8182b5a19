"""JSON Schemas of messages, headers and the objects that people read, made from the code that reads and writes them.

What pydantic's models say is taken from them; what their validators add (versions, fields that belong together) is
written here, and a test compares schema and decoder. Keywords are those of draft 7, which AsyncAPI's tools read.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from ops.product_sets import ProductSet
from stream.association import Close, ClosedMember, MemberRecord
from stream.headers import DEAD_LETTER_HEADERS, EVENT_HEADERS, MESSAGE_HEADERS, RETRY_HEADERS, HeaderSpec
from stream.member_list import MemberList
from stream.message import (
    SCHEMA_VERSION,
    MemberMessage,
    MemberStatus,
    Message,
    MessageKind,
    OrderAction,
    OrderMessage,
)
from stream.product_event import EventProduct, ProductEvent
from stream.results import Manifest, StoredObject

__all__ = ["DRAFT", "changelog_schema", "event_schema", "header_schema", "message_schema", "schemas"]

DRAFT = "http://json-schema.org/draft-07/schema#"

_COMMON = {
    "schema_version": "Version of the message, MAJOR.MINOR. A newer minor version may have more fields.",
    "run": "The run.",
    "facts": "Small JSON values, opaque to the engine.",
    "kind": "What the message asks for.",
}

_PURPOSE = {
    MessageKind.EXPOSURE: "Work on an exposure, from a start stage on.",
    MessageKind.FINALIZE: "Finish an exposure as a member of an association, with or without a joint solution.",
    MessageKind.MEMBER: "What became of one member of an association; asks for nothing.",
    MessageKind.ORDER: "What an operator wants done with an association. Since version 1.1.",
}

_FOR_FINALIZE = ("association", "revision", "solution")


def schemas() -> dict[str, dict[str, Any]]:
    """All schemas by the name of their file, without the ending."""
    found = {kind.value: message_schema(kind) for kind in MessageKind} | {
        "message-headers": header_schema("Headers of a message", (*MESSAGE_HEADERS, *_optional(RETRY_HEADERS))),
        "dead-letter-headers": header_schema(
            "Headers that are added to a dead letter; its own are kept", DEAD_LETTER_HEADERS, open_ended=True
        ),
        "products": event_schema(),
        "product-event-headers": header_schema("Headers of an event about products", EVENT_HEADERS),
        "changelog": changelog_schema(),
        "manifest": _document(Manifest, required=("objects",), closed=(), parts={"objects": StoredObject}),
        "close": _document(Close, closed=("members",), parts={"members": ClosedMember}),
        "member-list": _document(MemberList, closed=("",)),
        "product-set": _document(ProductSet, closed=("",)),
    }
    return {name: {"$schema": DRAFT, **schema} for name, schema in found.items()}


def message_schema(kind: MessageKind) -> dict[str, Any]:
    """Schema of one kind of message: valid is what `stream.message.decode` takes.

    JSON Schema cannot tell ``1`` from ``1.0``; the decoder takes only the first for an integer.
    """
    models: dict[MessageKind, type[BaseModel]] = {MessageKind.MEMBER: MemberMessage, MessageKind.ORDER: OrderMessage}
    model = models.get(kind, Message)
    schema = _model_schema(model)
    properties = schema["properties"]
    properties["kind"] = {"const": kind.value, "description": _COMMON["kind"]}
    required = [name for name in schema["required"] if name != "kind"]
    if kind is not MessageKind.EXPOSURE:  # what names no kind is of this one
        required.append("kind")
    if kind is MessageKind.FINALIZE:
        properties["association"] = _without_null(properties["association"])
        required.append("association")
    if kind is MessageKind.EXPOSURE:
        for name in _FOR_FINALIZE:
            properties[name] = {"type": "null", "description": "For finalize messages alone."}
    if "associations" in properties:
        properties["associations"]["uniqueItems"] = True
    properties["schema_version"]["pattern"] = rf"^{_major()}\.(0|[1-9][0-9]*)$"
    rules = [_unknown_fields_are_newer(properties)]
    if kind is MessageKind.MEMBER:
        rules += _member_rules(properties)
    if kind is MessageKind.ORDER:
        first = {"const": 1}
        closes = {"properties": {"action": {"const": OrderAction.CLOSE.value}}}
        rules.append(
            {
                "if": closes,
                "then": {"properties": {"revision": first}},
                "else": {"properties": {"revision": {"not": first}}},
            }
        )
    return {
        "title": f"{kind.value} message",
        "description": _PURPOSE[kind],
        "type": "object",
        "properties": properties,
        "required": sorted(required),
        "allOf": rules,
    }


def event_schema() -> dict[str, Any]:
    """Schema of the event that products became visible."""
    schema = _model_schema(ProductEvent)
    properties = schema["properties"]
    properties["kind"] = {"const": "products", "description": "What the event tells."}
    properties["schema_version"]["pattern"] = rf"^{_major()}\.(0|[1-9][0-9]*)$"
    product = next(part for part in properties["exposures"]["anyOf"] if part != {"type": "null"})
    _describe(product["additionalProperties"]["items"], EventProduct)
    return {
        "title": "products event",
        "description": "All products of one revision of an association are visible.",
        "type": "object",
        "properties": properties,
        "required": sorted({*schema["required"], "kind"}),
        "allOf": [_unknown_fields_are_newer(properties)],
    }


def header_schema(title: str, headers: Iterable[HeaderSpec], *, open_ended: bool = False) -> dict[str, Any]:
    """Schema of headers as an object of texts.

    Parameters
    ----------
    title : str
        What they are headers of.
    headers : iterable of HeaderSpec
        The table.
    open_ended : bool
        Whether there may be others.
    """
    table = tuple(headers)
    return {
        "title": title,
        "type": "object",
        "properties": {
            header.name: {
                "type": "string",
                "description": header.meaning,
                **({} if header.pattern is None else {"pattern": header.pattern}),
            }
            for header in table
        },
        "required": sorted(header.name for header in table if header.required),
        "additionalProperties": {"type": "string"} if open_ended else False,
    }


def changelog_schema() -> dict[str, Any]:
    """Schema of the aggregator's state: records of members, of closes that were sent on, and of the whole."""
    partition = {"type": "integer", "minimum": 0, "description": "Partition of the member messages."}
    record = _document(MemberRecord)
    return {
        "title": "Record of the changelog",
        "description": "The newest state of one member, which close of an association was sent on, or that what the "
        "store has of a partition is here too.",
        "oneOf": [
            {
                "title": "A member",
                "type": "object",
                "properties": {
                    "partition": partition,
                    "record": record,
                    "message": message_schema(MessageKind.MEMBER),
                    "traceparent": {
                        "type": ["string", "null"],
                        "description": "W3C trace context that the message came with.",
                    },
                },
                "required": ["message", "partition", "record"],
            },
            {
                "title": "A close that was sent on",
                "type": "object",
                "properties": {
                    "partition": partition,
                    "revision": {"type": "integer", "minimum": 1, "description": "Revision of the close."},
                },
                "required": ["partition", "revision"],
            },
            {
                "title": "That nothing is missing",
                "type": "object",
                "properties": {"partition": partition, "whole": {"const": True}},
                "required": ["partition", "whole"],
            },
        ],
    }


def _optional(headers: Iterable[HeaderSpec]) -> list[HeaderSpec]:
    return [HeaderSpec(h.name, f"{h.meaning} In retry topics.", required=False, pattern=h.pattern) for h in headers]


def _major() -> int:
    return int(SCHEMA_VERSION.partition(".")[0])


def _unknown_fields_are_newer(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Unknown fields only in a version whose minor number is above this software's."""
    known = "|".join(str(minor) for minor in range(int(SCHEMA_VERSION.partition(".")[2]) + 1))
    return {
        "if": {"properties": {"schema_version": {"pattern": rf"^{_major()}\.({known})$"}}},
        "then": {"propertyNames": {"enum": sorted(properties)}},
    }


def _member_rules(properties: Mapping[str, Any]) -> list[dict[str, Any]]:
    needed = ("branch", "identity", "manifest")
    text = {"type": "string"}
    return [
        {
            "if": {"properties": {"status": {"const": MemberStatus.FAILED.value}}},
            "else": {"properties": {name: text for name in needed if name in properties}, "required": list(needed)},
        },
        {
            "if": {"properties": {"tie_points": text}, "required": ["tie_points"]},
            "then": {"properties": {"tie_points_digest": text}, "required": ["tie_points_digest"]},
            "else": {"properties": {"tie_points_digest": {"type": "null"}}},
        },
    ]


def _model_schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = _plain(model.model_json_schema(mode="validation"))
    meanings = {**_COMMON, **_attributes(model)}
    for name, described in schema["properties"].items():
        if name in meanings:
            described["description"] = meanings[name]
    return schema


def _document(
    model: type[Any],
    *,
    required: Iterable[str] = (),
    closed: Iterable[str] = (),
    parts: Mapping[str, type[Any]] | None = None,
) -> dict[str, Any]:
    """Schema of a dataclass as it is stored.

    Parameters
    ----------
    model : type
        The dataclass.
    required : iterable of str
        Fields that its reader needs although they have a default.
    closed : iterable of str
        Where its reader refuses unknown fields: the name of a list, or nothing for the document itself.
    parts : mapping of str to type
        Dataclasses that lists consist of, for their descriptions.
    """
    schema = _plain(TypeAdapter(model).json_schema(mode="validation"))
    _describe(schema, model)
    for name, part in (parts or {}).items():
        _describe(schema["properties"][name]["items"], part)
    for name in closed:
        (schema["properties"][name]["items"] if name else schema)["additionalProperties"] = False
    for name in required:
        schema["properties"][name].pop("default", None)
    schema["required"] = sorted({*schema.get("required", ()), *required})
    return {"title": model.__name__, **schema}


def _describe(schema: dict[str, Any], model: type[Any]) -> None:
    schema["description"] = _markdown((inspect.getdoc(model) or "").partition("\n\nAttributes\n")[0])
    for name, meaning in _attributes(model).items():
        if name in schema["properties"]:
            schema["properties"][name]["description"] = meaning


def _attributes(model: type[Any]) -> dict[str, str]:
    """Meanings in the section Attributes of a numpydoc docstring."""
    section = (inspect.getdoc(model) or "").partition("\nAttributes\n----------\n")[2]
    found = {}
    for names, text in re.findall(r"^(\w[\w, ]*) : [^\n]*\n((?: {4}[^\n]*\n?|\n)+)", section, re.MULTILINE):
        for name in names.split(", "):
            found[name] = _markdown(text)
    return found


def _markdown(text: str) -> str:
    return re.sub(r"\bNone\b", "null", " ".join(text.split()).replace("``", "`"))


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """One alternative of a field that may also be null."""
    (kept,) = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
    return {**kept, **{key: value for key, value in schema.items() if key not in {"anyOf", "default"}}}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its definitions in place, and without titles that only repeat names."""
    definitions = schema.get("$defs", {})

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(item) for item in value]
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if "$ref" in value:
            target = definitions[value.pop("$ref").rpartition("/")[2]]
            value = {**resolved(target), **value}
        return {
            key: {name: resolved(part) for name, part in item.items()} if key == "properties" else resolved(item)
            for key, item in value.items()
            if key not in {"$defs", "title"} or not isinstance(item, (str, dict))
        }

    plain: dict[str, Any] = resolved(schema)
    return {key: value for key, value in plain.items() if key != "description"}
