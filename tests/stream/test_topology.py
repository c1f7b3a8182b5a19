"""Routing is data: which stage is next, what runs together, where messages go."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.failure import PermanentError
from stream.topology import (
    Preset,
    Segment,
    Segments,
    StageRow,
    Topology,
    changelog_topic_name,
    dead_letter_topic_name,
    partition_for,
    retry_topic_name,
    stable_hash,
    topic_name,
)

BOTH = frozenset({"long", "short"})
LONG = frozenset({"long"})
TABLE = Topology(
    [
        StageRow("a", BOTH),
        StageRow("b", LONG),
        StageRow("c", BOTH, balanced_head=True),
        StageRow("d", LONG),
        StageRow("join", BOTH | {"early"}, joint=True),
        StageRow("e", BOTH | {"early"}),
        StageRow("f", LONG),
    ]
)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    count = draw(st.integers(1, 9))
    branches = st.frozensets(st.sampled_from("xyz"), min_size=1)
    return Topology(
        StageRow(f"s{number}", draw(branches), draw(st.booleans()), draw(st.booleans())) for number in range(count)
    )


def test_a_stage_that_does_not_apply_is_never_visited() -> None:
    assert TABLE.route("long") == ("a", "b", "c", "d", "join", "e", "f")
    assert TABLE.route("short") == ("a", "c", "join", "e")
    assert TABLE.first_stage("early") == "join"
    assert TABLE.next_stage("a", "short") == "c"
    assert TABLE.next_stage("a", "early") == "join"
    assert TABLE.next_stage("e", "short") is None
    assert TABLE.first_stage("unheard of") is None


def test_a_branch_may_change_on_the_way() -> None:
    # The stage where it changed need not run on the new branch.
    assert TABLE.next_stage("b", "early") == "join"


@given(topologies(), st.sampled_from("xyz"))
@settings(deadline=None)
def test_following_next_stage_walks_the_route(topology: Topology, branch: str) -> None:
    walked = []
    stage = topology.first_stage(branch)
    while stage is not None:
        walked.append(stage)
        stage = topology.next_stage(stage, branch)
    assert tuple(walked) == topology.route(branch)


@given(topologies(), st.sampled_from(Preset), st.sampled_from("xyz"))
@settings(deadline=None)
def test_any_preset_runs_the_same_stages_in_the_same_order(topology: Topology, preset: Preset, branch: str) -> None:
    segments = topology.segments(preset)
    assert tuple(stage for segment in segments for stage in segment.stages) == topology.stages
    assert all(segment.name == segment.stages[0] for segment in segments)
    walked = []
    stage = topology.first_stage(branch)
    while stage is not None:
        inside = segments.containing(stage)
        assert segments.inbox("run", stage) == f"run.{inside.name}"
        current: str | None = stage
        while current is not None:
            assert current in inside.stages
            walked.append(current)
            last, current = current, segments.next_inside(current, branch)
        stage = topology.next_stage(last, branch)
        assert stage is None or stage not in inside.stages
    assert tuple(walked) == topology.route(branch)


def test_the_presets_cut_where_they_should() -> None:
    def cut(preset: str) -> list[str]:
        return ["".join(segment.stages) for segment in TABLE.segments(preset)]

    assert cut("fused") == ["abcd", "join", "ef"]
    assert cut("balanced") == ["ab", "cd", "join", "ef"]
    assert cut("granular") == ["a", "b", "c", "d", "join", "e", "f"]
    with pytest.raises(PermanentError, match="no preset 'turbo'; choose one of fused, balanced, granular"):
        cut("turbo")


def test_a_start_stage_inside_a_segment_is_sent_to_the_heads_inbox() -> None:
    segments = TABLE.segments("fused")
    assert segments.inbox("prompt", "c") == "prompt.a"
    assert segments.inbox("prompt", "join") == "prompt.join"
    assert segments.next_inside("d", "long") is None
    assert segments.named("e") == Segment("e", ("e", "f"))
    with pytest.raises(PermanentError, match="no segment 'c'"):
        segments.named("c")
    with pytest.raises(PermanentError, match="no stage 'zzz'"):
        segments.inbox("prompt", "zzz")


def test_segments_that_do_not_hold_every_stage_once_and_in_order_are_refused() -> None:
    rows = Topology([StageRow("a", LONG), StageRow("b", LONG), StageRow("j", LONG, joint=True)])
    with pytest.raises(PermanentError, match="expected, in this order, a, b, j"):
        Segments(rows, [Segment("b", ("b",)), Segment("a", ("a",)), Segment("j", ("j",))])
    with pytest.raises(PermanentError, match="'j' must be a segment of its own"):
        Segments(rows, [Segment("a", ("a",)), Segment("b", ("b", "j"))])
    with pytest.raises(PermanentError, match="named after its first stage"):
        Segment("b", ("a", "b"))


def test_users_insert_and_replace_stages() -> None:
    new = StageRow("mine", LONG)
    assert TABLE.inserted(new, after="b").route("long")[:4] == ("a", "b", "mine", "c")
    assert TABLE.inserted(new, before="a").stages[0] == "mine"
    assert TABLE.inserted(new, after="f").stages[-1] == "mine"
    assert [s.name for s in TABLE.inserted(new, before="c").segments("balanced")] == ["a", "c", "join", "e"]
    assert TABLE.replaced(StageRow("b", BOTH)).route("short") == ("a", "b", "c", "join", "e")
    assert "mine" not in TABLE
    with pytest.raises(PermanentError, match="either before or after"):
        TABLE.inserted(new)
    with pytest.raises(PermanentError, match="either before or after"):
        TABLE.inserted(new, before="a", after="b")
    with pytest.raises(PermanentError, match="no stage 'x' in this topology; it has a, b"):
        TABLE.inserted(new, before="x")
    with pytest.raises(PermanentError, match="named twice in the topology: b"):
        TABLE.inserted(StageRow("b", LONG), after="c")


@pytest.mark.parametrize("name", ["", "A", "1a", "a.b", "a-b", "a b"])
def test_bad_stage_names_are_refused(name: str) -> None:
    with pytest.raises(PermanentError, match="stage name"):
        StageRow(name, LONG)


def test_a_stage_without_branches_and_a_table_without_stages_are_refused() -> None:
    with pytest.raises(PermanentError, match="on no branch"):
        StageRow("a", frozenset())
    with pytest.raises(PermanentError, match="at least one stage"):
        Topology([])


@pytest.mark.parametrize("run", ["", "a_b", "a.b", "-a", "a/b", "ä"])
def test_run_names_that_could_collide_in_kafka_are_refused(run: str) -> None:
    with pytest.raises(PermanentError, match="run name"):
        topic_name(run, "dq_init")


def test_topics_are_named_after_run_and_stage_and_never_collide() -> None:
    names = {
        topic_name("prompt", "dq_init"),
        topic_name("reproc-2027a", "dq_init"),
        retry_topic_name("prompt", "dq_init", 0),
        retry_topic_name("prompt", "dq_init", 1),
        changelog_topic_name("prompt", "tweakreg"),
        dead_letter_topic_name("prompt"),
    }
    assert topic_name("prompt", "dq_init") == "prompt.dq_init"
    assert dead_letter_topic_name("prompt") == "prompt.dead-letters"
    assert len({name.replace(".", "_") for name in names}) == 6
    with pytest.raises(PermanentError, match="Kafka allows 249"):
        topic_name("a" * 245, "dq_init")


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 18), st.text(max_size=9))
@settings(deadline=None)
def test_a_locality_meets_at_most_spread_partitions(partitions: int, spread: int, locality: int, key: str) -> None:
    met = {partition_for(locality, f"{key}{n}", partitions=partitions, spread=spread) for n in range(20)}
    assert met <= {(locality * spread + n) % partitions for n in range(spread)}


def test_numbered_localities_fill_all_partitions_evenly() -> None:
    counts = Counter(
        partition_for(locality, f"exposure-{n}", partitions=36, spread=2) for locality in range(18) for n in range(100)
    )
    assert len(counts) == 36
    assert max(counts.values()) < 80


def test_partitions_are_the_same_in_every_process() -> None:
    # Kills the mutant that uses Python's own hash, which is salted per process.
    code = (
        "from stream.topology import *; print(stable_hash('r1'), partition_for('WFI01', 'r1', partitions=7, spread=3))"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.split() == [str(stable_hash("r1")), str(partition_for("WFI01", "r1", partitions=7, spread=3))]


def test_partition_counts_below_one_are_refused() -> None:
    with pytest.raises(PermanentError, match="at least 1"):
        partition_for(1, "a", partitions=0)
