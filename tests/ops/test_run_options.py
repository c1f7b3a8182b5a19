"""What ``rampstream run`` says of settings that count elsewhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.cli import main
from ops.run import EmbeddedRun

Said = Callable[[str], tuple[str, str, str]]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Said]:
    """Run with a settings file but do no work; returns standard output, standard error and the log."""
    handlers: list[logging.Handler] = []
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    (tmp_path / "gaia.csv").write_text("ra,dec\n")

    async def nothing(_: EmbeddedRun) -> dict[str, Any]:
        return {"exit": 0}

    monkeypatch.setattr(EmbeddedRun, "execute", nothing)

    def run(text: str) -> tuple[str, str, str]:
        (tmp_path / "c.toml").write_text(text)
        words = ["x_uncal.asdf", "--references", str(tmp_path), "--gaia", str(tmp_path / "gaia.csv"), "--json"]
        assert main(["run", *words, "--out", str(tmp_path / "out"), "--config", str(tmp_path / "c.toml")]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err, (tmp_path / "out" / ".rampstream" / "logs" / "run.log").read_text()

    yield run
    for handler in handlers:
        handler.close()


def test_rules_for_associations_are_said_to_have_no_effect_in_one_line_and_in_the_log(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "associations.minimum, associations.on_missing"
    told = f"without effect here: {names}; they count in the distributed engine only"
    out, err, log = said('[associations]\non_missing = "wait"\nminimum = 1')
    assert (json.loads(out), err) == ({"exit": 0}, f"rampstream: {told}\n")
    assert f"WARNING ops.run: {told}\n" in log
    monkeypatch.setenv("RAMPSTREAM_ASSOCIATIONS", '{"deadline": null}')
    assert "here: associations.deadline; they" in said("slots = 1")[1]


@pytest.mark.parametrize("text", ["slots = 1", "[associations]"])
def test_nothing_is_said_where_nothing_is_without_effect(said: Said, text: str) -> None:
    assert said(text)[1:] == ("", "")
