"""The embedded broker keeps the contract, and what it promises beyond it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from stream.broker.embedded import EmbeddedBroker
from stream.broker.embedded_log import EventLog, Slice
from stream.broker.protocol import NOT_BEFORE, Broker, Commit, TopicPartition, TopicSpec
from stream.clock import ManualClock
from stream.failure import FatalError, PermanentError
from tests.contract.broker_harness import PATIENCE, BrokerHarness, fill, joined, take, until, values
from tests.contract.broker_suite import BrokerSuite

REPOSITORY = Path(__file__).parents[2]

CHILD = """
import os, sys, time
from pathlib import Path
import anyio
from stream.broker.embedded import EmbeddedBroker
from stream.broker.protocol import Commit, TopicPartition, TopicSpec

async def main():
    async with EmbeddedBroker(Path(sys.argv[1])) as broker:
        await broker.create_topics([TopicSpec("t", 1)])
        async with broker.consumer("g", ["t"]) as consumer:
            await consumer.fetch(max_records=1, timeout=0.01)
            if "fork" in sys.argv and os.fork() == 0:
                os.close(1)
                time.sleep(60)
                os._exit(0)
            number = 0
            while True:
                await broker.publish("t", key=b"k", value=str(number).encode())
                await consumer.commit({TopicPartition("t", 0): Commit(number)})
                number += 1
                print(number, flush=True)
anyio.run(main)
"""


class EmbeddedHarness:
    """Brokers on one directory; each `open` is another object, as another process has its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Broker]:
        async with EmbeddedBroker(self.directory) as broker:
            yield broker

    async def kill(self, broker: Broker) -> None:
        # Closing the log leaves no group and calls no listener; the real kill -9 is tested below.
        await broker.__aexit__(None, None, None)


class TestEmbeddedBroker(BrokerSuite):
    @pytest.fixture
    def broker_factory(self, tmp_path: Path) -> BrokerHarness:
        return EmbeddedHarness(tmp_path / "work")


@contextmanager
def consuming_process(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that publishes and commits in a loop and prints how many records were acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), *arguments],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        # The whole session, with a forked child that outlived its parent.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def acknowledged(process: subprocess.Popen[str], *, at_least: int) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= at_least:
            return int(line)
    msg = "the process ended"
    raise AssertionError(msg)


@pytest.mark.anyio
async def test_no_acknowledged_record_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    with consuming_process(tmp_path) as process:
        count = acknowledged(process, at_least=50)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        async with EmbeddedBroker(tmp_path) as broker:
            records = await broker.read("t", 0, 0, 10**6)
            assert [record.offset for record in records] == list(range(len(records)))
            assert values(records) == list(range(len(records)))
            assert len(records) >= count
            async with broker.consumer("g", ["t"]) as consumer:
                commit = await consumer.committed(TopicPartition("t", 0))
                assert commit is not None
                assert count - 1 <= commit.offset < len(records)


@pytest.mark.anyio
async def test_a_second_process_cannot_consume_and_is_told_which_one_does(tmp_path: Path) -> None:
    with consuming_process(tmp_path) as process:
        acknowledged(process, at_least=1)
        async with EmbeddedBroker(tmp_path) as broker:
            with pytest.raises(FatalError, match=rf"process {process.pid} already consumes"):
                async with broker.consumer("other", ["t"]):
                    pass
            # Appending and reading go on beside it.
            await broker.create_topics([TopicSpec("mine")])
            await fill(broker, "mine", 3)
            assert values(await broker.read("mine", 0, 0, 9)) == [0, 1, 2]
            acknowledged(process, at_least=acknowledged(process, at_least=1) + 1)


