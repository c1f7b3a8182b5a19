"""Which class of failure an error of a store is, and in which words. Not what is done about it."""

from __future__ import annotations

import errno
import re

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from stream.failure import Failure, FatalError, RetriableError

__all__ = ["failure_from", "first_line", "is_absent", "refusal_code"]

_FATAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR})
_OS_ERROR = re.compile(r"\(os error (\d+)\)")

# obstore gives an answer's status and body only as text, for most kinds of failure.
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([\w.]+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")

_NO_OBJECT = frozenset({"NoSuchKey", "NoSuchVersion", "BlobNotFound"})
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ResourceNotFound"})

# A refused request is refused again, but for these: a busy server, bytes that were damaged or late on their way, an
# upload that someone else ended.
_PASSING_STATUSES = frozenset({408, 409, 412, 425, 429})
_PASSING_CODES = frozenset(
    {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "NoSuchUpload", "SlowDown"}
)


def failure_from(error: Exception, what: str) -> Failure:
    """Give a driver's error its class: refused or full is fatal, anything else may work next time.

    Parameters
    ----------
    error : Exception
        What obstore or the file system raised.
    what : str
        What could not be done, to what, where.
    """
    code = refusal_code(error)
    told = f"{what}: {_answer(error)}"
    if code in _NO_BUCKET:
        return FatalError(f"{told}; there is no such bucket: make it first, or correct the store's address")
    if isinstance(error, FileNotFoundError) and error.errno is None and code not in _PASSING_CODES:
        return FatalError(f"{told}; there is no such bucket or folder, or the key of the account is not known")
    status = _status(error)
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or status in {401, 403}:
        return FatalError(f"{told}; check the store's credentials, and what they allow")
    if (status is not None and 300 <= status < 400) or "redirect" in str(error):
        return FatalError(f"{told}; check the region and the endpoint")
    return (FatalError if _is_fatal(error, status, code) else RetriableError)(told)


def is_absent(error: FileNotFoundError) -> bool:
    """Whether "not found" means the object, not its bucket or the account."""
    code = refusal_code(error)
    return code is None or code in _NO_OBJECT


def refusal_code(error: Exception) -> str | None:
    """Return the server's own word for its refusal, None when it gave none."""
    told = _CODE.search(str(error))
    return told.group(1) if told else None


def first_line(error: Exception) -> str:
    """Text of an error without the driver's details."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _is_fatal(error: Exception, status: int | None, code: str | None) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := _OS_ERROR.search(str(error))):
        number = int(told.group(1))
    if number in _FATAL_ERRNOS or status == 507:
        return True
    refused = status is not None and 400 <= status < 500
    return refused and status not in _PASSING_STATUSES and code not in _PASSING_CODES


def _status(error: Exception) -> int | None:
    told = _STATUS.search(str(error))
    return int(told.group(1)) if told else None


def _answer(error: Exception) -> str:
    code, status = refusal_code(error), _status(error)
    if code is None or status is None:
        return first_line(error)
    message = _MESSAGE.search(str(error))
    return f"{status} {code}" + (f": {message.group(1).rstrip('.')}" if message else "")
