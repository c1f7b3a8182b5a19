"""Object stores through obstore: a local folder, memory, S3, GCS, Azure. Nothing here knows what the objects mean."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, from_url

from stream.failure import Failure, FatalError, RetriableError
from stream.store.protocol import ObjectInfo, ObjectStore, check_key

__all__ = ["LocalObjectStore", "ObstoreObjectStore", "open_store"]

_STAGING = ".staging"

# The default of 30 s is for the whole transfer and too short for one: a 700 MB cube at 10 MB/s takes 70 s, and the
# link may be shared by eight.
_CLIENT_OPTIONS = {"timeout": "600s", "connect_timeout": "10s"}

_CHUNK = 8 * 1024 * 1024

_FATAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR})
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def open_store(location: str | Path) -> ObjectStore:
    """Open a store.

    Parameters
    ----------
    location : str or Path
        ``DIR`` or ``file:///DIR`` (made when it does not exist), ``memory:``, ``s3://BUCKET/PREFIX``,
        ``gs://BUCKET/PREFIX``, ``az://ACCOUNT/CONTAINER/PREFIX``. Credentials and endpoints come from the usual
        variables of its kind (``AWS_…``, ``GOOGLE_…``, ``AZURE_…``).

    Raises
    ------
    stream.failure.FatalError
        The location cannot be understood or made.
    """
    text = str(location)
    scheme = urlsplit(text).scheme
    if scheme in {"", "file"}:
        return LocalObjectStore(Path(unquote(urlsplit(text).path) if scheme else text))
    if scheme == "memory":
        return ObstoreObjectStore(MemoryStore(), text)
    options: dict[str, Any] = dict(_CLIENT_OPTIONS)
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["allow_http"] = True
    opener: Any = from_url  # its overloads want the kind of store known beforehand
    try:
        return ObstoreObjectStore(opener(text, client_options=options), text)
    except (BaseError, ValueError) as error:
        msg = f"cannot open the object store {text}: {_first_line(error)}"
        raise FatalError(msg) from error


class ObstoreObjectStore:
    """An `ObjectStore` over any obstore store.

    Parameters
    ----------
    raw : obstore store
        Where the objects are.
    where : str
        For error messages.
    """

    def __init__(self, raw: Any, where: str) -> None:
        self._raw = raw
        self._where = where

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._where!r})"

    async def put(self, key: str, data: bytes | Path) -> ObjectInfo:
        """Write bytes, or the content of a local file (in parts when it is large)."""
        check_key(key)
        with self._failures("write", key):
            size = len(data) if isinstance(data, bytes) else (await anyio.Path(data).stat()).st_size
            await obstore.put_async(self._raw, key, data)
        return ObjectInfo(key, size, time.time())

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create; False when the key exists."""
        check_key(key)
        with self._failures("create", key):
            try:
                # Multipart uploads ignore the condition; any mode but overwrite goes in one request.
                await obstore.put_async(self._raw, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    async def get(self, key: str) -> bytes | None:
        """Read the whole object; None when the key does not exist."""
        check_key(key)
        with self._failures("read", key):
            try:
                return bytes(await (await obstore.get_async(self._raw, key)).bytes_async())
            except FileNotFoundError:
                return None

    async def head(self, key: str) -> ObjectInfo | None:
        """Size and time, None when the key does not exist."""
        check_key(key)
        with self._failures("look up", key):
            try:
                return _info(await obstore.head_async(self._raw, key))
            except FileNotFoundError:
                return None

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``, in key order."""
        # obstore matches whole parts of a path: ask for the folder, then look at the characters.
        folder = prefix.rpartition("/")[0]
        with self._failures("list", prefix):
            async for chunk in obstore.list(self._raw, folder or None):
                for meta in chunk:
                    if meta["path"].startswith(prefix):
                        yield _info(meta)

    async def delete(self, key: str) -> None:
        """Remove; no error when the key does not exist."""
        check_key(key)
        with self._failures("delete", key):
            try:
                await obstore.delete_async(self._raw, key)
            except FileNotFoundError:
                return

    async def fetch(self, key: str, cache: Path) -> Path:
        """Copy to ``cache`` unless it is there with the right size; keys of large objects are never reused."""
        check_key(key)
        target = cache / key
        with self._failures("fetch", key):
            try:
                result = await obstore.get_async(self._raw, key)
            except FileNotFoundError:
                raise self._missing(key) from None
            size = int(result.meta["size"])
            path = anyio.Path(target)
            if await path.exists() and (await path.stat()).st_size == size:
                return target
            await path.parent.mkdir(parents=True, exist_ok=True)
            partial = anyio.Path(f"{target}.{os.getpid()}.{uuid.uuid4().hex}.partial")
            try:
                async with await anyio.open_file(partial, "wb") as file:
                    async for chunk in result.stream(min_chunk_size=_CHUNK):
                        await file.write(chunk)
                if (await partial.stat()).st_size != size:
                    msg = f"{self._where}: {key} broke off: expected {size} bytes, got {(await partial.stat()).st_size}"
                    raise RetriableError(msg)
                await partial.rename(target)
            finally:
                with anyio.CancelScope(shield=True):
                    await partial.unlink(missing_ok=True)
        return target

    def staging(self, name: str) -> Path | None:  # noqa: ARG002
        """None: not local."""
        return None

    def sweep_staging(self, older_than: float) -> int:  # noqa: ARG002
        """Nothing is staged."""
        return 0

    def _missing(self, key: str) -> RetriableError:
        return RetriableError(f"{self._where}: {key} does not exist")

    @contextmanager
    def _failures(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except Failure:
            raise
        except (BaseError, OSError, ValueError) as error:
            raise failure_from(error, f"cannot {verb} {key} in {self._where}") from error


class LocalObjectStore(ObstoreObjectStore):
    """A local folder: large objects are moved in by rename and handed out as the files they are.

    Parameters
    ----------
    root : Path
        The folder; made when it does not exist.
    """

    def __init__(self, root: Path) -> None:
        root = root.expanduser().absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            super().__init__(LocalStore(root), str(root))
        except (BaseError, OSError) as error:
            msg = f"cannot make the object store {root}: {_first_line(error)}"
            raise FatalError(msg) from error
        self.root = root

    async def put(self, key: str, data: bytes | Path) -> ObjectInfo:
        """Write bytes; move a staged file, or copy another one and move the copy."""
        if isinstance(data, bytes):
            return await super().put(key, data)
        check_key(key)
        with self._failures("write", key):
            return await anyio.to_thread.run_sync(self._move_in, key, data)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Objects whose key starts with ``prefix``; sorted here, for a folder has no order of its own."""
        found = [info async for info in super().list(prefix) if not info.key.startswith(".")]
        for info in sorted(found, key=lambda info: info.key):
            yield info

    async def fetch(self, key: str, cache: Path) -> Path:  # noqa: ARG002
        """Return the object's own file."""
        path = self.root / check_key(key)
        with self._failures("fetch", key):
            if not await anyio.Path(path).is_file():
                raise self._missing(key)
        return path

    def staging(self, name: str) -> Path | None:
        """A fresh path under a hidden folder of the root."""
        return self.root / _STAGING / f"{name.replace('/', ',')}-{uuid.uuid4().hex}"

    def sweep_staging(self, older_than: float) -> int:
        """Remove what was staged and not touched for ``older_than`` seconds."""
        removed = 0
        limit = time.time() - older_than
        for path in (self.root / _STAGING).glob("*"):
            files = [path, *path.rglob("*")]
            if max(_modified(file) for file in files) < limit:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _move_in(self, key: str, source: Path) -> ObjectInfo:
        if not source.is_relative_to(self.root / _STAGING):
            copy = self.root / _STAGING / uuid.uuid4().hex
            copy.parent.mkdir(exist_ok=True)
            try:
                shutil.copyfile(source, copy)
                return self._move_in(key, copy)
            finally:
                copy.unlink(missing_ok=True)
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        found = target.stat()
        return ObjectInfo(key, found.st_size, found.st_mtime)


def failure_from(error: Exception, what: str) -> Failure:
    """Give a driver's error its class: refused or full is fatal, anything else may work next time."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (told := _OS_ERROR.search(str(error))):
        code = int(told.group(1))
    if isinstance(error, FileNotFoundError) and code is None:  # of a bucket: what is read and missing never comes here
        return FatalError(f"{what}: there is no such bucket or folder: {_first_line(error)}")
    fatal = isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or code in _FATAL_ERRNOS
    return (FatalError if fatal else RetriableError)(f"{what}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], int(meta["size"]), meta["last_modified"].timestamp())


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
