"""Each setting of ``[associations]`` does what it says: from a settings file by the run's definition to a close."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from ops.association_state import AssociationView
from ops.settings import load_settings
from stream.association import Association, AssociationSettings, Close, ClosedMember, CloseOutcome, CloseReason
from stream.failure import PermanentError
from stream.member_list import MemberList
from stream.message import MemberStatus, Message
from stream.metrics import Metrics
from tests.ops.test_associations import ID, MEMBERS, Served, Site, announced

Apply = Callable[[str], Site]


@pytest.fixture
def apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Apply:
    """Define a run by what a settings file says of associations, with one of three members."""
    return lambda rules: announced(tmp_path, monkeypatch, capsys, rules, partitions=1)


def told_of_closing(site: Site) -> tuple[Any, ...]:
    (listed,) = site.told("list")
    return listed["revision"], listed["closed"], listed["outcome"]


async def sent_on(served: Served) -> dict[tuple[str, int | None], str | None]:
    """Solutions with which members were sent on, by member and revision."""
    messages = map(Message.from_record, await served.records("prompt.finalize"))
    return {(message.exposure, message.revision): message.solution for message in messages}


def test_fewer_than_the_minimum_at_the_deadline_are_not_aligned_and_a_late_one_opens_a_revision(apply: Apply) -> None:
    site = apply("minimum = 3\ndeadline = 3\nrevision_delay = 0.5")

    async def two_come_in_time(served: Served) -> None:
        await served.member(MEMBERS[0])
        await served.member(MEMBERS[2])
        await served.until("dispatched")
        assert set(await sent_on(served)) == {(MEMBERS[0], 1), (MEMBERS[2], 1)}
        assert set((await sent_on(served)).values()) == {None}, "each keeps its own WCS"

    site.during(two_come_in_time)
    assert told_of_closing(site) == (1, "deadline", "fail")

    async def the_third_comes(served: Served) -> None:
        await served.member(MEMBERS[1])
        await served.until("dispatched", 2)
        sent = await sent_on(served)
        assert all(sent[member, 2] is not None for member in MEMBERS)

    site.during(the_third_comes)
    assert told_of_closing(site) == (2, "changed", "align")
    metrics = Metrics()
    for event in site.events:
        metrics.observe(event)
    sampled = metrics.registry.get_sample_value
    assert sampled("rampstream_associations_closed_total", {"reason": "deadline"}) == 1
    assert sampled("rampstream_associations_closed_total", {"reason": "changed"}) == 1
    assert sampled("rampstream_late_members_total") == 1
    assert sampled("rampstream_revisions_total") == 1
    assert (sampled("rampstream_restore_seconds") or 0.0) > 0.0


def test_an_association_that_waits_closes_when_the_last_one_comes_after_the_deadline(apply: Apply) -> None:
    site = apply('on_missing = "wait"\ndeadline = 0.5')

    async def one_fails(served: Served) -> None:
        for member in MEMBERS[:2]:
            await served.member(member)
        await served.member(MEMBERS[2], MemberStatus.FAILED)
        await served.until("member", 3)
        await anyio.sleep(1.0)
        assert not [event for event in site.events if event["event"] == "closed"]
        await served.member(MEMBERS[2])  # as a redrive has it
        await served.until("dispatched")

    site.during(one_fails)
    assert told_of_closing(site) == (1, "complete", "align")
    (listed,) = site.told("list")
    assert (listed["waited_for"], listed["deadline"], listed["until"]) == (0, None, None)


def test_an_association_that_waits_is_told_of_as_waiting_for_who_failed_and_for_a_person(apply: Apply) -> None:
    site = apply('on_missing = "wait"\ndeadline = 3600')

    async def one_fails(served: Served) -> None:
        await served.member(MEMBERS[0])
        await served.member(MEMBERS[2], MemberStatus.FAILED)
        await served.until("member", 2)

    site.during(one_fails)
    (shown,) = site.told("show", ID)
    assert (shown["present"], shown["waited_for"], shown["missing"]) == ({"failed": 1, "ok": 1}, 2, list(MEMBERS[1:]))
    assert (shown["since"] is not None, shown["deadline"], shown["until"]) == (True, None, "operator or redrive")
    assert "operator or redrive" in site.said("show", ID)
    assert "operator or redrive" in site.said("list")


def test_one_failed_member_has_nobody_aligned_where_that_is_the_rule_and_no_deadline_is_shown(apply: Apply) -> None:
    site = apply('on_missing = "fail"\ndeadline = "none"')

    async def one_comes(served: Served) -> None:
        await served.member(MEMBERS[0])
        await served.until("member")

    site.during(one_comes)
    (listed,) = site.told("list")
    assert (listed["since"] is not None, listed["deadline"]) == (True, None)

    async def one_fails(served: Served) -> None:
        await served.member(MEMBERS[1], MemberStatus.FAILED)
        await served.member(MEMBERS[2])
        await served.until("dispatched")
        assert await sent_on(served) == {(MEMBERS[0], 1): None, (MEMBERS[2], 1): None}

    site.during(one_fails)
    assert told_of_closing(site) == (1, "complete", "fail")


@pytest.mark.parametrize(
    "rules", ["deadline = inf", "deadline = 0", "minimum = 0", "revision_delay = nan", 'on_missing = "hope"']
)
def test_rules_that_make_no_sense_are_refused_with_their_name(tmp_path: Path, rules: str) -> None:
    (tmp_path / "run.toml").write_text(f"[associations]\n{rules}\n")
    with pytest.raises(PermanentError, match=f"associations.{rules.split(' ', maxsplit=1)[0]}"):
        load_settings(tmp_path / "run.toml", {})


def test_a_forgotten_association_is_told_of_by_its_close_alone() -> None:
    closed = (ClosedMember(MEMBERS[0], "ok", "d0"), ClosedMember(MEMBERS[1], "failed", "d1"))
    state = Association(ID, AssociationSettings())
    state.expect(MEMBERS)
    state.record_close(
        Close(ID, 1, CloseReason.DEADLINE, CloseOutcome.ALIGN, (*closed, ClosedMember(MEMBERS[2], "missing", None)))
    )
    view = AssociationView(MemberList(ID, MEMBERS, "r1"), state, complete=True)
    told, came = view.to_json({}), view.came()
    assert (told["present"], told["waited_for"], view.missing(came)) == ({"failed": 1, "ok": 1}, 1, [MEMBERS[2]])
    assert (told["since"], told["changes"], told["next_revision"]) == (None, 0, None)
    assert came == {MEMBERS[0]: ("ok", "d0", None), MEMBERS[1]: ("failed", "d1", None)}
