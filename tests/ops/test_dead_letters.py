"""``rampstream dlq``: what failed is listed with its reason, shown with its bytes, and sent again once."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops.cli import main
from ops.connect import connected
from stream.broker.protocol import NOT_BEFORE, Record
from stream.clock import SystemClock
from stream.dead_letters import bury
from stream.identity import root_identity
from stream.message import Message
from stream.retry import Outcome
from stream.run_records import Attempts
from tests.ops.small_run import define_run, records_of, settings_in

EXPOSURE = "r0000101001001001001_0001_wfi01"
IDENTITY = root_identity(EXPOSURE, "0" * 64)
FAILURE = {"class": "permanent", "type": "PermanentError", "message": "no flat for F158", "traceback": "…"}


class Site:
    """A run with dead letters."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.settings = settings_in(folder)
        self._capsys = capsys

    def said(self, *words: str, status: int = 0) -> str:
        self._capsys.readouterr()
        assert main(["dlq", *words]) == status
        captured = self._capsys.readouterr()
        return captured.out + captured.err

    def told(self, *words: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.said(*words, "--json"))
        return found

    def records(self, topic: str) -> list[Record]:
        return anyio.run(records_of, self.settings, topic)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Site:
    """One message that failed after three attempts, on a retry topic, and one that nobody could read."""
    define_run(tmp_path, monkeypatch, preset="balanced")
    site = Site(tmp_path, capsys)
    message = Message(
        run="prompt", exposure=EXPOSURE, stage="assign_wcs", identity=IDENTITY,
        manifest=f"results/{IDENTITY}/1", branch="WFI_IMAGE", associations=("a-1",), facts={},
    )  # fmt: skip

    async def fail() -> None:
        async with connected(site.settings) as connection:
            attempts = Attempts(connection.store, run="prompt", worker="w", clock=SystemClock())
            for number in range(3):
                attempt = await attempts.start(EXPOSURE, "assign_wcs", bigger_slot=False, after=number)
                await attempts.end(attempt, Outcome.PERMANENT, FAILURE)
            topic = "prompt.assign_wcs.retry-1"
            headers = (*message.headers("prompt.assign_wcs", time=1.8e9), (NOT_BEFORE, b"17"))
            record = await connection.broker.publish(topic, key=message.key, value=message.encode(), headers=headers)
            await bury(connection.broker, "prompt", record, stage="assign_wcs", failure=FAILURE, attempts=3)
            record = await connection.broker.publish("prompt.dq_init", key=b"k", value=b"\xff{", headers=())
            poison = {"class": "poison", "type": "PoisonError", "message": "not JSON"}
            await bury(connection.broker, "prompt", record, stage="dq_init", failure=poison, attempts=1)

    anyio.run(fail)
    return site


def test_the_list_tells_what_failed_where_how_often_and_why(site: Site) -> None:
    permanent, poison = site.told("list")
    assert {name: permanent[name] for name in ("exposure", "stage", "class", "attempts", "reason", "redriven")} == {
        "exposure": EXPOSURE, "stage": "assign_wcs", "class": "permanent", "attempts": 3,
        "reason": "no flat for F158", "redriven": False,
    }  # fmt: skip
    assert (poison["exposure"], poison["class"], poison["reason"]) == (None, "poison", "not JSON")
    assert site.told("list", "--class", "poison") == [poison]
    assert site.told("list", "--stage", "assign_wcs") == site.told("list", "r0000101*") == [permanent]
    assert f"{EXPOSURE}  assign_wcs  permanent  3 attempts  no flat for F158" in site.said("list")


def test_a_letter_is_shown_with_the_bytes_and_headers_of_its_record(site: Site) -> None:
    permanent, poison = site.told("show")
    (record,) = site.records("prompt.assign_wcs.retry-1")
    assert permanent["value"].encode() == record.value
    shown = [(name, base64.b64decode(value)) for name, value in permanent["headers"]]
    assert shown == list(record.headers)
    assert permanent["failure"]["traceback"] == "…"
    assert (poison["value"], base64.b64decode(poison["value_base64"])) == (None, b"\xff{")


def test_redriving_is_a_plan_until_it_is_executed_and_then_goes_to_the_inbox_with_attempts_forgotten(
    site: Site,
) -> None:
    assert "1 would be redriven; say --execute" in site.said("redrive", EXPOSURE)
    assert site.records("prompt.assign_wcs") == []
    (done,) = site.told("redrive", EXPOSURE, "--execute")
    assert done["redriven_to"] == "prompt.assign_wcs"
    (before,), (after,) = site.records("prompt.assign_wcs.retry-1"), site.records("prompt.assign_wcs")
    assert (after.key, after.value) == (before.key, before.value)
    assert after.headers == tuple(header for header in before.headers if header[0] != NOT_BEFORE)

    async def attempts() -> Any:
        async with connected(site.settings) as connection:
            kept = Attempts(connection.store, run="prompt", worker="w", clock=SystemClock())
            return await kept.earlier(EXPOSURE, "assign_wcs")

    assert anyio.run(attempts) == []
    (left,) = site.told("list")
    assert left["class"] == "poison"
    assert [letter["redriven"] for letter in site.told("list", "--all")] == [True, False]
    assert site.told("redrive", EXPOSURE, "--execute") == [], "what was redriven is not sent again"
    assert len(site.records("prompt.assign_wcs")) == 1
    assert "nothing to redrive: no dead letter matches" in site.said("redrive", EXPOSURE, "--execute")


def test_a_letter_that_is_not_there_and_a_redrive_of_everything_are_refused(site: Site) -> None:
    assert "there is no dead letter 0-7 in run prompt" in site.said("show", "0-7", status=2)
    assert "say which dead letters to redrive" in site.said("redrive", "--execute", status=2)
    assert site.records("prompt.assign_wcs") == []


def test_a_message_of_another_version_is_found_by_the_exposure_that_it_names(site: Site) -> None:
    async def bury_newer() -> None:
        async with connected(site.settings) as connection:
            value = json.dumps({"schema_version": "9.0", "exposure": EXPOSURE}).encode()
            record = await connection.broker.publish("prompt.dq_init", key=b"k", value=value, headers=())
            poison = {"class": "poison", "type": "PoisonError", "message": "version 9.0"}
            await bury(connection.broker, "prompt", record, stage="dq_init", failure=poison, attempts=1)

    anyio.run(bury_newer)
    assert [letter["class"] for letter in site.told("list", EXPOSURE)] == ["permanent", "poison"]
