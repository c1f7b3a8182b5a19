"""Whatever is wrong with one input, its reason is told by name and every other exposure gets its products."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from astropy.table import Table

import ops.ingest
import ops.job
import ops.projection
import ops.run
from ops import cli
from stages.l1 import open_l1
from stream.failure import FatalError, PermanentError
from stream.stage import Slot
from tests.conftest import Simulated, command, run_in_process
from tests.e2e.bad_inputs import (
    association,
    equal_flats,
    linked_references,
    sourceless,
    wrong_files,
)
from tests.stages.input_files import write_l1

SUFFIXES = ("_cal.asdf", "_cat.parquet", "_segm.asdf", "_wcs.asdf")
WRONG = (
    "not ASDF", "empty", "cut off", "model", "no roman", "columns", "dtype", "read pattern", "resultant count",
    "metadata", "nowhere", "rows", "no reference", "two references",
)  # fmt: skip
BAD_ASSOCIATIONS = {
    "text_asn.json": "the file is not JSON",
    "noproducts_asn.json": "products is an empty list; expected one product",
    "noname_asn.json": r"products\[0\]\.name is None; expected the name of the product",
    "absent_asn.json": r"1 member files do not exist: products\[0\]\.members\[1\]\.expname 'absent_uncal.asdf'",
    "twice_asn.json": r"products\[0\]\.members\[1\]\.expname .* is the same exposure",
    "slash_asn.json": r"products\[0\]\.name is '\.\./up'; expected a name without path separators",
    "nofile_asn.json": "no such association file",
}


@dataclass(frozen=True)
class MixedRun:
    """One run over a good exposure and everything that is wrong."""

    root: Path
    simulated: Simulated
    wrong: dict[str, tuple[Path, str]]
    report: dict[str, Any]

    @property
    def good(self) -> Path:
        return self.simulated.exposures[0]

    @property
    def out(self) -> Path:
        return self.root / "out"

    def row(self, exposure: str, product: str = "") -> dict[str, Any]:
        found: dict[str, Any]
        (found,) = [
            row
            for row in self.report["exposures"]
            if row["exposure"] == exposure and row["association"].startswith(product or exposure)
        ]
        return found


class WithReferences(Simulated):
    """A simulation whose references are a folder of the test's own."""

    @property
    def references(self) -> Path:
        return self.root / "references"

    @property
    def exposures(self) -> list[Path]:
        return [self.root / "l1" / path.name for path in sorted((self.root / "l1").glob("*_uncal.asdf"))]


def exposure_of(path: Path) -> str:
    return path.name.removesuffix("_uncal.asdf")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("r*") if path.is_file()}


def bad_associations(folder: Path, good: Path) -> list[Path]:
    (folder / "text_asn.json").write_text("products: []")
    (folder / "noproducts_asn.json").write_text('{"products": []}')
    (folder / "noname_asn.json").write_text(
        json.dumps({"products": [{"members": [{"expname": str(good), "exptype": "science"}]}]})
    )
    association(folder / "absent_asn.json", "absent", [good, Path("absent_uncal.asdf")])
    association(folder / "twice_asn.json", "twice", [good, good])
    association(folder / "slash_asn.json", "../up", [good])
    return [folder / name for name in BAD_ASSOCIATIONS]


@pytest.fixture(scope="module")
def own(simulated: Simulated, tmp_path_factory: pytest.TempPathFactory) -> WithReferences:
    root = tmp_path_factory.mktemp("own")
    linked_references(simulated.references, root / "references")
    equal_flats(root / "references", "F129")
    (root / "l1").mkdir()
    shutil.copy(simulated.exposures[0], root / "l1")
    shutil.copy(simulated.gaia, root / "gaia.parquet")
    return WithReferences(root)


