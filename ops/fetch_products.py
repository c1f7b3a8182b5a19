"""``rampstream products``: copies finished products out of the store, or lists them."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path
from typing import Any

import anyio

from ops.connect import add_engine_arguments, connected, engine_settings
from ops.product_sets import ProductSets
from ops.projection import Projection

__all__ = ["add_arguments"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    parser.add_argument("exposures", nargs="*", metavar="EXPOSURE", help="exposures (with *); all when none is named")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to copy to; without it they are listed alone")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_engine_arguments(parser)
    parser.set_defaults(handle=run_verb)


def run_verb(options: argparse.Namespace) -> int:
    """Copy; 1 when an exposure that was named has no products."""
    found, failed = anyio.run(_run, options)
    missing = [
        name for name in options.exposures if not any(fnmatch.fnmatchcase(row["exposure"], name) for row in found)
    ]
    if options.json:
        sys.stdout.write(json.dumps({"products": found, "failed": failed, "missing": missing}) + "\n")
    else:
        for row in found:
            for file in row["files"]:
                sys.stdout.write(f"{file}\n")
        for row in failed:
            where = f"revision {row['revision']} of {row['association']}"
            sys.stderr.write(f"rampstream: {row['exposure']}: no products in {where}: {row['reason']}\n")
        for name in missing:
            sys.stderr.write(f"rampstream: {name}: no finished products in this run\n")
    return 1 if missing else 0


async def _run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Exposures with products, and those that have none in the newest revision of their association."""
    settings = engine_settings(options)
    rows, failed = [], []
    async with connected(settings) as connection:
        sets = ProductSets(store=connection.store, results=connection.results, run=settings.run, visible=_unseen)
        out = options.out.resolve() if options.out else Path()
        projection = Projection(store=connection.store, out=out, cache=settings.work.absolute() / "cache" / "objects")
        async for product_set in sets.all():
            place = {"association": product_set.association, "revision": product_set.revision}
            for exposure, reason in product_set.failed.items():
                if _is_named(exposure, options):
                    failed.append({"exposure": exposure, **place, "reason": reason})
            for exposure, member in product_set.members.items():
                if not _is_named(exposure, options):
                    continue
                files = [str(projection.folder(product_set) / product["name"]) for product in member["products"]]
                if options.out:
                    files = [str(path) for path in await projection.project(product_set, frozenset({exposure}))]
                rows.append(
                    {
                        "exposure": exposure,
                        **place,
                        "files": files,
                        "products": member["products"],
                        "summary": member["summary"],
                    }
                )
    return rows, failed


def _is_named(exposure: str, options: argparse.Namespace) -> bool:
    return not options.exposures or any(fnmatch.fnmatchcase(exposure, name) for name in options.exposures)


async def _unseen(_: Any) -> None:
    return
