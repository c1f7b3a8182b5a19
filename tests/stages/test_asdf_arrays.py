"""Payload files are standard ASDF, aligned, and come back as they went in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.asdf_arrays import map_array_file, write_array_file, write_asdf
from stages.asdf_container import open_container, plain
from stream.failure import PermanentError

DTYPES = ("u1", "u2", "u4", "i2", "i4", "i8", "f2", "f4", "f8", "c16", "?", ">f4")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 100, 400), (7,), (0, 3), ()])
@pytest.mark.parametrize("pack", [0, 2])
def test_an_array_comes_back_bit_by_bit(tmp_path: Path, dtype: str, shape: tuple[int, ...], pack: int) -> None:
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    write_array_file(tmp_path / "a.asdf", array, pack=pack)
    mapped = map_array_file(tmp_path / "a.asdf", threads=2).array
    assert mapped.dtype == array.dtype
    assert mapped.shape == shape
    assert mapped.tobytes() == array.tobytes()


def test_the_file_is_standard_asdf(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(50, 4096)).astype("f4")
    write_asdf(
        tmp_path / "a.asdf", {"array": array, "more": {"small": np.arange(3, dtype="i2"), "t": Time("2027-01-01")}}
    )
    with asdf.open(tmp_path / "a.asdf", memmap=False) as file:
        np.testing.assert_array_equal(file["array"], array)
        np.testing.assert_array_equal(file["more"]["small"], [0, 1, 2])
        assert file["more"]["t"] == Time("2027-01-01")
    raw = (tmp_path / "a.asdf").read_bytes()
    assert b"#ASDF BLOCK INDEX" in raw, "without an index, opening scans the file backwards"


def test_packed_flags_are_standard_asdf_and_a_fraction_of_their_size(tmp_path: Path) -> None:
    flags = np.zeros((10, 1000, 1001), "u1")
    flags[:, ::97, ::13] = 4
    write_array_file(tmp_path / "packed.asdf", flags, pack=2)
    write_array_file(tmp_path / "by_one.asdf", flags, pack=1)
    assert (tmp_path / "packed.asdf").stat().st_size < flags.nbytes / 5
    assert (tmp_path / "packed.asdf").read_bytes() == (tmp_path / "by_one.asdf").read_bytes()
    with asdf.open(tmp_path / "packed.asdf", memmap=False) as file:
        np.testing.assert_array_equal(file["array"], flags)
    mapped = map_array_file(tmp_path / "packed.asdf").array
    mapped += 1
    with pytest.raises(ValueError, match="read-only"):
        map_array_file(tmp_path / "packed.asdf", writable=False).array[0, 0] = 1


def test_large_arrays_start_on_a_page(tmp_path: Path) -> None:
    write_asdf(tmp_path / "a.asdf", {name: np.ones(40_001 * n, "f4") for n, name in enumerate("xyz", 1)})
    blocks = open_container(tmp_path / "a.asdf").blocks
    assert [block.offset % 4096 for block in blocks] == [0, 0, 0]


def test_a_mapping_is_copy_on_write(tmp_path: Path) -> None:
    path = tmp_path / "a.asdf"
    write_array_file(path, np.zeros((64, 4096), "f4"))
    before = path.read_bytes()
    mapped = map_array_file(path).array
    mapped += 1
    assert path.read_bytes() == before
    assert map_array_file(path).array.max() == 0


def test_a_read_only_mapping_refuses_writing_and_survives_dropped_pages(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(64, 4096))
    write_array_file(tmp_path / "a.asdf", array)
    mapped = map_array_file(tmp_path / "a.asdf", writable=False)
    with pytest.raises(ValueError, match="read-only"):
        mapped.array[0, 0] = 1
    mapped.drop_pages()
    np.testing.assert_array_equal(mapped.array, array)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_cut_off_array_is_refused_by_name(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.asdf"
    write_array_file(path, np.ones(50_000, "f4"))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(PermanentError, match=r"a\.asdf: truncated"):
        map_array_file(path)


def test_a_missing_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.asdf"
    write_array_file(path, np.ones(50_000, "f4"))
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(b"\xd3BLK")])
    with pytest.raises(PermanentError, match="truncated: data block 0 is missing"):
        map_array_file(path)


def test_a_tree_without_the_array_is_refused(tmp_path: Path) -> None:
    write_asdf(tmp_path / "a.asdf", {"other": 1})
    with pytest.raises(PermanentError, match="not a payload array"):
        map_array_file(tmp_path / "a.asdf")


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"meta\.here\.1"):
        write_asdf(tmp_path / "a.asdf", {"meta": {"here": [1, object()]}})
    with pytest.raises(TypeError, match="dtype"):
        write_asdf(tmp_path / "a.asdf", {"meta": np.array(["text"])})


TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | TEXT
    | st.sampled_from(["2027-01-01", "yes", "null", "~", "1e5", "0o7", "12:30:45", "- a", "a: b", "!x", "&a", "*a"])
)  # fmt: skip
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20
)


@settings(deadline=None, max_examples=150)
@given(tree=TREES)
def test_any_tree_of_plain_values_comes_back_as_it_was(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tree") / "t.asdf"
    write_asdf(path, {"tree": tree})
    assert _same(plain(open_container(path).tree["tree"]), tree)


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return type(found) is float and (found == expected or (math.isnan(found) and math.isnan(expected)))
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and list(found) == list(expected)
            and all(_same(found[k], expected[k]) for k in expected)
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(_same, found, expected))
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("scale", ["utc", "tai"])
@pytest.mark.parametrize("text", ["2027-03-01T00:00:00.000", "2027-03-01T23:59:59.123456789"])
def test_times_keep_their_digits(tmp_path: Path, text: str, scale: str) -> None:
    time = Time(text, scale=scale)
    write_asdf(tmp_path / "t.asdf", {"t": time})
    found = plain(open_container(tmp_path / "t.asdf").tree["t"])
    assert found.scale == scale
    assert abs((found - time).to_value("ns")) < 0.01


@pytest.mark.parametrize(("compression", "threads"), [("lz4", 1), ("lz4", 2), ("zlib", 1), ("bzp2", 1), (None, 1)])
def test_files_of_the_asdf_library_are_read(tmp_path: Path, compression: str | None, threads: int) -> None:
    shape = (11, 250, 1000) if compression == "lz4" else (4, 30, 50)  # more than one 4 MB piece
    array = np.random.default_rng(0).integers(0, 50, shape, dtype=np.uint16)
    asdf.AsdfFile({"a": array, "b": array[::2, 5:9], "c": np.arange(4), "d": array.astype(">f8")[0]}).write_to(
        tmp_path / "a.asdf", all_array_compression=compression
    )
    container = open_container(tmp_path / "a.asdf")
    for key, expected in (("a", array), ("b", array[::2, 5:9]), ("c", np.arange(4)), ("d", array[0])):
        np.testing.assert_array_equal(container.map_array(plain(container.tree[key]), threads=threads).array, expected)


def test_a_damaged_lz4_block_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.asdf"
    asdf.AsdfFile({"a": np.random.default_rng(0).integers(0, 9, 100_000)}).write_to(path, all_array_compression="lz4")
    container = open_container(path)
    raw = bytearray(path.read_bytes())
    raw[container.blocks[0].offset : container.blocks[0].offset + 4] = b"\0\0\0\x20"
    path.write_bytes(raw)
    with pytest.raises(PermanentError, match=r"a\.asdf: an lz4 data block is damaged"):
        container.map_array(plain(container.tree["a"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"SIMPLE  =", "not an ASDF file"), (b"", "not an ASDF file"),
     (b"#ASDF 1.0.0\n%YAML 1.1\n---\na: 1\n", "truncated"),
     (b"#ASDF 1.0.0\n%YAML 1.1\n---\na: [1\n...\n", "not valid YAML"),
     (b"#ASDF 1.0.0\n%YAML 1.1\n---\n[1]\n...\n", "no mapping")],
)  # fmt: skip
def test_what_is_not_asdf_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.asdf").write_bytes(content)
    with pytest.raises(PermanentError, match=rf"x\.asdf: .*{message}"):
        open_container(tmp_path / "x.asdf")
    with pytest.raises(PermanentError, match="no such file"):
        open_container(tmp_path / "y.asdf")
    with pytest.raises(PermanentError, match="a directory"):
        open_container(tmp_path)
