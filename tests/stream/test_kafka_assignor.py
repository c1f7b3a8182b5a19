"""Partitions are shared out evenly topic by topic, and stay where they were as far as that allows."""

from __future__ import annotations

from typing import Any

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from hypothesis import given
from hypothesis import strategies as st

from stream.broker.kafka_assignor import make_assignor, share_out

TOPICS = ("inbox", "inbox.retry-0", "inbox.retry-1")
partition_counts = st.fixed_dictionaries({topic: st.integers(1, 12) for topic in TOPICS})
members = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)


@st.composite
def groups(draw: Any) -> tuple[dict[str, list[int]], list[str], dict[str, tuple[int, dict[str, list[int]]]]]:
    partitions = {topic: list(range(count)) for topic, count in draw(partition_counts).items()}
    names = draw(members)
    owned = st.fixed_dictionaries({topic: st.lists(st.integers(0, 14), max_size=14, unique=True) for topic in TOPICS})
    claims = {name: (draw(st.integers(0, 3)), draw(owned)) for name in names if draw(st.booleans())}
    return partitions, names, claims


@given(groups())
def test_every_partition_has_one_owner_and_no_topic_is_shared_unevenly(group: Any) -> None:
    partitions, names, claims = group
    shares = share_out(partitions, dict.fromkeys(names, TOPICS), claims)
    for topic, numbers in partitions.items():
        given_out = [number for share in shares.values() for number in share.get(topic, ())]
        assert sorted(given_out) == numbers
        counts = [len(shares[name].get(topic, ())) for name in names]
        assert max(counts) - min(counts) <= 1


@given(groups(), members)
def test_members_keep_what_the_new_size_of_the_group_lets_them(group: Any, later: list[str]) -> None:
    partitions, names, _ = group
    before = share_out(partitions, dict.fromkeys(names, TOPICS), {})
    claims = {name: (1, share) for name, share in before.items() if name in later}
    after = share_out(partitions, dict.fromkeys(later, TOPICS), claims)
    for topic, numbers in partitions.items():
        least, over = divmod(len(numbers), len(later))
        for name in claims:
            had, has = set(before[name].get(topic, ())), set(after[name].get(topic, ()))
            assert len(had & has) >= min(len(had), least)
        if set(later) == set(names):
            assert all(before[name].get(topic) == after[name].get(topic) for name in names)
        assert sum(len(after[name].get(topic, ())) > least for name in later) == over


def test_the_later_round_is_believed() -> None:
    stale, fresh = (3, {"inbox": [0, 1]}), (5, {"inbox": [1, 0]})
    shares = share_out({"inbox": [0, 1]}, {"a": ["inbox"], "b": ["inbox"]}, {"a": stale, "b": fresh})
    assert shares == {"a": {"inbox": [0]}, "b": {"inbox": [1]}}


class Cluster:
    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {"inbox": {0, 1}, "inbox.retry-0": {0}}.get(topic)


def test_nobody_has_the_inbox_alone_while_another_has_retries_alone() -> None:
    both = [make_assignor(), make_assignor()]
    names = ["a", "b"]
    topics = ["inbox", "inbox.retry-0", "gone"]
    both[0].on_assignment(ConsumerProtocolMemberAssignment(0, [("inbox", [0, 1]), ("inbox.retry-0", [0])], b""))
    told = {name: _sent(assignor.metadata(topics)) for name, assignor in zip(names, both, strict=True)}
    shares = both[1].assign(Cluster(), told)
    for name, assignor in zip(names, both, strict=True):
        assert len(dict(shares[name].assignment)["inbox"]) == 1
        assignor.on_assignment(ConsumerProtocolMemberAssignment.decode(shares[name].encode()))
    again = {name: _sent(assignor.metadata(topics)) for name, assignor in zip(names, both, strict=True)}
    repeated = both[0].assign(Cluster(), again)
    assert {name: share.assignment for name, share in repeated.items()} == {
        name: share.assignment for name, share in shares.items()
    }


def test_a_member_of_another_version_is_taken_for_one_that_had_nothing() -> None:
    told = {
        "a": ConsumerProtocolMemberMetadata(0, ["inbox"], b"\x00\x01"),
        "b": ConsumerProtocolMemberMetadata(0, ["inbox"], b'{"round": 2, "owned": []}'),
    }
    shares = make_assignor().assign(Cluster(), told)
    assert [share.assignment for share in shares.values()] == [[("inbox", [0])], [("inbox", [1])]]


def _sent(metadata: ConsumerProtocolMemberMetadata) -> ConsumerProtocolMemberMetadata:
    decoded: ConsumerProtocolMemberMetadata = ConsumerProtocolMemberMetadata.decode(metadata.encode())
    return decoded
