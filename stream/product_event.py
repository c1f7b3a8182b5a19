"""The event that products of an association became visible: for whoever waits for products, never for the engine."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from stream.broker.protocol import Headers
from stream.envelope import Digest, Envelope, Id, Key
from stream.identity import hash_parts

__all__ = ["EventProduct", "ProductEvent"]

MAX_BYTES = 900_000
"""Largest value that is published: Kafka takes 1 MiB with headers by default, and 2000 exposures of four products are
more than that."""


class EventProduct(BaseModel):
    """One product.

    Attributes
    ----------
    name : str
        Name of the file.
    key : str
        Key of the object in the store.
    digest : str
        SHA-256 of its bytes.
    size : int
        Bytes.
    content : str, optional
        Content digest: equal for equal products, whenever and wherever they were made. None where none was taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    key: Key
    digest: Digest
    size: int
    content: str | None = None


class ProductEvent(Envelope):
    """All products of one revision of an association are visible.

    Attributes
    ----------
    association : str
        Id of the association.
    product_name : str, optional
        The folder that its products go to; None for a plain file's, which go to the top.
    revision : int
        Revision of its close.
    record : str
        Key of the product set in the store.
    record_digest : str
        SHA-256 of the product set.
    expected, used : tuple of str, optional
        Members in canonical order: all, and those that came and did not fail.
    exposures : dict, optional
        Products of each exposure that has some.
    failed : dict, optional
        Why the others have none. These four are None where the event would be too large: then read the record.
    """

    kind: Literal["products"] = "products"
    association: Id
    product_name: str | None = None
    revision: int = Field(ge=1)
    record: Key
    record_digest: Digest
    expected: tuple[Id, ...] | None = None
    used: tuple[Id, ...] | None = None
    exposures: dict[str, tuple[EventProduct, ...]] | None = None
    failed: dict[str, str] | None = None

    @property
    def key(self) -> bytes:
        """Key of the record: the association's id, so that its revisions stay in order."""
        return self.association.encode()

    def bounded(self, max_bytes: int = MAX_BYTES) -> Self:
        """Return the event, without what it tells of single members if it is larger than that."""
        if len(self.encode()) <= max_bytes:
            return self
        return self.replaced(expected=None, used=None, exposures=None, failed=None)

    def event_id(self, topic: str) -> str:
        """Return the ``ce_id``: equal for each time the same products of the same revision are told of."""
        return hash_parts("event", topic, self.run, self.kind, self.association, self.revision, self.record_digest)

    def headers(self, topic: str, *, time: float | None = None, traceparent: str | None = None) -> Headers:
        """CloudEvents headers in binary mode; ``time`` in Unix seconds."""
        return self._ce_headers(
            event=self.kind, event_id=self.event_id(topic), subject=self.association, dataref=self.record,
            when=time, trace=traceparent,
        )  # fmt: skip