@pytest.fixture(scope="module")
def mixed(own: WithReferences) -> MixedRun:
    root, good = own.root, own.exposures[0]
    wrong = wrong_files(root / "wrong")
    sourceless(good, root / "r0000101001001001050_0001_wfi01_uncal.asdf")
    twins = [root / place / "r0000101001001001060_0001_wfi01_uncal.asdf" for place in ("here", "there")]
    for twin in twins:
        twin.parent.mkdir()
        write_l1(twin)
    late = write_l1(root / "r0000101001001001070_0001_wfi01_uncal.asdf", rows=128)
    joint = association(root / "joint_asn.json", "joint", [good, wrong["not ASDF"][0]])
    inspect = ops.ingest.inspect

    def inspect_then_change(entry: Any) -> None:
        inspect(entry)
        if entry.path == late:
            with late.open("ab") as file:
                file.write(b"more")

    inputs = [
        *bad_associations(root, good), *(path for path, _ in wrong.values()), *twins, late, joint, good,
        root / "r0000101001001001050_0001_wfi01_uncal.asdf",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops.run, "inspect", inspect_then_change)
        report = run_in_process(own, inputs, root / "out")
    return MixedRun(root, own, wrong, report)


def test_a_good_exposure_among_bad_ones_gets_its_products(mixed: MixedRun) -> None:
    row = mixed.row(exposure_of(mixed.good))
    assert (row["status"], row["tweakreg"], row["tweakreg_reason"]) == ("done", "COMPLETE", None)
    assert {Path(name).name for name in row["products"]} == {row["exposure"] + suffix for suffix in SUFFIXES}
    assert all(Path(name).is_file() for name in row["products"])


def test_a_run_with_bad_input_ends_with_status_1(mixed: MixedRun) -> None:
    assert mixed.report["exit"] == 1


@pytest.mark.parametrize("what", WRONG)
def test_each_bad_file_is_told_by_name_with_what_was_expected(mixed: MixedRun, what: str) -> None:
    path, pattern = mixed.wrong[what]
    row = mixed.row(exposure_of(path))
    assert row["status"] == "failed"
    assert row["products"] == []
    assert re.search(pattern, row["reason"]), row["reason"]
    assert exposure_of(path) in row["reason"]


def test_every_kind_of_bad_file_is_tried(mixed: MixedRun) -> None:
    assert tuple(mixed.wrong) == WRONG


@pytest.mark.parametrize("name", BAD_ASSOCIATIONS)
def test_each_bad_association_is_told_by_name_and_place(mixed: MixedRun, name: str) -> None:
    reason = mixed.report["refused"][str(mixed.root / name)]
    assert str(mixed.root / name) in reason
    assert re.search(BAD_ASSOCIATIONS[name], reason), reason


def test_nothing_is_visible_of_exposures_that_failed(mixed: MixedRun) -> None:
    good, sourceless_one = exposure_of(mixed.good), "r0000101001001001050_0001_wfi01"
    assert names(mixed.out) == {name + suffix for name in (good, sourceless_one) for suffix in SUFFIXES}
    assert names(mixed.out / "joint") == {good + suffix for suffix in SUFFIXES}
    assert {path.name for path in mixed.out.iterdir() if path.is_dir()} == {".rampstream", "joint"}


def test_two_files_of_one_base_name_are_both_refused_and_named(mixed: MixedRun) -> None:
    row = mixed.row("r0000101001001001060_0001_wfi01")
    assert row["status"] == "failed"
    assert "have one base name" in row["reason"]
    for place in ("here", "there"):
        assert str(mixed.root / place / "r0000101001001001060_0001_wfi01_uncal.asdf") in row["reason"]


def test_a_member_that_cannot_be_read_leaves_the_others_of_its_association_aligned(mixed: MixedRun) -> None:
    good = mixed.row(exposure_of(mixed.good), "joint")
    assert (good["status"], good["tweakreg"]) == ("done", "COMPLETE")
    bad = mixed.row(exposure_of(mixed.wrong["not ASDF"][0]), "joint")
    assert bad["status"] == "failed"
    assert "not an ASDF file" in bad["reason"]


