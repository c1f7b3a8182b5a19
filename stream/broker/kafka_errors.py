"""Gives the errors of the Kafka client their class of failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka import errors

from stream.failure import Failure, FatalError, PermanentError, RetriableError

__all__ = ["failure_from", "failures"]

_REFUSED = (
    errors.AuthenticationFailedError,
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
)

_PERMANENT = (
    errors.MessageSizeTooLargeError,
    errors.RecordTooLargeError,
    errors.UnknownTopicOrPartitionError,
    errors.InvalidTopicError,
    errors.TopicAlreadyExistsError,
    errors.OffsetMetadataTooLargeError,
    errors.InvalidPartitionsError,
    errors.InvalidReplicationFactorError,
    errors.InvalidConfigurationError,
)


def failure_from(error: Exception, what: str) -> Failure:
    """Class of a client's error: refused is fatal, what the cluster will never take permanent, the rest may work."""
    text = str(error) or type(error).__name__
    if isinstance(error, _REFUSED):
        return FatalError(f"{what}: Kafka refuses: {text}")
    if isinstance(error, _PERMANENT):
        return PermanentError(f"{what}: {text}")
    return RetriableError(f"{what}: {text}")


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Raise `Failure` where the client raises its own errors."""
    try:
        yield
    except (errors.KafkaError, TimeoutError, OSError) as error:
        raise failure_from(error, what) from error
