"""Results: the first writer wins, damage is succeeded, and a run's records are kept without races."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from stream.clock import ManualClock
from stream.failure import FatalError, PermanentError, RetriableError
from stream.results import Manifest, ObjectKind, Results, StoredObject, file_digest, object_key, result_key
from stream.retry import Outcome
from stream.run_records import Attempts, RunRecords
from stream.store import ObjectStore
from stream.store.obstore_store import open_store

ID = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return open_store("memory:" if request.param == "memory" else tmp_path / "store")


async def made(store: ObjectStore, attempt: str, content: bytes = b"numbers", *, identity: str = ID) -> Manifest:
    """A manifest whose objects are in the store."""
    objects = []
    for name, kind, data in (
        ("tree", ObjectKind.TREE, f"made by {attempt}".encode()),
        ("data", ObjectKind.ARRAY, content),
        ("tie_points", ObjectKind.SIDE, b"ties"),
    ):
        key = object_key("e1", "flat_field", attempt, name)
        info = await store.put(key, data)
        objects.append(StoredObject(name, key, _sha256(data), info.size, kind))
    return Manifest(
        identity=identity, exposure="e1", stage="flat_field", branch="WFI_IMAGE", facts={"a": 1.5},
        objects=tuple(objects), attempt=attempt, extra={"steps": []},
    )  # fmt: skip


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


class Alert:
    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def __call__(self, winner: Manifest, loser: Manifest) -> None:
        self.pairs.append((winner.attempt, loser.attempt))


class TestManifest:
    def test_it_reads_what_it_wrote(self) -> None:
        objects = (StoredObject("data", "objects/a", "0" * 64, 7, ObjectKind.ARRAY),)
        manifest = Manifest(identity=ID, exposure="e", stage="s", branch="b", objects=objects, generation=2)
        assert Manifest.decode(manifest.encode()) == manifest
        assert manifest.key == f"results/{ID}/2"

    def test_fields_of_a_newer_version_are_passed_over(self) -> None:
        document = {**Manifest(identity=ID, exposure="e", stage="s", branch="b").document(), "newer": 1}
        assert Manifest.from_document(document).identity == ID

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"objects": [{"name": 1}]}'])
    def test_anything_else_is_refused_in_words(self, data: bytes) -> None:
        with pytest.raises(PermanentError, match="not a manifest"):
            Manifest.decode(data)

    def test_content_is_arrays_branch_and_the_trees_own_digest(self) -> None:
        objects = (
            StoredObject("data", "objects/a", "0" * 64, 7, ObjectKind.ARRAY),
            StoredObject("tree", "objects/t", "1" * 64, 7, ObjectKind.TREE),
        )
        manifest = Manifest(identity=ID, exposure="e", stage="s", branch="b", objects=objects)
        other_tree = replace(objects[1], digest="2" * 64, key="objects/u")
        assert (
            replace(manifest, objects=(other_tree, objects[0]), attempt="2").content_digest == manifest.content_digest
        )
        other_data = replace(objects[0], digest="2" * 64)
        assert replace(manifest, objects=(other_data,)).content_digest != manifest.content_digest
        assert replace(manifest, branch="c").content_digest != manifest.content_digest
        assert replace(manifest, extra={"content": "x"}).content_digest != manifest.content_digest


class TestResults:
    @pytest.mark.anyio
    async def test_what_was_published_is_found(self, store: ObjectStore) -> None:
        results = Results(store)
        assert await results.find(ID) is None
        manifest = await results.publish(await made(store, "1"))
        assert await results.find(ID) == manifest
        assert await results.read(manifest.key) == manifest
        tie_points = manifest.object("tie_points")
        assert tie_points is not None
        assert await store.get(tie_points.key) == b"ties"

    @pytest.mark.anyio
    async def test_what_was_published_here_lately_is_read_without_a_request(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = Results(store)
        manifest = await results.publish(await made(store, "1"))
        now = time.monotonic()
        await store.delete(manifest.key)
        assert await results.read(manifest.key) == manifest
        with pytest.raises(RetriableError, match="does not exist"):
            await Results(store).read(manifest.key)
        monkeypatch.setattr(time, "monotonic", lambda: now + 601)
        with pytest.raises(RetriableError, match="does not exist"):
            await results.read(manifest.key)

    @pytest.mark.anyio
    async def test_only_what_was_put_here_lately_is_trusted_to_be_there(
        self, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = Results(store)
        inherited = await made(store, "1")
        file = tmp_path / "data"
        file.write_bytes(b"numbers")
        own = StoredObject("own", object_key("e1", "flat_field", "2", "own"), _sha256(b"numbers"), 7, ObjectKind.ARRAY)
        manifest = replace(inherited, objects=(*inherited.objects, own), attempt="2")
        await results.publish_made({"files": {own.key: str(file)}, "manifests": [manifest.document()]})
        now = time.monotonic()
        for stored in manifest.objects:
            await store.delete(stored.key)
        assert sorted(await results.missing(manifest), key=str) == sorted(manifest.objects, key=str)
        assert own not in await results.missing(manifest, trusting=True)
        assert len(await results.missing(manifest, trusting=True)) == len(inherited.objects)
        monkeypatch.setattr(time, "monotonic", lambda: now + 601)
        assert own in await results.missing(manifest, trusting=True)

    @pytest.mark.anyio
    async def test_a_look_tells_a_damaged_result_from_one_that_is_not_there(self, store: ObjectStore) -> None:
        results = Results(store)
        assert await results.look(ID) == (None, None)
        manifest = await results.publish(await made(store, "1"))
        assert await results.look(ID) == (manifest, None)
        await store.delete(manifest.objects[1].key)
        assert await results.look(ID) == (None, manifest)
        again = await results.publish(await made(store, "2"))
        assert await results.look(ID) == (again, None)

    @pytest.mark.anyio
    async def test_the_first_writer_wins_and_the_loser_adopts(self, store: ObjectStore) -> None:
        alert = Alert()
        results = Results(store, on_difference=alert)
        first = await results.publish(await made(store, "1"))
        assert await results.publish(await made(store, "2")) == first
        assert await results.publish(await made(store, "1")) == first, "publishing again changes nothing"
        assert alert.pairs == []

    @pytest.mark.anyio
    async def test_other_numbers_from_equal_input_raise_an_alert(
        self, store: ObjectStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        alert = Alert()
        results = Results(store, on_difference=alert)
        first = await results.publish(await made(store, "1"))
        assert await results.publish(await made(store, "2", b"NUMBERS")) == first
        assert alert.pairs == [("1", "2")]
        assert "differ though input and recipe are equal" in caplog.text

    @pytest.mark.anyio
    async def test_of_racing_writers_all_adopt_one(self, store: ObjectStore) -> None:
        results = Results(store)
        winners: list[Manifest] = []

        async def race(attempt: str) -> None:
            winners.append(await results.publish(await made(store, attempt)))

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(race, str(number))
        assert len({winner.attempt for winner in winners}) == 1

    @pytest.mark.anyio
    @pytest.mark.parametrize("damage", ["gone", "short", "manifest"])
    async def test_a_damaged_result_is_not_found_and_is_succeeded(self, store: ObjectStore, damage: str) -> None:
        results = Results(store)
        first = await results.publish(await made(store, "1"))
        data = first.object("data")
        assert data is not None
        if damage == "gone":
            await store.delete(data.key)
        elif damage == "short":
            await store.put(data.key, b"num")
        else:
            await store.put(first.key, first.encode()[:40])
        assert await results.find(ID) is None
        second = await results.publish(await made(store, "2"))
        assert second.key == result_key(ID, 2)
        assert await results.find(ID) == second
        assert await results.publish(await made(store, "3")) == second

    @pytest.mark.anyio
    async def test_changed_bytes_of_equal_size_are_found_by_their_digest(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        results = Results(store)
        first = await results.publish(await made(store, "1"))
        data = first.object("data")
        assert data is not None
        assert await results.find(ID, check_digests=tmp_path / "cache") == first
        await store.put(data.key, b"NUMBERS")
        assert await results.find(ID) == first, "sizes alone do not tell"
        assert await results.find(ID, check_digests=tmp_path / "other") is None

    @pytest.mark.anyio
    async def test_objects_are_put_before_the_manifest_is(self, store: ObjectStore, tmp_path: Path) -> None:
        path = tmp_path / "data.asdf"
        path.write_bytes(b"numbers")
        key = object_key("e1", "flat_field", "1", "data.asdf")
        stored = StoredObject("data", key, file_digest(path), 7, ObjectKind.ARRAY)
        manifest = Manifest(identity=ID, exposure="e1", stage="flat_field", branch="b", objects=(stored,))
        order: list[str] = []
        put, create = store.put, store.put_if_absent

        async def watched_put(key: str, data: Any) -> Any:
            order.append(key)
            return await put(key, data)

        async def watched_create(key: str, data: bytes) -> bool:
            order.append(key)
            return await create(key, data)

        store.put, store.put_if_absent = watched_put, watched_create  # type: ignore[method-assign]
        published = await Results(store).publish_made({"manifests": [manifest.document()], "files": {key: str(path)}})
        assert order == [key, manifest.key]
        assert published == [manifest]
        assert await Results(store).find(ID) == manifest

    @pytest.mark.anyio
    async def test_fetching_a_lost_object_is_retriable(self, store: ObjectStore, tmp_path: Path) -> None:
        manifest = await made(store, "1")
        paths = await Results(store).fetch(manifest, tmp_path)
        assert paths["data"].read_bytes() == b"numbers"
        await store.delete(object_key("e1", "flat_field", "1", "data"))
        with pytest.raises(RetriableError, match="does not exist"):
            await Results(store).fetch(manifest, tmp_path / "other")
        with pytest.raises(RetriableError, match="does not exist"):
            await Results(store).read(manifest.key)


class TestDefinition:
    @pytest.mark.anyio
    async def test_the_same_definition_again_changes_nothing(self, store: ObjectStore) -> None:
        records = RunRecords(store, "prompt")
        assert await records.definition() is None
        await records.define({"b": 1, "a": {"x": [1, 2]}})
        await records.define({"a": {"x": [1, 2]}, "b": 1})
        assert await records.definition() == {"a": {"x": [1, 2]}, "b": 1}
        await RunRecords(store, "other").define({"b": 2})

    @pytest.mark.anyio
    async def test_another_definition_is_refused_and_told_apart(self, store: ObjectStore) -> None:
        records = RunRecords(store, "prompt")
        await records.define({"parameters": {"jump": {"threshold": 4.0}}, "gaia": "a", "old": 1})
        with pytest.raises(FatalError) as caught:
            await records.define({"parameters": {"jump": {"threshold": 5.0}}, "gaia": "a", "new": True})
        text = str(caught.value)
        assert "parameters.jump.threshold was 4.0, is 5.0" in text
        assert "old was 1, is not given now" in text
        assert "new was not given, is true" in text
        assert "gaia" not in text
        with pytest.raises(FatalError, match="already defined otherwise"):
            await records.require_definition({})

    @pytest.mark.anyio
    async def test_a_run_that_is_not_defined_is_refused(self, store: ObjectStore) -> None:
        with pytest.raises(FatalError, match="not defined yet"):
            await RunRecords(store, "prompt").require_definition({})

    @pytest.mark.anyio
    async def test_of_racing_definitions_one_holds(self, store: ObjectStore) -> None:
        refused: list[int] = []

        async def define(number: int) -> None:
            try:
                await RunRecords(store, "prompt").define({"number": number})
            except FatalError:
                refused.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(define, number)
        held = await RunRecords(store, "prompt").definition()
        assert held is not None
        assert sorted([*refused, held["number"]]) == list(range(8))


class TestPointers:
    @pytest.mark.anyio
    async def test_a_pointer_leads_to_the_latest_result(self, store: ObjectStore) -> None:
        records = RunRecords(store, "prompt")
        assert await records.pointer("e1", "flat_field") is None
        await records.point(await made(store, "1"))
        later = await made(store, "2", identity=OTHER)
        await records.point(later)
        pointer = await records.pointer("e1", "flat_field")
        assert pointer is not None
        assert pointer.manifest == later.key
        assert pointer.content_digest == later.content_digest

    @pytest.mark.anyio
    async def test_a_result_that_was_found_is_pointed_to_and_known_as_adopted(self, store: ObjectStore) -> None:
        found = await made(store, "1")
        mine, others = RunRecords(store, "prompt"), RunRecords(store, "reproc")
        await mine.point(found)
        await mine.adopt(found)  # a repeat changes nothing: it is this run's own
        await others.adopt(found)
        pointers = [await records.pointer("e1", "flat_field") for records in (mine, others)]
        assert [(p.manifest, p.adopted) for p in pointers if p] == [(found.key, False), (found.key, True)]

    @pytest.mark.anyio
    async def test_revisions_count_up_and_a_repeat_gets_the_one_it_has(self, store: ObjectStore) -> None:
        records = RunRecords(store, "prompt")
        one, two = await made(store, "1"), await made(store, "2", identity=OTHER)
        assert [await records.add_revision("a", m) for m in (one, one, two, two)] == [1, 1, 2, 2]
        assert await records.add_revision("a", one) == 3, "back to an earlier result is a new revision"
        assert await records.add_revision("b", one) == 1
        found = await records.revisions("e1", "flat_field", "a")
        assert {number: pointer.identity for number, pointer in found.items()} == {1: ID, 2: OTHER, 3: ID}

    @pytest.mark.anyio
    async def test_racing_repeats_make_one_revision(self, store: ObjectStore) -> None:
        manifest = await made(store, "1")
        numbers: list[int] = []

        async def add() -> None:
            numbers.append(await RunRecords(store, "prompt").add_revision("a", manifest))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(add)
        assert numbers == [1] * 8


class TestAttempts:
    @pytest.fixture
    def attempts(self, store: ObjectStore) -> Attempts:
        return Attempts(store, run="prompt", worker="w1", clock=ManualClock(1000.0))

    @pytest.mark.anyio
    async def test_an_attempt_is_open_until_it_ends(self, attempts: Attempts) -> None:
        record = await attempts.start("e1", "flat_field", bigger_slot=True)
        (seen,) = await attempts.earlier("e1", "flat_field")
        assert seen == record
        assert (seen.attempt.number, seen.attempt.outcome, seen.attempt.bigger_slot) == (1, Outcome.OPEN, True)
        ended = await attempts.end(record, Outcome.RETRIABLE, {"message": "no answer"})
        assert await attempts.earlier("e1", "flat_field") == [ended]
        assert ended.attempt.outcome is Outcome.RETRIABLE
        assert ended.ended == 1000.0
        assert ended.failure == {"message": "no answer"}

    @pytest.mark.anyio
    async def test_numbers_count_up_for_each_message_and_ids_are_unique(self, attempts: Attempts) -> None:
        records = [await attempts.start("e1", "flat_field") for _ in range(11)]
        assert [r.attempt.number for r in records] == list(range(1, 12))
        assert [r.attempt.number for r in await attempts.earlier("e1", "flat_field")] == list(range(1, 12))
        assert len({r.id for r in records}) == 11
        assert (await attempts.start("e1", "photom")).attempt.number == 1
        assert (await attempts.start("e10", "flat_field")).attempt.number == 1

    @pytest.mark.anyio
    async def test_a_first_attempt_is_written_only_when_there_was_none(self, attempts: Attempts) -> None:
        record = await attempts.first("e1", "flat_field")
        assert record is not None
        assert (record.attempt.number, record.attempt.outcome) == (1, Outcome.OPEN)
        assert await attempts.first("e1", "flat_field") is None
        assert await attempts.earlier("e1", "flat_field") == [record]

    @pytest.mark.anyio
    async def test_an_attempt_after_a_known_one_takes_no_number_that_another_took_meanwhile(
        self, attempts: Attempts
    ) -> None:
        for _ in range(3):
            await attempts.start("e1", "flat_field")
        assert (await attempts.start("e1", "flat_field", after=1)).attempt.number == 4
        assert len(await attempts.earlier("e1", "flat_field")) == 4

    @pytest.mark.anyio
    async def test_racing_workers_never_share_an_attempt(self, store: ObjectStore, attempts: Attempts) -> None:
        numbers: list[int] = []

        async def start() -> None:
            numbers.append((await attempts.start("e1", "flat_field")).attempt.number)

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(start)
        assert sorted(numbers) == list(range(1, 9))

    @pytest.mark.anyio
    async def test_clearing_forgets_one_message_or_the_run(self, store: ObjectStore, attempts: Attempts) -> None:
        for stage in ("flat_field", "photom"):
            await attempts.start("e1", stage)
        await attempts.start("e2", "photom")
        other = Attempts(store, run="other", worker="w", clock=ManualClock())
        await other.start("e1", "photom")
        assert await attempts.clear("e1", "photom") == 1
        assert await attempts.clear() == 2
        assert await attempts.earlier("e2", "photom") == []
        assert len(await other.earlier("e1", "photom")) == 1

    @pytest.mark.anyio
    async def test_a_record_cut_short_counts_as_open(self, store: ObjectStore, attempts: Attempts) -> None:
        record = await attempts.start("e1", "photom")
        await store.put(record.key, json.dumps({"id": "x"}).encode()[:5])
        (seen,) = await attempts.earlier("e1", "photom")
        assert (seen.attempt.number, seen.attempt.outcome) == (1, Outcome.OPEN)