def test_a_file_that_changes_after_it_was_ingested_is_refused(mixed: MixedRun) -> None:
    row = mixed.row("r0000101001001001070_0001_wfi01")
    assert row["status"] == "failed"
    assert row["reason"].startswith(str(mixed.root / "r0000101001001001070_0001_wfi01_uncal.asdf"))
    assert "changed after it was ingested" in row["reason"]


def test_an_exposure_without_sources_has_products_and_says_why_it_is_not_aligned(mixed: MixedRun) -> None:
    row = mixed.row("r0000101001001001050_0001_wfi01")
    assert (row["status"], row["sources"], row["tweakreg"]) == ("done", 0, "FAILED")
    assert row["tweakreg_reason"] == "all source catalogs are empty"


def test_products_are_named_after_the_file_though_its_metadata_tell_another_name(mixed: MixedRun) -> None:
    copy = mixed.root / "r0000101001001001050_0001_wfi01_uncal.asdf"  # a copy of the good one, metadata included
    assert open_l1(copy).meta["filename"] == copy.name
    assert {Path(name).name for name in mixed.row(exposure_of(copy))["products"]} == {
        exposure_of(copy) + suffix for suffix in SUFFIXES
    }


def test_a_known_name_with_other_content_is_taken_only_when_asked_for(
    mixed: MixedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / mixed.good.name
    shutil.copy(mixed.root / "r0000101001001001050_0001_wfi01_uncal.asdf", other)
    before = contents(mixed.out)
    refused = run_in_process(mixed.simulated, [other], mixed.out)
    assert refused["exit"] == 1
    (row,) = refused["exposures"]
    assert row["status"] == "failed"
    for words in (str(other), str(mixed.good), "with other content was ingested before", "--replace"):
        assert words in row["reason"]
    assert contents(mixed.out) == before

    # Nor does its association lose the member that is in.
    joint = association(tmp_path / "joint_asn.json", "joint", [other, mixed.wrong["not ASDF"][0]])
    aligned = contents(mixed.out / "joint")
    assert {name for name in aligned if name.startswith(exposure_of(mixed.good))}
    refused = run_in_process(mixed.simulated, [joint], mixed.out)
    assert [row["status"] for row in refused["exposures"]] == ["failed", "failed"]
    assert "with other content was ingested before" in refused["exposures"][0]["reason"]
    assert contents(mixed.out / "joint") == aligned

    # The disk is full as the new products are brought out: the run stops, and no half of a file is seen.
    copy = ops.projection._copy

    def full(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:1000])
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(ops.projection, "_copy", full)
    with pytest.raises(FatalError, match=rf"{exposure_of(mixed.good)}_\w+\.\w+: the product .*: the disk is full"):
        run_in_process(mixed.simulated, [other], mixed.out, "--replace")
    assert contents(mixed.out) == before
    assert not list(mixed.out.glob(".*.part"))

    monkeypatch.setattr(ops.projection, "_copy", copy)
    replaced = run_in_process(mixed.simulated, [other], mixed.out, "--replace")
    assert replaced["exit"] == 0
    assert replaced["exposures"][0]["sources"] == 0
    after = contents(mixed.out)
    assert after.keys() == before.keys()
    for suffix in SUFFIXES:
        name = exposure_of(mixed.good) + suffix
        assert after[name][1] != before[name][1]


@pytest.fixture
def ambiguous(own: WithReferences, tmp_path: Path) -> WithReferences:
    """A simulation with two equal flats for its exposure, and two stars."""
    linked_references(own.references, tmp_path / "references")
    (flat,) = own.references.glob("*f158_flat.asdf")
    shutil.copy(flat, tmp_path / "references" / "another_flat.asdf")
    Table.read(own.gaia)[:2].write(tmp_path / "gaia.parquet")
    (tmp_path / "l1").symlink_to(own.root / "l1")
    return WithReferences(tmp_path)


