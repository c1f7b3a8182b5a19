"""Where a store is and how patiently it is talked to: from an address to an obstore store. No request is made here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from stream.failure import FatalError
from stream.store.failures import first_line

__all__ = ["StoreLimits", "bodies_may_be_unsigned", "open_remote", "s3_endpoint"]

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Times in seconds, sizes in bytes."""

    connect: float = 10.0

    stall: float = 60.0
    """Without a byte from the server. An upload hears nothing before its whole body is sent, so one part must pass in
    this time: 16 MiB in 60 s is 0.28 MB/s a part, 1.1 MB/s a file."""

    transfer: float = 900.0
    """For a whole reply, however steadily it comes: 1 GB over a link of 10 MB/s that eight share takes 800 s."""

    retries: int = 8
    """Tries after the first, when the server is busy (5xx), does not answer or the connection breaks."""

    wait: float = 10.0
    """The most between two tries. A wait is random, between 0.2 s and three times the last one: at most 0.6 + 1.8 + 5.4
    + 5 x 10 = 58 s for all, some 15 s usually. What lasts longer is for the engine's retry topics."""

    retry: float = 120.0
    """No wait begins later than this after the first try; so a stalled store is given up after 120 + 10 + 60 = 190 s at
    the latest, well under the 300 s that a signature holds."""

    part: int = 16 * _MIB
    """Larger objects are uploaded in parts of this size; 10 000 of them, the most that S3 takes, make 160 GiB."""

    parts_together: int = 4
    """Parts under way at once: 4 x 16 MiB and one being read take 80 MiB of memory an upload."""

    abort: float = 10.0
    """For ending a cancelled upload in order."""

    def client_options(self) -> dict[str, Any]:
        """Return the limits as obstore's client takes them."""
        return {
            "connect_timeout": timedelta(seconds=self.connect),
            "read_timeout": timedelta(seconds=self.stall),
            "timeout": timedelta(seconds=self.transfer),
        }

    def retry_config(self) -> dict[str, Any]:
        """Return the limits as obstore's retry configuration."""
        return {
            "max_retries": self.retries,
            "retry_timeout": timedelta(seconds=self.retry),
            "backoff": {
                "init_backoff": timedelta(seconds=0.2),
                "max_backoff": timedelta(seconds=self.wait),
                "base": 3,
            },
        }


def open_remote(location: str, limits: StoreLimits) -> Any:
    """Open ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX`` or ``az://ACCOUNT/CONTAINER/PREFIX``.

    Raises
    ------
    stream.failure.FatalError
        The address or a variable of the environment cannot be understood.
    """
    parts = urlsplit(location)
    kind = {"s3": _s3, "gs": _google, "az": _azure}.get(parts.scheme)
    try:
        if kind is not None and parts.netloc and not parts.query and not parts.fragment:
            return kind(parts.netloc, parts.path.strip("/"), limits)
        why = "expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX, or a folder"
        raise FatalError(f"cannot open the object store {location}: {why}")
    except (BaseError, ValueError) as error:
        raise FatalError(f"cannot open the object store {location}: {first_line(error)}") from error


def s3_endpoint(bucket: str, environment: Mapping[str, str]) -> str | None:
    """Return the endpoint that the environment names, None for Amazon's own.

    Requests name the bucket in the path, which every S3-compatible server understands, unless
    ``AWS_VIRTUAL_HOSTED_STYLE_REQUEST`` asks for the host name; then the bucket is put before the endpoint's host.
    """
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if not endpoint or environment.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() not in {"1", "true"}:
        return endpoint or None
    parts = urlsplit(endpoint)
    host = parts.netloc if parts.netloc.startswith(f"{bucket}.") else f"{bucket}.{parts.netloc}"
    return urlunsplit(parts._replace(netloc=host))


def bodies_may_be_unsigned(endpoint: str | None, environment: Mapping[str, str]) -> bool:
    """Whether uploads do without a digest of the body in their signature, which costs both sides a pass over it.

    TLS guards bodies on the way, and nobody is on the way within a machine; anywhere else they are signed.
    ``AWS_UNSIGNED_PAYLOAD`` in the environment decides by itself.
    """
    if "AWS_UNSIGNED_PAYLOAD" in environment:
        return False
    parts = urlsplit(endpoint or "https:")
    return (
        parts.scheme == "https" or (parts.hostname or "").startswith("127.") or parts.hostname in {"localhost", "::1"}
    )


def _s3(bucket: str, prefix: str, limits: StoreLimits) -> Any:
    endpoint = s3_endpoint(bucket, os.environ)
    config: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if bodies_may_be_unsigned(endpoint, os.environ):
        config["unsigned_payload"] = True
    return _make(S3Store, bucket, prefix, limits, endpoint, config)


def _google(bucket: str, prefix: str, limits: StoreLimits) -> Any:
    return _make(GCSStore, bucket, prefix, limits, None, {})


def _azure(account: str, path: str, limits: StoreLimits) -> Any:
    container, _, prefix = path.partition("/")
    if not container:
        msg = "the container is missing: expected az://ACCOUNT/CONTAINER/PREFIX"
        raise ValueError(msg)
    endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT")
    config: dict[str, Any] = {"account_name": account} | ({"endpoint": endpoint} if endpoint else {})
    return _make(AzureStore, container, prefix, limits, endpoint, config)


def _make(
    kind: Any, bucket: str, prefix: str, limits: StoreLimits, endpoint: str | None, config: dict[str, Any]
) -> Any:
    options = limits.client_options()
    if endpoint and endpoint.startswith("http://"):
        options["allow_http"] = True
    return kind(
        bucket, prefix=prefix or None, config=config, client_options=options, retry_config=limits.retry_config()
    )
