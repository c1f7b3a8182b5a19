"""A run on the embedded engine that is defined and has its topics, but neither references nor workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.cli import main
from ops.connect import connected
from ops.settings import RunSettings
from stream.broker.protocol import Record

__all__ = ["define_run", "records_of", "settings_in"]


def define_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, preset: str = "fused", partitions: int = 1, rules: str = ""
) -> None:
    """Have ``topics apply`` define a run whose store and work are in a folder, as the environment then says.

    Parameters
    ----------
    rules : str
        Of a settings file, what is in its table ``associations``.
    """
    monkeypatch.setenv("RAMPSTREAM_STORE", str(folder / "store"))
    monkeypatch.setenv("RAMPSTREAM_WORK", str(folder / "work"))
    (folder / "references").mkdir()
    (folder / "gaia.csv").touch()
    config = folder / "run.toml"
    config.write_text(f"[associations]\n{rules}\n")
    words = ["--references", str(folder / "references"), "--gaia", str(folder / "gaia.csv"), "--config", str(config)]
    assert main(["topics", "apply", *words, "--preset", preset, "--partitions", str(partitions)]) == 0


def settings_in(folder: Path) -> RunSettings:
    """Where the run of a folder is."""
    return RunSettings(store=str(folder / "store"), work=folder / "work")


async def records_of(settings: RunSettings, topic: str) -> list[Record]:
    """All records of a topic, by partition."""
    async with connected(settings) as connection:
        broker = connection.broker
        extents = sorted((await broker.extents(topic)).items())
        return [record for number, (first, end) in extents for record in await broker.read(topic, number, first, end)]
