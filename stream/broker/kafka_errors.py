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
    errors.IllegalSaslStateError,
    errors.TransactionalIdAuthorizationFailed,
)
"""Not let in, or not allowed: nothing changes that but an operator."""

_WRONG_CLOCK = (errors.InvalidTimestampError,)
"""A record's time is over an hour ahead (``message.timestamp.after.max.ms``): it stays so until an operator looks."""

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
    # The producer's task wraps what ended it: "unexpected error during batch delivery".
    for cause in (error, error.__cause__):
        if isinstance(cause, _REFUSED):
            return FatalError(f"{what}: Kafka refuses: {cause}")
    if isinstance(error, _WRONG_CLOCK):
        why = "the clock of this machine is ahead of the broker's by more than it takes; one of them is wrong"
        return FatalError(f"{what}: Kafka refuses: {why} ({text})")
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
