"""What all messages have in common: version, run, facts, strictness, and CloudEvents headers. No kind of message."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stream.broker.protocol import Headers
from stream.failure import PermanentError
from stream.identity import canonical_json

__all__ = ["CONTENT_TYPE", "SCHEMA_VERSION", "Digest", "Envelope", "Id", "Key"]

SCHEMA_VERSION = "1.1"
CONTENT_TYPE = b"application/json"

_VERSION = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)")

Id = Annotated[str, Field(min_length=1, max_length=249, pattern=r"^[^/\s\x00-\x1f]+$")]
"""An id that can be part of an object key."""

Key = Annotated[str, Field(min_length=1, max_length=1024)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Envelope(BaseModel):
    """Base of the messages: strict types, immutable, and tolerant of newer minor versions.

    Fields that a newer minor version added are kept and emitted again; in a message of this version or an older one
    they are an error. A newer major version is refused. Do not change the contents of ``facts``.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    schema_version: str = SCHEMA_VERSION
    run: Id
    facts: dict[str, Any] = Field(default_factory=dict)

    @field_validator("schema_version")
    @classmethod
    def _supported(cls, value: str) -> str:
        if not _VERSION.fullmatch(value):
            msg = f"{value!r} is not a version like {SCHEMA_VERSION!r}"
            raise ValueError(msg)
        if _version(value)[0] != _version(SCHEMA_VERSION)[0]:
            msg = f"major version of {value!r} is not supported, this software reads {SCHEMA_VERSION!r}: upgrade it"
            raise ValueError(msg)
        return value

    @field_validator("facts")
    @classmethod
    def _json_only(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            copied: dict[str, Any] = json.loads(canonical_json(value))
        except PermanentError as error:
            raise ValueError(str(error)) from error
        return copied

    @model_validator(mode="after")
    def _unknown_fields_are_newer(self) -> Self:
        if self.model_extra and _version(self.schema_version) <= _version(SCHEMA_VERSION):
            msg = f"version {self.schema_version} has no field {', '.join(map(repr, sorted(self.model_extra)))}"
            raise ValueError(msg)
        return self

    def encode(self) -> bytes:
        """Return the message as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    def replaced(self, /, **changes: Any) -> Self:
        """Return a copy with other values, checked; fields of newer versions go along."""
        known = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**known, **(self.model_extra or {}), **changes})

    def following(self, cause: Envelope) -> Self:
        """Return this message as what follows from another: with its fields of newer versions, and then its version.

        A name that is new to ``cause`` and known here has a meaning here, and is left as it is.
        """
        known = type(self).model_fields
        newer = {name: value for name, value in (cause.model_extra or {}).items() if name not in known}
        return self.replaced(**newer, schema_version=cause.schema_version) if newer else self

    def _ce_headers(
        self, *, event: str, event_id: str, subject: str, dataref: str | None, when: float | None, trace: str | None
    ) -> Headers:
        headers = [
            ("ce_specversion", "1.0"),
            ("ce_id", event_id),
            ("ce_source", f"/rampstream/{self.run}"),
            ("ce_type", f"rampstream.{event}"),
            ("ce_subject", subject),
            ("content-type", CONTENT_TYPE.decode()),
            ("schema_version", self.schema_version),
        ]
        if dataref is not None:
            headers.append(("ce_dataref", dataref))
        if when is not None:
            headers.append(("ce_time", datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")))
        if trace is not None:
            headers.append(("traceparent", trace))
        return tuple((name, value.encode()) for name, value in headers)


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)
