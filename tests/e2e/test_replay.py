"""``rampstream replay``: which exposures are selected, what is reused, and that the live run is left alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops.cli import main
from ops.connect import connected
from ops.settings import RunSettings
from tests.conftest import Simulated, digests, share_warm_server

IMAGES = ["assign_wcs", "photom", "flat_field", "source_catalog"]


class Live:
    """A run on the embedded broker, one exposure of which is done."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        monkeypatch.setenv("RAMPSTREAM_STORE", str(folder / "store"))
        monkeypatch.setenv("RAMPSTREAM_BROKER", f"embedded:{folder / 'log'}")
        monkeypatch.setenv("RAMPSTREAM_WORK", str(folder / "work"))

    def __call__(self, *words: str | Path, status: int = 0) -> str:
        self._capsys.readouterr()
        assert main([*map(str, words)]) == status
        captured = self._capsys.readouterr()
        return captured.out if status != 2 else captured.err

    def plan(self, *words: str | Path, status: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self(
                "replay", "plan", "--run", "again", "--out", self.folder / "plan.json", "--json", *words, status=status
            )
        )
        return found

    def work(self, run: str) -> dict[str, str]:
        """Have a worker do all of a run; the digests of its products."""
        share_warm_server()
        worker = subprocess.Popen([sys.executable, "-m", "ops.cli", "worker", "--run", run])
        try:
            self("status", "--run", run, "--wait", "300")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        finally:
            worker.kill()
            worker.wait()
        self("products", "--run", run, "--out", self.folder / run)
        return digests(self.folder / run)

    def extents(self, run: str) -> dict[str, Any]:
        """Extents and lag of all inboxes of a run."""

        async def read() -> dict[str, Any]:
            async with connected(RunSettings()) as connection:
                topics = [topic for topic in await connection.broker.topics() if topic.startswith(f"{run}.")]
                return {topic: await connection.broker.extents(topic) for topic in topics}

        return anyio.run(read)


@pytest.fixture(scope="module")
def done(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was worked on."""
    return tmp_path_factory.mktemp("replay")


@pytest.fixture
def live(
    done: Path, simulated: Simulated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Live]:
    live = Live(done, monkeypatch, capsys)
    if not (done / "prompt").exists():
        inputs = ("--references", simulated.references, "--gaia", simulated.gaia)
        live("topics", "apply", "--preset", "balanced", "--partitions", "1", *inputs)
        live("ingest", *simulated.exposures)
        assert len(live.work("prompt")) == 4
    return live


@pytest.mark.parametrize(
    ("words", "selected"),
    [
        (("--exposure", "nothing*"), 0),
        (("--exposure", "nothing*", "--exposure", "r*_wfi01"), 1),
        (("--from-offset", "1"), 0),
        (("--to-offset", "0"), 0),
        (("--from-offset", "0", "--to-offset", "1"), 1),
        (("--since", "2100-01-01"), 0),
        (("--until", "2001-01-01T00:00:00"), 0),
        (("--since", "2001-01-01", "--until", "2100-01-01"), 1),
    ],
)
def test_exposures_are_selected_by_name_offset_and_time(live: Live, words: tuple[str, ...], selected: int) -> None:
    summary = live.plan("--topic", "assign_wcs", *words, status=0 if selected else 1)
    assert summary["exposures"] == selected


def test_what_no_change_reaches_is_reused_and_the_start_is_the_nearest_result_before_the_topic(live: Live) -> None:
    unchanged = live.plan("--topic", "assign_wcs")
    assert (unchanged["start_after"], unchanged["computed"]) == ({"dark_current": 1}, {})
    assert unchanged["reused"] == dict.fromkeys(IMAGES, 1), "the stored end of the segment is adopted"
    whole = live.plan("--topic", "dq_init")
    assert (whole["start_after"], whole["computed"]) == ({"ingest": 1}, {})
    assert {*IMAGES, "dq_init", "ramp_fit", "dark_current"} < {*whole["reused"]}
    brighter = live.plan("--topic", "assign_wcs", "--set", "source_catalog.snr_threshold=6")
    assert brighter["start_after"] == {"dark_current": 1}
    assert (brighter["computed"], brighter["reused"]) == (dict.fromkeys(IMAGES, 1), {}), "none inside it is stored"
    ramps = live.plan("--topic", "dq_init", "--set", "ramp_fit.algorithm=ols_cas22")
    assert ramps["start_after"] == {"ingest": 1}
    assert ramps["computed"]["ramp_fit"] == ramps["computed"]["source_catalog"] == 1


def test_a_replay_with_everything_recomputed_gives_the_same_products_beside_the_live_run(live: Live) -> None:
    before, products = live.extents("prompt"), digests(live.folder / "prompt")
    summary = live.plan("--topic", "assign_wcs", "--recompute")
    assert (summary["computed"], summary["reused"]) == (dict.fromkeys(IMAGES, 1), {})
    assert summary["start_after"] == {"dark_current": 1}
    assert live.extents("again") == {}, "a plan does nothing"
    assert "1 messages published to run again" in live("replay", "execute", live.folder / "plan.json")
    live("replay", "execute", live.folder / "plan.json")  # once more does no harm
    assert live.work("again") == products
    assert live.extents("prompt") == before
    told = json.loads(live("status", "--json"))
    assert {row["lag"] for row in told["segments"]} == {0}
    live("products", "--out", live.folder / "after")
    assert digests(live.folder / "after") == products


def test_what_cannot_be_replayed_is_refused_in_words(live: Live) -> None:
    words = ("replay", "plan", "--out", live.folder / "no.json")
    assert "run prompt has the inboxes dq_init, assign_wcs" in live(*words, "--run", "x", "--topic", "photom", status=2)
    assert "replay tweakreg" in live(*words, "--run", "x", "--topic", "finalize", status=2)
    assert "another than the one replayed" in live(*words, "--run", "prompt", "--topic", "dq_init", status=2)
    assert "there is no such stage" in live(*words, "--run", "x", "--topic", "dq_init", "--set", "a.b=1", status=2)
    assert "--since 'soon'" in live(*words, "--run", "x", "--topic", "dq_init", "--since", "soon", status=2)
    assert not (live.folder / "no.json").exists()
    (live.folder / "other.json").write_text("{}")
    assert "not a replay plan" in live("replay", "execute", live.folder / "other.json", status=2)
