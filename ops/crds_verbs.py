"""``rampstream references sync|list|check|push`` of a CRDS context: options and output.

The work is in `ops.crds_sync` and `ops.crds_push`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread

from ops.crds_cache import crds_cache, is_crds, named_context, open_context
from ops.crds_files import (
    Exposure,
    Resolved,
    exposures_of_inputs,
    exposures_of_options,
    file_catalog,
    local_path,
    problem_of,
    resolve,
)
from ops.crds_push import push_context
from ops.crds_sync import DEFAULT_SERVER, sync
from ops.reference_store import Pushed
from ops.settings import load_settings
from stages.crds_context import CrdsContext
from stream.failure import PermanentError

__all__ = ["add_check", "add_exposure_arguments", "add_sync", "list_context", "publish_context", "unresolved"]

DETECTORS = tuple(f"WFI{number:02d}" for number in range(1, 19))
ELEMENTS = ("F062", "F087", "F106", "F129", "F146", "F158", "F184", "F213")


def add_sync(actions: Any) -> None:
    """Add ``sync``."""
    parser = actions.add_parser(
        "sync",
        help="fetch a CRDS context and the references that exposures need into the local cache",
        description=(
            "Fetches the mappings of a CRDS context and the best references of the INPUTs, or of all combinations of "
            "the options, into the local CRDS cache. What is there and whole is not fetched again. Exit status 0: all "
            "that the exposures need is there; 1: it is not."
        ),
    )
    _add_context_arguments(parser)
    parser.add_argument("--server", metavar="URL", help=f"the server (CRDS_SERVER_URL, else {DEFAULT_SERVER})")
    parser.set_defaults(handle=sync_verb)


def add_check(actions: Any) -> None:
    """Add ``check``."""
    parser = actions.add_parser(
        "check",
        help="say what is missing or damaged in the local CRDS cache",
        description=(
            "Says which mappings of a context, and which references of the INPUTs or of all combinations of the "
            "options, are missing or damaged in the local CRDS cache. No network. Exit status 0: nothing; 1: something."
        ),
    )
    _add_context_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="compare sizes, and no checksums of references")
    parser.set_defaults(handle=check_verb)


def _add_context_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("context", metavar="crds:[CONTEXT]", help="a context, or crds: for the one in use")
    add_exposure_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_exposure_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a verb the options that say for which exposures."""
    parser.add_argument("inputs", nargs="*", type=Path, metavar="INPUT", help="L1 file or association")
    parser.add_argument("--detectors", metavar="A,B", help="without INPUT: detectors (default: all)")
    parser.add_argument("--elements", metavar="A,B", help="without INPUT: optical elements (default: all filters)")
    parser.add_argument("--types", metavar="A,B", help="without INPUT: exposure types (default: WFI_IMAGE)")
    parser.add_argument("--date", metavar="TIME", help="without INPUT: when exposures begin, UTC (default: now)")
    parser.add_argument("--crds-path", type=Path, metavar="DIR", help="the cache (default: CRDS_PATH)")


def _cache(options: argparse.Namespace) -> Path:
    given = {} if options.crds_path is None else {"crds_path": options.crds_path}
    return crds_cache(load_settings(None, given))


def _asked(options: argparse.Namespace) -> list[Exposure]:
    if options.inputs:
        if options.detectors or options.elements or options.types or options.date:
            raise PermanentError("give INPUTs, or --detectors, --elements, --types and --date, not both")
        return exposures_of_inputs(options.inputs)
    detectors = _words(options.detectors, DETECTORS)
    unknown = sorted(set(detectors) - set(DETECTORS))
    if unknown:
        raise PermanentError(f"--detectors: there is no detector {unknown[0]}; they are WFI01 to WFI18")
    return exposures_of_options(
        detectors, _words(options.elements, ELEMENTS), _words(options.types, ("WFI_IMAGE",)), _start(options.date)
    )


