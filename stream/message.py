"""Messages: small immutable JSON envelopes about one exposure or one association. Never pixels.

What they have in common is in `stream.envelope`.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from stream.broker.protocol import Headers, Record
from stream.envelope import CONTENT_TYPE, SCHEMA_VERSION, Digest, Envelope, Id, Key
from stream.failure import PoisonError
from stream.identity import hash_parts

__all__ = [
    "CONTENT_TYPE",
    "SCHEMA_VERSION",
    "Envelope",
    "MemberMessage",
    "MemberStatus",
    "Message",
    "MessageKind",
    "OrderAction",
    "OrderMessage",
    "about_association",
    "decode",
]


class MessageKind(StrEnum):
    """What a message asks for."""

    EXPOSURE = "exposure"
    """Work on an exposure, from a start stage on."""
    MEMBER = "member"
    """Status of one member of an association, for the aggregator."""
    FINALIZE = "finalize"
    """Finish an exposure as a member of an association, with or without a joint solution."""
    ORDER = "order"
    """What an operator wants done with an association, for the aggregator. Since version 1.1."""


class MemberStatus(StrEnum):
    """What became of a member of an association; all are terminal."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    SATURATED = "saturated"


class OrderAction(StrEnum):
    """What an operator may want done with an association."""

    CLOSE = "close"
    """Close it now, with whoever is there."""
    REOPEN = "reopen"
    """Open a new revision now, with what came or changed since the last close."""


class Message(Envelope):
    """One exposure, and from which stage on it is to be worked on.

    Attributes
    ----------
    run : str
        The run.
    exposure : str
        Id of the exposure: the base name of its file.
    stage : str
        The stage to start with, which may lie inside the segment whose inbox holds the message.
    branch : str
        The branch of the topology that the exposure is on.
    identity : str
        Identity of what ``manifest`` describes: the input of ``stage``.
    manifest : str
        Key of the manifest (of the stored result, or of the ingested root).
    facts : dict
        Small JSON values, opaque to the engine.
    associations : tuple of str
        Ids of the associations that the exposure belongs to.
    kind : MessageKind
        EXPOSURE or FINALIZE.
    association : str
        For FINALIZE alone: the association for which it is finished.
    revision : int
        For FINALIZE alone: the revision of the association's close; None when the member is finalized at once, without
        waiting for a close.
    solution : str
        For FINALIZE alone: key of the joint solution's manifest, None when there is none.
    """

    kind: Literal[MessageKind.EXPOSURE, MessageKind.FINALIZE] = MessageKind.EXPOSURE
    exposure: Id
    stage: Id
    branch: Id
    identity: Digest
    manifest: Key
    associations: tuple[Id, ...] = ()
    association: Id | None = None
    revision: int | None = Field(default=None, ge=1)
    solution: Key | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == MessageKind.FINALIZE and self.association is None:
            msg = "a finalize message names its association"
            raise ValueError(msg)
        if self.kind == MessageKind.EXPOSURE and (self.association, self.revision, self.solution) != (None, None, None):
            msg = "association, revision and solution belong to finalize messages alone"
            raise ValueError(msg)
        if len(set(self.associations)) != len(self.associations):
            msg = "an association is named twice"
            raise ValueError(msg)
        return self

    @property
    def key(self) -> bytes:
        """Key of the record: the exposure's id."""
        return self.exposure.encode()

    def event_id(self, topic: str) -> str:
        """Return the ``ce_id``: equal for each time the same message is published to the same topic."""
        return hash_parts(
            "event", topic, self.run, self.kind, self.exposure, self.stage, self.branch, self.identity,
            list(self.associations), self.association, self.revision, self.solution,
        )  # fmt: skip

    def headers(self, topic: str, *, time: float | None = None, traceparent: str | None = None) -> Headers:
        """CloudEvents headers in binary mode; ``time`` in Unix seconds."""
        return self._ce_headers(
            event=self.kind, event_id=self.event_id(topic), subject=self.exposure, dataref=self.manifest,
            when=time, trace=traceparent,
        )  # fmt: skip

    @classmethod
    def from_record(cls, record: Record) -> Message:
        """Decode, or raise PoisonError when it is no message about an exposure."""
        message = decode(record)
        if isinstance(message, Message):
            return message
        raise PoisonError(_where(record) + f"is of kind {message.kind.value!r}, expected 'exposure' or 'finalize'")


