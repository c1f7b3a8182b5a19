"""Messages that cannot be processed, among good ones: each is given up once, with its class and its bytes untouched."""

from __future__ import annotations

import anyio
import pytest

from stream.clock import SystemClock
from stream.dead_letters import reasons
from stream.stopped_segments import StoppedSegments
from stream.topology import topic_name
from tests.faults.bench_of_workers import Bench
from tests.faults.light_topology import STAGES

pytestmark = pytest.mark.anyio

ACTS = {
    "raise": "permanent",
    "bug": "permanent",
    "flaky": "retriable",
    "hang": "resource",
    "eat": "resource",
    "segfault": "retriable",
}
"""What a job does, and the class under which it is given up."""


async def test_each_is_given_up_once_and_the_good_ones_are_done(bench: Bench) -> None:
    async with bench.opened(partitions=2):
        bench.start(wall_seconds=1.5)
        await bench.ingest(5)
        bad = {}
        for number, act in enumerate(ACTS, start=100):
            [name] = await bench.ingest(1, first=number, act=act)
            bad[name] = act
        undecodable = b"\xff\x00 no message"
        headers = (("trace", b"\x01\xff"),)
        await bench.broker.publish(
            topic_name(bench.run, STAGES[0]), key=b"undecodable", value=undecodable, headers=headers
        )
        await bench.broker.publish(topic_name(bench.run, STAGES[0]), key=b"newer", value=b'{"schema_version": "2.0"}')
        await bench.ingest(5, first=5)
        await bench.done(90)
        dead = set(bad) | {"undecodable", "newer"}
        assert await bench.problems(dead=dead) == []
        letters = {record.key.decode(): record for record in await bench.dead_letters()}
        classes = {name: reasons(letters[name])["class"] for name in dead}
        assert classes == {**{name: ACTS[act] for name, act in bad.items()}, "undecodable": "poison", "newer": "poison"}
        assert letters["undecodable"].value == undecodable
        assert letters["undecodable"].header("trace") == b"\x01\xff"
        eaten = next(name for name, act in bad.items() if act == "eat")
        assert '"oom": true' in reasons(letters[eaten])["failure"]


async def test_a_stage_where_everything_fails_is_stopped(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        worker = bench.start(breaker=True)
        await bench.ingest(30, act="raise")
        with anyio.fail_after(60):
            status = await anyio.to_thread.run_sync(worker.wait)
        assert status == 3
        buried = len(await bench.dead_letters())
        assert buried < 10  # the topic is not drained into the dead letters
        assert await bench.lag() > 20
        again = bench.start(breaker=True)  # nor is it by whoever starts workers again
        assert await anyio.to_thread.run_sync(again.wait, 60) == 3
        assert len(await bench.dead_letters()) == buried
        stopped = StoppedSegments(bench.store, bench.run, SystemClock())
        assert await stopped.resume(STAGES[0])
        bench.start(breaker=False)
        await bench.wait_for(lambda: len(bench.executions()) > buried + 5, 60)


@pytest.mark.mutant(in_slice=True)
async def test_without_its_breaker_a_bad_stage_drains_its_topic(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        bench.start(breaker=False)
        await bench.ingest(12, act="raise")
        await bench.done(60)
        assert len(await bench.dead_letters()) == 12


@pytest.mark.mutant
async def test_a_worker_that_buries_what_it_understood_shows(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        bench.start(mutant="buries-what-it-understood")
        undecodable = b"\xff\x00 no message"
        await bench.broker.publish(topic_name(bench.run, STAGES[0]), key=b"undecodable", value=undecodable)
        await bench.done(60)
        [letter] = await bench.dead_letters()
        assert letter.value != undecodable


@pytest.mark.mutant
async def test_a_worker_without_limits_shows(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        bench.start(mutant="has-no-limits", wall_seconds=1.0, drain_seconds=1.0)
        await bench.ingest(1, act="hang")
        await bench.ingest(2, first=1)
        assert not await bench.settled(12)
        assert await bench.problems(dead={"exposure-0000"}) != []
