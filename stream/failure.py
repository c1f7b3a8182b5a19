"""Typed failures: each exception carries the class that decides what happens to its message. Not the retry policy."""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "Failure",
    "FailureClass",
    "FatalError",
    "PermanentError",
    "PoisonError",
    "ResourceError",
    "RetriableError",
]


class FailureClass(StrEnum):
    """What a failure means for the message that met it."""

    RETRIABLE = "retriable"
    """I/O, broker, service time-outs: two tries in place, then retry topics."""
    RESOURCE = "resource"
    """Out of memory or wall clock: once on a bigger slot, then dead letter."""
    PERMANENT = "permanent"
    """Bad input, missing reference, a stage that raises: dead letter."""
    POISON = "poison"
    """Undecodable message: dead letter with the raw bytes."""
    FATAL = "fatal"
    """Credentials, disk full, bug in the engine: stop and touch nothing."""


class Failure(Exception):  # noqa: N818 - the field's word; subclasses end in Error
    """A failure with its class.

    Raise a subclass; catch this one where the class alone decides.
    """

    failure_class: FailureClass = FailureClass.PERMANENT


class RetriableError(Failure):
    """Something outside that may well work next time."""

    failure_class = FailureClass.RETRIABLE


class ResourceError(Failure):
    """The job needed more memory or time than its slot gives."""

    failure_class = FailureClass.RESOURCE


class PermanentError(Failure):
    """The same input would fail again: the message says which file and field and what was expected."""

    failure_class = FailureClass.PERMANENT


class PoisonError(Failure):
    """The message's bytes cannot be understood."""

    failure_class = FailureClass.POISON


class FatalError(Failure):
    """The engine itself cannot go on; nothing may be touched."""

    failure_class = FailureClass.FATAL
