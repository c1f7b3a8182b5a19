"""Options of ``rampstream simulate`` on the command line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ops.simulate.options import SimulateOptions, Variant
from stream.failure import PermanentError

__all__ = ["add_arguments", "run"]

_LISTS = ("detectors", "variants")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _read_pattern(text: str) -> tuple[tuple[int, ...], ...]:
    """Parse ``1;2-3;4-8``: resultants separated by semicolons, reads as a number or a range."""
    resultants = []
    for part in text.split(";"):
        first, _, last = part.partition("-")
        resultants.append(tuple(range(int(first), int(last or first) + 1)))
    return tuple(resultants)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's options to its parser."""
    variants = ", ".join(Variant)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for everything that is written")
    parser.add_argument("--detectors", type=_names, metavar="WFI01,…", help="detectors to expose (WFI01)")
    parser.add_argument(
        "--variant", type=_names, dest="variants", metavar="NAME,…", help=f"kinds of exposure: {variants}"
    )
    parser.add_argument("--dithers", type=int, metavar="N", help="dither positions (1)")
    parser.add_argument("--exposures", type=int, metavar="N", help="exposures at each dither position (1)")
    parser.add_argument("--rate", type=float, metavar="N", help="steady stream: exposures per hour")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of the frame (4096); fewer are quicker")
    parser.add_argument("--seed", type=int, metavar="N", help="equal seeds give equal exposures (1)")
    parser.add_argument(
        "--read-pattern",
        type=_read_pattern,
        metavar="1;2-3;…",
        help="reads of each resultant (ten resultants of 34 reads)",
    )
    parser.add_argument("--optical-element", metavar="NAME", help="imaging element (F158)")
    parser.add_argument("--stars", type=int, metavar="N", help="stars per detector frame")
    parser.add_argument("--galaxies", type=int, metavar="N", help="galaxies per detector frame")
    parser.add_argument("--cosmic-ray-rate", type=float, metavar="X", help="per cm^2 and second (5)")
    parser.add_argument(
        "--pointing-error-mas", type=float, metavar="X", help="largest error of the recorded pointing (300)"
    )
    parser.add_argument(
        "--proper-motions",
        action="store_const",
        const=True,
        help="star table at epoch 2016.0 with proper motions and parallaxes",
    )
    parser.add_argument(
        "--no-compression", action="store_const", const=False, dest="compress", help="exposures without lz4"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads (the machine's cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end and nothing else")


def options_from(arguments: argparse.Namespace) -> SimulateOptions:
    """Options from parsed arguments; what was not given keeps its default.

    Raises
    ------
    PermanentError
        An option has a value that cannot be.
    """
    given: dict[str, Any] = {
        name: value for name in SimulateOptions.model_fields if (value := getattr(arguments, name, None)) is not None
    }
    try:
        return SimulateOptions(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "options"
        text = first["msg"].removeprefix("Value error, ")
        found = "" if "found" in text else f", found {first['input']!r}"
        raise PermanentError(f"{option}: {text}{found}") from None


def run(arguments: argparse.Namespace) -> int:
    """Simulate as the arguments say; returns the exit status."""
    from ops.simulate.simulation import simulate

    options = options_from(arguments)

    def report(line: str) -> None:
        if not arguments.json:
            sys.stderr.write(line + "\n")

    summary = simulate(options, report)
    if arguments.json:
        document = {
            "exposures": [str(path) for path in summary.exposures],
            "references": str(summary.references),
            "gaia": str(summary.gaia),
            "associations": [str(path) for path in summary.associations],
            "truth": str(summary.truth),
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.write(f"{len(summary.exposures)} exposures in {options.out / 'l1'}\n")
    return 0
