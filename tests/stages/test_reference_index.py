"""An index chooses as the folder does, with the same digests, and opens only what was lent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest
from astropy.io import fits

from stages.indexed_references import IndexedReferences
from stages.reference_index import ReferenceIndex, describe
from stages.reference_selection import DirectoryReferences
from stream.failure import PermanentError
from stream.stage import ReferenceSource
from tests.stages.input_files import write_reference

URL = "s3://bucket/set"
FACTS: dict[str, Any] = {
    "detector": "WFI01",
    "optical_element": "F158",
    "exposure_type": "WFI_IMAGE",
    "start_time": "2027-03-01T00:00:00.123",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    refs = tmp_path / "refs"
    write_reference(refs / "gain.asdf", "gain")
    write_reference(refs / "later" / "gain.asdf", "gain", useafter="2027-02-01")
    write_reference(refs / "all flats.asdf", "flat", element="N/A")
    fits.PrimaryHDU(np.zeros((4, 4), "f4"), fits.Header({"FIELD": "NORTH"})).writeto(refs / "north.fits")
    data = np.arange(400_000, dtype="f4").reshape(100, 4000)
    meta = {"reftype": "DARK", "useafter": asdf_time("2020-01-01T00:00:00")}
    asdf.AsdfFile({"roman": {"meta": meta, "data": data}}).write_to(refs / "dark.asdf", all_array_compression="lz4")
    return refs


def asdf_time(text: str) -> Any:
    from astropy.time import Time

    return Time(text)


def indexed(folder: Path) -> ReferenceIndex:
    found = ReferenceIndex(tuple(file for _, file in describe(folder, DirectoryReferences(folder))))
    return ReferenceIndex.decode(found.encode(), where="here")


@pytest.mark.parametrize("kind", ["gain", "flat", "dark", "dustmap_north", "dustmap_south", "mask"])
def test_an_index_chooses_what_the_folder_chooses_with_the_same_digest(folder: Path, kind: str) -> None:
    local = DirectoryReferences(folder)
    source: ReferenceSource = IndexedReferences(indexed(folder), URL)
    expected, found = local.select(kind, FACTS), source.select(kind, FACTS)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.startswith(f"{URL}/files/")
    assert found.rpartition("/")[2] == Path(expected).name.replace(" ", "_")
    assert source.digest(found) == local.digest(expected)


def test_what_the_folder_refuses_the_index_refuses(folder: Path) -> None:
    shutil.copy(folder / "gain.asdf", folder / "gain2.asdf")
    (folder / "later" / "gain.asdf").unlink()
    source = IndexedReferences(indexed(folder), URL)
    with pytest.raises(PermanentError, match="two reference files of type gain fit detector WFI01 equally well"):
        source.select("gain", FACTS)
    with pytest.raises(PermanentError, match=f"no reference file of type readnoise .* in {URL}"):
        source.select("readnoise", FACTS)


def test_the_digest_tells_of_every_file(folder: Path) -> None:
    before = indexed(folder).digest
    assert indexed(folder).digest == before
    write_reference(folder / "gain.asdf", "gain", detector="WFI02")
    assert indexed(folder).digest != before


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format": "other"}', b'{"format": "rampstream-references-1"}'])
def test_other_bytes_are_refused_by_place(data: bytes) -> None:
    with pytest.raises(PermanentError, match="s3://b/index"):
        ReferenceIndex.decode(data, where="s3://b/index")


def test_a_file_opens_only_while_it_is_lent_and_tells_its_url(folder: Path, tmp_path: Path) -> None:
    source = IndexedReferences(indexed(folder), URL)
    name = source.select("gain", FACTS)
    assert name is not None
    assert source.needs(name)
    with pytest.raises(PermanentError, match="did not name"):
        source.open(name)
    source.lend({name: folder / "later" / "gain.asdf"})
    assert source.open(name).recorded_name == name
    source.lend({})
    with pytest.raises(PermanentError, match="did not name"):
        source.open(name)


def test_a_file_lent_again_under_another_path_is_not_opened_or_unpacked_again(folder: Path, tmp_path: Path) -> None:
    source = IndexedReferences(indexed(folder), URL, cache=tmp_path / "cache")
    name = source.select("dark", FACTS)
    assert name is not None
    leases = [tmp_path / f"lease-{number}.asdf" for number in range(3)]
    os.link(folder / "dark.asdf", leases[0])
    source.lend({name: leases[0]})
    first = source.open(name)
    array = first.array("data")
    os.link(folder / "dark.asdf", leases[1])
    leases[0].unlink()
    source.lend({name: leases[1]})
    assert source.open(name) is first
    assert source.open(name).array("data") is array
    assert source.open(name).value("meta", "reftype") == "DARK"
    shutil.copy(folder / "dark.asdf", leases[2])  # evicted and fetched again: another file of the same content
    source.lend({name: leases[2]})
    assert source.open(name) is not first
    np.testing.assert_array_equal(source.open(name).array("data"), array)
    assert len(list((tmp_path / "cache" / "arrays").iterdir())) == 1


def test_a_pinned_file_wins_and_needs_not_be_lent(folder: Path, tmp_path: Path) -> None:
    mine = write_reference(tmp_path / "mine.asdf", "gain")
    source = IndexedReferences(indexed(folder), URL, pinned={"gain": mine})
    assert source.select("gain", FACTS) == str(mine)
    assert not source.needs(str(mine))
    assert source.open(str(mine)).recorded_name == str(mine)
    assert source.digest(str(mine)) == DirectoryReferences(None, pinned={"gain": mine}).digest(str(mine))
