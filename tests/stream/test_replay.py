"""Where a replayed exposure starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.failure import PermanentError
from stream.replay import Link, plan_start
from stream.topology import StageRow, Topology

STAGES = ("a", "b", "c", "d", "e")
TOPOLOGY = Topology(StageRow(name, frozenset({"image"})) for name in STAGES)
BALANCED = TOPOLOGY.cut(["a", "c"])
ROOT = Link("ingest", "id-root", "results/root")


def chain(stored: str) -> list[Link]:
    """Links of all stages, those named with a result."""
    return [Link(name, f"id-{name}", f"results/{name}" if name in stored else None) for name in STAGES]


@given(
    stored=st.sets(st.sampled_from(STAGES)),
    topic=st.sampled_from(STAGES),
    ingested=st.booleans(),
    heads=st.sets(st.sampled_from(STAGES)),
)
def test_it_is_the_nearest_stored_result_before_the_topic_and_the_rest_is_reused_or_computed(
    stored: set[str], topic: str, ingested: bool, heads: set[str]
) -> None:
    segments = TOPOLOGY.cut(heads)
    root = Link("ingest", "id-root", "results/root" if ingested else None)
    before = [name for name in STAGES[: STAGES.index(topic)] if name in stored]
    if not before and not ingested:
        with pytest.raises(PermanentError, match="neither"):
            plan_start(root, chain("".join(stored)), topic=topic, segments=segments)
        return
    start = plan_start(root, chain("".join(stored)), topic=topic, segments=segments)
    assert start.after == (before[-1] if before else "ingest")
    assert start.manifest == (f"results/{before[-1]}" if before else "results/root")
    rest = STAGES[STAGES.index(before[-1]) + 1 :] if before else STAGES
    assert start.stage == rest[0]
    assert STAGES.index(start.stage) <= STAGES.index(topic)
    assert start.reused == tuple(
        name for name in rest if {later for later in segments.containing(name).stages if later >= name} & stored
    )
    assert start.computed == tuple(name for name in rest if name not in start.reused)


@pytest.mark.parametrize(
    ("stored", "topic", "after", "reused", "computed"),
    [
        ("be", "a", "ingest", "abcde", ""),  # nothing was changed: the ends of segments are there
        ("be", "c", "b", "cde", ""),
        ("b", "a", "ingest", "ab", "cde"),  # a parameter of the last stage was: nothing inside its segment is stored
        ("bd", "a", "ingest", "abcd", "e"),  # but for what a granular run left
        ("e", "a", "ingest", "cde", "ab"),
        ("", "a", "ingest", "", "abcde"),  # recomputed
        ("b", "c", "b", "", "cde"),
    ],
)
def test_a_segment_whose_end_is_stored_is_reused_whole_and_another_computed_from_its_last_result_on(
    stored: str, topic: str, after: str, reused: str, computed: str
) -> None:
    start = plan_start(ROOT, chain(stored), topic=topic, segments=BALANCED)
    assert (start.after, "".join(start.reused), "".join(start.computed)) == (after, reused, computed)


def test_an_exposure_that_does_not_go_through_the_topic_is_refused() -> None:
    with pytest.raises(PermanentError, match="only through a, b, c, d, e"):
        plan_start(ROOT, chain(""), topic="flat_field", segments=BALANCED)
