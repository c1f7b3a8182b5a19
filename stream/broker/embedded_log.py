"""The embedded event log: topics, records and commits in one SQLite file. Synchronous; not the broker around it.

Durability. The file is in WAL mode with ``synchronous=NORMAL``: a transaction is in the operating system's hands when
`EventLog.append` returns, so it survives any death of the process, kill -9 included, without the 1 to 10 ms of an fsync
for each record. A power cut may lose the newest transactions, but always a suffix of the one history that records and
commits share: with a lost record, the later commit of the record that it was made from is lost as well, and the
work is done again. (SQLite still syncs at checkpoints, so the file is never damaged.)
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream.broker.protocol import NOT_BEFORE, Commit, Headers, Record, TopicPartition, TopicSpec
from stream.failure import Failure, FatalError, PermanentError, RetriableError

__all__ = ["EventLog", "Slice"]

_FORMAT = 1

_BUSY_SECONDS = 30.0
"""How long to wait for another process's transaction. Each takes well under a millisecond: 30 s is a stopped one."""

_COMPACT_EVERY = 1000
"""Superseded records are deleted from a compacted topic after this many appends of one process: a restart reads at most
so many in vain (some 20 ms), and the cost of deleting is shared by as many appends."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL, compacted INTEGER NOT NULL,
    config TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS ends (
    topic INTEGER NOT NULL, part INTEGER NOT NULL, next INTEGER NOT NULL, PRIMARY KEY (topic, part)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    topic INTEGER NOT NULL, part INTEGER NOT NULL, pos INTEGER NOT NULL, key BLOB, value BLOB, headers TEXT NOT NULL,
    timestamp_ms INTEGER NOT NULL, PRIMARY KEY (topic, part, pos)
) STRICT;
CREATE TABLE IF NOT EXISTS commits (
    consumers TEXT NOT NULL, topic INTEGER NOT NULL, part INTEGER NOT NULL, next INTEGER NOT NULL,
    metadata TEXT NOT NULL, PRIMARY KEY (consumers, topic, part)
) STRICT, WITHOUT ROWID;
"""

_COLUMNS = "part, pos, key, value, headers, timestamp_ms"


@dataclass(frozen=True, slots=True)
class Slice:
    """Records read from several partitions, and the Unix time in ms at which a withheld one becomes due."""

    records: tuple[Record, ...]
    due_ms: int | None = None


