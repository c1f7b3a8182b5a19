"""What of a topic that exists is a conflict, what is only told, and how it would be changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stream.broker.protocol import TopicSpec
from stream.broker.topic_plan import planned

CONFIG = {"cleanup.policy": "delete", "min.insync.replicas": "2", "retention.ms": "1000"}
WANTED = TopicSpec("run.dq_init", 4, config=CONFIG, replicas=3)


def test_what_is_missing_is_created_and_what_is_equal_is_not_told() -> None:
    missing = replace(WANTED, name="run.other")
    plan = planned([WANTED, missing], {"run.dq_init": WANTED})
    assert (plan.create, plan.differences) == ((missing,), ())


@pytest.mark.parametrize(
    ("found", "setting"),
    [
        (replace(WANTED, partitions=5), "partitions"),
        (replace(WANTED, compacted=True, config={**CONFIG, "cleanup.policy": "compact"}), "cleanup.policy"),
        (replace(WANTED, replicas=1), "min.insync.replicas"),
    ],
)
def test_what_would_lose_or_move_records_or_refuse_them_is_a_conflict(found: TopicSpec, setting: str) -> None:
    conflicts = planned([WANTED], {WANTED.name: found}).conflicts
    assert [conflict.setting for conflict in conflicts] == [setting]


def test_a_changelog_that_is_also_cut_by_age_is_a_conflict() -> None:
    wanted = TopicSpec("run.tweakreg.changelog", compacted=True, config={"cleanup.policy": "compact"})
    found = replace(wanted, config={"cleanup.policy": "compact,delete"})
    [conflict] = planned([wanted], {wanted.name: found}).conflicts
    assert (conflict.found, conflict.wanted) == ("compact,delete", "compact")


@pytest.mark.parametrize(
    ("found", "setting", "remedy"),
    [
        (replace(WANTED, config={**CONFIG, "retention.ms": "5"}), "retention.ms", "--add-config retention.ms=1000"),
        (
            replace(WANTED, config={**CONFIG, "min.insync.replicas": "1"}),
            "min.insync.replicas",
            "--entity-name run.dq_init --add-config min.insync.replicas=2",
        ),
        (replace(WANTED, replicas=2), "replicas", "kafka-reassign-partitions.sh"),
    ],
)
def test_what_can_be_changed_while_work_goes_on_is_told_with_the_command(
    found: TopicSpec, setting: str, remedy: str
) -> None:
    plan = planned([WANTED], {WANTED.name: found}, servers="a:1,b:2")
    assert plan.conflicts == ()
    assert [difference.setting for difference in plan.differences] == [setting]
    assert remedy in plan.differences[0].remedy


def test_a_log_without_settings_is_compared_by_partitions_and_compaction_alone() -> None:
    found = TopicSpec(WANTED.name, 4, config={"retention.ms": "5"})
    assert planned([WANTED], {WANTED.name: found}, settings=False).differences == ()
    assert planned([WANTED], {WANTED.name: replace(found, compacted=True)}, settings=False).conflicts != ()
