"""Brings a folder in line with product sets, file by file, by rename. What is visible is decided in the store.

A folder may be brought in line again at any time: files that are right are left alone.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import anyio.to_thread

from ops.ingest import digest_file
from ops.product_sets import ProductSet
from ops.run_failure import disk_trouble
from stream.failure import FatalError
from stream.store import ObjectStore

__all__ = ["Projection", "bring_in_line"]

_NO_CLONE = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""What ``copy_file_range`` says where it cannot be used, between two file systems above all."""


class Projection:
    """A folder that shows product sets.

    Parameters
    ----------
    store : ObjectStore
        Where the products lie.
    out : Path
        The folder.
    cache : Path
        For objects that are not local.
    """

    def __init__(self, *, store: ObjectStore, out: Path, cache: Path) -> None:
        self._store = store
        self._out = out
        self._cache = cache

    def folder(self, product_set: ProductSet) -> Path:
        """Where the products of a set go: a folder of the product's name, or the top for a plain file."""
        return self._out / product_set.product_name if product_set.product_name else self._out

    async def project(self, product_set: ProductSet, exposures: frozenset[str] | None = None) -> list[Path]:
        """Bring the files of one set in line (of some exposures, or of all); returns where they are.

        Raises
        ------
        stream.failure.FatalError
            A file cannot be written.
        """
        folder = self.folder(product_set)
        placed = []
        for exposure, member in product_set.members.items():
            if exposures is not None and exposure not in exposures:
                continue
            for product in member["products"]:
                source = await self._store.fetch(product["key"], self._cache)
                target = folder / product["name"]
                await anyio.to_thread.run_sync(bring_in_line, source, target, product["digest"])
                placed.append(target)
        return placed

    async def remove_former(self, product_set: ProductSet, former: Mapping[str, Collection[str]]) -> list[Path]:
        """Remove files that a set has not, if they have a digest that one of that name had; returns where they were.

        Raises
        ------
        stream.failure.FatalError
            A file cannot be removed.
        """
        folder = self.folder(product_set)
        names = {product["name"] for member in product_set.members.values() for product in member["products"]}
        gone = {folder / name: digests for name, digests in former.items() if name not in names}
        return await anyio.to_thread.run_sync(_remove, gone)


def bring_in_line(source: Path, target: Path, digest: str) -> None:
    """Put a copy of a file in its place, complete or not at all; one that has this digest already is left alone.

    Raises
    ------
    stream.failure.FatalError
        It cannot be written.
    """
    try:
        if target.is_file() and target.stat().st_size == source.stat().st_size and digest_file(target) == digest:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            _copy(source, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise FatalError(f"{target}: the product cannot be written: {disk_trouble(error)}") from error


def _remove(files: Mapping[Path, Collection[str]]) -> list[Path]:
    """Remove the files that have one of their digests; a link is somebody's own."""
    removed = []
    for path, digests in files.items():
        try:
            if path.is_symlink() or not path.is_file() or digest_file(path) not in digests:
                continue
            path.unlink(missing_ok=True)
        except OSError as error:
            raise FatalError(f"{path}: the former product cannot be removed: {disk_trouble(error)}") from error
        removed.append(path)
    return removed


def _copy(source: Path, target: Path) -> None:
    """Copy inside the kernel: a clone where the file system can, and never through this process's memory."""
    with source.open("rb") as read, target.open("xb") as write:
        left = os.fstat(read.fileno()).st_size
        copy: Callable[[int, int, int], int] = os.copy_file_range
        while left > 0:
            try:
                done = copy(read.fileno(), write.fileno(), left)
            except OSError as error:
                if copy is _send or error.errno not in _NO_CLONE:
                    raise
                copy = _send
                continue
            if done == 0:
                raise OSError(errno.EIO, f"{source} ended early")
            left -= done
        os.fsync(write.fileno())


def _send(read: int, write: int, count: int) -> int:
    return os.sendfile(write, read, None, count)
