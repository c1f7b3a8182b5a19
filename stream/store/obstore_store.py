"""Object stores through obstore: a local folder, memory, S3, GCS, Azure. Nothing here knows what the objects mean."""

from __future__ import annotations

import os
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
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore

from stream.failure import Failure, FatalError, RetriableError
from stream.store.failures import failure_from, first_line, is_absent, refusal_code
from stream.store.locations import StoreLimits, open_remote
from stream.store.protocol import ObjectInfo, ObjectStore, check_key
from stream.store.stale import remove_stale
from stream.store.upload import upload_file

__all__ = ["LocalObjectStore", "ObstoreObjectStore", "failure_from", "open_store"]

_STAGING = ".staging"

_CHUNK = 8 * 1024 * 1024

_SMALL = 1024 * 1024
"""Objects up to this size (all but arrays) go in one request, and to or from their file in one step: a step of a file
costs a switch to a thread and back, and a streamed upload a dozen of them."""

_CONFLICT_WAITS = (0.05, 0.2, 0.8)
"""Seconds before a creation is tried again that met another one under way (409), which may yet fail."""


def open_store(location: str | Path, *, limits: StoreLimits | None = None) -> ObjectStore:
    """Open a store.

    Parameters
    ----------
    location : str or Path
        ``DIR`` or ``file:///DIR`` (made when it does not exist), ``memory:``, ``s3://BUCKET/PREFIX``,
        ``gs://BUCKET/PREFIX``, ``az://ACCOUNT/CONTAINER/PREFIX``. Credentials and endpoints come from the usual
        variables of its kind (``AWS_…``, ``GOOGLE_…``, ``AZURE_…``).
    limits : StoreLimits, optional
        How patiently a remote store is talked to.

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
    limits = limits or StoreLimits()
    return ObstoreObjectStore(open_remote(text, limits), text, limits=limits)


class ObstoreObjectStore:
    """An `ObjectStore` over any obstore store.

    Parameters
    ----------
    raw : obstore store
        Where the objects are.
    where : str
        For error messages.
    limits : StoreLimits, optional
        Given for a remote store, whose replies can be lost.
    """

    def __init__(self, raw: Any, where: str, *, limits: StoreLimits | None = None) -> None:
        self._raw = raw
        self._where = where
        self._limits = limits
        self._answered = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._where!r})"

    async def put(self, key: str, data: bytes | Path) -> ObjectInfo:
        """Write bytes, or the content of a local file, in parts when it is large.

        A lost reply makes it write again, over the same content: keys of large objects are never reused.
        """
        check_key(key)
        limits = self._limits or StoreLimits()
        with self._failures("write", key):
            if isinstance(data, Path):
                small = await anyio.to_thread.run_sync(_small_content, data, min(_SMALL, limits.part))
                if small is None:
                    size = await upload_file(self._raw, key, data, limits)
                    return ObjectInfo(key, size, time.time())
                data = small
            size = len(data)
            await obstore.put_async(self._raw, key, data, chunk_size=limits.part, max_concurrency=limits.parts_together)
        return ObjectInfo(key, size, time.time())

    async def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create; False when the key exists with other content, and see `ObjectStore.put_if_absent`.

        When the reply to a creation is lost, or is a failure although the object was stored, obstore asks again and is
        told that the object exists, or gives up. So for a remote store neither answer is taken for granted: what is
        stored is compared with what was to be.
        """
        check_key(key)
        with self._failures("create", key):
            for wait in _CONFLICT_WAITS:
                try:
                    # Multipart uploads ignore the condition; any mode but overwrite goes in one request.
                    await obstore.put_async(self._raw, key, data, mode="create")
                except AlreadyExistsError:
                    if self._limits is None:
                        return False
                    stored = await self.get(key)
                except BaseError as error:
                    stored = await self._stored_anyway(key, error)
                    if stored is None:
                        raise
                else:
                    return True
                if stored is not None:
                    return stored == data
                await anyio.sleep(wait)
            msg = f"{self._where}: {key} is said to exist and not to exist; others may be creating and deleting it"
            raise RetriableError(msg)

    async def get(self, key: str) -> bytes | None:
        """Read the whole object; None when the key does not exist."""
        check_key(key)
        with self._failures("read", key):
            result = await self._find(key)
            if result is None:
                return None
            return await self._whole(key, result, int(result.meta["size"]))

    async def head(self, key: str) -> ObjectInfo | None:
        """Size and time, None when the key does not exist."""
        check_key(key)
        with self._failures("look up", key):
            try:
                found = await obstore.head_async(self._raw, key)
            except FileNotFoundError as error:
                if self._limits is not None and not self._answered and refusal_code(error) is None:
                    await self._find(key)  # the answer to HEAD has no body to say that it is the bucket that is missing
                return None
            self._answered = True
            return _info(found)

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
            except FileNotFoundError as error:
                if not is_absent(error):
                    raise

    async def fetch(self, key: str, cache: Path) -> Path:
        """Copy to ``cache`` unless it is there with the right size; keys of large objects are never reused."""
        check_key(key)
        target = cache / key
        with self._failures("fetch", key):
            result = await self._find(key)
            if result is None:
                raise self._missing(key)
            size = int(result.meta["size"])
            partial = anyio.Path(f"{target}.{os.getpid()}.{uuid.uuid4().hex}.partial")
            if size <= _SMALL:
                data = await self._whole(key, result, size)
                await anyio.to_thread.run_sync(_write_whole, Path(partial), target, data)
                return target
            if await anyio.to_thread.run_sync(_is_there, target, size):
                return target
            try:
                await self._download(key, result, partial, size)
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

    async def _find(self, key: str) -> Any | None:
        try:
            result = await obstore.get_async(self._raw, key)
        except FileNotFoundError as error:
            if not is_absent(error):
                raise
            result = None
        self._answered = True
        return result

    async def _stored_anyway(self, key: str, error: BaseError) -> bytes | None:
        """Look for what a creation may have left that failed; None also when that cannot be found out."""
        if self._limits is None or not isinstance(failure_from(error, ""), RetriableError):
            return None
        with anyio.move_on_after(self._limits.stall):
            try:
                return await self.get(key)
            except Failure:
                return None
        return None

    async def _whole(self, key: str, result: Any, size: int) -> bytes:
        try:
            data = bytes(await result.bytes_async())
        except BaseError as error:
            raise self._broke_off(key, None, size, error) from error
        if len(data) != size:
            raise self._broke_off(key, len(data), size)
        return data

    async def _download(self, key: str, result: Any, path: anyio.Path, size: int) -> None:
        received = 0
        async with await anyio.open_file(path, "wb") as file:
            try:
                async for chunk in result.stream(min_chunk_size=_CHUNK):
                    received += await file.write(chunk)
            except BaseError as error:
                raise self._broke_off(key, received, size, error) from error
        if received != size:
            raise self._broke_off(key, received, size)

    def _missing(self, key: str) -> RetriableError:
        return RetriableError(f"{self._where}: {key} does not exist")

    def _broke_off(self, key: str, received: int | None, size: int, error: Exception | None = None) -> RetriableError:
        got = "" if received is None else f", got {received}"
        why = "" if error is None else f" ({first_line(error)})"
        return RetriableError(f"{self._where}: {key} broke off: expected {size} bytes{got}{why}")

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
            msg = f"cannot make the object store {root}: {first_line(error)}"
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
        return remove_stale(self.root / _STAGING, older_than)

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


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], int(meta["size"]), meta["last_modified"].timestamp())


def _small_content(path: Path, most: int) -> bytes | None:
    return path.read_bytes() if path.stat().st_size <= most else None


def _is_there(path: Path, size: int) -> bool:
    """Whether a file of that size is there; if not, its folder is made."""
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return False


def _write_whole(partial: Path, path: Path, data: bytes) -> None:
    if _is_there(path, len(data)):
        return
    try:
        partial.write_bytes(data)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
