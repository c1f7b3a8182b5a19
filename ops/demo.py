"""``make demo``: simulate one exposure with its references and stars, calibrate it, compare it with the truth."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ops import cli
from ops.judge import judge
from stream.process_end import run_process

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; exit status 0 when the products are there."""
    parser = argparse.ArgumentParser(prog="python -m ops.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--detector", default="WFI01")
    options = parser.parse_args(arguments)
    simulated, products = options.out / "simulated", options.out / "products"

    _say(f"1. Simulate one exposure of {options.detector}, {options.rows} rows, into {simulated}")
    begun = time.monotonic()
    exposures = sorted((simulated / "l1").glob(f"*_{options.detector.lower()}_uncal.asdf"))
    if exposures:
        _say("   it is there already")
    else:
        words = ["simulate", "--out", str(simulated), "--detectors", options.detector, "--rows", str(options.rows)]
        if cli.main(words):
            return 1
        exposures = sorted((simulated / "l1").glob(f"*_{options.detector.lower()}_uncal.asdf"))
        _say(f"   {time.monotonic() - begun:.0f} s")

    _say(f"2. Calibrate {exposures[0].name}")
    begun = time.monotonic()
    run = [
        "run",
        str(exposures[0]),
        "--references",
        str(simulated / "references"),
        "--gaia",
        str(simulated / "gaia.parquet"),
        "--out",
        str(products),
    ]
    _say("   rampstream " + " ".join(run))
    status = cli.main(run)
    if status:
        return status
    _say(f"   {time.monotonic() - begun:.0f} s, start of the processes and compilation of kernels included")

    _say("3. Compare with the simulated truth")
    exposure = exposures[0].name.removesuffix("_uncal.asdf")
    for line in judge(products, simulated / "truth", exposure).lines():
        _say(f"   {line}")
    _say(f"The products are in {products.resolve()}:")
    for path in sorted(products.glob(f"{exposure}_*")):
        _say(f"   {path.name:<55} {path.stat().st_size / 1e6:8.1f} MB")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run_process(main))