class MemberMessage(Envelope):
    """Status of one member of one association.

    Attributes
    ----------
    association : str
        Id of the association.
    member : str
        Id of the member, an exposure.
    status : MemberStatus
        What became of it.
    branch : str, optional
        The branch that it is on.
    identity, manifest : str, optional
        Identity and manifest of its last result; None where it failed before there was one.
    tie_points, tie_points_digest : str, optional
        Key and digest of its small object for the joint fit.
    facts : dict
        What the joint stage needs to know besides, opaque to the engine.
    reason : str, optional
        Why it failed or was skipped, in words; never part of an identity.
    """

    kind: Literal[MessageKind.MEMBER] = MessageKind.MEMBER
    association: Id
    member: Id
    status: MemberStatus
    branch: Id | None = None
    identity: Digest | None = None
    manifest: Key | None = None
    tie_points: Key | None = None
    tie_points_digest: Digest | None = None
    reason: str | None = None

    _needs_result: ClassVar[frozenset[MemberStatus]] = frozenset(MemberStatus) - {MemberStatus.FAILED}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.status in self._needs_result and None in (self.identity, self.manifest, self.branch):
            msg = f"a member with status {self.status.value!r} has identity, manifest and branch"
            raise ValueError(msg)
        if (self.tie_points is None) != (self.tie_points_digest is None):
            msg = "tie_points and tie_points_digest come together"
            raise ValueError(msg)
        return self

    @property
    def key(self) -> bytes:
        """Key of the record: the association's id, so that one reader sees all its members in order."""
        return self.association.encode()

    @property
    def digest(self) -> str:
        """Digest by which repeats are known: status, result and tie points; not the words of a failure."""
        return hash_parts("member", self.member, self.status, self.identity, self.tie_points_digest)

    def event_id(self, topic: str) -> str:
        """Return the ``ce_id``: equal for each time the same status is published to the same topic."""
        return hash_parts("event", topic, self.run, self.kind, self.association, self.member, self.digest)

    def headers(self, topic: str, *, time: float | None = None, traceparent: str | None = None) -> Headers:
        """CloudEvents headers in binary mode; ``time`` in Unix seconds."""
        return self._ce_headers(
            event=self.kind, event_id=self.event_id(topic), subject=self.member, dataref=self.manifest,
            when=time, trace=traceparent,
        )  # fmt: skip

    @classmethod
    def from_record(cls, record: Record) -> MemberMessage:
        """Decode, or raise PoisonError when it is no member's status."""
        message = decode(record)
        if isinstance(message, MemberMessage):
            return message
        raise PoisonError(_where(record) + f"is of kind {message.kind.value!r}, expected 'member'")


class OrderMessage(Envelope):
    """What an operator wants done with one association; in the log it is ordered with the members' statuses.

    Attributes
    ----------
    association : str
        Id of the association.
    action : OrderAction
        What to do.
    revision : int
        The revision that is wanted: 1 for a close, 2 or more for another one. Where it is there already, nothing is
        done, so that an order may be repeated.
    """

    kind: Literal[MessageKind.ORDER] = MessageKind.ORDER
    association: Id
    action: OrderAction
    revision: int = Field(ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.action is OrderAction.CLOSE) != (self.revision == 1):
            msg = f"an order to {self.action.value} cannot be for revision {self.revision}: 1 is for the first close"
            raise ValueError(msg)
        return self

    @property
    def key(self) -> bytes:
        """Key of the record: the association's id, as the members' statuses have it."""
        return self.association.encode()

    def event_id(self, topic: str) -> str:
        """Return the ``ce_id``: equal for each time the same order is published to the same topic."""
        return hash_parts("event", topic, self.run, self.kind, self.association, self.action, self.revision)

    def headers(self, topic: str, *, time: float | None = None, traceparent: str | None = None) -> Headers:
        """CloudEvents headers in binary mode; ``time`` in Unix seconds."""
        return self._ce_headers(
            event=self.kind, event_id=self.event_id(topic), subject=self.association, dataref=None,
            when=time, trace=traceparent,
        )  # fmt: skip


def decode(record: Record) -> Message | MemberMessage | OrderMessage:
    """Decode a record by its kind.

    Raises
    ------
    stream.failure.PoisonError
        The bytes are no message of a version that this software reads; the text says where the record lies and what
        is wrong with it.
    """
    if record.value is None:
        raise PoisonError(_where(record) + "has no value")
    try:
        document = json.loads(record.value.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PoisonError(_where(record) + f"is not JSON in UTF-8: {error}") from error
    if not isinstance(document, dict):
        raise PoisonError(_where(record) + f"is a JSON {type(document).__name__}, expected an object")
    message_type = _OF_ASSOCIATIONS.get(str(document.get("kind")), Message)
    try:
        return message_type.model_validate_json(record.value)
    except ValidationError as error:
        problems = "; ".join(_problem(item["loc"], item["msg"]) for item in error.errors(include_url=False))
        raise PoisonError(_where(record) + f"is not a valid message: {problems}") from error


_OF_ASSOCIATIONS: dict[str, type[MemberMessage | OrderMessage]] = {
    MessageKind.MEMBER: MemberMessage,
    MessageKind.ORDER: OrderMessage,
}


def _refuse_constant(name: str) -> None:
    msg = f"{name} is not a number in JSON"
    raise ValueError(msg)


def _problem(location: tuple[int | str, ...], text: str) -> str:
    field = ".".join(map(str, location))
    return f"{field}: {text}" if field else text


def _where(record: Record) -> str:
    return f"the record at {record.topic}[{record.partition}]@{record.offset} "


def about_association(record: Record) -> MemberMessage | OrderMessage:
    """Decode a record of the joint stage's topic. Raises PoisonError as `decode`, and for messages of other kinds."""
    message = decode(record)
    return message if isinstance(message, OrderMessage) else MemberMessage.from_record(record)
