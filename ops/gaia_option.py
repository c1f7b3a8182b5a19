"""The option ``--gaia`` of the verbs that define a run, and its two kinds. What it means is in `ops.star_sources`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

__all__ = ["add_gaia", "is_queried"]


def add_gaia(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Give a verb the option."""
    parser.add_argument(
        "--gaia",
        required=required,
        metavar="TABLE|hats:URL|service",
        help="reference stars: a table (ra, dec, …), a catalog in the HATS layout, or a catalog service (service or "
        "https://…)",
    )


def is_queried(gaia: Any) -> bool:
    """Whether the stars of a definition are asked for cone by cone, and are no table."""
    return isinstance(gaia, Mapping) and ("hats" in gaia or "service" in gaia)
