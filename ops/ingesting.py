"""``rampstream ingest``: puts L1 files into the store and announces them to a run; with ``--watch``, as they arrive.

A file is ingested once a run: its record in the store says so, across restarts. A half-written file is waited for, and
so is a member of an association whose file is not there yet, where that was asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from ops.announce import Announced, Announcer
from ops.connect import Connection, add_engine_arguments, connected, engine_settings, view_run
from ops.detector_groups import DetectorGroups
from ops.ingest import Ingest, inspect, read_inputs
from ops.run_failure import first_failure
from ops.trace_export import exported_tracing
from stages.product_names import base_name
from stream.clock import SystemClock
from stream.failure import PermanentError, RetriableError
from stream.router import Router
from stream.store import ObjectStore
from stream.store.obstore_store import open_store
from stream.tracing import Tracing

__all__ = ["add_arguments"]

LOG = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""How often a watched place is looked at: exposures arrive every few minutes, and a listing costs milliseconds."""

SETTLE_SECONDS = 2.0
"""A file in a watched folder is complete when it has not changed for so long: a copy writes at least once a second."""

PATTERN = "_uncal.asdf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    parser.add_argument("inputs", nargs="*", metavar="PATH|URL", help="L1 file, association (.json), s3://… of one")
    parser.add_argument(
        "--association", action="append", default=[], type=Path, metavar="FILE", help="association file (.json)"
    )
    parser.add_argument(
        "--watch", action="append", default=[], metavar="DIR|URL", help="go on with files as they arrive there"
    )
    parser.add_argument(
        "--group-detectors",
        nargs="?",
        const="",
        metavar="WFI01,…",
        help="align all detectors of an exposure jointly; without a list those of the setting `detectors`",
    )
    parser.add_argument(
        "--allow-absent",
        action="store_true",
        help="members of associations whose files are not there yet join when they are ingested (so with --watch)",
    )
    parser.add_argument("--register", action="store_true", help="do not upload: workers read the files where they lie")
    parser.add_argument("--again", action="store_true", help="announce also what was announced before")
    parser.add_argument("--replace", action="store_true", help="accept a file of a known name with other content")
    parser.add_argument("--json", action="store_true", help="print one JSON document a line, one an exposure")
    add_engine_arguments(parser)
    parser.set_defaults(handle=run_verb)


def run_verb(options: argparse.Namespace) -> int:
    """Ingest; 0 when nothing was refused."""
    if not (options.inputs or options.association or options.watch):
        raise PermanentError("nothing to ingest: name files, associations, or a place to --watch")
    return anyio.run(_run, options)


async def _run(options: argparse.Namespace) -> int:
    settings = engine_settings(options, **_expected(options.group_detectors))
    async with exported_tracing(settings.run, f"ingest-{os.getpid()}") as tracing, connected(settings) as connection:
        view = await view_run(connection)
        partitions = {name: spec.partitions for name, spec in (await connection.broker.topics()).items()}
        router = Router(
            broker=connection.broker,
            segments=view.pipeline.segments,
            run=settings.run,
            status_of=_no_status,
            clock=SystemClock(),
            partitions=partitions,
            spread=view.layout["spread"],
        )
        session = _Session(options, connection, router, tracing)
        given = [text for text in options.inputs if "://" not in text]
        bad = await session.files([Path(text) for text in given] + options.association)
        for url in [text for text in options.inputs if "://" in text]:
            bad |= await session.url(url)
        if options.watch:
            try:
                async with anyio.create_task_group() as tasks:
                    for place in options.watch:
                        tasks.start_soon(session.watch, place)
            except BaseExceptionGroup as group:
                raise first_failure(group, settings.work) from group
        return 1 if bad else 0


def _expected(detectors: str | None) -> dict[str, Any]:
    """The setting that --group-detectors gives, if it names any."""
    if not detectors:
        return {}
    if "." in detectors or "/" in detectors:
        raise PermanentError(f"--group-detectors {detectors}: expected detectors; put the option behind the files")
    return {"detectors": [name for name in detectors.split(",") if name.strip()]}


def _no_status(_: Any) -> Any:
    raise AssertionError("ingest forwards no results")


@dataclass(slots=True)
class _Seen:
    size: int
    mtime_ns: float
    since: float = field(default_factory=time.monotonic)


