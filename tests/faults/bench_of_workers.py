"""Sets the light pipeline up on real servers, runs worker processes, and checks what every run must have kept."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio

from ops.topics import bootstrap, group_topics
from stream.broker.kafka import KafkaBroker
from stream.broker.protocol import TopicSpec
from stream.clock import SystemClock
from stream.dead_letters import reasons
from stream.failure import RetriableError
from stream.identity import chain, root_identity
from stream.message import Message
from stream.results import Manifest, ObjectKind, Results, StoredObject, result_key
from stream.router import Router, run_topics
from stream.run_records import RunRecords
from stream.store.obstore_store import open_store
from stream.topology import dead_letter_topic_name, topic_name
from tests.faults.light import RETRIES, Configuration, recipe
from tests.faults.light_job import content
from tests.faults.light_topology import BRANCH, STAGES, TIMINGS, segments, status_of
from tests.servers import KafkaCluster, S3Server

ROOT = Path(__file__).parents[2]

FULL = os.environ.get("RAMPSTREAM_FAULTS") == "full"
"""Whether each fault is at its full length, with the times that it may take."""

BETWEEN = 0.02
"""Seconds between two notes whose order in time is not certain."""


class Bench:
    """One run of the light pipeline: its servers' own topics and prefix, its inputs, its workers."""

    module = "tests.faults.light"
    configuration: type[Any] = Configuration

    def __init__(self, folder: Path, cluster: KafkaCluster, s3: S3Server, **options: Any) -> None:
        self.folder = folder
        self.cluster = cluster
        self.s3 = s3
        self.run = f"light-{uuid.uuid4().hex[:10]}"
        self.store_url = f"s3://rampstream/{self.run}"
        self.store = open_store(self.store_url)
        self.journal = folder / "journal"
        self.triggers = folder / "triggers"
        self.triggers.mkdir(parents=True)
        self.journal.touch()
        self.options = options
        self.workers: list[subprocess.Popen[bytes]] = []
        self.inputs: dict[str, str] = {}
        self.broker: KafkaBroker

    @contextlib.asynccontextmanager
    async def opened(self, *, partitions: int = 4) -> AsyncIterator[Bench]:
        async with KafkaBroker.from_url(self.cluster.url, timings=TIMINGS) as broker:
            self.broker = broker
            await broker.create_topics(self.topics(partitions))
            await bootstrap(broker, self.groups())
            try:
                yield self
            except BaseException:
                self.tell()
                raise
            finally:
                await anyio.to_thread.run_sync(self.stop_all)

    def topics(self, partitions: int) -> list[TopicSpec]:
        return run_topics(self.run, segments(), partitions=partitions, retry_tiers=len(RETRIES))

    def groups(self) -> dict[str, list[str]]:
        groups = group_topics(self.run, segments(), len(RETRIES))
        return {topic_name(self.run, stage): groups[topic_name(self.run, stage)] for stage in STAGES}

    def start(
        self, *, environment: Mapping[str, str] = MappingProxyType({}), within: Sequence[str] = (), **changes: Any
    ) -> subprocess.Popen[bytes]:
        """Start a worker, with other variables and by way of another command if given."""
        number = len(self.workers)
        config = self.configuration(
            run=self.run,
            broker=changes.pop("broker", self.cluster.url),
            store=self.store_url,
            work=str(self.folder / f"worker-{number}"),
            journal=str(self.journal),
            triggers=str(self.triggers),
            **{**self.options, **changes},
        )
        path = config.write(self.folder / f"worker-{number}.json")
        with (self.folder / f"worker-{number}.err").open("wb") as errors:
            process = subprocess.Popen(
                [*within, sys.executable, "-m", self.module, path], cwd=ROOT, stdout=subprocess.DEVNULL,
                stderr=errors, env={**os.environ, **self.s3.environment, **environment},
            )  # fmt: skip
        self.workers.append(process)
        return process

    def tell(self) -> None:
        """Print how each worker fares and what it wrote last, for who reads of a test that failed."""
        for number, worker in enumerate(self.workers):
            written = (self.folder / f"worker-{number}.err").read_text(errors="replace")
            status = f"worker {number} (process {worker.pid}): exit status {worker.poll()}; it wrote last:"
            sys.stdout.write(f"{status}\n{written[-2000:]}\n")

    def running(self) -> list[subprocess.Popen[bytes]]:
        return [worker for worker in self.workers if worker.poll() is None]

    def stop_all(self) -> None:
        for worker in self.running():
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)
                worker.terminate()
        deadline = time.monotonic() + 30
        for worker in self.workers:
            try:
                worker.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    async def ingest(self, count: int, *, first: int = 0, **facts: Any) -> list[str]:
        router = Router(
            broker=self.broker, segments=segments(), run=self.run, status_of=status_of, clock=SystemClock(),
            partitions={name: spec.partitions for name, spec in (await self.broker.topics()).items()},
        )  # fmt: skip
        names = []
        for number in range(first, first + count):
            exposure = f"exposure-{number:04d}"
            data = exposure.encode() * 100
            digest = hashlib.sha256(data).hexdigest()
            key = f"objects/{exposure}/ingest/{digest[:8]}/input"
            await self.store.put(key, data)
            root = Manifest(
                identity=root_identity(exposure, digest), exposure=exposure, stage="ingest", branch=BRANCH,
                objects=(StoredObject("input", key, digest, len(data), ObjectKind.INPUT),),
            )  # fmt: skip
            published = await Results(self.store).publish(root)
            await router.send(
                Message(
                    run=self.run, exposure=exposure, stage=STAGES[0], branch=BRANCH, identity=root.identity,
                    manifest=published.key, facts={"locality": number, **facts},
                )
            )  # fmt: skip
            self.inputs[exposure] = root.identity
            names.append(exposure)
        return names

    async def lag(self) -> int:
        total = 0
        for group, topics in self.groups().items():
            for topic in topics:
                total += await self.broker.lag(group, topic)
        return total

    async def done(self, seconds: float = 60.0) -> float:
        """Wait until everything is committed, also what the first segment sends on; how long that took."""
        began = time.monotonic()
        with anyio.fail_after(seconds):
            quiet = 0
            while quiet < 2:
                with contextlib.suppress(RetriableError):  # the cluster may be away
                    quiet = quiet + 1 if await self.lag() == 0 else 0
                await anyio.sleep(0.2)
        return time.monotonic() - began

    async def settled(self, seconds: float) -> bool:
        try:
            await self.done(seconds)
        except TimeoutError:
            return False
        return True

    def executions(self) -> list[tuple[str, str, float, int]]:
        rows = [line.split() for line in self.journal.read_text().splitlines()]
        return [(exposure, stage, float(at), int(worker)) for exposure, stage, at, worker in rows]

    def assignments(self) -> list[tuple[int, str, str, set[int], float]]:
        """Worker, stage, what happened, to which partitions, when; in order of time."""
        rows = [line.split() for line in _lines(self.folder / "journal.groups")]
        parsed = [
            (int(worker), stage, what, {int(n) for n in numbers.split(",") if n != "-"}, float(at))
            for worker, stage, what, numbers, at in rows
        ]
        return sorted(parsed, key=lambda row: row[4])

    async def joined(self, worker: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
        """Wait until a worker is a member of all groups, and so listens for signals too."""
        await self.wait_for(
            lambda: {row[1] for row in self.assignments() if row[0] == worker.pid} == {*STAGES}, seconds
        )

    def rebalances(self) -> list[float]:
        """How long each worker that went on was without partitions, for each time that it was."""
        went: dict[tuple[int, str], float] = {}
        took = []
        for worker, stage, what, _, at in self.assignments():
            if what == "revoked":
                went[worker, stage] = at
            elif (worker, stage) in went:
                took.append(at - went.pop((worker, stage)))
        return took

    async def late_starts(self) -> list[str]:
        """Work that a worker began on a record of a partition that it had had to give up."""
        found = []
        events = self.assignments()
        for stage in STAGES:
            where = await self._partitions_of(topic_name(self.run, stage))
            for line in _lines(self.folder / "journal.starts"):
                worker, at_stage, exposure, text = line.split()
                at = float(text)
                if at_stage != stage:
                    continue
                mine = [
                    what
                    for of, its, what, numbers, when in events
                    if (of, its) == (int(worker), stage)
                    and where[exposure] in numbers
                    and when < at + (BETWEEN if what == "assigned" else -BETWEEN)
                ]
                if mine and mine[-1] == "revoked":
                    found.append(f"{worker} began {exposure} at {stage} after its partition was revoked")
        return found

    async def _partitions_of(self, topic: str) -> dict[str, int]:
        return {record.key.decode(): record.partition for record in await every_record(self.broker, topic)}

    def redone(self) -> int:
        counts = Counter((exposure, stage) for exposure, stage, _, _ in self.executions())
        return sum(count - 1 for count in counts.values())

    async def wait_for(self, holds: Callable[[], bool], seconds: float = 30.0) -> None:
        with anyio.fail_after(seconds):
            while not holds():  # noqa: ASYNC110 - other processes
                await anyio.sleep(0.05)

    async def dead_letters(self) -> list[Any]:
        topic = dead_letter_topic_name(self.run)
        found: list[Any] = []
        for partition, (first, end) in (await self.broker.extents(topic)).items():
            found += await self.broker.read(topic, partition, first, end)
        return found

    async def problems(self, *, dead: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
        """What this run did not keep of what every run must keep; empty when it kept everything."""
        found: list[str] = []
        results, records = Results(self.store), RunRecords(self.store, self.run)
        for exposure, root in self.inputs.items():
            identity, given = root, exposure.encode() * 100
            for stage in STAGES:
                identity, given = chain(identity, recipe(stage)), content(exposure, stage, given)
                if exposure in dead:
                    continue
                manifests = [info.key async for info in self.store.list(f"results/{identity}/")]
                if manifests != [result_key(identity)]:
                    found.append(f"{exposure} has the results {manifests} after {stage}")
                    continue
                manifest = await results.read(manifests[0])
                stored = await self.store.get(manifest.objects[0].key)
                if stored != given or manifest.objects[0].digest != hashlib.sha256(given).hexdigest():
                    found.append(f"{exposure} has another payload after {stage} than undisturbed")
                pointer = await records.pointer(exposure, stage)
                if pointer is None or pointer.manifest != manifest.key:
                    found.append(f"{exposure} has the pointer {pointer} after {stage}")
        buried = Counter(record.key.decode() for record in await self.dead_letters())
        if buried != Counter(dict.fromkeys(dead, 1)):
            found.append(f"dead letters {dict(buried)}, expected one each of {sorted(dead)}")
        found += await self._events()
        if lag := await self.lag():
            found.append(f"{lag} records are not committed")
        return found + self._leftovers()

    async def _events(self) -> list[str]:
        """Every message to the second stage that repeats has the id of the first one."""
        topic = topic_name(self.run, STAGES[1])
        ids: dict[str, set[bytes]] = {}
        for partition, (first, end) in (await self.broker.extents(topic)).items():
            for record in await self.broker.read(topic, partition, first, end):
                ids.setdefault(Message.from_record(record).exposure, set()).add(record.header("ce_id") or b"")
        return [f"{exposure} was published under {len(known)} ids" for exposure, known in ids.items() if len(known) > 1]

    def _leftovers(self) -> list[str]:
        parts = [str(path) for path in (self.s3.root / ".sgwtmp").rglob("*") if path.is_file()]
        found = [f"multipart upload left: {part}" for part in parts]
        if not self.running():
            found += [f"process left: {command}" for command in self._processes()]
        return found

    def _processes(self) -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                if str(self.folder) in command and state != "Z":
                    found.append(command)
        return found

    def offsets_safe(self) -> Any:
        """A sampler that checks, while workers run, that no commit passed unfinished work."""
        return _Sampler(self)


class _Sampler:
    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.problems: list[str] = []

    async def run(self) -> None:
        bench = self._bench
        async with KafkaBroker.from_url(bench.cluster.url, timings=TIMINGS) as broker:
            while True:
                for group, topics in bench.groups().items():
                    for topic in topics[:1]:
                        await self._check(broker, group, topic)
                await asyncio.sleep(0.3)

    async def _check(self, broker: KafkaBroker, group: str, topic: str) -> None:
        stage = topic.removeprefix(f"{self._bench.run}.")
        committed = await broker.committed(group, topic)
        records = RunRecords(self._bench.store, self._bench.run)
        for partition, commit in committed.items():
            if not commit.offset:
                continue
            record = (await broker.read(topic, partition, commit.offset - 1, commit.offset))[0]
            exposure = Message.from_record(record).exposure
            if await records.pointer(exposure, stage) is None:
                buried = {letter.key.decode() for letter in await self._bench.dead_letters()}
                waits = {r.key for t in (f"{topic}.retry-0",) for r in await every_record(broker, t)}
                if exposure not in buried and exposure.encode() not in waits:
                    self.problems.append(f"{topic}[{partition}] committed {commit.offset}, {exposure} is not finished")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def every_record(broker: KafkaBroker, topic: str) -> list[Any]:
    found: list[Any] = []
    for partition, (first, end) in (await broker.extents(topic)).items():
        found += await broker.read(topic, partition, first, end)
    return found


__all__ = ["FULL", "Bench", "every_record", "reasons"]
