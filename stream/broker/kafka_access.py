"""Finds out why a Kafka cluster does not let a client in: aiokafka logs that, and raises only that it cannot connect.

A port that does not answer is no reason. What is told here is known for sure: the server said so, or speaks otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from typing import Any

from aiokafka import errors
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.admin import SaslHandShakeRequest

from stream.failure import FatalError

__all__ = ["refusal"]

_PATIENCE = 5.0
"""Seconds for a server to say why: a handshake takes milliseconds, and whoever asks waits for the answer."""

_UNKNOWN = (errors.KafkaError, OSError, TimeoutError)


async def refusal(options: Mapping[str, Any]) -> FatalError | None:
    """Why the cluster refuses this client; None when it does not, or does not answer.

    Parameters
    ----------
    options : mapping
        Of a client: servers, security protocol, TLS context, SASL.
    """
    servers = collect_hosts(options["bootstrap_servers"], randomize=False)
    found = await asyncio.gather(*(_reason_in_time(host, port, options) for host, port, _ in servers))
    for (host, port, _), reason in zip(servers, found, strict=True):
        if reason is not None:
            return FatalError(f"Kafka at {host}:{port} refuses: {reason}")
    return None


async def _reason_in_time(host: str, port: int, options: Mapping[str, Any]) -> str | None:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await _reason(host, port, options)
    except TimeoutError:
        return None


async def _reason(host: str, port: int, options: Mapping[str, Any]) -> str | None:
    given = {name: value for name, value in options.items() if name != "bootstrap_servers"}
    mechanism = options.get("sasl_mechanism")
    try:
        connection = await create_conn(host, port, request_timeout_ms=int(_PATIENCE * 1000), **given)
    except ssl.SSLCertVerificationError as error:
        return (
            f"its certificate is not trusted ({error.verify_message}); RAMPSTREAM_KAFKA_CA_FILE names the authority "
            "that signed it, and the broker's address must be one that it was made for"
        )
    except errors.UnsupportedSaslMechanismError:
        return f"it does not offer {mechanism}; see RAMPSTREAM_KAFKA_SASL_MECHANISM"
    except errors.IllegalSaslStateError:
        return "this port takes no password: unset RAMPSTREAM_KAFKA_SASL_MECHANISM, or name the port that does"
    except (errors.SaslAuthenticationFailed, errors.AuthenticationFailedError) as error:
        return (
            f"user {options.get('sasl_plain_username')!r} with {mechanism} was not let in ({error}); "
            "see RAMPSTREAM_KAFKA_USERNAME and RAMPSTREAM_KAFKA_PASSWORD"
        )
    except _UNKNOWN:
        return await _other_protocol(host, port, encrypted="ssl_context" in options)
    try:
        return None if mechanism else await _wants_password(connection)
    finally:
        connection.close()


async def _other_protocol(host: str, port: int, *, encrypted: bool) -> str | None:
    """Whether the server speaks plain text to a client of TLS, or the other way round."""
    with contextlib.suppress(*_UNKNOWN):
        if encrypted:
            plain = await create_conn(host, port, request_timeout_ms=int(_PATIENCE * 1000))
            plain.close()
            return "this port speaks plain text: unset RAMPSTREAM_KAFKA_TLS, or name the port that speaks TLS"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said over it
        _, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return "this port speaks TLS: set RAMPSTREAM_KAFKA_TLS=1 (and RAMPSTREAM_KAFKA_CA_FILE, for your own authority)"
    return None


async def _wants_password(connection: Any) -> str | None:
    """Whether a server that was reached without a password asks for one: it then answers which ways there are."""
    with contextlib.suppress(*_UNKNOWN):
        answer = await connection.send(SaslHandShakeRequest("NONE"))
        if answer.error_code == errors.UnsupportedSaslMechanismError.errno:
            offered = ", ".join(answer.enabled_mechanisms)
            return (
                f"it asks for a user and a password ({offered}): set RAMPSTREAM_KAFKA_SASL_MECHANISM, …_USERNAME and "
                "…_PASSWORD"
            )
    return None
