"""The object store fails, stalls, refuses, or is full: nothing is lost, and no exposure is blamed for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from stream.dead_letters import reasons
from stream.retry import Outcome
from tests import s3_proxy
from tests.faults.bench_of_workers import FULL, Bench
from tests.faults.light_topology import STAGES
from tests.s3_proxy import Fault, S3Proxy

INPUTS = 12 if FULL else 6
WAVES = 6 if FULL else 1
BURST = 4
GIVEN_UP = 6
"""Refusals after which a request fails for good: so the attempt does, with its result stored."""
STALLS = 2
STALL = 60.0 if FULL else 2.0
LIMIT = 5.0 if FULL else 1.0
"""Without a byte, until a request is given up. Longer than the server takes beside others on two cores."""

pytestmark = pytest.mark.anyio


@pytest.fixture
async def proxy(bench: Bench) -> AsyncIterator[S3Proxy]:
    async with s3_proxy.running(bench.s3.environment["AWS_ENDPOINT_URL"]) as running:
        yield running


def start(bench: Bench, proxy: S3Proxy, **worker: Any) -> subprocess.Popen[bytes]:
    """Start a worker that has the proxy for its store."""
    return bench.start(environment={"AWS_ENDPOINT_URL": proxy.url}, stall_seconds=LIMIT, **worker)


async def outcomes(bench: Bench) -> Counter[str]:
    """How the attempts of the run ended."""
    found: Counter[str] = Counter()
    async for info in bench.store.list(f"attempts/{bench.run}/"):
        found[json.loads(await bench.store.get(info.key) or b"{}")["outcome"]] += 1
    return found


async def ends(worker: subprocess.Popen[bytes]) -> int | None:
    """Exit status of a worker that is to stop by itself; None when it does not."""
    with anyio.move_on_after(60):
        return await anyio.to_thread.run_sync(worker.wait, abandon_on_cancel=True)
    return None


async def test_bursts_of_refusals_and_stalls_are_waited_out(bench: Bench, proxy: S3Proxy) -> None:
    async with bench.opened(partitions=2):
        start(bench, proxy)
        for wave in range(WAVES):
            rules = [proxy.fail(Fault.REPLY, path=path, times=BURST) for path in ("/objects/", "/results/")]
            rules += [proxy.fail(Fault.REPLY, path="/attempts/", status=500, times=BURST)]
            rules += [proxy.fail(Fault.REPLY, path="/runs/", times=GIVEN_UP)]
            rules += [proxy.fail(Fault.STALL, path="/objects/", seconds=STALL, times=STALLS)]
            await bench.ingest(INPUTS, first=wave * INPUTS)
            await bench.done(120 if FULL else 60)
            assert [rule.hits for rule in rules] == [rule.times for rule in rules]
        assert await bench.problems() == []


@pytest.mark.mutant
async def test_a_worker_without_deadlines_waits_for_a_store_that_stalls(bench: Bench, proxy: S3Proxy) -> None:
    async with bench.opened(partitions=1):
        rule = proxy.fail(Fault.STALL, path="/objects/", seconds=3600.0)
        bench.start(environment={"AWS_ENDPOINT_URL": proxy.url}, stall_seconds=3600.0)
        await bench.ingest(1)
        await bench.wait_for(rule.met.is_set)
        assert not await bench.settled(12 * LIMIT)


async def lose_replies(bench: Bench, proxy: S3Proxy, **worker: Any) -> None:
    """Have the server store what it is given, and never say so, several times for each kind of object."""
    kinds = ("/attempts/", "/results/", "/runs/", "/objects/")
    rules = [proxy.fail(Fault.LOSE_REPLY, method="PUT", path=kind, times=3) for kind in kinds]
    start(bench, proxy, **worker)
    await bench.ingest(INPUTS)
    await bench.done(60)
    assert [rule.hits for rule in rules] == [3] * 4


async def test_own_objects_are_adopted_when_the_reply_to_a_put_was_lost(bench: Bench, proxy: S3Proxy) -> None:
    async with bench.opened(partitions=2):
        await lose_replies(bench, proxy)
        assert await bench.problems() == []
        assert await outcomes(bench) == {Outcome.DONE: len(STAGES) * INPUTS}  # none is left open, none was repeated


@pytest.mark.mutant(in_slice=True)
async def test_a_worker_that_trusts_a_refused_creation_shows(bench: Bench, proxy: S3Proxy) -> None:
    async with bench.opened(partitions=2):
        await lose_replies(bench, proxy, mutant="trusts-a-refused-creation")
        assert (await outcomes(bench))[Outcome.OPEN] > 0


async def cut_short(bench: Bench, proxy: S3Proxy, **worker: Any) -> None:
    """Have payloads break off on their way, or come shorter than they are as if they were whole."""
    start(bench, proxy, **worker)
    for number, fault in enumerate((Fault.TRUNCATE, Fault.SHORTEN)):
        rule = proxy.fail(fault, method="GET", path="/objects/", size=500, times=2)
        await bench.ingest(INPUTS, first=number * INPUTS)
        await bench.done(60)
        assert rule.hits == 2


async def test_payloads_that_come_short_are_found_and_fetched_again(bench: Bench, proxy: S3Proxy) -> None:
    async with bench.opened(partitions=2):
        await cut_short(bench, proxy)
        assert await bench.problems() == []


@pytest.mark.mutant
async def test_a_worker_that_reads_without_checking_shows(bench: Bench, proxy: S3Proxy) -> None:
    async with bench.opened(partitions=2):
        await cut_short(bench, proxy, mutant="reads-without-checking")
        assert any("another payload" in problem for problem in await bench.problems())


REFUSED = [
    pytest.param({"method": "GET", "status": 403}, id="reading"),
    pytest.param({"method": "PUT", "status": 403}, id="writing"),
    pytest.param({"method": "PUT", "status": 507}, id="full"),
]


@pytest.mark.parametrize("refusal", REFUSED)
async def test_a_store_that_refuses_stops_the_worker_and_no_exposure_is_blamed(
    bench: Bench, proxy: S3Proxy, refusal: dict[str, Any]
) -> None:
    async with bench.opened(partitions=1):
        await bench.ingest(INPUTS)
        proxy.fail(Fault.REPLY, path="/objects/", times=1_000_000, **refusal)
        assert await ends(start(bench, proxy)) == 3
        assert [(reasons(letter)["class"], reasons(letter)["failure"]) for letter in await bench.dead_letters()] == []
        assert await bench.lag() == INPUTS
        proxy.rules.clear()
        start(bench, proxy)
        await bench.done()
        assert await bench.problems() == []


@pytest.mark.mutant
async def test_a_worker_that_takes_a_refusal_for_a_bad_exposure_shows(bench: Bench, proxy: S3Proxy) -> None:
    async with bench.opened(partitions=1):
        await bench.ingest(INPUTS)
        proxy.fail(Fault.REPLY, path="/objects/", status=403, times=1_000_000)
        worker = start(bench, proxy, mutant="takes-a-refusal-for-a-bad-exposure")
        await bench.done()
        assert worker.poll() is None
        assert len(await bench.dead_letters()) == INPUTS


UNSHARE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def small_disk(bench: Bench, kilobytes: int = 256) -> list[str]:
    """Command that gives a worker's folder a small file system of its own, seen by that worker alone."""
    folder = bench.folder / f"worker-{len(bench.workers)}"
    folder.mkdir()
    return [*UNSHARE, "sh", "-c", f'mount -t tmpfs -o size={kilobytes}k tmpfs "$0" && exec "$@"', str(folder)]


def can_mount() -> bool:
    """Whether this user may; nothing stays mounted."""
    tried = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, capture_output=True)
    return tried.returncode == 0


needs_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None or not can_mount(), reason="this user may not mount a file system"
)


@needs_mounts
async def test_a_full_disk_stops_the_worker_and_no_exposure_is_blamed(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        await bench.ingest(INPUTS + 4)
        worker = bench.start(within=small_disk(bench))
        assert await ends(worker) == 3
        assert [(reasons(letter)["class"], reasons(letter)["failure"]) for letter in await bench.dead_letters()] == []
        assert await bench.lag() > 0
        bench.start()
        await bench.done()
        assert await bench.problems() == []


@needs_mounts
@pytest.mark.mutant
async def test_a_worker_that_takes_a_full_disk_for_a_bad_exposure_shows(bench: Bench) -> None:
    async with bench.opened(partitions=1):
        await bench.ingest(INPUTS + 4)
        bench.start(within=small_disk(bench), mutant="takes-a-refusal-for-a-bad-exposure")
        await bench.settled(60.0)
        assert await bench.dead_letters() != []
