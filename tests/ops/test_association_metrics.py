"""What is measured of associations comes from what happens to them: who is open, since when, and how well they fit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from ops.monitor import Monitor
from ops.product_sets import ProductSets
from ops.work import PipelineWork
from stream.association import Association, AssociationSettings
from stream.identity import hash_parts
from stream.message import MemberStatus, Message, MessageKind
from stream.metrics import Metrics
from stream.results import Manifest, Results
from stream.store.obstore_store import open_store
from stream.watchdog import Watchdog

pytestmark = pytest.mark.anyio


class Aggregating:
    """As much of an aggregator as the monitor asks for."""

    def __init__(self, *states: Association) -> None:
        self.states = states

    def state(self) -> dict[str, Association]:
        return {state.id: state for state in self.states}


def association(name: str, ago: float, *, members: int = 1, superseded: str | None = None) -> Association:
    """One of two members, the first of which came so many seconds ago and the others just now."""
    state = Association(name, AssociationSettings())
    state.expect(("e1", "e2"))
    for number in range(members):
        at = time.time() - (0.0 if number else ago)
        state.observe(f"e{number + 1}", MemberStatus.OK, f"d{number}", offset=number, now=at)
    state.supersede(superseded)
    return state


async def test_open_associations_and_the_oldest_are_those_that_still_wait() -> None:
    closed = association("closed", 5000.0, members=2)
    close = closed.due(time.time())
    assert close is not None
    closed.record_close(close)
    changed = association("changed", 300.0)
    changed.observe("e1", MemberStatus.FAILED, "again", offset=7, now=time.time())
    states = (closed, changed, association("new", 3.0), association("old", 9000.0, superseded="new"))
    metrics = Metrics()
    monitor = Monitor(
        broker=cast("Any", None), inboxes={}, topics={}, aggregator=cast("Any", Aggregating(*states)),
        tokens=anyio.CapacityLimiter(1), metrics=metrics, watchdog=cast("Watchdog", None),
    )  # fmt: skip
    await monitor._look()
    assert metrics.registry.get_sample_value("rampstream_open_associations") == 2
    oldest = metrics.registry.get_sample_value("rampstream_oldest_association_seconds")
    assert oldest == pytest.approx(300.0, abs=30.0), "since its first member came, though that has changed"


async def test_the_rms_of_an_alignment_that_failed_is_not_that_of_an_aligned_exposure(tmp_path: Path) -> None:
    store, metrics = open_store(tmp_path), Metrics()
    results = Results(store)

    async def unseen(_: Any) -> None:
        return

    work = PipelineWork(
        jobs=cast("Any", None), store=store, results=results, records=cast("Any", None), router=cast("Any", None),
        products=ProductSets(store=store, results=results, run="r", visible=unseen), cache=cast("Any", None),
        scratch=tmp_path, observe=metrics.observe,
    )  # fmt: skip
    for name, status in (("e1", "COMPLETE"), ("e2", "FAILED"), ("e3", "SKIPPED")):
        identity = hash_parts(name)
        summary = {"rms": None if status == "SKIPPED" else 0.002, "statuses": {"tweakreg": status}}
        manifest = Manifest(
            identity=identity, exposure=name, stage="finalize", branch="x", extra={"summary": summary}
        )  # fmt: skip
        message = Message(
            kind=MessageKind.FINALIZE, run="r", exposure=name, stage="finalize", branch="x", identity=identity,
            manifest=f"results/{identity}/1", associations=("a-1",), association="a-1", revision=1,
        )  # fmt: skip
        await work.finish(message, manifest)
    sampled = metrics.registry.get_sample_value
    assert sampled("rampstream_alignment_rms_mas_count") == 1
    assert sampled("rampstream_alignment_rms_mas_sum") == pytest.approx(2.0)
