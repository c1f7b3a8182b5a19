"""``rampstream ingest --watch``: each complete file once, whatever is restarted, from a folder and from S3."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops import ingesting
from ops.cli import main, parse
from ops.connect import connected
from ops.work import ingest_key
from stream.identity import association_id
from stream.message import Message
from tests.ops.small_run import define_run, records_of, settings_in
from tests.s3_server import Opener, opener, server
from tests.stages.input_files import complete_meta, write_l1

__all__ = ["opener", "server"]

FIRST, SECOND = (f"r0000101001001001001_0001_wfi{number:02d}" for number in (1, 2))
PATIENCE = 30.0


def l1(folder: Path, exposure: str, rows: int = 16) -> Path:
    """A raw exposure; the number of rows is its content."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{exposure}_uncal.asdf"
    return write_l1(path, rows=rows, meta=complete_meta(instrument__detector=exposure[-5:].upper(), filename=path.name))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run that is defined, and with ``in``, where files arrive."""
    monkeypatch.setattr(ingesting, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(ingesting, "SETTLE_SECONDS", 0.5)
    define_run(tmp_path, monkeypatch)
    (tmp_path / "in").mkdir()
    return tmp_path


def announced(site: Path) -> Counter[str]:
    """How many messages there are of each exposure."""
    records = anyio.run(records_of, settings_in(site), "prompt.dq_init")
    return Counter(Message.from_record(record).exposure for record in records)


def watching(site: Path, place: str, meanwhile: Callable[[], Coroutine[Any, Any, None]], *inputs: str) -> None:
    """Watch a place as long as something goes on."""

    async def watch() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ingesting._run, parse(["ingest", *inputs, "--watch", place, "--json"]))
            await meanwhile()
            tasks.cancel_scope.cancel()

    anyio.run(watch)


async def known(site: Path, exposure: str) -> bool:
    async with connected(settings_in(site)) as connection:
        record = json.loads(await connection.store.get(ingest_key("prompt", exposure)) or b"{}")
        return bool(record.get("associations"))


async def until_known(site: Path, exposure: str) -> None:
    with anyio.fail_after(PATIENCE):
        while not await known(site, exposure):  # noqa: ASYNC110 - the record is in a store
            await anyio.sleep(0.05)


def test_a_file_that_still_grows_is_waited_for_and_hidden_ones_are_not_looked_at(site: Path) -> None:
    whole = l1(site / "elsewhere", FIRST).read_bytes()
    arriving = site / "in" / f"{FIRST}_uncal.asdf"
    shutil.copy(l1(site / "elsewhere", SECOND), site / "in" / f".{SECOND}_uncal.asdf")

    async def arrive() -> None:
        for part in range(8):
            with arriving.open("ab") as file:
                file.write(whole[part * len(whole) // 8 : (part + 1) * len(whole) // 8])
            await anyio.sleep(0.2)
            assert not await known(site, FIRST)
        await until_known(site, FIRST)
        assert not await known(site, SECOND)
        (site / "in" / f".{SECOND}_uncal.asdf").rename(site / "in" / f"{SECOND}_uncal.asdf")
        await until_known(site, SECOND)

    watching(site, str(site / "in"), arrive)
    assert announced(site) == {FIRST: 1, SECOND: 1}


def test_a_watcher_that_is_started_anew_announces_what_is_new_alone(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    l1(site / "in", FIRST)

    async def first() -> None:
        await until_known(site, FIRST)

    async def second() -> None:
        l1(site / "in", SECOND)
        await until_known(site, SECOND)

    watching(site, str(site / "in"), first)
    watching(site, str(site / "in"), second)
    assert announced(site) == {FIRST: 1, SECOND: 1}
    capsys.readouterr()
    # The name with other content is another exposure, and says so, whoever brings it.
    assert main(["ingest", str(l1(site / "elsewhere", FIRST, rows=20)), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["exposure"], told["outcome"]) == (FIRST, "refused")
    assert announced(site) == {FIRST: 1, SECOND: 1}


def test_files_that_are_no_exposures_are_told_of_and_do_not_stop_the_watch(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "in" / f"{FIRST}_uncal.asdf").write_bytes(b"#ASDF 1.0.0\ncut")
    (site / "in" / "notes.txt").write_text("not looked at")

    async def go_on() -> None:
        l1(site / "in", SECOND)
        await until_known(site, SECOND)

    capsys.readouterr()
    watching(site, str(site / "in"), go_on)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["exposure"]: line["outcome"] for line in told} == {FIRST: "refused", SECOND: "announced"}
    assert len(told) == 2, "each once"
    assert announced(site) == {SECOND: 1}


def association(folder: Path, *exposures: str) -> Path:
    members = [{"expname": f"{exposure}_uncal.asdf", "exptype": "science"} for exposure in exposures]
    path = folder / "night_asn.json"
    path.write_text(json.dumps({"products": [{"name": "night", "members": members}]}))
    return path


def memberships(site: Path) -> dict[str, tuple[str, ...]]:
    records = anyio.run(records_of, settings_in(site), "prompt.dq_init")
    return {message.exposure: message.associations for message in map(Message.from_record, records)}


def test_members_of_an_association_join_it_as_their_files_arrive(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    l1(site / "in", FIRST)
    night = association(site / "in", FIRST, SECOND)
    identity = association_id("night", [FIRST, SECOND])

    async def arrive() -> None:
        await until_known(site, FIRST)
        l1(site / "in", SECOND)
        await until_known(site, SECOND)

    capsys.readouterr()
    watching(site, str(site / "in"), arrive, str(night))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["exposure"], line["outcome"]) for line in told] == [
        (FIRST, "announced"), (SECOND, "awaited"), (SECOND, "announced"),
    ]  # fmt: skip
    assert memberships(site) == {FIRST: (identity,), SECOND: (identity,)}
    watching(site, str(site / "in"), lambda: anyio.sleep(1.0), str(night))
    assert announced(site) == {FIRST: 1, SECOND: 1}


def test_an_absent_member_is_waited_for_only_where_that_was_asked_for(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    l1(site / "in", FIRST)
    night = association(site / "in", FIRST, SECOND)
    assert main(["ingest", str(night)]) == 1
    assert f"{SECOND}_uncal.asdf' ({site}" in capsys.readouterr().out
    assert announced(site) == {}
    assert main(["ingest", str(night), "--allow-absent"]) == 0
    assert f"{SECOND}: awaited" in capsys.readouterr().out
    assert main(["ingest", str(l1(site / "elsewhere", SECOND))]) == 0
    identity = association_id("night", [FIRST, SECOND])
    assert memberships(site) == {FIRST: (identity,), SECOND: (identity,)}
    assert main(["ingest", str(site / "nothing_uncal.asdf"), "--allow-absent"]) == 1, "a plain file must be there"


def test_a_prefix_of_a_bucket_is_watched_too(site: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = opener()
    monkeypatch.setenv("RAMPSTREAM_STORE", str(site / "store"))  # which the server's own setting would be
    place = repr(bucket).split("'")[1]
    data = l1(site / "elsewhere", FIRST).read_bytes()

    async def arrive() -> None:
        await bucket.put(f"night/{FIRST}_uncal.asdf", data)
        await bucket.put("night/log.txt", b"not looked at")
        await until_known(site, FIRST)

    watching(site, place, arrive)
    watching(site, place, lambda: anyio.sleep(1.0))
    assert announced(site) == {FIRST: 1}
    assert not list((site / "work" / "incoming").glob("*_uncal.asdf")), "its copy is gone"


def test_a_folder_that_does_not_exist_is_named(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "--watch", str(site / "nowhere")]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err


def test_a_path_that_is_no_file_is_refused_and_leaves_nothing(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, says in ((site / "in", "it is a folder; see --watch"), (site / "no.asdf", "there is no such file")):
        assert main(["ingest", str(place)]) == 1
        assert f"{place}: {says}" in capsys.readouterr().out
    assert main(["associations", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
