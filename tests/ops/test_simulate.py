"""What `rampstream simulate` promises of the files that it writes."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest
import roman_datamodels.datamodels as rdm
from astropy.io import fits
from pyarrow import parquet

from ops import simulate as verb
from ops.simulate import SimulateOptions, Variant, simulation
from ops.simulate.cli import options_from
from ops.simulate.plan import plan_exposures
from ops.simulate.references import ReferenceSet
from stream.failure import PermanentError

ROWS = 64
PATTERN = ((1,), (2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12))
QUICK: dict[str, Any] = {"rows": ROWS, "read_pattern": PATTERN, "galaxies": 2}
REFERENCE_TYPES = {
    "mask", "saturation", "refpix", "darkdecaysignal", "linearity", "inverselinearity", "integralnonlinearity",
    "readnoise", "gain", "dark", "distortion", "photom", "flat", "apcorr", "epsf",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One detector, two exposures."""
    options = SimulateOptions(out=tmp_path_factory.mktemp("made"), dithers=2, threads=1, **QUICK)
    return simulation.simulate(options)


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each kind of exposure once, of the last detector."""
    options = SimulateOptions(
        out=tmp_path_factory.mktemp("variants"), detectors=("WFI18",), variants=tuple(Variant), **QUICK
    )
    return simulation.simulate(options)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def arrays(path: Path) -> dict[str, np.ndarray]:
    with asdf.open(path) as file:
        return {name: np.array(file["roman"][name]) for name in ("data", "amp33")}


def test_equal_seeds_give_equal_bytes_whatever_the_number_of_threads(made: Any, tmp_path: Path) -> None:
    again = simulation.simulate(SimulateOptions(out=tmp_path, dithers=2, threads=2, **QUICK))
    first, second = made.exposures[0].parents[1], tmp_path
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    assert len(again.exposures) == 2
    assert {name: digest(first / name) for name in names} == {name: digest(second / name) for name in names}


def test_another_seed_gives_other_data(made: Any, tmp_path: Path) -> None:
    other = simulation.simulate(SimulateOptions(out=tmp_path, seed=2, **QUICK))
    assert np.mean(arrays(other.exposures[0])["data"] != arrays(made.exposures[0])["data"]) > 0.9


def test_adding_detectors_exposures_and_variants_changes_no_other_exposure(made: Any, tmp_path: Path) -> None:
    options = SimulateOptions(
        out=tmp_path, dithers=3, detectors=("WFI02", "WFI01"), variants=(Variant.DARK, Variant.IMAGING), **QUICK
    )
    simulation.simulate(options)
    for path in made.exposures:
        mine, theirs = arrays(path), arrays(tmp_path / "l1" / path.name)
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_every_exposure_and_reference_is_valid(variants: Any) -> None:
    paths = [*variants.exposures, *variants.references.glob("*.asdf")]
    for path in paths:
        with rdm.open(path) as model:
            model.validate()
            if path in variants.exposures:
                assert isinstance(model, rdm.ScienceRawModel)
                assert model.meta.filename == path.name
                assert model.data.shape == (5, ROWS, 4096)
                assert model.amp33.shape == (5, ROWS, 128)


def test_the_set_has_every_reference_of_each_detector_and_element(variants: Any) -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for path in variants.references.glob("*.asdf"):
        with asdf.open(path) as file:
            meta = file["roman"]["meta"]
            key = (meta["instrument"]["detector"], meta["instrument"].get("optical_element", ""))
            found.setdefault(meta["reftype"].lower(), set()).add(key)
            if "exposure" in meta:
                types = set(meta["exposure"]["p_exptype"].strip("|").split("|"))
                assert {"WFI_IMAGE", "WFI_SPECTRAL", "WFI_IM_DARK", "WFI_SP_DARK", "WFI_FLAT", "WFI_LOLO"} <= types
    assert set(found) == REFERENCE_TYPES
    assert {element for _, element in found["distortion"]} == {"F158", "GRISM", "PRISM", "DARK"}
    assert {element for _, element in found["flat"]} == {"F158"}
    fields = {fits.getheader(path)["FIELD"] for path in variants.references.glob("*.fits")}
    assert fields == {"north", "south"}


def test_references_can_be_mapped(made: Any) -> None:
    """Large arrays are neither compressed nor inline."""
    for path in made.references.glob("*.asdf"):
        with asdf.open(path) as file:
            for block in file._blocks.blocks:
                assert not block.header["compression"].strip(b"\0")


def test_each_variant_has_its_exposure_type_and_element(variants: Any) -> None:
    found = []
    for path in variants.exposures:
        with asdf.open(path) as file:
            meta = file["roman"]["meta"]
            found.append((meta["exposure"]["type"], meta["instrument"]["optical_element"]))
    assert found == [
        ("WFI_IMAGE", "F158"),
        ("WFI_SPECTRAL", "GRISM"),
        ("WFI_SPECTRAL", "PRISM"),
        ("WFI_IMAGE", "F158"),
        ("WFI_IM_DARK", "DARK"),
        ("WFI_SP_DARK", "DARK"),
        ("WFI_FLAT", "F158"),
        ("WFI_LOLO", "F158"),
        ("WFI_WFSC", "F158"),
        ("WFI_IMAGE", "F158"),
        ("WFI_IMAGE", "F158"),
        ("WFI_IMAGE", "F158"),
    ]


def test_a_flooded_exposure_is_saturated_in_every_element(variants: Any) -> None:
    path = variants.exposures[list(Variant).index(Variant.SATURATED)]
    with asdf.open(path) as file, asdf.open(variants.references / "roman_wfi_wfi18_saturation.asdf") as reference:
        assert np.all(np.array(file["roman"]["resultantdq"]) & 2)
        thresholds = np.array(reference["roman"]["data"])
        data = (
            np.array(file["roman"]["data"]).astype(np.float64)
            - file["roman"]["meta"]["instrument"]["data_encoding_offset"]
        )
    usable = np.isfinite(thresholds)
    assert usable.mean() > 0.999
    assert np.all(data[:, usable] >= thresholds[usable])


def test_first_read_and_differences_add_up_to_plain_resultants(variants: Any) -> None:
    path = variants.exposures[list(Variant).index(Variant.REFERENCE_READ)]
    with asdf.open(path) as file:
        node = file["roman"]
        whole = np.array(node["data"]).astype(np.int64) + np.array(node["reference_read"])
        offset = node["meta"]["instrument"]["data_encoding_offset"]
        first = np.array(node["reference_read"])
        assert np.array(node["reference_amp33"]).shape == (ROWS, 128)
    # The first resultant is the first read alone.
    assert np.array_equal(whole[0] - offset, first)
    # With the first read added back, all resultants are above the pedestal; the differences alone are near the offset.
    assert np.all(np.median(whole, axis=(1, 2)) > 600)
    assert np.all(np.median(whole - first, axis=(1, 2)) < 350)


def test_no_dark_pixel_starts_at_the_converters_floor(made: Any) -> None:
    for path in made.exposures:
        assert arrays(path)["data"].min() > 200 + 100


def test_observation_id_tells_exposures_apart_and_unites_detectors(tmp_path: Path) -> None:
    plan = plan_exposures(SimulateOptions(out=tmp_path, dithers=3, detectors=("WFI01", "WFI02")))
    assert [len(exposure.observation_id) for exposure in plan] == [28, 28, 28]
    assert len({exposure.observation_id for exposure in plan}) == 3
    for exposure in plan:
        names = {exposure.file_name(detector) for detector in exposure.detectors}
        assert len(names) == 2
        assert all(name.startswith(f"r{exposure.visit_id}_{exposure.number:04d}_wfi") for name in names)


def test_association_members_exist_and_stay_in_order(made: Any) -> None:
    (path,) = made.associations
    document = json.loads(path.read_text())
    (product,) = document["products"]
    members = [(path.parent / member["expname"]).resolve() for member in product["members"]]
    assert members == [exposure.resolve() for exposure in made.exposures]
    assert {member["exptype"] for member in product["members"]} == {"science"}


def test_small_frames_have_enough_stars_to_align(made: Any) -> None:
    listed = set(parquet.read_table(made.gaia)["objID"].to_pylist())
    for path in made.exposures:
        stars = parquet.read_table(made.truth / f"{path.stem.removesuffix('_uncal')}_stars.parquet")
        bright = [i for i, mag in zip(stars["id"].to_pylist(), stars["mag"].to_pylist(), strict=True) if mag < 21.5]
        assert len(bright) >= 30
        assert set(bright) <= listed


def test_a_folder_keeps_the_references_of_one_seed(made: Any) -> None:
    out = made.truth.parent
    with pytest.raises(PermanentError, match="seed 1, rows 64, but generation 1, seed 2"):
        simulation.simulate(SimulateOptions(out=out, seed=2, **QUICK))


def test_references_are_written_once(made: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.references.iterdir()}
    lines: list[str] = []
    simulation.simulate(SimulateOptions(out=made.truth.parent, dithers=2, **QUICK), lines.append)
    assert {path: path.stat().st_mtime_ns for path in made.references.iterdir()} == before
    assert lines == [f"exposed {path.name}" for path in made.exposures]


def test_a_steady_stream_keeps_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    started = []

    def expose(exposure: Any, detector: str, **_rest: Any) -> Path:
        started.append((now[0] - 1000.0, exposure.number))
        now[0] += 7.0
        return tmp_path / str(exposure.file_name(detector))

    def sleep(seconds: float) -> None:
        assert seconds >= 0
        now[0] += seconds

    monkeypatch.setattr(simulation, "expose_detector", expose)
    monkeypatch.setattr(ReferenceSet, "ensure", lambda *_arguments: None)
    options = SimulateOptions(out=tmp_path, rows=ROWS, dithers=2, exposures=2, rate=360.0)
    simulation.simulate(options, clock=lambda: now[0], sleep=sleep)
    assert started == [(0.0, 1), (10.0, 2), (20.0, 3), (30.0, 4)]


def test_the_command_line_makes_options(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    words = (
        "--detectors WFI01,WFI02 --dithers 3 --rows 128 --variant grism,saturated --read-pattern 1;2-3;4-8 --rate 60"
    )
    options = options_from(parser.parse_args(["--out", str(tmp_path), *words.split()]))
    assert options.detectors == ("WFI01", "WFI02")
    assert options.variants == (Variant.GRISM, Variant.SATURATED)
    assert options.read_pattern == ((1,), (2, 3), (4, 5, 6, 7, 8))
    assert (options.dithers, options.rows, options.rate, options.seed) == (3, 128, 60.0, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--detectors WFI19", "--detectors: .*WFI01 to WFI18, found WFI19"),
        ("--rows 32", "--rows: .*greater than or equal to 64"),
        ("--variant spiral", "--variants: .*imaging"),
        ("--read-pattern 2;1", "--read-pattern: .*rising read numbers"),
        ("--optical-element GRISM", "--optical-element: .*F158"),
    ],
)
def test_wrong_options_are_refused_by_name(tmp_path: Path, words: str, message: str) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    with pytest.raises(PermanentError, match=message):
        options_from(parser.parse_args(["--out", str(tmp_path), *words.split()]))


def test_the_verb_prints_one_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    words = f"--out {tmp_path} --rows 64 --variant saturated --json"
    assert verb.run(parser.parse_args(words.split())) == 0
    output = capsys.readouterr()
    assert output.err == ""
    document = json.loads(output.out)
    assert [Path(path).name for path in document["exposures"]] == ["r0000101001001004001_0001_wfi01_uncal.asdf"]
    assert all(Path(path).exists() for path in document["exposures"])
