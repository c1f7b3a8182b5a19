"""References are opened mapped and read-only, and chosen by their own metadata, by the mission's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.reference_selection import OPTIONAL_TYPES, DirectoryReferences
from stages.references import Reference, check_shape, open_reference
from stream.failure import PermanentError
from stream.stage import ReferenceSource
from tests.stages.input_files import write_reference

FACTS: dict[str, Any] = {
    "detector": "WFI01",
    "optical_element": "F158",
    "exposure_type": "WFI_IMAGE",
    "start_time": "2027-03-01T00:00:00.123",
}


def source(directory: Path, **options: Any) -> DirectoryReferences:
    made = DirectoryReferences(directory, **options)
    checked: ReferenceSource = made
    assert checked is made
    return made


# --- opening -----------------------------------------------------------------------------------------------------


def test_arrays_are_mapped_read_only(tmp_path: Path) -> None:
    coeffs = np.random.default_rng(0).normal(size=(3, 100, 4096)).astype("f4")
    path = write_reference(tmp_path / "lin.asdf", "linearity", coeffs=coeffs, dq=np.zeros((100, 4096), "u4"))
    reference = Reference(path)
    array = reference.array("coeffs")
    np.testing.assert_array_equal(array, coeffs)
    assert not array.flags.writeable
    assert not array.flags.owndata
    assert array.ctypes.data % 4096 == 0
    assert reference.is_aligned("coeffs")
    assert reference.array("coeffs") is array
    assert reference.recorded_name == str(path.absolute())
    reference.drop_pages()
    np.testing.assert_array_equal(array, coeffs)


def test_values_are_plain(tmp_path: Path) -> None:
    table = {"WFI01": {"amplitude": 1.5, "time_constant": None}}
    curve = np.arange(600.0)
    path = write_reference(tmp_path / "d.asdf", "darkdecaysignal", decay_table=table, inl={"correction": curve, "n": 3})
    reference = Reference(path)
    assert reference.value("decay_table") == table
    assert reference.value("decay_table", "WFI01", "amplitude") == 1.5
    assert reference.value("meta", "useafter").isot == "2020-01-01T00:00:00.000"
    np.testing.assert_array_equal(reference.value("inl")["correction"], curve)


def test_models_are_read_by_the_library(tmp_path: Path) -> None:
    from astropy.modeling import models

    model = models.Shift(1.5) & models.Shift(2.5)
    asdf.AsdfFile({"roman": {"meta": {"reftype": "DISTORTION"}, "transform": model}}).write_to(tmp_path / "m.asdf")
    reference = Reference(tmp_path / "m.asdf")
    assert reference.value("transform")(1, 2) == (2.5, 4.5)
    assert reference.value("transform") is reference.value("transform")


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("compression", ["lz4", None])
@pytest.mark.parametrize("dtype", ["f4", ">f4"])
def test_compressed_and_unaligned_arrays_are_equal(
    tmp_path: Path, cached: bool, compression: str | None, dtype: str
) -> None:
    data = np.random.default_rng(0).integers(0, 99, (100, 4096)).astype(dtype)
    path = tmp_path / "g.asdf"
    for padding in range(4):  # until the library happens to put the block where f4 is not aligned
        tree = {"roman": {"meta": {}, "data": data, "pad": "x" * padding}}
        asdf.AsdfFile(tree).write_to(path, all_array_compression=compression)
        if not Reference(path).is_aligned("data"):
            break
    reference = Reference(path, cache=tmp_path / "cache" if cached else None)
    assert not reference.is_aligned("data")
    array = reference.array("data")
    np.testing.assert_array_equal(array, data)
    assert array.dtype == np.dtype("f4")
    assert not array.flags.writeable
    if cached:
        assert array.ctypes.data % 4096 == 0
        (kept,) = (tmp_path / "cache").iterdir()
        stamp = kept.stat().st_mtime_ns
        Reference(path, cache=tmp_path / "cache").array("data")
        assert kept.stat().st_mtime_ns == stamp, "unpacked once, not at every opening"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    reference = Reference(write_reference(tmp_path / "g.asdf", "gain", data=np.zeros((4, 4), "f4"), x=1))
    with pytest.raises(PermanentError, match=r"g\.asdf: roman\.coeffs is missing"):
        reference.array("coeffs")
    with pytest.raises(PermanentError, match=r"roman\.x is a int; expected an array"):
        reference.array("x")
    with pytest.raises(PermanentError, match=r"roman\.meta\.oversample is missing"):
        reference.value("meta", "oversample")


def test_shapes_are_checked_against_the_exposure(tmp_path: Path) -> None:
    path = write_reference(tmp_path / "lin.asdf", "linearity", coeffs=np.zeros((3, 16, 4096), "f4"))
    reference = Reference(path)
    assert check_shape(reference, "coeffs", expected=(None, 16, 4096)).shape == (3, 16, 4096)
    with pytest.raises(PermanentError, match=r"lin\.asdf: coeffs has shape \(3, 16, 4096\); .* \(any, 32, 4096\)"):
        check_shape(reference, "coeffs", expected=(None, 32, 4096))
    with pytest.raises(PermanentError, match="has dtype float32; expected float64"):
        check_shape(reference, "coeffs", expected=(3, 16, 4096), dtype="f8")


def test_dust_maps_are_fits(tmp_path: Path) -> None:
    data = np.arange(12.0, dtype=">f4").reshape(3, 4)
    header = fits.Header({"FIELD": "north", "CRPIX1": 2.5})
    fits.PrimaryHDU(data, header).writeto(tmp_path / "n.fits")
    reference = open_reference(tmp_path / "n.fits")
    np.testing.assert_array_equal(reference.array(), data)
    assert reference.array().dtype == np.dtype("f4")
    assert reference.value("header", "CRPIX1") == 2.5
    assert reference.value("header")["FIELD"] == "north"
    with pytest.raises(PermanentError, match="no card 'NOPE'"):
        reference.value("header", "NOPE")
    with pytest.raises(PermanentError, match="no array"):
        reference.array("coeffs")


# --- selection ---------------------------------------------------------------------------------------------------


def test_the_latest_file_not_after_the_exposure_wins(tmp_path: Path) -> None:
    for day in ("2025-01-01", "2027-02-28", "2027-03-02"):
        write_reference(tmp_path / "deep" / "er" / f"{day}.asdf", "gain", useafter=day)
    assert Path(source(tmp_path).select("gain", FACTS) or "").name == "2027-02-28.asdf"


def test_useafter_counts_to_the_millisecond(tmp_path: Path) -> None:
    write_reference(tmp_path / "a.asdf", "gain", useafter="2027-03-01T00:00:00.123")
    write_reference(tmp_path / "b.asdf", "gain", useafter="2027-03-01T00:00:00.124")
    assert Path(source(tmp_path).select("gain", FACTS) or "").name == "a.asdf"


@pytest.mark.parametrize("reftype", ["mask", "saturation", "linearity", "refpix", "gain", "photom", "apcorr"])
def test_the_detector_decides(tmp_path: Path, reftype: str) -> None:
    for n in (1, 2):
        write_reference(tmp_path / f"{n}.asdf", reftype, detector=f"WFI0{n}")
    assert Path(source(tmp_path).select(reftype, FACTS | {"detector": "WFI02"}) or "").name == "2.asdf"


@pytest.mark.parametrize("reftype", ["flat", "distortion", "epsf"])
def test_the_optical_element_decides(tmp_path: Path, reftype: str) -> None:
    for element in ("F158", "F062"):
        write_reference(tmp_path / f"{element}.asdf", reftype, element=element)
    assert Path(source(tmp_path).select(reftype, FACTS) or "").name == "F158.asdf"


@pytest.mark.parametrize("reftype", ["dark", "readnoise"])
def test_the_exposure_type_decides_also_as_one_of_several(tmp_path: Path, reftype: str) -> None:
    write_reference(tmp_path / "a.asdf", reftype, exposure={"type": "WFI_IMAGE", "p_exptype": "WFI_IMAGE|WFI_WFSC|"})
    write_reference(tmp_path / "b.asdf", reftype, exposure={"type": "WFI_SPECTRAL", "p_exptype": "WFI_SPECTRAL|"})
    chosen = source(tmp_path)
    for exposure_type, name in (("WFI_IMAGE", "a"), ("WFI_WFSC", "a"), ("WFI_SPECTRAL", "b")):
        assert Path(chosen.select(reftype, FACTS | {"exposure_type": exposure_type}) or "").stem == name


def test_dark_decay_is_one_file_for_all_detectors(tmp_path: Path) -> None:
    write_reference(tmp_path / "a.asdf", "darkdecaysignal", detector="WFI07")
    assert source(tmp_path).select("darkdecaysignal", FACTS)


def test_a_file_that_names_the_key_beats_one_for_all(tmp_path: Path) -> None:
    write_reference(tmp_path / "all.asdf", "flat", element="N/A", useafter="2026-01-01")
    write_reference(tmp_path / "own.asdf", "flat", element="F158", useafter="2021-01-01")
    chosen = source(tmp_path)
    assert Path(chosen.select("flat", FACTS) or "").name == "own.asdf"
    assert Path(chosen.select("flat", FACTS | {"optical_element": "F062"}) or "").name == "all.asdf"


def test_dust_maps_are_found_by_their_field(tmp_path: Path) -> None:
    for field in ("north", "south", "elsewhere"):
        fits.PrimaryHDU(np.zeros((2, 2)), fits.Header({"FIELD": field})).writeto(tmp_path / f"{field}.fits")
    chosen = source(tmp_path)
    assert Path(chosen.select("dustmap_north", FACTS) or "").name == "north.fits"
    assert Path(chosen.select("dustmap_south", FACTS) or "").name == "south.fits"


@pytest.mark.parametrize("reftype", sorted(OPTIONAL_TYPES))
def test_an_optional_type_without_a_file_is_na(tmp_path: Path, reftype: str) -> None:
    assert source(tmp_path).select(reftype, FACTS) is None


@pytest.mark.parametrize("reftype", ["gain", "readnoise", "darkdecaysignal", "apcorr", "epsf"])
def test_a_required_type_without_a_file_is_an_error_that_names_the_keys(tmp_path: Path, reftype: str) -> None:
    write_reference(tmp_path / "late.asdf", reftype, useafter="2028-01-01")
    with pytest.raises(PermanentError, match=f"no reference file of type {reftype} for .*2027-03-01") as caught:
        source(tmp_path).select(reftype, FACTS)
    assert reftype == "darkdecaysignal" or "detector WFI01" in str(caught.value)


def test_two_equally_good_files_are_an_error_that_names_both(tmp_path: Path) -> None:
    write_reference(tmp_path / "a.asdf", "gain")
    write_reference(tmp_path / "b.asdf", "gain")
    with pytest.raises(PermanentError, match=r"a\.asdf and .*b\.asdf; remove one or pin"):
        source(tmp_path).select("gain", FACTS)
    assert Path(source(tmp_path, pinned={"gain": tmp_path / "b.asdf"}).select("gain", FACTS) or "").name == "b.asdf"


def test_a_pinned_file_is_used_whatever_the_dates(tmp_path: Path) -> None:
    write_reference(tmp_path / "refs" / "a.asdf", "flat", element="F158")
    late = write_reference(tmp_path / "mine.asdf", "flat", element="F158", useafter="2028-01-01")
    assert source(tmp_path / "refs", pinned={"flat": str(late)}).select("flat", FACTS) == str(late)
    assert source(tmp_path / "refs", pinned={"flat": "N/A"}).select("flat", FACTS) is None


def test_a_pinned_file_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    gain = write_reference(tmp_path / "g.asdf", "gain", detector="WFI02")
    with pytest.raises(PermanentError, match=r"g\.asdf: pinned as reference of type flat, .* says gain"):
        DirectoryReferences(None, pinned={"flat": gain})
    with pytest.raises(PermanentError, match="is for WFI02 and the exposure's detector is WFI01"):
        DirectoryReferences(None, pinned={"gain": gain}).select("gain", FACTS)
    with pytest.raises(PermanentError, match="no such file; pinned"):
        DirectoryReferences(None, pinned={"flat": tmp_path / "none.asdf"})
    with pytest.raises(PermanentError, match="no reference file of type gain"):
        DirectoryReferences(None, pinned={"gain": "N/A"}).select("gain", FACTS)


def test_other_files_are_ignored_and_damaged_ones_are_not(tmp_path: Path) -> None:
    write_reference(tmp_path / "g.asdf", "gain")
    (tmp_path / "notes.txt").write_text("x")
    asdf.AsdfFile({"a": 1}).write_to(tmp_path / "other.asdf")
    assert source(tmp_path).select("gain", FACTS)
    whole = write_reference(tmp_path / "h.asdf", "gain", detector="WFI02", data=np.zeros((64, 4096), "f4"))
    whole.write_bytes(whole.read_bytes()[:9000])
    with pytest.raises(PermanentError, match=r"h\.asdf: truncated"):
        source(tmp_path).select("gain", FACTS)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="no such directory of reference files"):
        DirectoryReferences(tmp_path / "nowhere")


FILES = st.lists(
    st.tuples(st.sampled_from(["WFI01", "WFI02"]), st.sampled_from(["F158", "F062", "N/A"]), st.integers(1, 9)),
    min_size=1, max_size=6, unique=True,
)  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(files=FILES, day=st.integers(1, 9), element=st.sampled_from(["F158", "F062"]))
def test_selection_equals_the_rule_spelled_out(
    files: list[tuple[str, str, int]], day: int, element: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("refs")
    for detector, own, useafter in files:
        name = f"{detector}-{own.replace('/', '')}-{useafter}.asdf"
        write_reference(folder / name, "flat", detector=detector, element=own, useafter=f"2027-01-0{useafter}")
    facts = FACTS | {"start_time": f"2027-01-0{day}T12:00:00.000", "optical_element": element}
    fitting = [
        (own == element, useafter) for detector, own, useafter in files
        if detector == "WFI01" and own in {element, "N/A"} and useafter <= day
    ]  # fmt: skip
    found = source(folder).select("flat", facts)
    if not fitting:
        assert found is None
    else:
        own, useafter = max(fitting)
        assert Path(found or "").name == f"WFI01-{element if own else 'NA'}-{useafter}.asdf"


# --- digests -----------------------------------------------------------------------------------------------------


def test_a_digest_is_computed_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_reference(tmp_path / "refs" / "g.asdf", "gain", data=np.ones((64, 4096), "f4"))
    digest = source(tmp_path / "refs", cache=tmp_path / "cache").digest(str(path))
    assert len(digest) == 64
    import hashlib

    def refuse(*_: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    monkeypatch.setattr("stages.reference_selection.open_container", refuse)
    again = source(tmp_path / "refs", cache=tmp_path / "cache")
    assert again.select("gain", FACTS) == str(path)
    assert again.digest(str(path)) == digest


def test_a_changed_file_gets_a_new_digest_at_the_next_start_and_an_error_while_running(tmp_path: Path) -> None:
    path = write_reference(tmp_path / "refs" / "g.asdf", "gain", data=np.ones(4, "f4"))
    running = source(tmp_path / "refs", cache=tmp_path / "cache")
    before = running.digest(str(path))
    write_reference(path, "gain", data=np.ones(5, "f4"))
    for action in (running.digest, running.open):
        with pytest.raises(PermanentError, match=r"g\.asdf: the reference file changed while it was in use"):
            action(str(path))
    assert source(tmp_path / "refs", cache=tmp_path / "cache").digest(str(path)) != before
    path.unlink()
    with pytest.raises(PermanentError, match="is gone"):
        running.digest(str(path))


def test_a_damaged_cache_is_ignored(tmp_path: Path) -> None:
    path = write_reference(tmp_path / "refs" / "g.asdf", "gain", data=np.ones(4, "f4"))
    digest = source(tmp_path / "refs", cache=tmp_path / "cache").digest(str(path))
    for kept in (tmp_path / "cache" / "files").iterdir():
        kept.write_text("{broken")
    assert source(tmp_path / "refs", cache=tmp_path / "cache").digest(str(path)) == digest


def test_an_opened_reference_is_kept(tmp_path: Path) -> None:
    path = write_reference(tmp_path / "g.asdf", "gain", data=np.ones((4, 4), "f4"))
    opened = source(tmp_path)
    assert opened.open(str(path)) is opened.open(str(path))
    np.testing.assert_array_equal(opened.open(str(path)).array("data"), np.ones((4, 4)))