@pytest.mark.anyio
async def test_a_forked_child_does_not_keep_its_dead_parents_lock(tmp_path: Path) -> None:
    # Kills the mutant that locks with flock or an open-file-description lock, which the child would share.
    with consuming_process(tmp_path, "fork") as process:
        acknowledged(process, at_least=1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        async with EmbeddedBroker(tmp_path) as broker, broker.consumer("g", ["t"]) as consumer:
            assert await take(consumer, 1, max_records=1)


@pytest.mark.anyio
async def test_a_second_broker_in_this_process_cannot_consume_and_does_not_break_the_lock(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as first, EmbeddedBroker(tmp_path) as second:
        await first.create_topics([TopicSpec("t")])
        async with first.consumer("g", ["t"]):
            with pytest.raises(FatalError, match=rf"process {os.getpid()} already consumes"):
                async with second.consumer("h", ["t"]):
                    pass
            assert await second.has_members("g")
            # POSIX locks are lost when any descriptor of the file is closed: ask from outside whether it still holds.
            await first.create_topics([TopicSpec("u")])
            probe = "import fcntl,sys; f=open(sys.argv[1],'r+'); fcntl.lockf(f, fcntl.LOCK_EX|fcntl.LOCK_NB)"
            command = [sys.executable, "-c", probe, str(tmp_path / "consumer.lock")]
            outcome = await anyio.run_process(command, check=False)
            assert b"BlockingIOError" in outcome.stderr
            assert outcome.returncode != 0
        assert not await second.has_members("g")
        async with second.consumer("h", ["t"]) as consumer:
            await joined(consumer)


@pytest.mark.anyio
async def test_a_group_has_one_owner_of_a_topic(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        await broker.create_topics([TopicSpec("t"), TopicSpec("u")])
        async with broker.consumer("g", ["t"]) as first:
            with pytest.raises(FatalError, match="group g already has a consumer of topic t"):
                async with broker.consumer("g", ["u", "t"]):
                    pass
            async with broker.consumer("g", ["u"]) as other, broker.consumer("h", ["t"]) as another:
                for consumer in (first, other, another):
                    await joined(consumer)


@pytest.mark.anyio
async def test_withheld_records_wait_for_the_injected_clock(tmp_path: Path) -> None:
    clock = ManualClock(1000.0)
    async with EmbeddedBroker(tmp_path, clock=clock) as broker:
        await broker.create_topics([TopicSpec("t")])
        record = await broker.publish("t", key=b"k", value=b"0", headers=((NOT_BEFORE, b"1000500"),))
        assert record.timestamp_ms == 1_000_000
        async with broker.consumer("g", ["t"]) as consumer:
            clock.advance(0.499)
            assert list(await consumer.fetch(max_records=1, timeout=0.2)) == []

            async def advance() -> None:
                await anyio.sleep(0.2)
                clock.advance(0.001)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(advance)
                with anyio.fail_after(PATIENCE):
                    assert values(await consumer.fetch(max_records=1, timeout=2 * PATIENCE)) == [0]


@pytest.mark.anyio
async def test_a_header_that_is_no_time_withholds_nothing(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        await broker.create_topics([TopicSpec("t")])
        for text in (b"soon", b"-5", b"", b"9" * 5000):
            await broker.publish("t", key=b"k", value=b"0", headers=((NOT_BEFORE, text),))
        async with broker.consumer("g", ["t"]) as consumer:
            await take(consumer, 4)


@pytest.mark.anyio
async def test_a_seek_while_a_fetch_waits_is_not_forgotten(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        await broker.create_topics([TopicSpec("t")])
        await fill(broker, "t", 2)
        async with broker.consumer("g", ["t"]) as consumer:
            await take(consumer, 2)
            for pause in (0.0, 0.0003, 0.001, 0.003, 0.01):
                async with anyio.create_task_group() as tasks:

                    async def fetch() -> None:
                        assert values(await take(consumer, 2)) == [0, 1]

                    tasks.start_soon(fetch)
                    await anyio.sleep(pause)
                    await consumer.seek(TopicPartition("t", 0), 0)


@pytest.mark.anyio
async def test_what_a_thread_has_read_from_a_partition_paused_meanwhile_is_not_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    read_due = EventLog.read_due

    def slow(log: EventLog, positions: Mapping[TopicPartition, int], *, limit: int, now_ms: int) -> Slice:
        found = read_due(log, positions, limit=limit, now_ms=now_ms)
        reading.set()
        assert go_on.wait(PATIENCE)
        return found

    monkeypatch.setattr(EventLog, "read_due", slow)
    async with EmbeddedBroker(tmp_path) as broker:
        await broker.create_topics([TopicSpec("t", 2)])
        await fill(broker, "t", 3, partition=0)
        await fill(broker, "t", 3, partition=1, first=10)
        async with broker.consumer("g", ["t"]) as consumer, anyio.create_task_group() as tasks:
            fetched: list[int] = []

            async def fetch() -> None:
                fetched.extend(values(await consumer.fetch(max_records=9, timeout=0)))

            tasks.start_soon(fetch)
            await until(reading.is_set)
            consumer.pause([TopicPartition("t", 0)])
            await consumer.seek(TopicPartition("t", 1), 2)
            go_on.set()
            await fetch()
            assert fetched == [12]
            consumer.resume([TopicPartition("t", 0)])
            await fetch()
            assert fetched == [12, 0, 1, 2]


@pytest.mark.anyio
async def test_a_compacted_topic_sheds_superseded_records_and_keeps_its_offsets(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        await broker.create_topics([TopicSpec("c", compacted=True)])
        for number in range(1001):
            await broker.publish("c", key=f"k{number % 3}".encode(), value=str(number).encode())
        assert values(await broker.read("c", 0, 0, 10**6)) == [997, 998, 999, 1000]
        assert {key: int(r.value or b"") for key, r in (await broker.read_latest("c")).items()} == {
            b"k0": 999, b"k1": 1000, b"k2": 998,
        }  # fmt: skip
        async with broker.consumer("g", ["c"]) as consumer:
            assert [record.offset for record in await take(consumer, 4)] == [997, 998, 999, 1000]


@pytest.mark.anyio
async def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        await broker.create_topics([TopicSpec("t", 2)])
        with pytest.raises(PermanentError, match="no topic u to consume"):
            async with broker.consumer("g", ["u"]):
                pass
        with pytest.raises(PermanentError, match="no partition 2"):
            await broker.publish("t", key=b"k", value=b"v", partition=2)
        with pytest.raises(PermanentError, match="no partition 5"):
            async with broker.consumer("g", ["t"]) as consumer:
                await consumer.end_offset(TopicPartition("t", 5))
        with pytest.raises(PermanentError, match="earliest"):
            async with broker.consumer("g", ["t"], start="somewhere"):
                pass
        # A consumer that failed to join has left no lock and no owner behind.
        async with broker.consumer("g", ["t"]) as consumer:
            await joined(consumer)


@pytest.mark.anyio
async def test_creating_topics_is_all_or_nothing(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        await broker.create_topics([TopicSpec("old", 2)])
        with pytest.raises(PermanentError, match="old exists with 2 partitions"):
            await broker.create_topics([TopicSpec("new"), TopicSpec("old", 3)])
        assert set(await broker.topics()) == {"old"}


@pytest.mark.anyio
async def test_topics_keep_their_configuration(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        await broker.create_topics([TopicSpec("t", 2, compacted=True, config={"retention.ms": "-1"})])
    async with EmbeddedBroker(tmp_path) as broker:
        assert await broker.topics() == {"t": TopicSpec("t", 2, True, {"retention.ms": "-1"})}


@pytest.mark.anyio
async def test_a_log_of_another_format_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    database = sqlite3.connect(tmp_path / "new" / "events.sqlite3")
    database.execute("PRAGMA user_version = 99")
    database.close()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "events.sqlite3").write_bytes(b"not a database at all, not even nearly" * 100)
    with pytest.raises(FatalError, match="format 99"):
        async with EmbeddedBroker(tmp_path / "new"):
            pass
    with pytest.raises(FatalError, match=r"bad/events\.sqlite3 cannot be used"):
        async with EmbeddedBroker(tmp_path / "bad"):
            pass


@pytest.mark.anyio
async def test_a_closed_broker_says_so(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path)
    with pytest.raises(FatalError, match="not open"):
        await broker.topics()
    async with broker:
        await broker.create_topics([TopicSpec("t")])
    with pytest.raises(FatalError, match="not open"):
        await broker.publish("t", key=None, value=b"")


@pytest.mark.anyio
async def test_the_event_loop_runs_on_while_the_log_is_locked_by_another_process(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        await broker.create_topics([TopicSpec("t")])
        holder = sqlite3.connect(tmp_path / "events.sqlite3", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        published: list[bool] = []

        async def publish() -> None:
            await broker.publish("t", key=b"k", value=b"0")
            published.append(True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            started = anyio.current_time()
            for _ in range(10):
                await anyio.sleep(0.01)
            assert anyio.current_time() - started < 5
            assert not published
            holder.execute("COMMIT")
            await until(lambda: bool(published))
        holder.close()


def test_a_commit_is_stored_for_all_partitions_or_none(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.sqlite3")
    log.create_topics([TopicSpec("t")])
    with pytest.raises(PermanentError, match="no topic u"):
        log.commit("g", {TopicPartition("t", 0): Commit(1), TopicPartition("u", 0): Commit(1)})
    assert log.committed("g", TopicPartition("t", 0)) is None
    log.close()
