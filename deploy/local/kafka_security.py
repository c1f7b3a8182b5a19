"""Certificates, users and server properties of a local Kafka that lets nobody in unknown. Not for production."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import processes

ADMIN = "admin"
USERS = (ADMIN, "operator", "worker", "ingest", "observer")
"""The superuser, and the roles of docs/operating.md, which may do nothing until ACLs say so."""

SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")


def certificates(data: Path) -> None:
    """Make an authority (ca.pem) and a server's key with its certificate (server.pem) for loopback."""
    processes.need("openssl", "to make certificates")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    processes.run(
        ["openssl", "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=local Kafka authority",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign"], cwd=data,
    )  # fmt: skip
    processes.run(
        ["openssl", "req", "-x509", *key, "-keyout", "server.key", "-out", "server.crt", "-subj", "/CN=localhost",
         "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"], cwd=data,
    )  # fmt: skip
    (data / "server.pem").write_text((data / "server.key").read_text() + (data / "server.crt").read_text())


def passwords(data: Path) -> dict[str, str]:
    """Give each user a password; users.json keeps them, for the eyes of its owner."""
    given = {user: secrets.token_urlsafe(12) for user in USERS}
    file = data / "users.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(given))
    return given


def scram_arguments(given: dict[str, str]) -> list[str]:
    """What ``StorageTool format`` needs to know the users from the first start."""
    return [
        argument
        for mechanism in SCRAM
        for user, password in given.items()
        for argument in ("--add-scram", f"{mechanism}=[name={user},password={password}]")
    ]


def server_properties(data: Path, given: dict[str, str]) -> list[str]:
    """Properties beside those of an open server; clients come in by the listener SASL_SSL alone.

    The broker reaches its controller, in the same process, without TLS or a name: so ANONYMOUS is a superuser, and
    whoever may open ports of this loopback too. A production cluster secures that listener as well.
    """
    known = " ".join(f'user_{user}="{password}"' for user, password in given.items())
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    listener = "listener.name.sasl_ssl"
    lines = [
        "inter.broker.listener.name=SASL_SSL",
        "sasl.mechanism.inter.broker.protocol=PLAIN",
        f"sasl.enabled.mechanisms=PLAIN,{','.join(SCRAM)}",
        f'{listener}.plain.sasl.jaas.config={plain} username="{ADMIN}" password="{given[ADMIN]}" {known};',
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={data / 'server.pem'}",
        "ssl.truststore.type=PEM",
        f"ssl.truststore.location={data / 'ca.pem'}",
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        f"super.users=User:{ADMIN};User:ANONYMOUS",
        "allow.everyone.if.no.acl.found=false",
    ]
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    return lines + [f"{listener}.{mechanism.lower()}.sasl.jaas.config={scram}" for mechanism in SCRAM]


def client_variables(data: Path, given: dict[str, str], user: str = ADMIN) -> dict[str, str]:
    """The variables with which a client comes in as one of the users."""
    return {
        "RAMPSTREAM_KAFKA_TLS": "1",
        "RAMPSTREAM_KAFKA_CA_FILE": str(data / "ca.pem"),
        "RAMPSTREAM_KAFKA_SASL_MECHANISM": SCRAM[-1],
        "RAMPSTREAM_KAFKA_USERNAME": user,
        "RAMPSTREAM_KAFKA_PASSWORD": given[user],
    }
