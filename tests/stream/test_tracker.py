"""A commit never passes unfinished work, and what is finished above it is remembered as far as there is room."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.broker.protocol import Commit
from stream.tracker import HINT_LIMIT, OffsetTracker, decode_hints, encode_hints


@st.composite
def logs(draw: st.DrawFn) -> list[int]:
    """Offsets of a partition, with gaps as compaction leaves them."""
    gaps = draw(st.lists(st.integers(1, 3), min_size=1, max_size=30))
    offsets, last = [], draw(st.integers(0, 5)) - 1
    for gap in gaps:
        last += gap
        offsets.append(last)
    return offsets


@given(logs(), st.data())
@settings(deadline=None, max_examples=200)
def test_commit_never_passes_unfinished_work(log: list[int], data: st.DataObject) -> None:
    # The model: a record is lost if a commit lies above it and it is neither finished nor will be fetched again.
    finished: set[int] = set()
    commit: Commit | None = None
    epoch = 0
    while commit is None or commit.offset <= log[-1]:
        epoch += 1
        start = commit.offset if commit else 0
        tracker = OffsetTracker.restored(commit, epoch=epoch, start=start)
        running: set[int] = set()
        for offset in [offset for offset in log if offset >= start]:
            if tracker.start(offset):
                running.add(offset)
            else:
                assert offset in finished, "the tracker skipped a record that is not finished"
            for _ in range(data.draw(st.integers(0, len(running)), label="finish")):
                done = data.draw(st.sampled_from(sorted(running)))
                running.remove(done)
                if epoch <= 3 and data.draw(st.booleans(), label="give up"):
                    tracker.give_up(done)
                    continue
                finished.add(done)
                assert tracker.finish(done)
            assert tracker.in_flight == len(running)
            found = tracker.commit()
            unfinished = [other for other in log if other not in finished]
            assert all(other >= found.offset for other in unfinished)
            assert not decode_hints(found) & set(unfinished)
            if data.draw(st.booleans(), label="commit"):
                commit = found
        if epoch > 3:  # the last life: everything comes to its end
            for offset in sorted(running):
                tracker.finish(offset)
                finished.add(offset)
            commit = tracker.commit()
    assert finished == set(log)
    assert commit.offset == log[-1] + 1


@given(st.sets(st.integers(0, 200)), st.integers(1, 60))
@settings(deadline=None)
def test_prefix_is_the_lowest_unfinished_offset(finish: set[int], count: int) -> None:
    tracker = OffsetTracker(epoch=1, start=0)
    for offset in range(count):
        assert tracker.start(offset)
    for offset in sorted(finish, reverse=True):
        if offset < count:
            tracker.finish(offset)
    assert tracker.prefix == next(offset for offset in range(count + 1) if offset == count or offset not in finish)


@given(st.integers(0, 10**12), st.sets(st.integers(1, 5000), max_size=300))
@settings(deadline=None)
def test_hints_read_back(offset: int, above: set[int]) -> None:
    finished = {offset + distance for distance in above}
    text = encode_hints(offset, finished, limit=10**6)
    assert decode_hints(Commit(offset, text)) == (finished if len(text) <= HINT_LIMIT else frozenset())


@given(st.integers(0, 10**12), st.sets(st.integers(1, 10**6), max_size=900))
@settings(deadline=None, max_examples=30)
def test_hints_fit_and_leave_out_the_highest(offset: int, above: set[int]) -> None:
    finished = {offset + distance for distance in above}
    text = encode_hints(offset, finished)
    assert len(text) <= HINT_LIMIT
    kept = decode_hints(Commit(offset, text))
    assert kept == set(sorted(finished)[: len(kept)])
    assert len(kept) == len(finished) or len(text) > HINT_LIMIT - 20


def test_every_other_record_finished_is_remembered_for_a_thousand() -> None:
    assert len(decode_hints(Commit(0, encode_hints(0, range(1, 10**4, 2))))) >= 1000


@pytest.mark.parametrize(
    "metadata",
    ["", "f1", "f1 7", "f1 8 1", "f1 7 0", "f1 7 -1", "f1 7 1-", "f2 7 1", "f1 7 1 x", " f1 7 1", "someone else's",
     "f1 7 1-999999999999999", "f1 7 " + "9" * 3000],
)  # fmt: skip
def test_metadata_that_is_not_ours_or_of_another_offset_hints_at_nothing(metadata: str) -> None:
    assert decode_hints(Commit(7, metadata)) == frozenset()
    assert decode_hints(Commit(7, "f1 7 1-1 2")) == {8, 9, 11}


@given(st.text(alphabet="f1 0-9", max_size=30), st.integers(0, 20))
@settings(deadline=None)
def test_no_metadata_hints_at_the_commit_itself_or_below(metadata: str, offset: int) -> None:
    assert all(hint > offset for hint in decode_hints(Commit(offset, metadata)))


def test_a_restored_tracker_skips_what_was_finished_and_repeats_nothing_else() -> None:
    tracker = OffsetTracker(epoch=1, start=0)
    for offset in range(6):
        tracker.start(offset)
    for offset in (0, 2, 3, 5):
        tracker.finish(offset)
    commit = tracker.commit()
    assert commit.offset == 1
    restored = OffsetTracker.restored(commit, epoch=2, start=1)
    assert [offset for offset in range(1, 8) if restored.start(offset)] == [1, 4, 6, 7]
    restored.finish(1)
    assert restored.commit().offset == 4
    restored.finish(4)
    assert restored.commit() == Commit(6, "")


def test_hints_of_a_commit_are_not_used_when_fetching_starts_elsewhere() -> None:
    restored = OffsetTracker.restored(Commit(1, encode_hints(1, [2])), epoch=2, start=0)
    assert all(restored.start(offset) for offset in range(4))


def test_a_hint_is_kept_until_its_record_is_reached() -> None:
    # Everything before the hint is finished: the commit moves over it at once.
    restored = OffsetTracker.restored(Commit(5, encode_hints(5, [6, 8])), epoch=2, start=5)
    assert restored.start(5)
    restored.finish(5)
    assert restored.commit() == Commit(7, encode_hints(7, [8]))
    assert not restored.start(6)
    assert restored.start(7)
    assert restored.commit() == Commit(7, encode_hints(7, [8]))


def test_only_what_changed_is_pending() -> None:
    tracker = OffsetTracker.restored(Commit(3, ""), epoch=1, start=3)
    assert tracker.pending() is None
    tracker.start(3)
    tracker.start(4)
    assert tracker.pending() is None
    tracker.finish(4)
    first = tracker.pending()
    assert first == Commit(3, encode_hints(3, [4]))
    assert tracker.pending() == first
    tracker.acknowledge(first)
    assert tracker.pending() is None
    tracker.finish(3)
    second = tracker.pending()
    assert second == Commit(5, "")
    tracker.acknowledge(second)
    tracker.acknowledge(first)
    assert tracker.pending() is None


def test_nothing_starts_finishes_or_is_committed_after_the_epoch_has_ended() -> None:
    tracker = OffsetTracker(epoch=1, start=0)
    tracker.start(0)
    tracker.start(1)
    tracker.finish(0)
    tracker.close()
    assert not tracker.start(2)
    assert not tracker.finish(1)
    assert tracker.pending() is None


def test_a_record_fetched_twice_starts_once_and_finishing_twice_changes_nothing() -> None:
    tracker = OffsetTracker(epoch=1, start=0)
    assert tracker.start(0)
    assert not tracker.start(0)
    assert tracker.finish(0)
    assert not tracker.finish(0)
    assert not tracker.start(0)
    with pytest.raises(ValueError, match="never started"):
        tracker.finish(7)
