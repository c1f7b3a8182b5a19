"""The engine's cost on real Kafka and real S3, both started here on loopback: ratios beside their goals.

``python -m bench.engine [--quick] [--rows 4096] [--data DIR] [--messages N] [--slots N] [--json FILE]``

1. Messages a second of one worker whose stage does nothing.
2. Seconds of real exposures through the presets beside pure compute.
3. Bytes written to and read from the store for each exposure.

``--only messages`` or ``--only presets`` does a part. ``--quick`` takes frames of 512 rows and fewer messages: the
ratios of small frames say nothing of large ones, whose compute grows and whose fixed costs do not. All of it shares one
machine: servers, worker and job processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio

from bench.memory import run_measured
from bench.presets import PRESETS, PresetCosts, measure_preset
from bench.throughput import Throughput, measure_throughput
from tests.servers import KafkaCluster, S3Server, kafka_cluster, s3_server

RATE_GOAL = 200.0
MISSION_RATE = 1.6
OVERHEAD_GOALS = {"fused": 0.05, "granular": 1.0}
FULL_ROWS, QUICK_ROWS = 4096, 512
BUSY = 0.25
"""Load of each core above which others take a noticeable part of it."""

BUCKET = "s3://rampstream/bench"
RAMPSTREAM = [sys.executable, "-m", "ops.cli"]


def simulated(data: Path, rows: int, detector: str, exposures: int) -> list[Path]:
    """Exposures to process: those of an earlier time, or new ones."""
    inputs = sorted((data / "l1").glob("*_uncal.asdf"))
    if len(inputs) < exposures:
        print(f"simulating {exposures} exposures of {rows} rows into {data}")
        words = ["simulate", "--out", str(data), "--rows", str(rows), "--detectors", detector]
        done = run_measured([*RAMPSTREAM, *words, "--exposures", str(exposures)])
        if done.returncode:
            sys.exit(f"bench: the simulation failed:\n{done.stderr}")
        inputs = sorted((data / "l1").glob("*_uncal.asdf"))
    return inputs[:exposures]


def show_throughput(found: Throughput) -> None:
    """Print the first part."""
    print(f"\none worker, empty stage, {found.slots} slots, {found.messages} messages in {found.seconds:.1f} s")
    print(f"{'CPU ms a message':<20}" + "".join(f"{name:>10}" for name in found.cpu_ms) + f"{'all':>10}")
    print(f"{'':<20}" + "".join(f"{ms:10.2f}" for ms in [*found.cpu_ms.values(), sum(found.cpu_ms.values())]))
    print(f"{'store':<20}" + "".join(f"{name:>10}" for name in found.requests))
    print(f"{'requests a message':<20}" + "".join(f"{cost['each']:10.2f}" for cost in found.requests.values()))
    print(f"{'ms each':<20}" + "".join(f"{cost['ms']:10.2f}" for cost in found.requests.values()))
    print(
        f"{found.rate:.0f} messages/s, {found.rate / MISSION_RATE:.0f}x the mission's {MISSION_RATE}/s: "
        f"goal of {RATE_GOAL:.0f}/s {_verdict(met=found.rate >= RATE_GOAL)}"
    )


def show_presets(found: list[PresetCosts], rows: int) -> None:
    """Print the second and third parts."""
    pure = found[0].job_seconds  # of fused, unless another was asked for
    jobs = f"pure compute is the jobs' of {found[0].preset}: {pure:.2f} s"
    print(f"\nexposures of {rows} rows, one worker with one slot; {jobs}")
    print("overhead: by how much more than that each of a stream of exposures prolongs it")
    heads = ("stages s", "jobs s", "alone s", "stream s", "overhead", "written MB", "results MB", "read MB", "requests")
    print(f"{'preset':<12}" + "".join(f"{name:>12}" for name in heads) + "  goal")
    for costs in found:
        overhead = costs.stream_seconds / pure - 1
        goal = OVERHEAD_GOALS.get(costs.preset)
        verdict = "-" if goal is None else f"{goal:.0%} {_verdict(met=overhead <= goal)}"
        megabytes = [costs.written_bytes / 1e6, costs.result_bytes / 1e6, costs.read_bytes / 1e6]
        print(
            f"{costs.preset:<12}{costs.compute_seconds:12.2f}{costs.job_seconds:12.2f}{costs.wall_seconds:12.2f}"
            f"{costs.stream_seconds:12.2f}{overhead:12.1%}" + "".join(f"{value:12.1f}" for value in megabytes)
            + f"{costs.requests:12.0f}  {verdict}"
        )  # fmt: skip
    print("CPU seconds of each in the stream")
    for costs in found:
        shares = [f"{name:>12}{seconds:8.2f}" for name, seconds in costs.stream_cpu_seconds.items()]
        print(f"{costs.preset:<12}{''.join(shares)}")


def _verdict(*, met: bool) -> str:
    return "met" if met else "MISSED"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows and fewer messages")
    parser.add_argument("--rows", type=int, help=f"rows of the frames (default: {FULL_ROWS})")
    parser.add_argument("--detector", default="WFI01")
    parser.add_argument(
        "--exposures",
        type=int,
        default=5,
        help="one warms up, one goes alone, the rest in a stream (default: 5)",
    )
    parser.add_argument("--messages", type=int, help="through the empty stage (default: 4000)")
    parser.add_argument("--slots", type=int, default=8, help="of the empty stage's worker (default: 8)")
    parser.add_argument("--data", type=Path, help="folder of the simulation (default: below bench/.data)")
    parser.add_argument("--only", choices=("messages", "presets"))
    parser.add_argument("--preset", choices=PRESETS, help="one preset alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.rows = options.rows or (QUICK_ROWS if options.quick else FULL_ROWS)
    options.messages = options.messages or (1000 if options.quick else 4000)
    if options.exposures < 4:
        parser.error("--exposures: at least 4: one warms up, one goes alone, the rest in a stream")
    if options.data is None:
        folder = Path("bench/.data")
        options.data = folder if options.rows == FULL_ROWS else folder / f"rows-{options.rows}"
    return options


def _measured(options: argparse.Namespace, kafka: KafkaCluster, s3: S3Server, work: Path) -> dict[str, Any]:
    os.environ.update(s3.environment)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cores:
        print(f"the machine is busy (load {load:.1f} on {cores} cores): expect worse seconds than it can do")
    result: dict[str, Any] = {"cores": cores, "load_before": load}
    if options.only != "presets":

        async def measure() -> Throughput:
            return await measure_throughput(
                kafka.url, f"{BUCKET}-empty", work / "empty", _server_pids(kafka, s3),
                messages=options.messages, warm_up=200, slots=options.slots,
            )  # fmt: skip

        rate = anyio.run(measure)
        show_throughput(rate)
        result["messages"] = dataclasses.asdict(rate)
    if options.only != "messages":
        data = options.data.resolve()
        inputs = simulated(data, options.rows, options.detector, options.exposures)
        costs = []
        for preset in PRESETS if options.preset is None else (options.preset,):
            print(f"{preset} …", file=sys.stderr)
            costs.append(
                measure_preset(
                    preset, data, inputs, kafka.url, BUCKET, work / preset,
                    rampstream=RAMPSTREAM, servers=_server_pids(kafka, s3),
                )
            )  # fmt: skip
        show_presets(costs, options.rows)
        result |= {"rows": options.rows, "presets": [dataclasses.asdict(cost) for cost in costs]}
    return result


def _server_pids(kafka: KafkaCluster, s3: S3Server) -> dict[str, int]:
    files = {"kafka": kafka.data / "kafka-1.pid", "s3": s3.data / "s3.pid"}
    return {name: int(json.loads(file.read_text())["pid"]) for name, file in files.items()}


def main() -> int:
    """Run and print."""
    # Terminated, it stops the servers that it started, as after an interrupt.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = _arguments()
    with tempfile.TemporaryDirectory(prefix="rampstream-bench-") as folder:
        work = Path(folder)
        with kafka_cluster(work / "kafka") as kafka, s3_server(work / "s3") as s3:
            result = _measured(options, kafka, s3, work)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
