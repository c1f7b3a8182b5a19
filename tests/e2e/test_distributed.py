"""The walk-through of docs/distributed.md, run as it stands: Kafka, S3, workers, a kill, products, a replay."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import digests
from tests.faults.bench_of_workers import FULL
from tests.servers import free_port

ROOT = Path(__file__).parents[2]

HEAD = """
set -euo pipefail
stop() {
    status=$?
    kill $(jobs -p) 2> /dev/null || true
    wait || true
    for server in prometheus s3 kafka; do deploy/local/$server down --data servers/$server; done
    exit $status
}
trap stop EXIT
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the blocks of the page in one shell: all at full length, else without the one of a worker for each stage."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "deploy").symlink_to(ROOT / "deploy")
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "distributed.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    if not FULL:  # sixteen workers more are too much beside other tests on two cores
        blocks = ['GRANULAR=""\n' if "GRANULAR:-" in block else block for block in blocks]
    script = folder / "walk.sh"
    script.write_text(HEAD + "set -x\n" + "".join(blocks))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAMPSTREAM_", "AWS_"))},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PORT_IMAGES": str(free_port()),
        "PORT_ALIGN": str(free_port()),
        "PORT_RAMPS": str(free_port()),
    }
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            ["bash", script], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = process.wait(1200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("work/*/logs/run.log"))
    assert status == 0, (folder / "output").read_text()[-6000:] + logs
    return folder


def test_products_are_those_of_the_embedded_engine(walked: Path) -> None:
    expected = digests(walked / "alone")
    assert len(expected) == 16
    assert digests(walked / "products") == expected


@pytest.mark.skipif(not FULL, reason="sixteen workers are too much beside other tests on two cores: make faults")
def test_products_of_a_worker_for_each_stage_are_the_same(walked: Path) -> None:
    assert digests(walked / "granular") == digests(walked / "products")
    ran = [log for log in walked.glob("work/granular-*/logs/run.log") if "serving" in log.read_text()]
    assert len(ran) == 16  # fourteen stages, ramp_fit three times


def test_prometheus_saw_what_the_workers_made(walked: Path) -> None:
    answer = json.loads((walked / "prometheus.json").read_text())
    seen = {row["metric"]["stage"]: float(row["value"][1]) for row in answer["data"]["result"]}
    assert seen["source_catalog"] == 4


def test_the_replay_computes_what_changed_and_nothing_else(walked: Path) -> None:
    plan = json.loads((walked / "plan.json").read_text())
    assert plan["exposures"] == 4
    assert plan["start_after"] == {"dark_current": 4}
    assert plan["computed"]["source_catalog"] == 4
    assert "ramp_fit" not in plan["computed"]
    products, bright = digests(walked / "products"), digests(walked / "bright")
    assert bright.keys() == products.keys()
    assert all(bright[name] != products[name] for name in products if name.endswith("_cat.parquet"))


def test_nothing_is_left_running(walked: Path) -> None:
    mine = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(walked) in command:
            mine.append(command)
    assert mine == []