def test_a_pin_settles_which_reference_and_too_few_stars_leave_an_exposure_unaligned(
    ambiguous: WithReferences, tmp_path: Path
) -> None:
    pinned = tmp_path / "references" / "another_flat.asdf"
    report = run_in_process(ambiguous, ambiguous.exposures, tmp_path / "out", "--reference", f"flat={pinned}")
    (row,) = report["exposures"]
    assert (report["exit"], row["status"], row["tweakreg"]) == (0, "done", "FAILED")
    assert row["tweakreg_reason"]
    assert len(row["products"]) == 4
    assert str(pinned).encode() in next((tmp_path / "out").glob("*_cal.asdf")).read_bytes()


def test_a_reference_that_changes_while_it_is_used_fails_the_exposure(
    ambiguous: WithReferences, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "references" / "another_flat.asdf").unlink()
    (flat,) = (tmp_path / "references").glob("*f158_flat.asdf")
    content = flat.read_bytes()
    flat.unlink()
    flat.write_bytes(content)
    observe = ops.run.EmbeddedRun._observe

    def change(self: Any, event: dict[str, Any]) -> None:
        if event["event"] == "stage_started" and event["stage"] == "dq_init":
            with flat.open("ab") as file:  # never empty: the job may look just now
                file.write(b"more")
        observe(self, event)

    monkeypatch.setattr(ops.run.EmbeddedRun, "_observe", change)
    report = run_in_process(ambiguous, ambiguous.exposures, tmp_path / "out")
    (row,) = report["exposures"]
    assert (report["exit"], row["status"]) == (1, "failed")
    assert str(flat) in row["reason"]
    assert "changed while it was in use" in row["reason"]
    assert names(tmp_path / "out") == set()


# --- wrong usage and settings: status 2, and nothing is begun ------------------------------------------------------


@pytest.fixture
def failing(simulated: Simulated, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run with some words more, or others; returns what it says on standard error."""

    def run(*options: str, out: Path = tmp_path / "out", **other: Path) -> str:
        words = command(simulated, simulated.exposures, out, *options)[3:]
        for name, value in other.items():
            words[words.index(f"--{name}") + 1] = str(value)
        assert cli.main(words) == 2
        assert not list(tmp_path.glob("out/r*"))
        return capsys.readouterr().err

    return run


def test_folders_and_files_that_cannot_be_used_are_named(failing: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"{out}: a file is in the place of this folder or of one above it" in failing(out=out)
    assert f"{tmp_path / 'file'}: a file is" in failing("--work", str(tmp_path / "file"))
    assert f"--references {tmp_path / 'no'}: there is no such folder" in failing(references=tmp_path / "no")
    assert f"--gaia {tmp_path / 'no'}: there is no such file" in failing(gaia=tmp_path / "no")
    assert "no.toml: cannot be read: No such file" in failing("--config", str(tmp_path / "no.toml"))


def test_a_stage_that_does_not_exist_is_named(failing: Callable[..., str]) -> None:
    assert "there is no stage 'saturatoin'; stages are dq_init, saturation," in failing("--set", "saturatoin.skip=true")


def test_wrong_parameters_are_all_named_before_any_work(simulated: Simulated) -> None:
    environment = {
        "entries": {"saturation": "stages.saturation:SaturationStage"},
        "parameters": {"saturation": {"n_pix_grow_sat": "many", "nope": 3}},
        "references": str(simulated.references), "pins": {}, "gaia": str(simulated.gaia), "cache": "unused",
    }  # fmt: skip
    with pytest.raises(PermanentError) as caught:
        ops.job.check({"environment": environment, "stages": ["saturation"]}, Slot(), lambda _: None)
    assert "saturation.n_pix_grow_sat: Input should be a valid integer" in str(caught.value)
    assert "(got 'many')" in str(caught.value)
    assert "saturation.nope: there is no such parameter; expected one of skip, n_pix_grow_sat" in str(caught.value)


def test_a_star_table_without_positions_is_named(failing: Callable[..., str], tmp_path: Path) -> None:
    table = tmp_path / "stars.csv"
    table.write_text("x,y\n1,2\n")
    said = failing(gaia=table)
    assert f"Star table {table} must have the columns ra and dec, or sky_centroid; found x, y" in said
