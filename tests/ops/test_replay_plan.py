"""Plan files of ``rampstream replay``: that their parts agree, and that an empty one does nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops.cli import main
from ops.connect import connected
from ops.replay_plan import ReplayPlan
from stream.failure import PermanentError
from stream.identity import root_identity
from stream.message import MemberMessage, MemberStatus, Message
from tests.ops.small_run import define_run, settings_in

EXPOSURES = ["r0000101001001001001_0001_wfi01", "r0000101001001001001_0001_wfi02"]
IDENTITY = root_identity(EXPOSURES[0], "0" * 64)


def work(exposure: str) -> dict[str, Any]:
    """What a plan has of one exposure."""
    message = Message(
        run="again", exposure=exposure, stage="assign_wcs", identity=IDENTITY, manifest=f"results/{IDENTITY}/1",
        branch="WFI_IMAGE", facts={},
    )  # fmt: skip
    return {
        "exposure": exposure, "after": "dark_current", "computed": ["assign_wcs"], "reused": [],
        "message": message.model_dump(mode="json"),
    }  # fmt: skip


@pytest.fixture
def document() -> dict[str, Any]:
    """A plan with two exposures and a member, all recomputed."""
    plan = ReplayPlan("prompt", "again", "assign_wcs", {"salt": "again"}, {}, [work(name) for name in EXPOSURES])
    plan.members["a-1/x"] = MemberMessage(
        run="again", association="a-1", member="x", status=MemberStatus.FAILED, reason="no flat", facts={}
    )
    read: dict[str, Any] = json.loads(plan.encode())
    return read


def test_a_plan_is_read_as_it_was_written_and_exposures_may_be_taken_out(document: dict[str, Any]) -> None:
    plan = ReplayPlan.decode(json.dumps(document))
    assert json.loads(plan.encode()) == document
    del document["work"][0]
    assert [one["exposure"] for one in ReplayPlan.decode(json.dumps(document)).exposures] == EXPOSURES[1:]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda plan: plan.update(run="b"), "definition.salt is 'again', but run is 'b'"),
        (lambda plan: plan.update(run="b", definition={}), r"work\[0\].message.run is 'again', but run is 'b'"),
        (lambda plan: plan.update(run="b", definition={}, work=[]), r"members\[0\].run is 'again', but run is 'b'"),
        (lambda plan: plan["work"][1]["message"].update(run="b"), r"work\[1\].message.run is 'b', but run is 'again'"),
        (lambda plan: plan["members"][0].update(run="prompt"), r"members\[0\].run is 'prompt', but run is 'again'"),
        (lambda plan: plan.update(from_run="again"), "run is 'again', as from_run is"),
        (lambda plan: plan["work"][1].update(exposure="x"), r"but work\[1\].exposure is 'x'"),
        (lambda plan: plan["work"][1]["message"].pop("stage"), "not a replay plan"),
        (lambda plan: plan.update(definition=[]), "not a replay plan"),
    ],
)
def test_a_plan_whose_parts_do_not_agree_is_refused_by_the_field(
    document: dict[str, Any], edit: Callable[[dict[str, Any]], object], told: str
) -> None:
    edit(document)
    with pytest.raises(PermanentError, match=told):
        ReplayPlan.decode(json.dumps(document))


def test_a_plan_without_exposures_is_told_and_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    define_run(tmp_path, monkeypatch, preset="balanced")
    file = tmp_path / "plan.json"

    def topics() -> set[str]:
        async def read() -> set[str]:
            async with connected(settings_in(tmp_path)) as connection:
                return {*await connection.broker.topics()}

        return anyio.run(read)

    before, stored = topics(), sorted(tmp_path.joinpath("store").rglob("*"))
    capsys.readouterr()
    plan = ["replay", "plan", "--topic", "dq_init", "--run", "again", "--out", str(file)]
    assert main(plan) == 1
    assert "0 exposures" in (said := capsys.readouterr().out)
    assert said.endswith("there is nothing to execute\n")
    assert main(["replay", "execute", str(file)]) == 1
    assert "the plan has no exposures; run again is not created" in capsys.readouterr().err
    assert main(["replay", "execute", str(file), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"run": "again", "published": 0}
    assert main(["replay", "execute", str(file), "--run", "b"]) == 2
    assert (topics(), sorted(tmp_path.joinpath("store").rglob("*"))) == (before, stored)
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "work": [work(EXPOSURES[0])], "run": "b"}))
    capsys.readouterr()
    assert main(["replay", "execute", str(file)]) == 2
    assert "work[0].message.run is 'again', but run is 'b'" in capsys.readouterr().err
    assert topics() == before
