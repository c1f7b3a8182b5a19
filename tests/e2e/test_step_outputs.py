"""Outputs of stages are kept as files beside the products, and nothing else depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import Simulated, run_in_process

SAVE = ("--save-results", "refpix", "--set", "rampfit.save_results=true", "--save-results", "tweakreg")


def state(out: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir() if path.is_file()}


def test_asking_for_outputs_changes_no_result_and_right_files_are_left_alone(
    simulated: Simulated, tmp_path: Path
) -> None:
    def run(*options: str) -> dict[str, Any]:
        (row,) = run_in_process(simulated, simulated.exposures, tmp_path, *options)["exposures"]
        return row

    first = run()
    products = state(tmp_path)
    results = {path.name for path in (tmp_path / ".rampstream/store/results").iterdir()}
    assert first["outputs"] == []

    # The payloads were dropped: what is asked for is made again from the input, up to the stage.
    second = run(*SAVE)
    names = [Path(path).name.removeprefix(second["exposure"]) for path in second["outputs"]]
    assert names == ["_refpix.asdf", "_rampfit.asdf", "_tweakreg.asdf"]
    assert {name: at for name, at in state(tmp_path).items() if name in products} == products
    made = {path.name for path in (tmp_path / ".rampstream/store/results").iterdir()}
    assert results <= made
    assert len(made) == len(results) + 2  # refpix and ramp_fit, which were inside the segment

    before = state(tmp_path)
    Path(second["outputs"][0]).unlink()
    third = run(*SAVE)
    assert third["outputs"] == second["outputs"]
    after = state(tmp_path)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {Path(second["outputs"][0]).name}
