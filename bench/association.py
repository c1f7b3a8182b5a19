"""Large associations: one of ten thousand members, and ten thousand open at once. Goals beside what was measured.

``python -m bench.association [--members 10000] [--associations 10000] [--only oracle|members|associations]``

1. Small associations beside tweakwcs: the final WCS of every member.
2. One association of many members: seconds from the close to the stored solution, memory, distance from the truth.
3. Many open associations: seconds and memory of the restore of an aggregator on the embedded log and, unless
   ``--without-kafka``, on Kafka; members a second while all are open.

Kafka and the S3 server are started on loopback and share the machine with what is measured.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from bench.association_oracle import ORACLE_MOSAICS, compare_with_library
from bench.association_restore import Configuration as Restore
from bench.association_restore import prepare
from bench.association_scene import Mosaic
from bench.association_solve import Configuration as Solve
from bench.memory import Measured, run_measured
from stream.identity import association_id, hash_parts
from stream.message import MemberMessage, MemberStatus
from stream.process_end import run_process
from stream.results import object_key
from stream.store.obstore_store import open_store
from stream.together import together
from tests.servers import kafka_cluster, s3_server

SOLVE_SECONDS, SOLVE_BYTES = 60.0, 2e9
TRUTH_MAS, LIBRARY_MAS = 0.5, 0.01
RESTORE_SECONDS, RESTORE_BYTES = 60.0, 1e9
BUCKET = "s3://rampstream/bench"
BUSY = 0.25
"""Load of each core above which others take a noticeable part of it."""
REPEATS = ("lowest", "mean")
"""What becomes of many sightings of one star: the mission's rule, and the one that loses nothing."""
CHUNK = 8
"""Exposures made at a time by one process."""


def _verdict(*, met: bool) -> str:
    return "met" if met else "MISSED"


def _line(what: str, value: str, goal: str, *, met: bool) -> None:
    print(f"  {what:<44}{value:>14}   goal {goal:<10} {_verdict(met=met)}")


def measure_oracle() -> list[dict[str, Any]]:
    """Compare with the library, and print."""
    print("\nbeside tweakwcs")
    found = []
    for mosaic in ORACLE_MOSAICS:
        agreement = compare_with_library(mosaic)
        found.append(asdict(agreement))
        _line(
            f"{agreement.members} members of {agreement.exposures} exposures, {agreement.aligned} aligned",
            f"{agreement.largest_mas:.1e} mas", f"{LIBRARY_MAS} mas",
            met=agreement.largest_mas <= LIBRARY_MAS and agreement.aligned == agreement.members,
        )  # fmt: skip
    return found


def _made(mosaic: Mosaic, exposures: range) -> list[tuple[str, bytes, int]]:
    found = []
    for exposure in exposures:
        for one in mosaic.observed(exposure):
            assert one.exposure.catalog is not None
            found.append((one.id, one.tie_points(), len(one.exposure.catalog)))
    return found


