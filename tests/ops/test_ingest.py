"""What a person names becomes exposures and member lists; what cannot is told, and the rest goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ops.ingest
from ops.ingest import Entry, digest_file, inspect, read_inputs
from tests.stages.input_files import NAME, write_l1

EXPOSURE = "r0000101001001001001_0001_wfi01"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def association(path: Path, name: str, *members: Path) -> Path:
    entries = [{"expname": str(member), "exptype": "science"} for member in members]
    path.write_text(json.dumps({"products": [{"name": name, "members": entries}]}))
    return path


def test_a_file_is_an_association_of_itself_and_counts_once(tmp_path: Path) -> None:
    path = touch(tmp_path / "a_uncal.asdf")
    ingest = read_inputs([path, path, tmp_path / "." / "a_uncal.asdf"])
    assert list(ingest.entries) == ["a"]
    (members,) = ingest.lists
    assert members.members == ("a",)
    assert members.product_name is None
    assert not ingest.refused


def test_an_exposure_may_come_alone_and_in_associations(tmp_path: Path) -> None:
    a, b = touch(tmp_path / "a_uncal.asdf"), touch(tmp_path / "b_uncal.asdf")
    ingest = read_inputs([a, association(tmp_path / "j.json", "j", a, b)])
    assert [members.members for members in ingest.lists] == [("a",), ("a", "b")]
    assert [entry.error for entry in ingest.entries.values()] == [None, None]


def test_two_files_of_one_base_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    one, two = touch(tmp_path / "x" / "a_uncal.asdf"), touch(tmp_path / "y" / "a-uncal.asdf")
    ingest = read_inputs([one, association(tmp_path / "j.json", "j", two)])
    error = str(ingest.entries["a"].error)
    assert str(one) in error
    assert str(two) in error


def test_a_link_counts_under_its_own_name(tmp_path: Path) -> None:
    target = touch(tmp_path / "0a1b2c")
    link = tmp_path / "a_uncal.asdf"
    link.symlink_to(target)
    ingest = read_inputs([link])
    assert ingest.entries["a"].path == link
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / "a_uncal.asdf"
    again.symlink_to(target)
    assert read_inputs([link, again]).entries["a"].error is None, "the same file, so no contradiction"


def test_a_name_that_cannot_be_used_is_refused_and_not_processed(tmp_path: Path) -> None:
    ingest = read_inputs([touch(tmp_path / "my file_uncal.asdf")])
    assert not ingest.entries
    assert not ingest.lists
    assert "'my file'" in ingest.refused[str(tmp_path / "my file_uncal.asdf")]
    ingest = read_inputs([association(tmp_path / "j.json", "no good", touch(tmp_path / "a_uncal.asdf"))])
    assert not ingest.entries, "its members are no exposures of their own"
    assert "products[0].name" in ingest.refused[str(tmp_path / "j.json")]


def test_two_associations_of_one_product_name_are_both_refused(tmp_path: Path) -> None:
    a = touch(tmp_path / "a_uncal.asdf")
    one, two = association(tmp_path / "1.json", "j", a), association(tmp_path / "2.json", "j", a)
    ingest = read_inputs([one, two, association(tmp_path / "3.json", "k", a)])
    assert set(ingest.refused) == {str(one), str(two)}
    assert "both have the product name j" in ingest.refused[str(one)]
    assert [members.product_name for members in ingest.lists] == ["k"]
    assert not read_inputs([one, one]).refused


def test_an_association_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    assert "cannot be read: Is a directory" in read_inputs([tmp_path / "x.json"]).refused[str(tmp_path / "x.json")]


def test_facts_and_digest_come_from_the_file(tmp_path: Path) -> None:
    entry = Entry(EXPOSURE, write_l1(tmp_path / NAME))
    inspect(entry)
    assert entry.error is None
    assert entry.digest == digest_file(entry.path)
    assert (entry.facts["id"], entry.facts["locality"], entry.facts["filename"]) == (EXPOSURE, 1, NAME)
    assert (entry.size, entry.mtime_ns) == (entry.path.stat().st_size, entry.path.stat().st_mtime_ns)


def test_what_is_wrong_with_a_file_is_kept_and_not_raised(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.asdf", "there is no such file"),
        (tmp_path, "there is no such file"),
        (touch(tmp_path / "empty.asdf"), "not an ASDF file"),
    ):
        entry = Entry("x", path)
        inspect(entry)
        assert message in str(entry.error)
        assert str(path) in str(entry.error)


def test_a_file_that_is_still_being_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry(EXPOSURE, write_l1(tmp_path / NAME))

    def digest_and_append(path: Path) -> str:
        found = digest_file(path)
        with path.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(ops.ingest, "digest_file", digest_and_append)
    inspect(entry)
    assert "changed while it was read" in str(entry.error)
