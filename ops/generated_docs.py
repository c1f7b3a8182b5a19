"""Writes the pages and schemas that are made from the code: ``python -m ops.generated_docs [--check]``.

With ``--check`` nothing is written, and the exit status is 1 when a file is not what the code gives.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.asyncapi import asyncapi
from ops.metrics_page import metrics_page
from ops.schemas import schemas

__all__ = ["generated", "main", "outdated"]


def generated() -> dict[str, str]:
    """Every generated file below ``docs``, by its path there."""
    documents = {f"schemas/{name}.schema.json": schema for name, schema in schemas().items()}
    documents["schemas/asyncapi.json"] = asyncapi()
    return {"metrics.md": metrics_page(), **{path: _text(document) for path, document in documents.items()}}


def outdated(docs: Path) -> list[str]:
    """Files that are missing, differ, or are there and should not be."""
    wanted = generated()
    found = {f"schemas/{path.name}" for path in (docs / "schemas").glob("*")}
    differ = {path for path, text in wanted.items() if not (docs / path).exists() or _read(docs / path) != text}
    return sorted(differ | (found - wanted.keys()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(prog="python -m ops.generated_docs", description=__doc__)
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="the folder of the documentation")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when a file is not up to date")
    options = parser.parse_args(arguments)
    stale = outdated(options.docs)
    if options.check:
        sys.stdout.write("".join(f"{options.docs / path} is not what the code gives\n" for path in stale))
        return 1 if stale else 0
    wanted = generated()
    for path in stale:
        target = options.docs / path
        if path in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(wanted[path], encoding="utf-8")
        else:
            target.unlink()
        sys.stdout.write(f"{target}\n")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
