"""Rules of the house that the tools do not check: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORACLE = {"romancal", "stcal", "romanisim"}
ASTRONOMY = {"astropy", "gwcs", "photutils", "roman_datamodels", "tweakwcs", "asdf"}
ENGINE = {
    "stream.broker",
    "stream.worker",
    "stream.aggregator",
    "stream.store",
    "stream.process_runner",
    "stream.inbox",
}


def imports(package: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield path, node.module


@pytest.mark.parametrize("package", ["stream", "stages", "ops"])
def test_the_product_never_imports_the_oracle(package: str) -> None:
    found = list(imports(package))
    assert found
    assert [f"{path}: {name}" for path, name in found if name.split(".")[0] in ORACLE] == []


def test_the_engine_knows_neither_stages_nor_astronomy() -> None:
    forbidden = ASTRONOMY | {"stages", "ops"}
    assert [f"{path}: {name}" for path, name in imports("stream") if name.split(".")[0] in forbidden] == []


def test_the_stages_know_nothing_of_broker_store_and_worker() -> None:
    assert [f"{path}: {name}" for path, name in imports("stages") if name.split(".")[0] in {"ops", "aiokafka"}] == []
    assert [f"{path}: {name}" for path, name in imports("stages") if any(name.startswith(e) for e in ENGINE)] == []


def test_modules_stay_under_400_lines() -> None:
    modules = [path for package in ("stream", "stages", "ops") for path in (ROOT / package).rglob("*.py")]
    assert {str(path): n for path in modules if (n := len(path.read_text().splitlines())) > 400} == {}


@pytest.mark.parametrize("verb", ["run", "serve"])
def test_a_process_that_computes_nothing_loads_no_science(verb: str) -> None:
    """Job processes do; who starts them would take twice as long to start."""
    told = f"import ops.{verb}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True).stdout.split()
    assert set(loaded) & (ASTRONOMY | {"numba", "scipy"}) == set()
