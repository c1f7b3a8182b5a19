"""The recorder of comparisons: it fails outside a bar, and the page says what was seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.parity import page, record
from tests.parity.accepted import ACCEPTED
from tests.parity.page import PAGE, STAGES, accepted_table, lacking, results, sections, with_section
from tests.parity.record import EQUAL, F2, F4, Bar, compare, compare_same

ONES = np.ones(20000, np.float32)


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> list[record.Comparison]:
    """A list of its own, so that the page does not tell of these."""
    own: list[record.Comparison] = []
    monkeypatch.setattr(record, "SEEN", own)
    return own


def changed(array: np.ndarray, **values: float) -> np.ndarray:
    """The array with other values at ``_0``, ``_1``, …"""
    array = array.copy()
    for where, value in values.items():
        array[int(where[1:])] = value
    return array


@pytest.mark.parametrize(
    ("theirs", "nearest_outside"),
    [
        (ONES, 1 + 9 * 2.0**-23),  # 1e-6 of the median are 8 ulp
        (ONES.astype("f2"), 1 + 2 * 2.0**-10),
        (ONES.astype("u4"), 2),
        (ONES.astype("i2"), 0),
        (ONES.astype("f4"), np.nan),
        (ONES.astype("f4"), np.inf),
        (changed(ONES, _3=np.nan), 1.1),
        (changed(ONES, _3=np.inf), 1.1),
    ],
)
def test_a_value_outside_its_bar_fails(theirs: np.ndarray, nearest_outside: float) -> None:
    compare("refpix", "x", theirs.copy(), theirs)
    ours = theirs.copy()
    ours[3] = nearest_outside
    with pytest.raises(AssertionError, match=r"refpix: 1 of 20000 values of x are outside .* the first at \(3,\)"):
        compare("refpix", "x", ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "bar", "ulp"), [("f4", F4, 2), ("f4", F4, 8), ("f2", F2, 1), ("f4", Bar("", ulp=5), 5)]
)
def test_a_value_at_its_bar_passes_and_is_counted(
    seen: list[record.Comparison], dtype: str, bar: Bar, ulp: int
) -> None:
    theirs = ONES.astype(dtype)
    compare("refpix", "x", changed(theirs, _3=1 + ulp * float(np.spacing(theirs[0]))), theirs, bar=bar)
    assert (seen[0].values, seen[0].equal, seen[0].ulp, seen[0].outside) == (20000, 19999, ulp, {})


def test_the_type_and_the_shape_must_be_the_oracles() -> None:
    for ours in (ONES.astype("f8"), ONES[:5], ONES[:, None]):
        with pytest.raises(AssertionError, match="refpix: x"):
            compare("refpix", "x", ours, ONES)
    with pytest.raises(AssertionError, match="refpix: status"):
        compare_same("refpix", "status", "COMPLETE", "SKIPPED")


def test_differences_of_a_listed_class_pass_up_to_one_in_ten_thousand(seen: list[record.Comparison]) -> None:
    limited = next(name for name, accepted in ACCEPTED.items() if not accepted.whole)
    mask = np.arange(ONES.size) < 3
    compare("refpix", "x", changed(ONES, _0=5, _1=5), ONES, accepted={limited: mask})
    assert (seen[0].outside, seen[0].ulp) == ({limited: 2}, 0)
    with pytest.raises(AssertionError, match=limited):
        compare("refpix", "x", changed(ONES, _0=5, _1=5, _2=5), ONES, accepted={limited: mask})
    with pytest.raises(AssertionError, match="outside the bar"):
        compare("refpix", "x", changed(ONES, _9=5), ONES, accepted={limited: mask})
    with pytest.raises(KeyError):
        compare("refpix", "x", changed(ONES, _0=5), ONES, accepted={"not listed": mask})
    whole = next(name for name, accepted in ACCEPTED.items() if accepted.whole)
    compare("refpix", "x", ONES + 1, ONES, accepted={whole: ONES > 0})


def test_the_page_says_what_was_seen_by_stage(seen: list[record.Comparison], monkeypatch: pytest.MonkeyPatch) -> None:
    for case in ("a", "b"):
        monkeypatch.setenv("PYTEST_CURRENT_TEST", f"{case} (call)")
        compare("ramp_fit", "`data`", changed(ONES, _3=1 + 2.0**-23), ONES)
        compare("dq_init", "`data`", ONES, ONES, bar=EQUAL)
    text = results(seen)
    assert "4 comparisons in 2 tests" in text
    assert "\nNot compared: saturation, refpix" in text
    assert "| `data` | equal | 2 | 40000 | 0 | all | 0 |" in text
    assert "| `data` | 2 ulp or 1e-6 of the median | 2 | 40000 | 1 ulp, 1.2e-07 relative | 99.9950 % | 0 |" in text
    assert text.index("### dq_init") < text.index("### ramp_fit")
    assert set(lacking(seen)) == set(STAGES) - {"dq_init", "ramp_fit"}
    compare("no stage", "x", ONES, ONES)
    with pytest.raises(ValueError, match="no stage"):
        results(seen)


def test_the_page_is_written_from_what_several_processes_saw(
    seen: list[record.Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "parity.md"
    copy.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", copy)
    before = copy.read_text(encoding="utf-8")
    for number, stage in enumerate(STAGES):
        monkeypatch.setenv("RAMPSTREAM_PARITY", "full" if number else "")
        compare(stage, "`x`", ONES, ONES)
    record.save(tmp_path / "records" / "1.json", seen[:5])
    assert page.main([str(tmp_path / "records")]) == 1
    assert copy.read_text(encoding="utf-8") == before
    assert page.main([str(tmp_path / "records"), "--partial"]) == 0
    partial, earlier = copy.read_text(encoding="utf-8"), sections(before)
    kept = [stage for stage in STAGES[5:] if stage in earlier]
    assert f"\nFrom an earlier run: {', '.join(kept)}.\n" in partial
    assert {stage: sections(partial)[stage] for stage in kept} == {stage: earlier[stage] for stage in kept}
    assert all("| `x` |" in sections(partial)[stage] for stage in STAGES[:5])
    record.save(tmp_path / "records" / "2.json", seen[5:])
    assert page.main([str(tmp_path / "records")]) == 0
    text = copy.read_text(encoding="utf-8")
    assert text.count("| `x` | 2 ulp or 1e-6 of the median | 1 | 20000 | 0 | all | 0 |") == len(STAGES)
    assert (text.count("Short form."), text.count("At full length.")) == (1, len(STAGES) - 1)
    assert record.load(tmp_path / "records") == seen


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    page = "before\n<!-- x: generated -->\nold\n<!-- x: end -->\nafter\n"
    assert with_section(page, "x", "new\n") == "before\n<!-- x: generated -->\n\nnew\n\n<!-- x: end -->\nafter\n"
    assert with_section(with_section(page, "x", "old\n"), "x", "new\n") == with_section(page, "x", "new\n")
    with pytest.raises(ValueError, match="no markers of y"):
        with_section(page, "y", "new\n")


def test_the_page_has_the_accepted_differences_of_the_list() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_section(text, "accepted differences", accepted_table()) == text
