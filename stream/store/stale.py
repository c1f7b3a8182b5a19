"""Removes what killed processes left half made in a folder that is nobody's in particular."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

__all__ = ["remove_stale"]


def remove_stale(folder: Path, older_than: float) -> int:
    """Remove what nobody has written to for so many seconds; returns how many files and folders of files."""
    removed = 0
    limit = time.time() - older_than
    for path in folder.glob("*"):
        if max(_modified(file) for file in (path, *path.rglob("*"))) < limit:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            removed += 1
    return removed


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
