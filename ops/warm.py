"""``rampstream warm-server``: imports what jobs need once, for all workers of this machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from stream.fork_server import job_environment

__all__ = ["PRELOADED", "add_arguments"]

PRELOADED = ("ops.preload:warm",)
"""What every job process of the pipeline is born with."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the verb its options."""
    parser.add_argument(
        "--listen",
        type=Path,
        required=True,
        metavar="SOCKET",
        help="where workers and runs ask, with the setting warm_server; only this user may",
    )
    parser.set_defaults(handle=run_verb)


def run_verb(options: argparse.Namespace) -> int:
    """Become the server; it runs until it is killed."""
    words = ["-m", "stream.warm_server", "--listen", str(options.listen.absolute()), "--preload", ",".join(PRELOADED)]
    # exec: some of the environment counts from a process's beginning only.
    os.execve(sys.executable, [sys.executable, *words], job_environment(os.environ))  # noqa: S606 - our own
