"""Whole pipeline on one full-frame exposure: ours beside the oracle's in one run, seconds and memory by stage, ratios.

``python -m bench.pipeline [--data DIR] [--rows 4096] [--detector WFI01] [--without-oracle] [--json FILE]``

Ours is run three times in fresh processes: *first* compiles the kernels if their cache is empty, *cold* has the
compiled kernels but new processes and an empty work folder, *steady* is the second of two exposures of one run. Seconds
are from the first stage's start on the ingested L1 to the last product; the oracle's are those of its pipeline call,
imports left out. Memory is the peak of the process tree's summed PSS, mapped references included, measured alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.memory import Measured, run_measured

ORACLE_STEPS = {
    "dq_init": "dq_init",
    "saturation": "saturation",
    "refpix": "refpix",
    "dark_decay": "dark_decay",
    "wfi18_transient": "wfi18_transient",
    "linearity": "linearity",
    "ramp_fit": "rampfit",
    "dark_current": "dark_current",
    "assign_wcs": "assign_wcs",
    "photom": "photom",
    "flat_field": "flatfield",
    "source_catalog": "source_catalog",
    "tweakreg": "tweakreg",
}
BAR = 10.0
MEMORY_BAR = 4e9


def _ours(data: Path, inputs: list[Path], out: Path) -> tuple[dict[str, Any], Measured]:
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "ops.cli", "run", *map(str, inputs), "--references", str(data / "references")]
    measured = run_measured([*words, "--gaia", str(data / "gaia.parquet"), "--out", str(out), "--json"])
    if measured.returncode:
        sys.exit(f"bench: rampstream run failed:\n{measured.stdout}\n{measured.stderr}")
    return json.loads(measured.stdout), measured


def _oracle(data: Path, source: Path, out: Path) -> tuple[dict[str, Any], Measured]:
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "tests.oracle.pipeline", str(source), "--references", str(data / "references")]
    words += ["--gaia", str(data / "gaia.parquet"), "--out", str(out), "--cache", str(out / "crds")]
    measured = run_measured(words)
    if measured.returncode:
        sys.exit(f"bench: the oracle failed:\n{measured.stderr[-4000:]}")
    return json.loads(measured.stdout.splitlines()[-1]), measured


def _simulate(data: Path, rows: int, detector: str) -> None:
    words = [sys.executable, "-m", "ops.cli", "simulate", "--out", str(data), "--rows", str(rows)]
    simulated = run_measured([*words, "--detectors", detector, "--exposures", "2"])
    if simulated.returncode:
        sys.exit(f"bench: the simulation failed:\n{simulated.stderr}")


def _line(name: str, ours: dict[str, float] | None, oracle: dict[str, float] | None) -> str:
    wall, cpu = (ours or {}).get("seconds"), (ours or {}).get("cpu_seconds")
    other, other_cpu = (oracle or {}).get("wall_seconds"), (oracle or {}).get("cpu_seconds")
    rss, other_rss = (ours or {}).get("rss"), (oracle or {}).get("peak_rss_bytes")
    ratio = f"{other / wall:8.1f}x" if wall and other and wall > 0.05 else f"{'-':>9}"
    cells = [
        f"{value:9.2f}" if value is not None else f"{'-':>9}"
        for value in (wall, cpu, rss and rss / 1e9, other, other_cpu, other_rss and other_rss / 1e9)
    ]
    return f"{name:<18}{''.join(cells)}{ratio}"


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("bench/.data"))
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--detector", default="WFI01")
    parser.add_argument("--without-oracle", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data: Path = options.data.resolve()
    inputs = sorted((data / "l1").glob("*_uncal.asdf"))[:2]
    if len(inputs) < 2:
        print(f"simulating two exposures into {data}")
        _simulate(data, options.rows, options.detector)
        inputs = sorted((data / "l1").glob("*_uncal.asdf"))[:2]
    out = data / "out"
    first, _ = _ours(data, inputs[:1], out)
    cold, memory = _ours(data, inputs[:1], out)
    both, _ = _ours(data, inputs, out)
    steady = both["work_seconds"] - cold["work_seconds"]
    oracle, oracle_memory = (None, None) if options.without_oracle else _oracle(data, inputs[0], data / "oracle")
    stages = cold["exposures"][0]["stages"]
    print(f"{'stage':<18}{'wall s':>9}{'CPU s':>9}{'RSS GB':>9}{'oracle s':>9}{'CPU s':>9}{'RSS GB':>9}{'ratio':>9}")
    for name, step in ORACLE_STEPS.items():
        print(_line(name, stages.get(name), (oracle or {}).get("steps", {}).get(step)))
    seconds = {"first": first["work_seconds"], "cold": cold["work_seconds"], "steady": steady}
    result: dict[str, Any] = {
        "seconds": seconds,
        "stages": stages,
        "oracle": oracle,
        "peak_pss_bytes": memory.peak_pss_bytes,
        "oracle_peak_pss_bytes": oracle_memory.peak_pss_bytes if oracle_memory else None,
    }
    for name, value in seconds.items():
        ratio = f"  {oracle['wall_seconds'] / value:6.1f}x the oracle's speed" if oracle else ""
        print(f"{name:<8}{value:8.1f} s{ratio}")
    if oracle and oracle_memory:
        print(f"oracle  {oracle['wall_seconds']:8.1f} s, peak PSS {oracle_memory.peak_pss_bytes / 1e9:.2f} GB")
    print(f"peak PSS of our process tree {memory.peak_pss_bytes / 1e9:.2f} GB (bar {MEMORY_BAR / 1e9:.0f} GB)")
    print("largest parts of the peak (GB): " + ", ".join(f"{value / 1e9:.2f}" for value in sorted(memory.samples)[-3:]))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if oracle:
        met = oracle["wall_seconds"] / cold["work_seconds"] >= BAR and memory.peak_pss_bytes <= MEMORY_BAR
        print("bars met" if met else "bars NOT met")
    return 0


if __name__ == "__main__":
    sys.exit(main())
