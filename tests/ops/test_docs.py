"""The documentation says what the code does: parameters and defaults, options, settings, tests, links, the example."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ops.cli import parse
from ops.settings import RunSettings
from ops.table import build_pipeline
from stages.exposure import Exposure, Level
from stages.pipeline import TABLE, make_stage
from stream.stage import Slot, Stage

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PARAMETER = re.compile(r"^\| `(\w+)` \| (`[^`]*`|none) \| \S", re.MULTILINE)


def parameters_in(page: str) -> dict[str, Any]:
    """Names and defaults of a page's table of parameters."""
    section = page.partition("## Parameters\n")[2].partition("\n## ")[0]
    found = PARAMETER.findall(section)
    names = [name for name, _ in found]
    assert len(names) == len(set(names))
    return {name: None if value == "none" else json.loads(value.strip("`")) for name, value in found}


@pytest.mark.parametrize("stage", [row.name for row in TABLE])
def test_each_parameter_is_documented_with_its_default(stage: str) -> None:
    entry = next(row.entry for row in TABLE if row.name == stage)
    actual = make_stage(entry).parameters_type().model_dump(mode="json")
    documented = parameters_in((DOCS / "stages" / f"{stage}.md").read_text())
    assert documented == actual
    assert {name: isinstance(value, bool) for name, value in documented.items()} == {
        name: isinstance(value, bool) for name, value in actual.items()
    }


def test_each_stage_is_in_the_index_in_order() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\(stages/\1\.md\)", (DOCS / "stages.md").read_text(), re.MULTILINE)
    assert listed == [row.name for row in TABLE]


def test_each_option_of_run_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["run", "--help"])
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out))
    assert {"--references", "--set", "--json"} <= options
    documented = set(re.findall(r"^\| `(--[a-z-]+)", (DOCS / "running.md").read_text(), re.MULTILINE))
    assert documented == options


def test_each_setting_is_documented() -> None:
    page = (DOCS / "running.md").read_text()
    section = page.partition("## Settings\n")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `\[?(\w+)", section, re.MULTILINE)
    assert sorted(documented) == sorted(RunSettings.model_fields)


def test_the_example_of_settings_is_accepted() -> None:
    page = (DOCS / "running.md").read_text()
    settings = RunSettings(**tomllib.loads(_block(page, "toml")))
    assert build_pipeline(settings).segments.named("dq_init")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_and_tests_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:tests|stages|stream|ops)/[\w/.]+(?:::[\w:]+)?)`", text):
        path, *parts = name.split("::")
        assert (DOCS.parent / path).exists(), name
        for part in parts:
            assert re.search(rf"(def|class) {part}\b", (DOCS.parent / path).read_text()), name


def test_the_worked_example_of_a_stage_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "adding_a_stage.md").read_text()
    (tmp_path / "sky_stage.py").write_text(_block(page, "python"))
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = RunSettings(**tomllib.loads(_block(page, "toml")))
    pipeline = build_pipeline(settings)
    route = pipeline.segments.topology.route("WFI_IMAGE")
    assert route[route.index("flat_field") + 1] == "sky_level"
    assert "sky_level" not in pipeline.segments.topology.route("WFI_SPECTRAL")

    stage = importlib.import_module("sky_stage").SkyLevel()
    assert isinstance(stage, Stage)
    parameters = stage.parameters_type(**settings.parameters["sky_level"])
    data = np.arange(1, 12, dtype=np.float32).reshape(1, 11)
    exposure = Exposure("r1", Level.IMAGE, {}, {"data": data.copy(), "dq": np.zeros((1, 11), np.uint32)})
    stage.run(exposure, {}, parameters, Slot())
    np.testing.assert_array_equal(exposure.arrays["data"], data - 5)
    assert exposure.versions["data"] == 1


def _block(page: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]
