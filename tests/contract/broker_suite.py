"""What every broker must do: inherit `BrokerSuite` and give it a `BrokerHarness`. Not tests of one implementation.

Nothing here knows which broker it is: topics and groups get fresh names, waits poll, and clocks are the machine's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from stream.broker.protocol import NOT_BEFORE, Broker, Commit, TopicPartition, TopicSpec
from stream.failure import PermanentError, RetriableError
from tests.contract.broker_harness import MOMENT, PATIENCE, BrokerHarness, Recorder, fill, joined, take, values

__all__ = ["BrokerSuite"]


class BrokerSuite:
    """The contract. A subclass gives the fixture ``broker_factory``."""

    @pytest.fixture
    def broker_factory(self) -> BrokerHarness:
        raise NotImplementedError

    @asynccontextmanager
    async def opened(
        self, factory: BrokerHarness, *, partitions: int = 1, compacted: bool = False
    ) -> AsyncIterator[tuple[Broker, str]]:
        topic = f"suite-{uuid.uuid4().hex[:12]}"
        async with factory.open() as broker:
            await broker.create_topics([TopicSpec(topic, partitions, compacted)])
            yield broker, topic

    @pytest.mark.anyio
    async def test_created_topics_are_listed_and_creating_them_again_changes_nothing(
        self, broker_factory: BrokerHarness
    ) -> None:
        async with self.opened(broker_factory, partitions=3) as (broker, topic):
            await fill(broker, topic, 2, partition=1)
            await broker.create_topics([TopicSpec(topic, 3)])
            spec = (await broker.topics())[topic]
            assert (spec.name, spec.partitions, spec.compacted) == (topic, 3, False)
            assert len(await broker.read(topic, 1, 0, 2)) == 2

    @pytest.mark.anyio
    async def test_a_topic_that_exists_otherwise_is_refused(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory, partitions=2) as (broker, topic):
            with pytest.raises(PermanentError, match=topic):
                await broker.create_topics([TopicSpec(topic, 3)])
            with pytest.raises(PermanentError, match=topic):
                await broker.create_topics([TopicSpec(topic, 2, compacted=True)])

    # Records

    @pytest.mark.anyio
    async def test_records_come_back_as_they_were_published(self, broker_factory: BrokerHarness) -> None:
        headers = (("a", b"1"), ("a", b"\xff\x00"), ("empty", b""))
        before = int(time.time() * 1000) - 1
        async with self.opened(broker_factory) as (broker, topic):
            published = [
                await broker.publish(topic, key=b"\x00k", value=b"\xffv", headers=headers),
                await broker.publish(topic, key=None, value=b""),
                await broker.publish(topic, key=b"k", value=None),
            ]
            async with broker.consumer(f"g-{topic}", [topic]) as consumer:
                fetched = await take(consumer, 3)
            assert [(r.key, r.value, r.headers) for r in fetched] == [
                (b"\x00k", b"\xffv", headers),
                (None, b"", ()),
                (b"k", None, ()),
            ]
            assert fetched == published
            assert [r.offset for r in fetched] == [0, 1, 2]
            assert fetched[0].header("a") == b"\xff\x00"
            assert all(before <= r.timestamp_ms <= time.time() * 1000 + 1 for r in fetched)
            assert list(await broker.read(topic, 0, 1, 3)) == published[1:]
            assert list(await broker.read(topic, 0, 3, 9)) == []

    @pytest.mark.anyio
    async def test_equal_keys_keep_their_order_in_one_partition(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory, partitions=4) as (broker, topic):
            for number in range(40):
                await broker.publish(topic, key=f"key-{number % 8}".encode(), value=str(number).encode())
            async with broker.consumer(f"g-{topic}", [topic]) as consumer:
                fetched = await take(consumer, 40)
        partitions: dict[bytes | None, int] = {}
        for record in fetched:
            assert partitions.setdefault(record.key, record.partition) == record.partition
        for key in partitions:
            numbers = values([record for record in fetched if record.key == key])
            assert numbers == sorted(numbers)
        assert len(set(partitions.values())) > 1

    @pytest.mark.anyio
    async def test_a_partition_can_be_named(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory, partitions=3) as (broker, topic):
            assert {(await broker.publish(topic, key=b"k", value=b"v", partition=2)).partition} == {2}

    @pytest.mark.anyio
    async def test_publishing_to_a_topic_that_does_not_exist_is_refused(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            with pytest.raises(PermanentError, match=f"{topic}-other"):
                await broker.publish(f"{topic}-other", key=b"k", value=b"v")

    @pytest.mark.anyio
    async def test_what_was_acknowledged_survives_a_crash(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            await fill(broker, topic, 5)
            async with broker.consumer(f"g-{topic}", [topic]) as consumer:
                await take(consumer, 5)
                partition = TopicPartition(topic, 0)
                await consumer.commit({partition: Commit(3, "f1 3 2")})
                await broker_factory.kill(broker)
                async with broker_factory.open() as other, other.consumer(f"g-{topic}", [topic]) as heir:
                    assert values(await take(heir, 2)) == [3, 4]
                    assert await heir.committed(partition) == Commit(3, "f1 3 2")

    # Fetching

    @pytest.mark.anyio
    async def test_fetch_returns_at_most_what_was_asked_for_and_goes_on_from_there(
        self, broker_factory: BrokerHarness
    ) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            await fill(broker, topic, 7)
            async with broker.consumer(f"g-{topic}", [topic]) as consumer:
                seen: list[int] = []
                with anyio.fail_after(PATIENCE):
                    while len(seen) < 7:
                        records = await consumer.fetch(max_records=3, timeout=1.0)
                        assert len(records) <= 3
                        seen += values(records)
                        if records:
                            assert await consumer.position(TopicPartition(topic, 0)) == len(seen)
                assert seen == list(range(7))
                assert await consumer.end_offset(TopicPartition(topic, 0)) == 7

    @pytest.mark.anyio
    async def test_fetch_ends_empty_at_its_timeout(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic), broker.consumer(f"g-{topic}", [topic]) as consumer:
            await joined(consumer)
            started = time.monotonic()
            assert list(await consumer.fetch(max_records=1, timeout=MOMENT)) == []
            assert MOMENT * 0.8 <= time.monotonic() - started < PATIENCE

    @pytest.mark.anyio
    async def test_a_waiting_fetch_is_woken_by_a_record(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic), broker.consumer(f"g-{topic}", [topic]) as consumer:
            await joined(consumer)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fill, broker, topic, 1)
                started = time.monotonic()
                assert values(await consumer.fetch(max_records=9, timeout=PATIENCE)) == [0]
                assert time.monotonic() - started < PATIENCE / 2

    @pytest.mark.anyio
    async def test_records_of_another_broker_on_the_same_log_arrive(self, broker_factory: BrokerHarness) -> None:
        async with (
            self.opened(broker_factory) as (broker, topic),
            broker_factory.open() as other,
            broker.consumer(f"g-{topic}", [topic]) as consumer,
        ):
            await joined(consumer)
            await fill(other, topic, 3)
            assert values(await take(consumer, 3)) == [0, 1, 2]

    @pytest.mark.anyio
    async def test_cancelling_fetch_loses_no_record(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic), broker.consumer(f"g-{topic}", [topic]) as consumer:
            await joined(consumer)
            seen: list[int] = []
            for number in range(20):
                await fill(broker, topic, 1, first=number)
                with anyio.move_on_after(0.0005 * number):
                    seen += values(await consumer.fetch(max_records=9, timeout=5))
            with anyio.fail_after(PATIENCE):
                while len(seen) < 20:
                    seen += values(await consumer.fetch(max_records=9, timeout=1.0))
            assert seen == list(range(20))

    @pytest.mark.anyio
    async def test_nothing_comes_from_a_paused_partition_until_it_is_resumed(
        self, broker_factory: BrokerHarness
    ) -> None:
        async with (
            self.opened(broker_factory, partitions=2) as (broker, topic),
            broker.consumer(f"g-{topic}", [topic]) as consumer,
        ):
            await joined(consumer)
            consumer.pause([TopicPartition(topic, 0)])
            await fill(broker, topic, 3, partition=0)
            await fill(broker, topic, 3, partition=1, first=10)
            assert values(await take(consumer, 3)) == [10, 11, 12]
            assert list(await consumer.fetch(max_records=9, timeout=MOMENT)) == []
            consumer.resume([TopicPartition(topic, 0)])
            assert values(await take(consumer, 3)) == [0, 1, 2]

    @pytest.mark.anyio
    async def test_resuming_wakes_a_waiting_fetch(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic), broker.consumer(f"g-{topic}", [topic]) as consumer:
            await joined(consumer)
            consumer.pause([TopicPartition(topic, 0)])
            await fill(broker, topic, 1)

            async def resume_soon() -> None:
                await anyio.sleep(MOMENT)
                consumer.resume([TopicPartition(topic, 0)])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(resume_soon)
                assert values(await take(consumer, 1)) == [0]

    @pytest.mark.anyio
    async def test_a_full_partition_does_not_starve_the_others(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory, partitions=3) as (broker, topic):
            for partition in range(3):
                await fill(broker, topic, 30, partition=partition)
            async with broker.consumer(f"g-{topic}", [topic]) as consumer:
                assert {record.partition for record in await take(consumer, 30, max_records=5)} == {0, 1, 2}

    @pytest.mark.anyio
    async def test_a_record_is_withheld_until_its_time_and_what_follows_it_waits(
        self, broker_factory: BrokerHarness
    ) -> None:
        async with (
            self.opened(broker_factory, partitions=2) as (broker, topic),
            broker.consumer(f"g-{topic}", [topic]) as consumer,
        ):
            await joined(consumer)
            due = time.time() + 1.0
            not_before = ((NOT_BEFORE, str(int(due * 1000)).encode()),)
            await broker.publish(topic, key=b"k", value=b"0", partition=0)
            await broker.publish(topic, key=b"k", value=b"1", partition=0, headers=not_before)
            await broker.publish(topic, key=b"k", value=b"2", partition=0)
            await broker.publish(topic, key=b"k", value=b"7", partition=1)
            assert sorted(values(await take(consumer, 2))) == [0, 7]
            assert await consumer.position(TopicPartition(topic, 0)) == 1
            assert time.time() < due
            assert values(await take(consumer, 2)) == [1, 2]
            assert time.time() >= due - 0.002

    @pytest.mark.anyio
    async def test_seek_reads_on_from_an_offset_and_a_time_gives_one(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic), broker.consumer(f"g-{topic}", [topic]) as consumer:
            partition = TopicPartition(topic, 0)
            await fill(broker, topic, 3)
            await anyio.sleep(0.02)
            late = (await fill(broker, topic, 2, first=3))[0]
            assert values(await take(consumer, 5)) == [0, 1, 2, 3, 4]
            await consumer.seek(partition, 1)
            assert await consumer.position(partition) == 1
            assert values(await take(consumer, 4)) == [1, 2, 3, 4]
            assert await consumer.offset_for_time(partition, late.timestamp_ms) == 3
            assert await consumer.offset_for_time(partition, 0) == 0
            assert await consumer.offset_for_time(partition, late.timestamp_ms + 3_600_000) is None

    # Groups and commits

    @pytest.mark.anyio
    async def test_a_group_starts_where_it_is_told_and_later_where_it_committed(
        self, broker_factory: BrokerHarness
    ) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            partition = TopicPartition(topic, 0)
            await fill(broker, topic, 2)
            async with broker.consumer(f"late-{topic}", [topic], start="latest") as consumer:
                await joined(consumer)
                assert await consumer.committed(partition) is None
                await fill(broker, topic, 2, first=2)
                assert values(await take(consumer, 2)) == [2, 3]
            async with broker.consumer(f"early-{topic}", [topic], start="earliest") as consumer:
                assert values(await take(consumer, 4)) == [0, 1, 2, 3]
                await consumer.commit({partition: Commit(1)})
            async with broker.consumer(f"early-{topic}", [topic], start="latest") as consumer:
                assert values(await take(consumer, 3)) == [1, 2, 3]

    @pytest.mark.anyio
    async def test_groups_do_not_disturb_each_other(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            await fill(broker, topic, 3)
            async with broker.consumer(f"one-{topic}", [topic]) as one, broker.consumer(f"two-{topic}", [topic]) as two:
                assert values(await take(one, 3)) == values(await take(two, 3)) == [0, 1, 2]
                await one.commit({TopicPartition(topic, 0): Commit(3)})
                assert await two.committed(TopicPartition(topic, 0)) is None
            assert await broker.lag(f"one-{topic}", topic) == 0
            assert await broker.lag(f"two-{topic}", topic) == 3

    @pytest.mark.anyio
    async def test_a_group_has_members_as_long_as_somebody_consumes(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            group = f"g-{topic}"
            assert not await broker.has_members(group)
            async with broker.consumer(group, [topic]) as consumer:
                await joined(consumer)
                assert await broker.has_members(group)
                assert not await broker.has_members(f"other-{topic}")
            assert not await broker.has_members(group)

    @pytest.mark.anyio
    async def test_lag_counts_what_is_not_committed_over_all_partitions(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory, partitions=2) as (broker, topic):
            assert await broker.lag(f"g-{topic}", topic) == 0
            await fill(broker, topic, 3, partition=0)
            await fill(broker, topic, 2, partition=1)
            async with broker.consumer(f"g-{topic}", [topic]) as consumer:
                await take(consumer, 5)
                assert await broker.lag(f"g-{topic}", topic) == 5
                await consumer.commit({TopicPartition(topic, 0): Commit(2)})
            assert await broker.lag(f"g-{topic}", topic) == 3

    @pytest.mark.anyio
    async def test_a_commit_may_go_back_so_that_a_replay_starts_there(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            partition = TopicPartition(topic, 0)
            await fill(broker, topic, 4)
            async with broker.consumer(f"g-{topic}", [topic]) as consumer:
                await take(consumer, 4)
                await consumer.commit({partition: Commit(4, "f1 4 2")})
                await consumer.commit({partition: Commit(2, "")})
                assert await consumer.committed(partition) == Commit(2, "")
            async with broker.consumer(f"g-{topic}", [topic]) as consumer:
                assert values(await take(consumer, 2)) == [2, 3]

    @pytest.mark.anyio
    async def test_one_who_no_longer_owns_a_partition_cannot_commit_it(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            partition = TopicPartition(topic, 0)
            await fill(broker, topic, 2)
            async with broker.consumer(f"g-{topic}", [topic]) as zombie:
                await take(zombie, 2)
            with pytest.raises(RetriableError):
                await zombie.commit({partition: Commit(2)})
            async with broker.consumer(f"g-{topic}", [topic]) as consumer:
                await joined(consumer)
                assert await consumer.committed(partition) is None

    # Assignment

    @pytest.mark.anyio
    async def test_the_listener_hears_of_an_assignment_before_its_records_come(
        self, broker_factory: BrokerHarness
    ) -> None:
        async with self.opened(broker_factory, partitions=2) as (broker, topic):
            listener = Recorder()
            both = frozenset({TopicPartition(topic, 0), TopicPartition(topic, 1)})
            await fill(broker, topic, 1)
            async with broker.consumer(f"g-{topic}", [topic], listener=listener) as consumer:
                await take(consumer, 1)
                assert [partitions for partitions, _ in listener.assigned] == [both]
                assert consumer.assignment() == both
                assert listener.revoked == []
            assert listener.revoked == [both]
            assert consumer.assignment() == frozenset()

    @pytest.mark.anyio
    async def test_each_assignment_has_a_higher_epoch(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            listener = Recorder()
            for _ in range(3):
                async with broker.consumer(f"g-{topic}", [topic], listener=listener) as consumer:
                    await joined(consumer)
            epochs = [epoch for _, epoch in listener.assigned]
            assert epochs == sorted(set(epochs))
            assert len(epochs) == 3

    @pytest.mark.anyio
    async def test_what_is_finished_can_be_committed_when_partitions_go_even_on_cancellation(
        self, broker_factory: BrokerHarness
    ) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            partition = TopicPartition(topic, 0)
            await fill(broker, topic, 3)
            listener = Recorder()
            listener.commit_on_revoke = {partition: Commit(3)}
            with anyio.CancelScope() as scope:
                async with broker.consumer(f"g-{topic}", [topic], listener=listener) as consumer:
                    listener.consumer = consumer
                    await take(consumer, 3)
                    scope.cancel()
                    await anyio.sleep(PATIENCE)
            assert listener.revoked == [frozenset({partition})]
            assert await broker.lag(f"g-{topic}", topic) == 0

    @pytest.mark.anyio
    async def test_one_consumer_may_read_several_topics(self, broker_factory: BrokerHarness) -> None:
        async with self.opened(broker_factory) as (broker, topic):
            await broker.create_topics([TopicSpec(f"{topic}-b", 2)])
            await fill(broker, topic, 1)
            await fill(broker, f"{topic}-b", 1, partition=1, first=5)
            async with broker.consumer(f"g-{topic}", [topic, f"{topic}-b"]) as consumer:
                assert sorted(values(await take(consumer, 2))) == [0, 5]
                assert len(consumer.assignment()) == 3

    @pytest.mark.anyio
    async def test_read_latest_gives_each_keys_newest_record_and_no_tombstones(
        self, broker_factory: BrokerHarness
    ) -> None:
        async with self.opened(broker_factory, partitions=2, compacted=True) as (broker, topic):
            assert dict(await broker.read_latest(topic)) == {}
            for key, value in [(b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"c", b"1"), (b"b", None), (b"c", b"")]:
                await broker.publish(topic, key=key, value=value)
            latest = await broker.read_latest(topic)
            assert {key: record.value for key, record in latest.items()} == {b"a": b"2", b"c": b""}
            await broker.publish(topic, key=b"b", value=b"3")
            assert (await broker.read_latest(topic))[b"b"].value == b"3"