def _words(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    words = tuple(word.strip().upper() for word in (text or "").split(",") if word.strip())
    return words or default


def _start(text: str | None) -> str:
    try:
        when = datetime.now(UTC) if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise PermanentError(f"--date {text!r}: expected a time like 2027-01-31T12:00:00") from None
    when = when.astimezone(UTC) if when.tzinfo else when
    return when.replace(tzinfo=None).isoformat(timespec="milliseconds")


def _check_name(text: str) -> None:
    if not is_crds(text):
        raise PermanentError(f"{text}: expected crds://CONTEXT, for example crds://roman_0123.pmap, or crds:")


def sync_verb(options: argparse.Namespace) -> int:
    """Fetch; 1 when a type that exposures need has no file."""
    _check_name(options.context)

    def tell(name: str) -> None:
        sys.stderr.write(f"  fetching {name}\n")

    cache = _cache(options)
    done = sync(cache, named_context(options.context), _asked(options), server=options.server, tell=tell)
    problems = unresolved(done.resolved)
    report = {
        "context": done.context,
        "cache": str(cache),
        "mappings": done.mappings,
        "references": done.references,
        "fetched": done.fetched,
        "fetched_bytes": done.fetched_bytes,
        "problems": problems,
    }
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write(
            f"{done.mappings} mappings of {done.context} and {done.references} references in {cache}; "
            f"{len(done.fetched)} fetched ({done.fetched_bytes / 1e9:.2f} GB)\n" + _lines(problems)
        )
    return 1 if problems else 0


def list_context(options: argparse.Namespace) -> int:
    """Show what each type resolves to; 1 when one that exposures need has no answer or its file is missing."""
    cache = _cache(options)
    context = open_context(options.place, cache)
    resolved = resolve(context, _asked(options))
    rows = [{**_row(found), "path": _present(cache, found.name)} for found in resolved]
    if options.json:
        sys.stdout.write(json.dumps({"context": context.name, "cache": str(cache), "files": rows}) + "\n")
    else:
        sys.stdout.write(_table(rows) + f"{len(rows)} look-ups in the context {context.name}, cache {cache}\n")
    return 1 if any(row["error"] or (row["name"] and not row["path"]) for row in rows) else 0


def _present(cache: Path, name: str | None) -> str | None:
    path = None if name is None else local_path(cache, name)
    return str(path) if path is not None and path.is_file() else None


def _row(found: Resolved) -> dict[str, Any]:
    return {
        "exposure": found.exposure,
        "reference_type": found.reference_type,
        "name": found.name,
        "error": found.error,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [("exposure", "type", "file", "")]
    for row in rows:
        note = row["error"] or ("" if row["path"] or row["name"] is None else "not in the cache")
        lines.append((row["exposure"], row["reference_type"], row["name"] or ("-" if row["error"] else "N/A"), note))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "".join(
        "  ".join((*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[3])).rstrip() + "\n"
        for line in lines
    )


def check_verb(options: argparse.Namespace) -> int:
    """Check; 1 when something is missing or damaged."""
    _check_name(options.context)
    cache = _cache(options)
    if not cache.is_dir():
        raise PermanentError(f"{cache}: there is no such folder; expected a CRDS cache")
    asked = _asked(options)
    problems: list[str] = []
    context: CrdsContext | None = None
    resolved: list[Resolved] = []
    try:
        context = open_context(options.context, cache)
        context.digest()
        resolved = resolve(context, asked)
    except PermanentError as error:
        problems.append(str(error))
    problems += unresolved(resolved)
    names = sorted({found.name for found in resolved if found.name is not None})
    catalog = file_catalog(cache)
    for name in names:
        problem = problem_of(local_path(cache, name), catalog.get(name), checksum=not options.quick)
        problems += [] if problem is None else [f"{name} {problem}"]
    unknown = sum(name not in catalog for name in names)
    report = {
        "context": None if context is None else context.name,
        "cache": str(cache),
        "references": len(names),
        "without_checksum": unknown,
        "problems": problems,
    }
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write(_checked(report))
    return 1 if problems else 0


def _checked(report: dict[str, Any]) -> str:
    told = f"{report['context'] or 'no context'} and {report['references']} references looked at in {report['cache']}: "
    told += f"{len(report['problems'])} problems\n" if report["problems"] else "nothing missing, nothing damaged\n"
    if report["without_checksum"]:
        told += (
            f"of {report['without_checksum']} references the cache has no checksum: "
            "only whether they are cut off was looked at\n"
        )
    return told + _lines(report["problems"])


async def publish_context(
    options: argparse.Namespace, url: str, tell: Callable[[str], Any]
) -> tuple[Pushed, list[Resolved]]:
    """Publish a context with what exposures need (see `ops.crds_push.push_context`)."""
    context = await anyio.to_thread.run_sync(open_context, options.place, _cache(options))
    exposures = await anyio.to_thread.run_sync(_asked, options)
    return await push_context(context, exposures, url, tell=tell)


def unresolved(resolved: list[Resolved]) -> list[str]:
    """Errors of look-ups, each once."""
    return list(dict.fromkeys(found.error for found in resolved if found.error is not None))


def _lines(problems: list[str]) -> str:
    return "".join(f"  {problem}\n" for problem in problems)
