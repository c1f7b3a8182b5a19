"""Numbers and security of the Kafka clients, each with its reason; settings that contradict one another are refused."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stream.failure import FatalError

__all__ = ["BUFFERED_BYTES", "BUFFERED_RECORDS", "POLL_SECONDS", "KafkaSecurity", "KafkaTimings"]

POLL_SECONDS = 0.2
"""How long the reader's call waits. It bounds how late a freed buffer is noticed; arrivals end it at once. Five empty
calls a second cost 0.1 % of a core a consumer."""

BUFFERED_RECORDS = 64
"""Records held back for each partition before it is paused. A worker has a handful in flight, so 64 never starve it; 36
partitions of 2 kB messages come to 5 MB."""

BUFFERED_BYTES = 4 * 1024 * 1024
"""Bytes held back for each partition before it is paused: the bound for records that are larger than ours ever are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaTimings:
    """Time limits of the clients, in seconds.

    Attributes
    ----------
    session_seconds : float
        Silence after which the group gives a member's partitions away. A worker that was killed costs this much; one
        whose event loop is blocked, or whose network is away, for less keeps its jobs. 30 s outlast a leader election
        (6 to 9 s) and a collection of garbage.
    heartbeat_seconds : float
        Between signs of life: a tenth of the session, so that nine may get lost.
    revoke_seconds : float
        How long partitions that must go wait for short jobs in flight; long ones are done again, or adopted.
    rebalance_seconds : float
        How long the group waits for its members to join again. It must exceed the revoke budget by the commit and the
        join, a second each on a healthy cluster; and a rebalance is to be over in 15 s.
    request_seconds : float
        For one request, and for a record until it counts as not delivered: two leader elections.
    """

    session_seconds: float = 30.0
    heartbeat_seconds: float | None = None
    revoke_seconds: float = 5.0
    rebalance_seconds: float = 12.0
    request_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.heartbeat * 3 > self.session_seconds:
            msg = f"a session of {self.session_seconds} s needs three heartbeats in it, got one in {self.heartbeat} s"
            raise FatalError(msg)
        if self.revoke_seconds + 2.0 > self.rebalance_seconds:
            msg = (
                f"a rebalance timeout of {self.rebalance_seconds} s leaves no time to join after a revoke budget of "
                f"{self.revoke_seconds} s: it must be 2 s longer"
            )
            raise FatalError(msg)

    @property
    def heartbeat(self) -> float:
        """Seconds between signs of life."""
        return self.session_seconds / 10 if self.heartbeat_seconds is None else self.heartbeat_seconds

    def consumer_options(self) -> dict[str, Any]:
        """Options of the group's members.

        ``max_poll_interval_ms`` is a client-side check that makes a member leave when nobody polls. Our reader always
        polls, so it could only misfire (aio-libs/aiokafka#1187: a member without partitions then never comes back):
        an hour, and progress is watched elsewhere.
        """
        return {
            "session_timeout_ms": int(self.session_seconds * 1000),
            "heartbeat_interval_ms": int(self.heartbeat * 1000),
            "rebalance_timeout_ms": int(self.rebalance_seconds * 1000),
            "max_poll_interval_ms": 3_600_000,
            "request_timeout_ms": int(max(self.request_seconds, self.rebalance_seconds + 5) * 1000),
            "retry_backoff_ms": 200,
            "fetch_max_wait_ms": 500,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSecurity:
    """How to talk to the cluster; from ``RAMPSTREAM_KAFKA_*`` variables.

    Attributes
    ----------
    tls : bool
        ``RAMPSTREAM_KAFKA_TLS=1``.
    ca_file, certificate, key : str
        ``…_CA_FILE``, ``…_CERTIFICATE``, ``…_KEY``: files in PEM.
    mechanism : str
        ``…_SASL_MECHANISM``: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
    username, password : str
        ``…_USERNAME``, ``…_PASSWORD``.
    """

    tls: bool = False
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    mechanism: str | None = None
    username: str | None = None
    password: str | None = None

    def __post_init__(self) -> None:
        known = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
        if self.mechanism is not None and self.mechanism not in known:
            msg = f"RAMPSTREAM_KAFKA_SASL_MECHANISM {self.mechanism!r}: expected one of {', '.join(known)}"
            raise FatalError(msg)
        if (self.mechanism is None) != (self.username is None) or (self.username is None) != (self.password is None):
            msg = "RAMPSTREAM_KAFKA_SASL_MECHANISM, …_USERNAME and …_PASSWORD come together"
            raise FatalError(msg)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> KafkaSecurity:
        """Read the variables."""
        values = os.environ if environment is None else environment

        def value(name: str) -> str | None:
            return values.get(f"RAMPSTREAM_KAFKA_{name}") or None

        return cls(
            tls=(value("TLS") or "0").lower() in {"1", "true", "yes"},
            ca_file=value("CA_FILE"),
            certificate=value("CERTIFICATE"),
            key=value("KEY"),
            mechanism=value("SASL_MECHANISM"),
            username=value("USERNAME"),
            password=value("PASSWORD"),
        )

    def options(self) -> dict[str, Any]:
        """Options of every client.

        Raises
        ------
        FatalError
            A certificate cannot be read.
        """
        protocol = ("SASL_" if self.mechanism else "") + ("SSL" if self.tls else "PLAINTEXT")
        options: dict[str, Any] = {"security_protocol": protocol}
        if self.tls:
            try:
                context = ssl.create_default_context(cafile=self.ca_file)
                if self.certificate is not None:
                    context.load_cert_chain(self.certificate, self.key)
            except OSError as error:
                raise FatalError(f"the certificates for Kafka cannot be read: {error}") from error
            options["ssl_context"] = context
        if self.mechanism:
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
            }
        return options
