"""``rampstream references push|list``: publishes reference files for workers on other machines, and shows them.

What concerns CRDS, ``sync``, ``check`` and the list of a context, is in `ops.crds_verbs`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import anyio

from ops.crds_cache import is_crds
from ops.crds_verbs import add_check, add_exposure_arguments, add_sync, list_context
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
    pushing = actions.add_parser("push", help="publish a folder of reference files in object storage")
    pushing.add_argument("directory", type=Path, metavar="DIR", help="folder with reference files")
    pushing.add_argument("url", metavar="URL", help="s3://BUCKET/PREFIX, gs://… or az://…")
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
    """Publish; 0 when the set is complete at the URL."""
    return anyio.run(_push, options)


async def _push(options: argparse.Namespace) -> int:
    def tell(name: str) -> None:
        sys.stderr.write(f"  sent {name}\n")

    url = options.url.rstrip("/")
    stars = None if options.gaia is None else await push_table(options.gaia, url)
    pushed = await push(options.directory, url, tell=tell)
    files, sent = pushed.index.files, pushed.uploaded
    report: dict[str, Any] = {
        "url": url,
        "index": pushed.index.digest,
        "files": len(files),
        "uploaded": len(sent),
        "uploaded_bytes": sum(file.size for file in sent),
        "gaia": stars,
    }
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write(
            f"{len(files)} reference files at {url}, {len(sent)} sent ({report['uploaded_bytes'] / 1e9:.2f} GB); "
            f"index {pushed.index.digest[:16]}…\n" + (f"star table at {stars}\n" if stars else "")
        )
    return 0


def list_verb(options: argparse.Namespace) -> int:
    """Show."""
    if is_crds(options.place):
        return list_context(options)
    if options.inputs or options.detectors or options.elements or options.types or options.date:
        raise PermanentError(f"{options.place}: INPUT and the options for exposures belong to crds:[CONTEXT]")
    if is_url(options.place):
        place = options.place.rstrip("/")
        index = anyio.run(newest_index, place)
    else:
        place = options.place
        directory = Path(place)
        index = ReferenceIndex(tuple(file for _, file in describe(directory, DirectoryReferences(directory))))
    if options.json:
        rows = [_described(place, file) for file in index.files]
        sys.stdout.write(json.dumps({"place": place, "index": index.digest, "files": rows}) + "\n")
    else:
        sys.stdout.write(_table(index) + f"{len(index.files)} files in {place}, index {index.digest}\n")
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
