"""Decides which products are visible, and brings the output folder in line with that decision.

One record in the store for each revision of an association lists the products of all its members; it is written when
the last of them is finalized. ``OUT`` is a projection of the newest records, made file by file by rename.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from ops.ingest import digest_file
from ops.run_failure import disk_trouble
from stream.association import Close
from stream.failure import FatalError
from stream.identity import canonical_json
from stream.member_list import MemberList, load_close, read_member_list
from stream.message import MemberStatus
from stream.results import Manifest, ObjectKind, Results
from stream.run_records import RunRecords
from stream.store import ObjectStore

__all__ = ["ProductSet", "ProductSets"]

_NO_CLONE = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""What ``copy_file_range`` says where it cannot be used, between two file systems above all."""


@dataclass(frozen=True, slots=True)
class ProductSet:
    """The products of one revision of an association.

    ``members`` maps each member to ``{"manifest": key, "products": [{name, key, digest, size}], "summary": {…}}``;
    ``failed`` maps members without products to the reason.
    """

    association: str
    revision: int
    product_name: str | None
    members: dict[str, dict[str, Any]]
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the set as a JSON value."""
        return {
            "association": self.association,
            "revision": self.revision,
            "product_name": self.product_name,
            "members": self.members,
            "failed": self.failed,
        }


class ProductSets:
    """Product sets of one run.

    Parameters
    ----------
    store, results : ObjectStore, Results
        Where records and manifests lie.
    run : str
        The run.
    out : Path
        The folder to project to.
    cache : Path
        For objects that are not local.
    observe : callable
        Told about each complete set.
    """

    def __init__(
        self,
        *,
        store: ObjectStore,
        results: Results,
        run: str,
        out: Path,
        cache: Path,
        observe: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._results = results
        self._run = run
        self._records = RunRecords(store, run)
        self._out = out
        self._cache = cache
        self._observe = observe
        self._failed: dict[str, dict[str, str]] = {}
        self._lock = anyio.Lock()

    def _pointer(self, exposure: str, association: str, revision: int) -> str:
        return f"runs/{self._run}/finalized/{association}/{revision}/{exposure}"

    def _key(self, association: str, revision: int) -> str:
        return f"runs/{self._run}/products/{association}/{revision}"

    async def finalized(self, association: str, revision: int | None, manifest: Manifest) -> None:
        """Take note of a finalized member (revision None: one that did not wait for the close)."""
        pointer = self._pointer(manifest.exposure, association, revision or 0)
        document = canonical_json({"manifest": manifest.key, "identity": manifest.identity})
        if not await self._store.put_if_absent(pointer, document):
            await self._store.put(pointer, document)
        await self._records.add_revision(association, manifest)
        await self.check(association)

    async def failed(self, association: str, exposure: str, reason: str) -> None:
        """Take note of a member that could not be finalized."""
        self._failed.setdefault(association, {})[exposure] = reason
        await self.check(association)

    async def newest_close(self, association: str) -> Close | None:
        """Return the newest close of an association."""
        close, revision = None, 1
        while (found := await load_close(self._store, self._run, association, revision)) is not None:
            close, revision = found, revision + 1
        return close

    async def current(self, association: str) -> ProductSet | None:
        """Return the complete set of the newest close, None while there is none."""
        close = await self.newest_close(association)
        if close is None:
            return None
        data = await self._store.get(self._key(association, close.revision))
        return None if data is None else ProductSet(**json.loads(data))

    async def check(self, association: str) -> None:
        """Write the record and project it if the newest revision is complete."""
        async with self._lock:
            close = await self.newest_close(association)
            if close is None:
                return
            members = await read_member_list(self._store, self._run, association)
            complete = await self._complete(members, close)
            if complete is None:
                return
            await self._store.put(self._key(association, close.revision), canonical_json(complete.to_json()))
            await self.project(complete)
        self._observe({"event": "products", "association": association, "revision": close.revision})

    async def _complete(self, members: MemberList, close: Close) -> ProductSet | None:
        failed = dict(self._failed.get(close.association, {}))
        found: dict[str, dict[str, Any]] = {}
        for member in close.members:
            if member.member not in close.used:
                failed.setdefault(member.member, member.status)
                continue
            waited = member.status == MemberStatus.OK.value
            pointer = self._pointer(member.member, close.association, close.revision if waited else 0)
            data = await self._store.get(pointer)
            if data is None:
                if member.member in failed:
                    continue
                return None
            manifest = await self._results.find(json.loads(data)["identity"])
            if manifest is None:
                return None
            failed.pop(member.member, None)
            found[member.member] = {
                "manifest": manifest.key,
                "identity": manifest.identity,
                "summary": manifest.extra.get("summary", {}),
                "products": [
                    {"name": o.name, "key": o.key, "digest": o.digest, "size": o.size}
                    for o in manifest.objects
                    if o.kind is ObjectKind.PRODUCT
                ],
            }
        return ProductSet(close.association, close.revision, members.product_name, found, failed)

    def folder(self, product_set: ProductSet) -> Path:
        """Where the products of a set go: a folder of the product's name, or the top for a plain file."""
        return self._out / product_set.product_name if product_set.product_name else self._out

    async def project(self, product_set: ProductSet) -> None:
        """Bring the files of one set in line, each by rename; a file that is in line already is left alone."""
        folder = self.folder(product_set)
        for member in product_set.members.values():
            for product in member["products"]:
                source = await self._store.fetch(product["key"], self._cache)
                await anyio.to_thread.run_sync(_bring_in_line, source, folder / product["name"], product["digest"])


def _bring_in_line(source: Path, target: Path, digest: str) -> None:
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