class EventLog:
    """One connection to the log. Not thread-safe: one call at a time, from any thread.

    Parameters
    ----------
    path : Path
        The SQLite file, created when it does not exist. Its folder must exist, on a local file system.

    Raises
    ------
    stream.failure.FatalError
        The file cannot be opened or is of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._topics: dict[str, tuple[int, TopicSpec]] = {}
        self._uncompacted: dict[TopicPartition, int] = {}
        self._turn = 0
        with self._typed_errors():
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            with self._typed_errors():
                self._prepare()
        except Failure:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create topics that do not exist; see `stream.broker.protocol.Broker.create_topics`."""
        with self._transaction() as db:
            for spec in specs:
                if spec.partitions < 1 or not spec.name:
                    msg = f"topic {spec.name!r} needs a name and at least one partition, got {spec.partitions}"
                    raise PermanentError(msg)
                row = db.execute("SELECT partitions, compacted FROM topics WHERE name = ?", (spec.name,)).fetchone()
                if row is None:
                    self._create(db, spec)
                elif row != (spec.partitions, int(spec.compacted)):
                    msg = (
                        f"topic {spec.name} exists with {row[0]} partitions and compacted={bool(row[1])}; "
                        f"asked for were {spec.partitions} and compacted={spec.compacted}"
                    )
                    raise PermanentError(msg)

    def topics(self) -> dict[str, TopicSpec]:
        """All topics."""
        with self._typed_errors():
            self._load_topics()
        return {name: spec for name, (_, spec) in self._topics.items()}

    def append(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, partition: int | None, now_ms: int
    ) -> Record:
        """Append one record and return it with its place."""
        number, spec = self._topic(topic)
        if partition is None:
            partition = self._partition(key, spec.partitions)
        elif not 0 <= partition < spec.partitions:
            msg = f"topic {topic} has {spec.partitions} partitions, there is no partition {partition}"
            raise PermanentError(msg)
        text = json.dumps([[name, content.decode("latin-1")] for name, content in headers])
        with self._transaction() as db:
            [(end,)] = db.execute(
                "UPDATE ends SET next = next + 1 WHERE topic = ? AND part = ? RETURNING next", (number, partition)
            ).fetchall()
            db.execute(
                f"INSERT INTO records (topic, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
                (number, partition, end - 1, key, value, text, now_ms),
            )
            if spec.compacted:
                self._compact(db, number, TopicPartition(topic, partition))
        return Record(topic, partition, end - 1, key, value, tuple(headers), now_ms)

    def read(self, topic: str, partition: int, first: int, last: int, limit: int = -1) -> list[Record]:
        """Records with first <= offset < last, at most ``limit`` when that is not negative."""
        number, _ = self._topic(topic)
        with self._typed_errors():
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM records WHERE topic = ? AND part = ? AND pos >= ? AND pos < ? "  # noqa: S608
                "ORDER BY pos LIMIT ?",
                (number, partition, first, last, limit),
            ).fetchall()
        return [_record(topic, row) for row in rows]

    def read_due(self, positions: Mapping[TopicPartition, int], *, limit: int, now_ms: int) -> Slice:
        """Read from these positions on, at most ``limit`` records, none that is withheld or lies behind such a one.

        Partitions take turns in being first, so that a full one cannot starve the others.
        """
        records: list[Record] = []
        due_ms: int | None = None
        # One query for all ends, for most of the partitions of a worker are empty most of the time.
        order = sorted(self._unread(positions))
        self._turn += 1
        turn = self._turn % max(len(order), 1)
        for partition in order[turn:] + order[:turn]:
            if len(records) >= limit:
                break
            for record in self.read(
                partition.topic, partition.partition, positions[partition], 2**62, limit - len(records)
            ):
                not_before = _not_before(record)
                if not_before > now_ms:
                    due_ms = not_before if due_ms is None else min(due_ms, not_before)
                    break
                records.append(record)
        return Slice(tuple(records), due_ms)

    def _unread(self, positions: Mapping[TopicPartition, int]) -> list[TopicPartition]:
        numbers = {self._topic(partition.topic)[0] for partition in positions}
        marks = ",".join("?" * len(numbers))
        with self._typed_errors():
            rows = self._db.execute(
                f"SELECT topic, part, next FROM ends WHERE topic IN ({marks})",  # noqa: S608 - question marks
                tuple(numbers),
            ).fetchall()
        ends = {(number, part): end for number, part, end in rows}
        return [
            partition
            for partition, position in positions.items()
            if ends.get((self._topic(partition.topic)[0], partition.partition), 0) > position
        ]

    def read_latest(self, topic: str) -> dict[bytes, Record]:
        """Latest record of each key, tombstones and records without a key left out, in the order of the log."""
        number, _ = self._topic(topic)
        latest: dict[bytes, Record] = {}
        with self._typed_errors():
            for row in self._db.execute(
                f"SELECT {_COLUMNS} FROM records WHERE topic = ? AND key IS NOT NULL ORDER BY part, pos",  # noqa: S608
                (number,),
            ):
                latest[row[2]] = _record(topic, row)
        return {key: record for key, record in latest.items() if record.value is not None}

    def end(self, partition: TopicPartition) -> int:
        """Offset that the next record will get."""
        number, _ = self._topic(partition.topic)
        with self._typed_errors():
            row = self._db.execute(
                "SELECT next FROM ends WHERE topic = ? AND part = ?", (number, partition.partition)
            ).fetchone()
        if row is None:
            msg = f"topic {partition.topic} has no partition {partition.partition}"
            raise PermanentError(msg)
        return int(row[0])

    def extent(self, partition: TopicPartition) -> tuple[int, int]:
        """First offset that is there, and the next one."""
        number, _ = self._topic(partition.topic)
        with self._typed_errors():
            row = self._db.execute(
                "SELECT MIN(pos) FROM records WHERE topic = ? AND part = ?", (number, partition.partition)
            ).fetchone()
        end = self.end(partition)
        return (end if row[0] is None else int(row[0])), end

    def partitions(self, topic: str) -> list[TopicPartition]:
        """All partitions of a topic."""
        return [TopicPartition(topic, number) for number in range(self._topic(topic)[1].partitions)]

    def offset_for_time(self, partition: TopicPartition, timestamp_ms: int) -> int | None:
        """First offset with a timestamp at or after this time."""
        number, _ = self._topic(partition.topic)
        with self._typed_errors():
            row = self._db.execute(
                "SELECT pos FROM records WHERE topic = ? AND part = ? AND timestamp_ms >= ? ORDER BY pos LIMIT 1",
                (number, partition.partition, timestamp_ms),
            ).fetchone()
        return None if row is None else int(row[0])

    def commit(self, group: str, commits: Mapping[TopicPartition, Commit]) -> None:
        """Store a group's positions, all or none."""
        rows = [
            (group, self._topic(partition.topic)[0], partition.partition, commit.offset, commit.metadata)
            for partition, commit in commits.items()
        ]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?, ?)", rows)

    def committed(self, group: str, partition: TopicPartition) -> Commit | None:
        """A group's position."""
        number, _ = self._topic(partition.topic)
        with self._typed_errors():
            row = self._db.execute(
                "SELECT next, metadata FROM commits WHERE consumers = ? AND topic = ? AND part = ?",
                (group, number, partition.partition),
            ).fetchone()
        return None if row is None else Commit(int(row[0]), row[1])

    def lag(self, group: str, topic: str) -> int:
        """Sum over the partitions of end minus committed position."""
        number, _ = self._topic(topic)
        with self._typed_errors():
            [(lag,)] = self._db.execute(
                "SELECT SUM(MAX(e.next - COALESCE(c.next, 0), 0)) FROM ends AS e LEFT JOIN commits AS c "
                "ON c.consumers = ? AND c.topic = e.topic AND c.part = e.part WHERE e.topic = ?",
                (group, number),
            ).fetchall()
        return int(lag)

    def version(self) -> int:
        """A number that changes when another connection has written."""
        with self._typed_errors():
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def _prepare(self) -> None:
        # Switching to WAL needs the file for itself and does not wait for it as other statements do.
        gives_up = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if _primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() > gives_up:
                    raise
                time.sleep(0.01)
        self._db.execute("PRAGMA synchronous = NORMAL")
        with self._transaction() as db:
            [(found,)] = db.execute("PRAGMA user_version").fetchall()
            if found not in {0, _FORMAT}:
                msg = f"{self.path} is an event log of format {found}, this software reads format {_FORMAT}"
                raise FatalError(msg)
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_FORMAT}")

    def _create(self, db: sqlite3.Connection, spec: TopicSpec) -> None:
        config = json.dumps(dict(spec.config), sort_keys=True)
        [(number,)] = db.execute(
            "INSERT INTO topics (name, partitions, compacted, config) VALUES (?, ?, ?, ?) RETURNING id",
            (spec.name, spec.partitions, int(spec.compacted), config),
        ).fetchall()
        db.executemany("INSERT INTO ends VALUES (?, ?, 0)", [(number, part) for part in range(spec.partitions)])

    def _topic(self, name: str) -> tuple[int, TopicSpec]:
        if name not in self._topics:
            with self._typed_errors():
                self._load_topics()
        try:
            return self._topics[name]
        except KeyError:
            msg = f"there is no topic {name}; create it first"
            raise PermanentError(msg) from None

    def _load_topics(self) -> None:
        rows = self._db.execute("SELECT id, name, partitions, compacted, config FROM topics ORDER BY name").fetchall()
        self._topics = {
            name: (number, TopicSpec(name, partitions, bool(compacted), json.loads(config)))
            for number, name, partitions, compacted, config in rows
        }

    def _partition(self, key: bytes | None, partitions: int) -> int:
        if key is not None:
            return zlib.crc32(key) % partitions
        self._turn += 1
        return self._turn % partitions

    def _compact(self, db: sqlite3.Connection, number: int, partition: TopicPartition) -> None:
        self._uncompacted[partition] = self._uncompacted.get(partition, 0) + 1
        if self._uncompacted[partition] < _COMPACT_EVERY:
            return
        self._uncompacted[partition] = 0
        where = (number, partition.partition)
        db.execute(
            "DELETE FROM records WHERE topic = ? AND part = ? AND key IS NOT NULL AND pos NOT IN "
            "(SELECT MAX(pos) FROM records WHERE topic = ? AND part = ? GROUP BY key)",
            where + where,
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._typed_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if _primary(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                msg = f"the event log {self.path} was locked by another process for {_BUSY_SECONDS:.0f} s"
                raise RetriableError(msg) from error
            msg = f"the event log {self.path} cannot be used: {error}"
            raise FatalError(msg) from error


def _primary(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _record(topic: str, row: tuple[Any, ...]) -> Record:
    part, pos, key, value, headers, timestamp_ms = row
    pairs = tuple((name, content.encode("latin-1")) for name, content in json.loads(headers))
    return Record(topic, part, pos, key, value, pairs, timestamp_ms)


def _not_before(record: Record) -> int:
    text = record.header(NOT_BEFORE)
    if text is None or not text.isdigit() or len(text) > 15:
        return 0
    return int(text)
