"""When a record that is withheld may be handed out, by whatever the clocks say."""

from __future__ import annotations

import pytest

from stream.broker.kafka_buffer import PartitionBuffer
from stream.broker.protocol import NOT_BEFORE, Record

NOW = 1_800_000_000.0


class Clocks:
    """The machine's two clocks, as a test sets them."""

    def __init__(self) -> None:
        self.wall, self.monotonic = NOW, 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr("time.time", lambda: clocks.wall)
    monkeypatch.setattr("time.monotonic", lambda: clocks.monotonic)
    return clocks


def buffer(*, written: float = NOW, not_before: float | bytes | None) -> PartitionBuffer:
    held = PartitionBuffer(0)
    text = str(int(not_before * 1000)).encode() if isinstance(not_before, float) else not_before
    headers = () if text is None else ((NOT_BEFORE, text),)
    held.add(Record("t", 0, 0, b"k", b"v", headers, int(written * 1000)))
    return held


def test_a_record_is_withheld_until_its_time(clocks: Clocks) -> None:
    held = buffer(not_before=NOW + 60)
    assert held.due_in() == pytest.approx(60)
    clocks.pass_by(59.0)
    assert held.due_in() == pytest.approx(1)
    clocks.pass_by(1.0)
    assert held.due_in() <= 0


def test_a_clock_that_is_set_back_withholds_no_longer_than_was_meant(clocks: Clocks) -> None:
    held = buffer(not_before=NOW + 60)
    held.due_in()
    clocks.wall -= 3600
    clocks.pass_by(60.0)
    assert held.due_in() <= 0


def test_a_writer_whose_clock_is_ahead_withholds_no_longer_than_it_meant(clocks: Clocks) -> None:
    held = buffer(written=NOW + 3600, not_before=NOW + 3660)
    assert held.due_in() == pytest.approx(60)
    clocks.pass_by(60.0)
    assert held.due_in() <= 0


def test_how_long_the_records_before_were_withheld_does_not_count(clocks: Clocks) -> None:
    held = buffer(not_before=NOW + 60)
    held.add(Record("t", 0, 1, b"k", b"v", ((NOT_BEFORE, str(int((NOW + 90) * 1000)).encode()),), int(NOW * 1000)))
    held.due_in()
    clocks.wall -= 3600
    clocks.pass_by(60.0)
    held.take()
    assert held.due_in() == pytest.approx(90)


@pytest.mark.parametrize("text", [None, b"", b"soon"])
def test_what_names_no_time_is_not_withheld(clocks: Clocks, text: bytes | None) -> None:
    assert buffer(not_before=text).due_in() <= 0
