"""``rampstream run`` as a user meets it: products, resuming, presets, reuse. Small frames, the real engine."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops.judge import judge
from stream.broker.embedded import EmbeddedBroker
from stream.broker.protocol import Record
from stream.topology import product_event_topic_name
from tests.conftest import Simulated, command, digests, run_command, run_in_process, without_warm_server

SUFFIXES = ("_cal.asdf", "_cat.parquet", "_segm.asdf", "_wcs.asdf")


@pytest.fixture(scope="module")
def reference_run(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("fused") / "out"
    return out, run_in_process(simulated, simulated.exposures, out, "--preset", "fused")


def test_one_exposure_gives_its_four_products(reference_run: tuple[Path, dict[str, Any]], simulated: Simulated) -> None:
    out, report = reference_run
    (row,) = report["exposures"]
    assert report["exit"] == 0
    assert row["status"] == "done"
    assert row["tweakreg"] == "COMPLETE"
    assert {Path(name).name for name in row["products"]} == {f"{row['exposure']}{suffix}" for suffix in SUFFIXES}
    assert all(Path(name).is_file() for name in row["products"])
    assert not list(out.rglob("*.part"))


def test_products_are_those_of_the_simulated_sky(
    reference_run: tuple[Path, dict[str, Any]], simulated: Simulated
) -> None:
    out, report = reference_run
    found = judge(out, simulated.root / "truth", report["exposures"][0]["exposure"])
    assert abs(found.rate_bias) < 0.005
    assert 0.9 < found.pull_width < 1.1
    assert found.cosmic_rays > 300
    assert found.cosmic_rays_found >= 0.95 * found.cosmic_rays
    assert found.stars >= 20
    assert found.stars_within_3_sigma >= 0.9 * found.stars
    assert found.pointing_error_mas > 100
    assert found.alignment_mas < 2


def test_a_run_tells_of_its_products_in_one_event(reference_run: tuple[Path, dict[str, Any]]) -> None:
    out, report = reference_run
    (row,) = report["exposures"]

    async def events() -> list[Record]:
        async with EmbeddedBroker(out / ".rampstream" / "log") as broker:
            topic = product_event_topic_name(report["run"])
            ((first, end),) = (await broker.extents(topic)).values()
            return list(await broker.read(topic, 0, first, end))

    found = anyio.run(events)
    assert len({record.header("ce_id") for record in found}) == 1
    value = json.loads(found[0].value or b"")
    products = {product["name"]: product for product in value["exposures"][row["exposure"]]}
    assert {str(out / name) for name in products} == set(row["products"])
    store = out / ".rampstream" / "store"
    assert all((store / product["key"]).stat().st_size == product["size"] for product in products.values())
    complete = json.loads((store / value["record"]).read_bytes())
    manifest = json.loads((store / complete["members"][row["exposure"]]["manifest"]).read_bytes())
    assert {name: product["content"] for name, product in products.items()} == manifest["extra"]["content"]


def test_payloads_are_dropped_when_all_is_well(reference_run: tuple[Path, dict[str, Any]]) -> None:
    out, _ = reference_run
    left = [path.name for path in (out / ".rampstream" / "store" / "objects").rglob("*") if path.is_file()]
    assert not [name for name in left if name in {"tree.asdf", "data.asdf", "err.asdf"}]
    assert [name for name in left if name.endswith("_cal.asdf")]


def test_a_second_run_of_the_same_input_computes_nothing_again(
    reference_run: tuple[Path, dict[str, Any]], simulated: Simulated
) -> None:
    out, _ = reference_run
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("r*")}
    report = run_command(simulated, simulated.exposures, out, "--preset", "fused")
    assert report["exposures"][0]["stages"] == {}
    assert report["exposures"][0]["stages_reused"] >= 13
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("r*")} == before


def test_a_product_that_was_removed_or_damaged_is_brought_back(
    reference_run: tuple[Path, dict[str, Any]], simulated: Simulated, tmp_path: Path
) -> None:
    source, _ = reference_run
    out = tmp_path / "out"
    shutil.copytree(source, out)
    expected = digests(out)
    next(out.glob("*_wcs.asdf")).unlink()
    with next(out.glob("*_cal.asdf")).open("r+b") as file:
        file.seek(100_000)
        file.write(b"damage")
    report = run_in_process(simulated, simulated.exposures, out)
    assert report["exit"] == 0
    assert digests(out) == expected


@pytest.mark.parametrize(
    "options",
    [("--preset", "balanced"), ("--preset", "granular"), ("--threads", "1"), ("--slots", "2", "--threads", "2")],
)
def test_presets_threads_and_slots_do_not_change_the_products(
    options: tuple[str, ...], reference_run: tuple[Path, dict[str, Any]], simulated: Simulated, tmp_path: Path
) -> None:
    report = run_in_process(simulated, simulated.exposures, tmp_path, *options)
    assert report["exit"] == 0
    assert digests(tmp_path) == digests(reference_run[0])


def test_killed_at_random_points_it_resumes_with_the_same_products(
    reference_run: tuple[Path, dict[str, Any]], simulated: Simulated, tmp_path: Path
) -> None:
    rng = random.Random(20270101)
    words = command(simulated, simulated.exposures, tmp_path, "--preset", "balanced")
    for _ in range(4):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.5, 8.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        partial = [path for path in tmp_path.glob("r*") if path.name not in digests(reference_run[0])]
        assert not partial
    report = run_command(simulated, simulated.exposures, tmp_path, "--preset", "balanced")
    assert report["exit"] == 0
    assert digests(tmp_path) == digests(reference_run[0])


def test_job_processes_die_with_a_killed_run(simulated: Simulated, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(simulated, simulated.exposures, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=without_warm_server(),
    )
    deadline = time.monotonic() + 60
    children: list[int] = []
    while not children and time.monotonic() < deadline:
        time.sleep(0.2)
        children = _children(process.pid)
    assert children
    process.kill()
    process.wait()
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in children if _alive(pid)]


def test_killed_job_processes_cost_only_a_retry(
    reference_run: tuple[Path, dict[str, Any]], simulated: Simulated, tmp_path: Path
) -> None:
    words = command(simulated, simulated.exposures, tmp_path, "--preset", "balanced")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=without_warm_server())
    killed, server = [], None
    while process.poll() is None:
        children = [pid for pid in _children(process.pid) if pid not in killed]
        server = server or next(iter(children), None)
        jobs = [pid for pid in children if pid != server]
        if jobs and len(killed) < 3:
            time.sleep(0.5)
            os.kill(jobs[0], signal.SIGKILL)
            killed.append(jobs[0])
            time.sleep(2.0)
        time.sleep(0.2)
    assert process.returncode == 0
    assert len(killed) == 3
    assert digests(tmp_path) == digests(reference_run[0])


def test_changed_settings_are_a_new_run_that_shares_results(
    reference_run: tuple[Path, dict[str, Any]], simulated: Simulated, tmp_path: Path
) -> None:
    source, first = reference_run
    out = tmp_path / "out"
    shutil.copytree(source, out)
    changed = run_in_process(simulated, simulated.exposures, out, "--set", "tweakreg.abs_minobj=12")
    assert changed["run"] != first["run"]
    assert changed["exit"] == 0
    assert changed["exposures"][0]["stages_reused"] >= 12


def test_members_of_an_association_are_aligned_jointly(simulated_association: Simulated, tmp_path: Path) -> None:
    joint = max(simulated_association.associations, key=lambda path: path.stat().st_size)
    report = run_in_process(simulated_association, [joint], tmp_path)
    assert report["exit"] == 0
    assert len(report["exposures"]) == 4
    assert len({row["rms_mas"] for row in report["exposures"]}) == 1
    name = json.loads(joint.read_text())["products"][0]["name"]
    for row in report["exposures"]:
        found = judge(tmp_path / name, simulated_association.root / "truth", row["exposure"])
        assert found.alignment_mas < 2
        assert found.pointing_error_mas > 100


def test_a_folder_has_the_products_of_the_newest_list_alone(simulated_association: Simulated, tmp_path: Path) -> None:
    joint = max(simulated_association.associations, key=lambda path: path.stat().st_size)
    document = json.loads(joint.read_text())
    (product,) = document["products"]
    members = product["members"]
    for member in members:
        member["expname"] = str(joint.parent / member["expname"])

    def run(count: int) -> set[str]:
        product["members"] = members[:count]
        (tmp_path / f"{count}.json").write_text(json.dumps(document))
        report = run_in_process(simulated_association, [tmp_path / f"{count}.json"], tmp_path / "out")
        assert report["exit"] == 0
        shown = {path.name for path in (tmp_path / "out" / product["name"]).iterdir()}
        assert shown == {Path(name).name for row in report["exposures"] for name in row["products"]}
        return shown

    first, longer, again = run(1), run(2), run(1)
    assert first == again < longer


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found += [int(entry.name), *_children(int(entry.name))]
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