class _Session:
    def __init__(self, options: argparse.Namespace, connection: Connection, router: Router, tracing: Tracing) -> None:
        self._options = options
        self._upload = not options.register
        self._absent = options.allow_absent or bool(options.watch)
        self._announcer = Announcer(
            store=connection.store,
            results=connection.results,
            router=router,
            clock=SystemClock(),
            upload=self._upload,
            again=options.again,
            replace=options.replace,
            tracing=tracing,
        )
        self._incoming = connection.settings.work / "incoming"
        self._groups: DetectorGroups | None = None
        if options.group_detectors is not None:
            settings = connection.settings
            self._groups = DetectorGroups(connection.store, settings.run, settings.detectors)

    async def files(self, paths: list[Path]) -> bool:
        """Ingest local files and associations; whether any was refused."""
        return await self._ingest(await anyio.to_thread.run_sync(partial(read_inputs, paths, absent=self._absent)))

    async def _ingest(self, ingest: Ingest) -> bool:
        await anyio.to_thread.run_sync(_refuse_what_is_no_file, ingest)
        if self._groups is not None:
            await self._groups.regroup(ingest)
        for name, reason in ingest.refused.items():
            self._tell(Announced(name, "refused", reason))
        await self._announcer.join_awaited(ingest)
        await self._announcer.lists(ingest)
        bad = bool(ingest.refused)
        for entry in ingest.entries.values():
            if self._absent and entry.id in ingest.listed and not await anyio.Path(entry.path).is_file():
                announced = await self._announcer.absent(entry.id, ingest.lists)
            else:
                await anyio.to_thread.run_sync(inspect, entry)
                announced = await self._announcer.exposure(entry, ingest.lists)
            self._tell(announced)
            bad |= announced.outcome == "refused"
        return bad

    async def url(self, url: str) -> bool:
        """Ingest one object of a store, by a local copy."""
        folder, _, name = url.rpartition("/")
        source = open_store(folder)
        path = await self._copied(source, name)
        try:
            return await self.files([path])
        finally:
            await anyio.Path(path).unlink(missing_ok=True)

    async def _copied(self, source: ObjectStore, key: str) -> Path:
        """A copy under the object's own base name: exposures are known by the names of their files."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        fetched = await source.fetch(key, self._incoming / "fetched")
        target = self._incoming / key.rpartition("/")[2]
        await anyio.Path(fetched).rename(target)
        return target

    async def watch(self, place: str) -> None:
        """Ingest what arrives, for good."""
        remote = "://" in place and urlsplit(place).scheme != "file"
        source = open_store(place) if remote else None
        folder = Path(place.removeprefix("file://"))
        if source is None and not await anyio.Path(folder).is_dir():
            raise PermanentError(f"--watch {place}: there is no such folder")
        done: dict[str, tuple[int, float]] = {}
        seen: dict[str, _Seen] = {}
        while True:
            try:
                async for name, size, modified in _listed(source, folder):
                    if done.get(name) == (size, modified) or not (source or _settled(seen, name, size, modified)):
                        continue
                    if source is None:
                        await self._watched(folder / name)
                    elif not await self._known(name, size):
                        path = await self._copied(source, name)
                        await self.files([path])
                        await anyio.Path(path).unlink(missing_ok=True)
                    done[name] = (size, modified)
            except RetriableError as error:
                LOG.warning("%s: %s; looking again", place, error)
            await anyio.sleep(POLL_SECONDS)

    async def _watched(self, path: Path) -> None:
        found = await anyio.Path(path).stat()
        record = await self._announcer.known(base_name(path.name))
        unchanged = (record.get("size"), record.get("mtime_ns")) == (found.st_size, found.st_mtime_ns)
        if not (unchanged and await self._told(base_name(path.name), record)):  # else its digest need not be taken
            await self.files([path])

    async def _known(self, name: str, size: int) -> bool:
        exposure = base_name(name.rpartition("/")[2])
        record = await self._announcer.known(exposure)
        return record.get("size") == size and await self._told(exposure, record)

    async def _told(self, exposure: str, record: dict[str, Any]) -> bool:
        """Whether it was announced before, to all that wait for it; where detectors are grouped: to its group."""
        told = record.get("associations", ())
        if not told or not set(await self._announcer.awaited(exposure)) <= set(told):
            return False
        if self._groups is None:
            return True
        try:
            return (await self._groups.group_of(exposure)).association in told
        except PermanentError:
            return False  # to be refused, with the reason

    def _tell(self, announced: Announced) -> None:
        if self._options.json:
            document = {"exposure": announced.exposure, "outcome": announced.outcome, "reason": announced.reason}
            sys.stdout.write(json.dumps(document) + "\n")
        else:
            reason = f": {announced.reason}" if announced.reason else ""
            sys.stdout.write(f"{announced.exposure}: {announced.outcome}{reason}\n")
        sys.stdout.flush()


def _refuse_what_is_no_file(ingest: Ingest) -> None:
    """Refuse plain files that are none before anything is announced: a mistyped path is no exposure."""
    for exposure, entry in list(ingest.entries.items()):
        if exposure in ingest.listed or entry.path.is_file():
            continue
        what = "it is a folder; see --watch" if entry.path.is_dir() else "there is no such file"
        ingest.refused[str(entry.path)] = f"{entry.path}: {what}"
        del ingest.entries[exposure]
        ingest.lists = [members for members in ingest.lists if members.members != (exposure,)]


async def _listed(source: ObjectStore | None, folder: Path) -> AsyncIterator[tuple[str, int, float]]:
    """Name, size and time of what lies in a watched place and has the name of an L1 file."""
    if source is not None:
        async for info in source.list(""):
            if info.key.endswith(PATTERN):
                yield info.key, info.size, info.modified
        return
    for listed in await anyio.to_thread.run_sync(_files, folder):
        yield listed


def _files(folder: Path) -> list[tuple[str, int, float]]:
    found = []
    for path in sorted(folder.glob(f"[!.]*{PATTERN}")):
        with contextlib.suppress(FileNotFoundError):  # renamed away meanwhile
            status = path.stat()
            found.append((path.name, status.st_size, float(status.st_mtime_ns)))
    return found


def _settled(seen: dict[str, _Seen], name: str, size: int, modified: float) -> bool:
    known = seen.get(name)
    if known is None or (known.size, known.mtime_ns) != (size, modified):
        seen[name] = _Seen(size, modified)
        return False
    return time.monotonic() - known.since >= SETTLE_SECONDS