def _member(association: str, name: str, data: bytes) -> MemberMessage:
    identity = hash_parts("member", name)
    return MemberMessage(
        run="bench", association=association, member=name, status=MemberStatus.OK, branch="WFI_IMAGE",
        identity=identity, manifest=f"results/{identity}/1", facts={"id": name},
        tie_points=object_key(name, "source_catalog", "bench", "tie_points"),
        tie_points_digest=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip


async def _put(store_url: str, made: Iterable[tuple[MemberMessage, bytes]]) -> None:
    store = open_store(store_url)
    await together((partial(store.put, str(message.tie_points), data) for message, data in made), most=32)


def _prepared(mosaic: Mosaic, store: str, work: Path, options: argparse.Namespace) -> tuple[Solve, int]:
    """Make tie points, put them into the store, and write the table of reference stars; sources of all members."""
    from astropy.table import Table

    association = association_id("mosaic", [f"{mosaic.members}"])
    chunks = [range(first, min(first + CHUNK, mosaic.exposures)) for first in range(0, mosaic.exposures, CHUNK)]
    messages, sources = [], 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for made in pool.map(partial(_made, mosaic), chunks):
            pairs = [(_member(association, name, data), data) for name, data, _ in made]
            anyio.run(_put, store, pairs)
            messages += [message for message, _ in pairs]
            sources += sum(count for _, _, count in made)
    with gzip.open(work / "members.gz", "wb", compresslevel=1) as file:
        file.write(b"\n".join(message.encode() for message in messages))
    ra, dec = mosaic.reference_stars
    Table({"ra": ra, "dec": dec}).write(work / "stars.fits", overwrite=True)
    config = Solve(
        association, str(work / "members.gz"), store, str(work / "stars.fits"), str(work / "worker"), options.threads,
        {"expand_refcat": True},
    )  # fmt: skip
    return config, sources


def _run(module: str, config: Solve | Restore, path: Path) -> tuple[Measured, dict[str, Any]]:
    """Run a part in a process of its own; what that took, and what it printed last."""
    path.write_text(json.dumps(asdict(config)))
    done = run_measured([sys.executable, "-m", module, str(path)])
    if done.returncode:
        sys.exit(f"bench: {module} failed:\n{done.stderr[-4000:]}")
    return done, json.loads(done.stdout.splitlines()[-1])


def measure_members(mosaic: Mosaic, store: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Solve one association, once for each rule of repeated sightings, and print."""
    began = time.monotonic()
    config, sources = _prepared(mosaic, store, work, options)
    print(
        f"\none association of {mosaic.members} members: {mosaic.exposures} exposures of {mosaic.detectors} detectors "
        f"in {mosaic.field_degrees:.1f} degrees, {sources / mosaic.members:.0f} sources each, noise "
        f"{mosaic.noise} pixel, {len(mosaic.reference_stars[0])} reference stars; {options.store} store "
        f"(made in {time.monotonic() - began:.0f} s)"
    )
    found = {}
    for repeats in REPEATS if options.repeats == "both" else (options.repeats,):
        print(f' with abs_repeats = "{repeats}"')
        once = replace(
            config, work=str(work / f"worker-{repeats}"), parameters={**config.parameters, "abs_repeats": repeats}
        )
        found[repeats] = _solved(mosaic, once, work)
    return found


def _solved(mosaic: Mosaic, config: Solve, work: Path) -> dict[str, Any]:
    done, found = _run("bench.association_solve", config, work / "solve.json")
    document = json.loads(anyio.run(open_store(config.store).get, found["key"]) or b"")
    found |= {"peak_pss_bytes": done.peak_pss_bytes, "summary": document["summary"], **_errors(mosaic, document)}
    summary = document["summary"]
    _line("from the close to the stored solution", f"{found['seconds']:.1f} s", f"{SOLVE_SECONDS:.0f} s",
          met=found["seconds"] <= SOLVE_SECONDS)  # fmt: skip
    print(
        f"  {'of it the job':<44}{found['job_seconds']:>12.1f} s   CPU {found['job_cpu_seconds']:.1f} s "
        f"(and {found['cpu_seconds']:.1f} s of the worker), peak RSS {found['job_peak_rss_bytes'] / 1e9:.2f} GB"
    )
    _line("peak memory of the process tree (PSS)", f"{done.peak_pss_bytes / 1e9:.2f} GB", f"{SOLVE_BYTES / 1e9:.0f} GB",
          met=done.peak_pss_bytes <= SOLVE_BYTES)  # fmt: skip
    print(
        f"  {'aligned':<44}{summary['complete']:>14}   of {summary['members']}, {summary['nmatches']} reference stars"
    )
    _line("distance from the truth, RMS", f"{found['truth_mas']:.2f} mas", f"{TRUTH_MAS} mas",
          met=found["truth_mas"] <= TRUTH_MAS and summary["complete"] == mosaic.members)  # fmt: skip
    print(
        f"  {'of it common to all members, and the rest':<44}{found['common_mas']:>7.2f}, {found['rest_mas']:.2f} mas"
    )
    return found


def _errors(mosaic: Mosaic, document: dict[str, Any]) -> dict[str, float]:
    corrections = {name: member["corrections"] for name, member in document["members"].items()}
    errors = np.concatenate([mosaic.errors(exposure, corrections) for exposure in range(mosaic.exposures)])
    common = errors.mean(axis=0)

    def rms(differences: Any) -> float:
        return float(np.sqrt(np.mean(np.sum(differences**2, axis=1))))

    return {"truth_mas": rms(errors), "common_mas": float(np.linalg.norm(common)), "rest_mas": rms(errors - common)}


def measure_associations(name: str, config: Restore, work: Path) -> dict[str, Any]:
    """Restore an aggregator, and print."""
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    size = anyio.run(prepare, config)
    print(
        f"\n{config.associations} open associations, {config.come} members of each have come with a message of {size} "
        f"bytes; {name} (made in {time.monotonic() - began:.0f} s)"
    )
    done, found = _run("bench.association_restore", config, work / "restore.json")
    whole = (found["associations"], found["members"]) == (config.associations, config.associations * config.come)
    _line("restore", f"{found['seconds']:.1f} s", f"{RESTORE_SECONDS:.0f} s",
          met=whole and found["seconds"] <= RESTORE_SECONDS)  # fmt: skip
    _line("peak memory (PSS)", f"{done.peak_pss_bytes / 1e9:.2f} GB", f"{RESTORE_BYTES / 1e9:.0f} GB",
          met=done.peak_pss_bytes <= RESTORE_BYTES)  # fmt: skip
    print(f"  {'CPU of the restore':<44}{found['cpu_seconds']:>12.1f} s")
    print(f"  {'members taken while all are open':<44}{found['members_a_second']:>12.0f}/s")
    return found | {"peak_pss_bytes": done.peak_pss_bytes}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--detectors", type=int, default=18, help="of an exposure (default: 18)")
    parser.add_argument("--noise", type=float, default=0.01, help="of a measured position, pixel (default: 0.01)")
    parser.add_argument(
        "--repeats",
        choices=(*REPEATS, "both"),
        default="both",
        help="tweakreg.abs_repeats (default: one after another)",
    )
    parser.add_argument("--associations", type=int, default=10_000)
    parser.add_argument("--come", type=int, default=9, help="members of each that have come (default: 9 of 18)")
    parser.add_argument("--only", choices=("oracle", "members", "associations"))
    parser.add_argument("--store", choices=("local", "s3"), default="s3", help="where the tie points lie (default: s3)")
    parser.add_argument("--without-kafka", action="store_true", help="the restore on the embedded log alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> int:
    """Run and print."""
    # Terminated, it stops the servers that it started, as after an interrupt.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = _arguments()
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cores:
        print(f"the machine is busy (load {load:.1f} on {cores} cores): expect worse seconds than it can do")
    result: dict[str, Any] = {"cores": cores, "load_before": load}
    with tempfile.TemporaryDirectory(prefix="rampstream-bench-") as folder, ExitStack() as stack:
        work = Path(folder)
        if options.only in {None, "oracle"}:
            result["oracle"] = measure_oracle()
        if options.only in {None, "members"}:
            store = str(work / "store")
            if options.store == "s3":
                os.environ.update(stack.enter_context(s3_server(work / "s3")).environment)
                store = f"{BUCKET}-members"
            mosaic = Mosaic(options.members, detectors=options.detectors, noise=options.noise)
            result["members"] = measure_members(mosaic, store, work, options)
        if options.only in {None, "associations"}:
            many = partial(Restore, "bench", associations=options.associations, come=options.come, late=200)
            small = many(broker=str(work / "log"), store=str(work / "open"))
            result["embedded"] = measure_associations("embedded log, local store", small, work / "embedded")
            if not options.without_kafka:
                kafka = stack.enter_context(kafka_cluster(work / "kafka"))
                os.environ.update(stack.enter_context(s3_server(work / "s3-open")).environment)
                large = many(broker=kafka.url, store=f"{BUCKET}-open")
                result["kafka"] = measure_associations("Kafka, S3", large, work / "kafka-restore")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_process(main))
