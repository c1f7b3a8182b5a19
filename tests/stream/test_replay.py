"""Where a replayed exposure starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.failure import PermanentError
from stream.replay import Link, plan_start

STAGES = ("a", "b", "c", "d", "e")


def chain(stored: str) -> list[Link]:
    """Links of all stages, those named with a result."""
    return [Link(name, f"id-{name}", f"results/{name}" if name in stored else None) for name in STAGES]


@given(stored=st.sets(st.sampled_from(STAGES)), topic=st.sampled_from(STAGES), ingested=st.booleans())
def test_it_is_the_nearest_stored_result_before_the_topic_and_the_rest_is_reused_or_computed(
    stored: set[str], topic: str, ingested: bool
) -> None:
    root = Link("ingest", "id-root", "results/root" if ingested else None)
    before = [name for name in STAGES[: STAGES.index(topic)] if name in stored]
    if not before and not ingested:
        with pytest.raises(PermanentError, match="neither"):
            plan_start(root, chain("".join(stored)), topic=topic)
        return
    start = plan_start(root, chain("".join(stored)), topic=topic)
    assert start.after == (before[-1] if before else "ingest")
    assert start.manifest == (f"results/{before[-1]}" if before else "results/root")
    rest = STAGES[STAGES.index(before[-1]) + 1 :] if before else STAGES
    assert start.stage == rest[0]
    assert STAGES.index(start.stage) <= STAGES.index(topic)
    assert start.reused == tuple(name for name in rest if name in stored)
    assert start.computed == tuple(name for name in rest if name not in stored)


def test_an_exposure_that_does_not_go_through_the_topic_is_refused() -> None:
    with pytest.raises(PermanentError, match="only through a, b, c, d, e"):
        plan_start(Link("ingest", "i", "m"), chain(""), topic="flat_field")
