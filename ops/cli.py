"""The command line: one verb, one function. Not the work behind the verbs."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path

from ops.gaia_option import add_gaia
from stream.failure import Failure, FatalError, RetriableError
from stream.process_end import run_process

__all__ = ["entry", "main", "parse"]

STOPPED = 1
"""Exit status when the engine had to stop (disk full, no permission, no broker): the work so far is kept."""

USAGE_ERROR = 2


def _add_run(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "run",
        help="take exposures or associations through the whole pipeline on this machine",
        description=(
            "Takes L1 exposures (.asdf) and associations (.json) through the whole pipeline on the embedded engine. "
            "Killed and started again with the same words, it goes on where it was. "
            "Exit status 0: every exposure has its products; 1: some have not, each is named with its reason; 2: usage."
        ),
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="L1 file (.asdf) or association (.json)")
    parser.add_argument(
        "--references",
        required=True,
        metavar="DIR|crds://CONTEXT",
        help="folder with reference files, or a context of the local CRDS cache (crds: for the one in use)",
    )
    add_gaia(parser, required=True)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the products")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="folder for the engine's state (default: OUT/.rampstream)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings; options win over it")
    parser.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="STAGE.PARAMETER=VALUE", help="one parameter"
    )
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        dest="pins",
        metavar="TYPE=FILE",
        help="a reference that wins over selection",
    )
    parser.add_argument(
        "--parameters",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.asdf",
        help="the field's parameter file of a step or of the pipeline",
    )
    parser.add_argument(
        "--save-results",
        action="append",
        default=[],
        metavar="STAGE",
        help="write the output of a stage beside the products, too, as the field's steps do",
    )
    parser.add_argument("--preset", choices=("fused", "balanced", "granular"), help="which stages share a segment")
    parser.add_argument("--slots", type=int, help="exposures worked on at the same time")
    parser.add_argument("--threads", type=int, help="threads of all slots together (default: the machine's cores)")
    parser.add_argument("--keep", action="store_true", help="keep the payloads in the work folder")
    parser.add_argument("--replace", action="store_true", help="accept an input of a known name with other content")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of bars and a table")
    parser.set_defaults(handle=_run)


def _run(options: argparse.Namespace) -> int:
    from ops.run import run_from_options

    return run_from_options(options)


def _add_simulate(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from ops import simulate

    parser = verbs.add_parser("simulate", help="make exposures, a consistent reference set, and a star table")
    simulate.add_arguments(parser)
    parser.set_defaults(handle=simulate.run)


_VERBS = {
    "topics": ("ops.topics", "plan or create a run's topics, and define the run"),
    "worker": ("ops.serve", "serve segments of a run from the broker"),
    "references": ("ops.references", "fetch reference files from CRDS, publish them, show or check them"),
    "ingest": ("ops.ingesting", "put L1 files into the store and announce them to a run"),
    "status": ("ops.status", "how far a run is"),
    "products": ("ops.fetch_products", "copy finished products out of the store"),
    "replay": ("ops.replaying", "send exposures of one run through another"),
    "resume": ("ops.resume", "let segments be served again that a breaker stopped"),
    "dlq": ("ops.dead_letters", "list, show or redrive dead letters"),
    "associations": ("ops.associations", "list, show, close or reopen associations"),
    "warm-server": ("ops.warm", "import once what the job processes of many workers of this machine need"),
}
"""Verbs of the distributed engine: a module with ``add_arguments`` each."""


def _add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser], chosen: str | None) -> None:
    """Add all verbs; only the one that was chosen needs its module, and that takes a while to load."""
    for name, (module, description) in _VERBS.items():
        parser = verbs.add_parser(name, help=description, description=description[0].upper() + description[1:] + ".")
        if name == chosen:
            importlib.import_module(module).add_arguments(parser)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse a command line; exits with status 2 and a usage line when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="rampstream", description="Calibrates exposures of the Roman Space Telescope's Wide Field Instrument."
    )
    parser.add_argument("--version", action="version", version=f"rampstream {version('rampstream')}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_run(verbs)
    _add_simulate(verbs)
    words = sys.argv[1:] if arguments is None else arguments
    _add_verbs(verbs, next((word for word in words if not word.startswith("-")), None))
    return parser.parse_args(words)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    options = parse(arguments)
    try:
        status: int = options.handle(options)
    except (FatalError, RetriableError) as error:
        print(f"rampstream: {error}", file=sys.stderr)
        return STOPPED
    except Failure as error:
        print(f"rampstream: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("rampstream: interrupted; start it again with the same words to go on", file=sys.stderr)
        return 130
    return status


def entry() -> int:
    """Run one verb as a process of its own, which ends with it."""
    if "worker" in sys.argv[1:2]:  # one that is told to stop while it still imports has nothing to finish
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    return run_process(main)


if __name__ == "__main__":
    sys.exit(entry())
