"""``topics plan|apply`` on a run that exists: what is given is compared, what is not stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops.cli import main
from ops.connect import connected, layout_key
from stream.broker.protocol import Commit, TopicPartition
from tests.ops.small_run import define_run, settings_in

SNR = "source_catalog.snr_threshold=7"


@pytest.fixture
def defined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """Folder of a run with the preset balanced and two partitions."""
    define_run(tmp_path, monkeypatch, preset="balanced", partitions=2, rules="minimum = 2")
    capsys.readouterr()
    return tmp_path


async def _kept(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any], set[str]]:
    """Definition, layout and topics."""
    async with connected(settings_in(folder)) as connection:
        layout = await connection.store.get(layout_key("prompt"))
        assert layout is not None
        return await connection.records.definition(), json.loads(layout), set(await connection.broker.topics())


@pytest.mark.parametrize("action", ["plan", "apply"])
def test_without_more_words_everything_stays(defined: Path, capsys: pytest.CaptureFixture[str], action: str) -> None:
    before = anyio.run(_kept, defined)
    assert main(["topics", action, "--run", "prompt", "--partitions", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["preset"], report["create"], report["changes"]) == ("balanced", [], [])
    assert anyio.run(_kept, defined) == before


@pytest.mark.parametrize("action", ["plan", "apply"])
@pytest.mark.parametrize(
    ("words", "config", "says"),
    [
        (["--set", SNR], "", "parameters.source_catalog was not given, is"),
        (["--reference", "flat=N/A"], "", 'pins.flat was not given, is "N/A"'),
        ([], "[associations]\nminimum = 3", "associations.minimum was 2, is 3"),
        ([], "[parameters.source_catalog]\nsnr_threshold = 7", "parameters.source_catalog was not given, is"),
        (["--gaia", "other.csv"], "", "gaia was"),
        (["--references", "."], "", "references was"),
    ],
)
def test_other_values_are_refused_by_name_though_references_and_stars_are_not_repeated(
    defined: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], action: str, words: list[str],
    config: str, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(defined)
    Path("other.csv").touch()
    Path("other.toml").write_text(config)
    before = anyio.run(_kept, defined)
    assert main(["topics", action, "--partitions", "2", "--config", "other.toml", *words]) == 1
    told = capsys.readouterr().err
    assert "already defined otherwise" in told
    assert says in told
    assert "is new" not in told
    assert anyio.run(_kept, defined) == before


def test_values_of_the_environment_are_compared(
    defined: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAMPSTREAM_ASSOCIATIONS", '{"minimum": 2, "deadline": null}')
    assert main(["topics", "apply", "--partitions", "2"]) == 1
    assert "associations.deadline was 86400.0, is null" in capsys.readouterr().err


def test_the_same_values_may_be_given_again_alone_or_with_one_of_references_and_stars(defined: Path) -> None:
    words = ["topics", "apply", "--partitions", "2", "--config", str(defined / "run.toml")]
    assert main(words) == 0
    assert main([*words, "--gaia", str(defined / "gaia.csv")]) == 0
    assert main([*words, "--references", str(defined / "references")]) == 0


def test_a_new_run_needs_both_references_and_stars(defined: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topics", "apply", "--run", "other", "--gaia", str(defined / "gaia.csv")]) == 2
    assert "the run 'other' is new" in capsys.readouterr().err


def test_another_preset_is_told_and_applied_when_nobody_serves(
    defined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = anyio.run(_kept, defined)
    words = ["--partitions", "2", "--preset", "granular"]
    assert main(["topics", "plan", *words]) == 0
    assert "to change: preset balanced -> granular: stop all workers" in capsys.readouterr().out
    assert anyio.run(_kept, defined) == before
    assert main(["topics", "apply", *words]) == 0
    assert "changed: preset balanced -> granular" in capsys.readouterr().out
    _, layout, topics = anyio.run(_kept, defined)
    assert layout["preset"] == "granular"
    assert topics > before[2]


@pytest.mark.parametrize("given", [["--preset", "granular"], ["retry_seconds = [1.0]"]])
def test_a_layout_that_is_served_is_not_changed(
    defined: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    (defined / "other.toml").write_text("" if given[0].startswith("--") else given[0])
    words = ["--partitions", "2", "--config", str(defined / "other.toml")]
    words += given if given[0].startswith("--") else []
    before = anyio.run(_kept, defined)

    async def serve() -> None:
        async with (
            connected(settings_in(defined)) as connection,
            connection.broker.consumer("prompt.dq_init", ["prompt.dq_init"]),
        ):
            assert await anyio.to_thread.run_sync(main, ["topics", "apply", *words]) == 1
            assert await anyio.to_thread.run_sync(main, ["topics", "plan", *words]) == 1
            assert await anyio.to_thread.run_sync(main, ["topics", "apply", "--partitions", "2"]) == 0

    anyio.run(serve)
    told = capsys.readouterr()
    for text in (told.err, told.out):
        assert "the present layout has workers, stop them first: groups with members are prompt.dq_init" in text
    assert anyio.run(_kept, defined) == before


def test_messages_of_a_retry_topic_that_goes_are_not_left_behind(
    defined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def wait_for_a_retry() -> None:
        async with connected(settings_in(defined)) as connection:
            topic = "prompt.dq_init.retry-2"
            record = await connection.broker.publish(topic, key=b"1", value=b"")
            await connection.broker.reset("prompt.dq_init", {TopicPartition(topic, record.partition): Commit(0)})

    anyio.run(wait_for_a_retry)
    (defined / "other.toml").write_text("retry_seconds = [1.0, 2.0]\nspread = 1")
    words = ["--partitions", "2", "--config", str(defined / "other.toml")]
    assert main(["topics", "apply", *words]) == 1
    told = capsys.readouterr().err
    assert "holds 1 messages that the new layout would not read" in told
    assert "spread 2 -> 1" in told
