"""A segment that a breaker stopped is told of, refused to workers, and served again once an operator says so."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from ops.cli import main
from stream.clock import SystemClock
from stream.failure import FatalError
from stream.stopped_segments import StoppedSegments
from stream.store.obstore_store import open_store
from tests.conftest import Simulated


def test_a_stopped_segment_is_shown_refused_and_resumed(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAMPSTREAM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("RAMPSTREAM_WORK", str(tmp_path / "work"))
    words = ["--references", str(simulated.references), "--gaia", str(simulated.gaia), "--preset", "balanced"]
    assert main(["topics", "apply", *words]) == 0
    stopped = StoppedSegments(open_store(str(tmp_path / "store")), "prompt", SystemClock())
    anyio.run(stopped.stop, "assign_wcs", "40 in a row failed")
    anyio.run(stopped.stop, "assign_wcs", "later")

    def reasons() -> dict[str, str | None]:
        capsys.readouterr()
        assert main(["status", "--json"]) == 0
        return {row["segment"]: row["stopped"] for row in json.loads(capsys.readouterr().out)["segments"]}

    assert reasons() == {"dq_init": None, "assign_wcs": "40 in a row failed", "tweakreg": None, "finalize": None}
    with pytest.raises(FatalError, match=r"40 in a row failed.*rampstream resume assign_wcs --run prompt"):
        anyio.run(stopped.check, ["dq_init", "assign_wcs"])
    anyio.run(stopped.check, ["dq_init"])
    assert main(["resume", "flat_field"]) == 2
    assert main(["resume", "assign_wcs"]) == 0
    assert "resumed" in capsys.readouterr().out
    assert set(reasons().values()) == {None}
    anyio.run(stopped.check, ["assign_wcs"])
    assert main(["resume", "assign_wcs"]) == 0
    assert "was not stopped" in capsys.readouterr().out
