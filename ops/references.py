"""``rampstream references push|list``: publishes reference files for workers on other machines, and shows them.

What concerns CRDS, ``sync``, ``check``, and the list and the push of a context, is in `ops.crds_verbs`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import anyio

from ops.crds_cache import is_crds
from ops.crds_verbs import add_check, add_exposure_arguments, add_sync, list_context, publish_context, unresolved
from ops.reference_store import is_url, newest_index, push, push_table
from stages.reference_index import IndexedFile, ReferenceIndex, describe
from stages.reference_selection import DirectoryReferences
from stream.failure import PermanentError

__all__ = ["add_arguments"]

_COLUMNS = ("type", "useafter", "detector", "element", "exposure type", "size", "sha256", "name")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its actions and options."""
    actions = parser.add_subparsers(required=True, metavar="sync|check|push|list")
    add_sync(actions)
    add_check(actions)
    pushing = actions.add_parser(
        "push",
        help="publish reference files in object storage",
        description=(
            "Publishes a folder of reference files, or a context of the local CRDS cache with the references that the "
            "INPUTs, or all combinations of the options, need. Exit status 0: all is there; 1: a type that an exposure "
            "needs has no file in the context."
        ),
    )
    pushing.add_argument("place", metavar="DIR|crds:[CONTEXT]", help="folder with reference files, or a context")
    pushing.add_argument("url", metavar="URL", help="s3://BUCKET/PREFIX, gs://… or az://…")
    add_exposure_arguments(pushing)
    pushing.add_argument("--gaia", type=Path, metavar="TABLE", help="publish this table of reference stars too")
    pushing.add_argument("--json", action="store_true", help="print one JSON document")
    pushing.set_defaults(handle=push_verb)
    listing = actions.add_parser(
        "list",
        help="show the reference files of a folder or of the newest published set, or what a CRDS context selects",
    )
    listing.add_argument("place", metavar="URL|DIR|crds:[CONTEXT]", help="a published set, a folder, or a context")
    add_exposure_arguments(listing)
    listing.add_argument("--json", action="store_true", help="print one JSON document")
    listing.set_defaults(handle=list_verb)


def push_verb(options: argparse.Namespace) -> int:
    """Publish; 0 when the set is complete at the URL, 1 when exposures need what a context does not have."""
    _check_exposures(options)
    return anyio.run(_push, options)


async def _push(options: argparse.Namespace) -> int:
    def tell(name: str) -> None:
        sys.stderr.write(f"  sent {name}\n")

    url = options.url.rstrip("/")
    stars = None if options.gaia is None else await push_table(options.gaia, url)
    problems: list[str] = []
    if is_crds(options.place):
        pushed, resolved = await publish_context(options, url, tell)
        problems = unresolved(resolved)
    else:
        pushed = await push(Path(options.place), url, tell=tell)
    files, sent = pushed.index.files, pushed.uploaded
    report: dict[str, Any] = {
        "url": url,
        "index": pushed.index.digest,
        "files": len(files),
        "uploaded": len(sent),
        "uploaded_bytes": sum(file.size for file in sent),
        "gaia": stars,
        "context": None if pushed.index.context is None else pushed.index.context.name,
        "problems": problems,
    }
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write(
            f"{len(files)} reference files at {url}, {len(sent)} sent ({report['uploaded_bytes'] / 1e9:.2f} GB); "
            f"index {pushed.index.digest[:16]}…{_by_context(pushed.index)}\n"
            + (f"star table at {stars}\n" if stars else "")
            + "".join(f"  {problem}\n" for problem in problems)
        )
    return 1 if problems else 0


def _by_context(index: ReferenceIndex) -> str:
    return "" if index.context is None else f", chosen by the CRDS context {index.context.name}"


def _check_exposures(options: argparse.Namespace) -> None:
    named = options.inputs or options.detectors or options.elements or options.types or options.date
    if named and not is_crds(options.place):
        raise PermanentError(f"{options.place}: INPUT and the options for exposures belong to crds:[CONTEXT]")


def list_verb(options: argparse.Namespace) -> int:
    """Show."""
    if is_crds(options.place):
        return list_context(options)
    _check_exposures(options)
    if is_url(options.place):
        place = options.place.rstrip("/")
        index = anyio.run(newest_index, place)
    else:
        place = options.place
        directory = Path(place)
        index = ReferenceIndex(tuple(file for _, file in describe(directory, DirectoryReferences(directory))))
    if options.json:
        rows = [_described(place, file) for file in index.files]
        context = None if index.context is None else index.context.name
        report = {"place": place, "index": index.digest, "context": context, "files": rows}
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        told = f"{len(index.files)} files in {place}, index {index.digest}{_by_context(index)}\n"
        sys.stdout.write(_table(index) + told)
    return 0


def _described(place: str, file: IndexedFile) -> dict[str, Any]:
    where = f"{place}/{file.key}" if is_url(place) else str(Path(place) / file.name)
    return {
        "reference_type": file.header.reference_type,
        "useafter": file.header.useafter,
        **file.header.values,
        "size": file.size,
        "sha256": file.sha256,
        "name": file.name,
        "where": where,
    }


def _table(index: ReferenceIndex) -> str:
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for file in sorted(index.files, key=lambda file: (str(file.header.reference_type), file.name)):
        header = file.header
        accepted = [
            "|".join(header.values.get(key, ())) or "any" for key in ("detector", "optical_element", "exposure_type")
        ]
        columns = (str(header.reference_type), header.useafter, *accepted, str(file.size), file.sha256[:12], file.name)
        rows.append(columns)
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"
