"""Imported by the fork server, so that every job process is born with the heavy libraries loaded.

Nothing here may start a thread: a fork copies only the one that forks.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import asdf
import yaml
from astropy.modeling.models import Polynomial2D

import ops.job
import ops.workbench
from stages.pipeline import TABLE, make_stage

__all__ = ["warm", "warm_crds"]


def warm() -> None:
    """Make every stage once, and read one transform: the file format's plug-ins and schemas load on first use."""
    ops.workbench.library_versions(("numpy",))
    for row in TABLE:
        make_stage(row.entry)
    buffer = io.BytesIO()
    with _parsed_by_libyaml():
        asdf.AsdfFile({"transform": Polynomial2D(1)}).write_to(buffer)
        buffer.seek(0)
        with asdf.open(buffer) as file:
            _ = file["transform"]


@contextmanager
def _parsed_by_libyaml() -> Iterator[None]:
    """Have ``yaml.safe_load`` parse in C: plug-ins read some seventy manifests with it as they load."""
    pure = yaml.SafeLoader
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", pure)
    try:
        yield
    finally:
        yaml.SafeLoader = pure


def warm_crds() -> None:
    """Import what the CRDS client imports on its first look-up: a second in each job process of a run that uses it."""
    from importlib import import_module

    for name in ("crds.data_file", "crds.roman.locate"):
        import_module(name)
