"""All detectors of one exposure are one association, whoever ingests them, and whenever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops import ingesting
from ops.cli import main, parse
from ops.connect import connected
from ops.settings import load_settings
from ops.work import ingest_key
from stages.product_names import split_detector
from stream.failure import PermanentError
from stream.identity import association_id
from stream.member_list import MemberList, read_member_list
from stream.message import Message
from tests.ops.small_run import define_run, records_of, settings_in
from tests.stages.input_files import complete_meta, write_l1

EXPOSURE = "r0000101001001001001_0001"
ALL = tuple(f"{EXPOSURE}_wfi{number:02d}" for number in range(1, 19))


def l1(folder: Path, detector: int, exposure: str = EXPOSURE) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{exposure}_wfi{detector:02d}_uncal.asdf"
    return write_l1(path, meta=complete_meta(instrument__detector=f"WFI{detector:02d}", filename=path.name))


def messages(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """Associations of each exposure that was announced, in the newest message about it."""
    records = anyio.run(records_of, settings_in(tmp_path), "prompt.dq_init")
    return {message.exposure: message.associations for message in map(Message.from_record, records)}


def member_list(tmp_path: Path, association: str) -> MemberList:
    async def read() -> MemberList:
        async with connected(settings_in(tmp_path)) as connection:
            return await read_member_list(connection.store, "prompt", association)

    return anyio.run(read)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    define_run(tmp_path, monkeypatch, partitions=2)
    return tmp_path


def test_names_are_split_at_the_detector() -> None:
    assert split_detector(f"{EXPOSURE}_wfi07") == (EXPOSURE, "wfi07", "")
    assert split_detector(f"{EXPOSURE}_WFI07_f158") == (EXPOSURE, "WFI07", "_f158")
    assert split_detector("wfi07") is None
    assert split_detector(f"{EXPOSURE}_wfi7") is None
    assert split_detector(f"{EXPOSURE}_wfi070") is None


def test_the_first_detector_that_comes_announces_all_eighteen_in_order(run: Path) -> None:
    assert main(["ingest", str(l1(run / "in", 7)), "--group-detectors"]) == 0
    (association,) = messages(run)[ALL[6]]
    assert association == association_id(EXPOSURE, ALL)
    assert member_list(run, association) == MemberList(association, ALL, EXPOSURE)


def test_detectors_that_come_in_other_commands_find_the_list_that_the_first_one_wrote(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [l1(run / "in", number) for number in (1, 2, 3)]
    other = l1(run / "in", 1, "r0000101001001001001_0002")
    assert main(["ingest", str(files[1]), str(other), "--group-detectors", "WFI02,WFI01"]) == 0
    assert main(["ingest", str(files[0]), "--group-detectors=WFI01,WFI02,WFI03"]) == 0
    told = messages(run)
    assert told[ALL[0]] == told[ALL[1]]
    (association,) = told[ALL[0]]
    assert member_list(run, association).members == ALL[:2]
    assert told["r0000101001001001001_0002_wfi01"] != told[ALL[0]], "another exposure is another group"
    capsys.readouterr()
    assert main(["ingest", str(files[2]), "--group-detectors=WFI01,WFI02,WFI03"]) == 1
    assert f"WFI03 is not among the detectors that are expected of {EXPOSURE}" in capsys.readouterr().out
    assert main(["ingest", str(files[0]), "--group-detectors"]) == 0
    assert "known" in capsys.readouterr().out


def test_what_cannot_be_grouped_is_refused_and_an_association_file_is_left_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_l1(run / "darkroom_uncal.asdf")
    members = [{"expname": str(l1(run / "in", 1)), "exptype": "science"}]
    pool = run / "pool.json"
    pool.write_text(json.dumps({"products": [{"name": "pool", "members": members}]}))
    assert main(["ingest", str(plain), str(pool), "--group-detectors", "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(line["outcome"], "a name with a detector" in str(line["reason"])) for line in lines] == [
        ("refused", True), ("announced", False),
    ]  # fmt: skip
    assert messages(run) == {ALL[0]: (association_id("pool", ALL[:1]),)}


def test_detectors_that_are_watched_for_are_grouped_also_when_they_were_announced_alone_before(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingesting, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(ingesting, "SETTLE_SECONDS", 0.1)
    first = l1(run / "in", 1)
    assert main(["ingest", str(first)]) == 0
    (alone,) = messages(run)[ALL[0]]
    options = parse(["ingest", "--watch", str(first.parent), "--group-detectors", "WFI01,WFI02"])

    async def told(exposure: str) -> list[str]:
        async with connected(settings_in(run)) as connection:
            record: dict[str, Any] = json.loads(await connection.store.get(ingest_key("prompt", exposure)) or b"{}")
            return list(record.get("associations", ()))

    async def until_told(exposure: str, associations: int) -> None:
        with anyio.fail_after(20):
            while len(await told(exposure)) < associations:  # noqa: ASYNC110 - the record is in a store
                await anyio.sleep(0.05)

    async def watch() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ingesting._run, options)
            await until_told(ALL[0], 2)
            await anyio.to_thread.run_sync(l1, first.parent, 2)
            await until_told(ALL[1], 1)
            tasks.cancel_scope.cancel()

    anyio.run(watch)
    group = association_id(EXPOSURE, ALL[:2])
    assert messages(run) == {ALL[0]: (group,), ALL[1]: (group,)}
    assert set(anyio.run(told, ALL[0])) == {alone, group}


def test_detectors_are_named_once_and_are_detectors(run: Path) -> None:
    assert load_settings(None, {"detectors": ["wfi11", "WFI02"]}).detectors == ("WFI02", "WFI11")
    for wrong in (["WFI01", "wfi01"], ["MIRI"], []):
        with pytest.raises(PermanentError, match="names of detectors, each once"):
            load_settings(None, {"detectors": wrong})
    assert main(["ingest", "--group-detectors", str(run / "a_uncal.asdf"), "b_uncal.asdf"]) == 2
