"""Writes what the parity tests saw into ``docs/parity.md``, between its markers. Compares nothing itself.

``python -m tests.parity.page FOLDER`` takes what runs of the tests left in a folder (``RAMPSTREAM_PARITY_RECORDS``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.parity.accepted import ACCEPTED
from tests.parity.record import EQUAL, Comparison, load

__all__ = ["PAGE", "STAGES", "accepted_table", "lacking", "main", "results", "sections", "with_section"]

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"

STAGES = (
    "dq_init", "saturation", "refpix", "read times", "dark_decay", "wfi18_transient", "linearity", "ramp_fit",
    "saturated", "dark_current", "assign_wcs", "photom", "flat_field", "source_catalog", "tweakreg", "products",
    "branches", "end to end",
)  # fmt: skip
"""Sections of the results, in the order of the pipeline."""

_FIRST, _LAST = "<!-- {}: generated -->\n", "<!-- {}: end -->\n"


@dataclass(slots=True)
class Row:
    """All comparisons of one thing under one bar."""

    cases: set[str] = field(default_factory=set)
    values: int = 0
    equal: int = 0
    ulp: float = 0.0
    relative: float = 0.0
    absolute: float = 0.0
    outside: dict[str, int] = field(default_factory=dict)

    def add(self, found: Comparison) -> None:
        """Count a comparison in."""
        self.cases.add(found.case)
        self.values += found.values
        self.equal += found.equal
        self.ulp, self.relative = max(self.ulp, found.ulp), max(self.relative, found.relative)
        self.absolute = max(self.absolute, found.absolute)
        for name, count in found.outside.items():
            self.outside[name] = self.outside.get(name, 0) + count

    def largest(self) -> str:
        """The largest difference in words."""
        if not (self.ulp or self.relative or self.absolute):
            return "0" if self.equal + sum(self.outside.values()) == self.values else "not a number"
        parts = [f"{self.ulp:.3g} ulp"] if 0 < self.ulp < 1e4 else []
        parts += [f"{self.relative:.1e} relative"] if 0 < self.relative < 1 else []
        return ", ".join(parts or [f"{self.absolute:.1e}"])


def lacking(seen: Iterable[Comparison]) -> list[str]:
    """Stages of which nothing was compared: the run was not the whole suite."""
    found = {comparison.stage for comparison in seen}
    return [stage for stage in STAGES if stage not in found]


def sections(page: str) -> dict[str, str]:
    """What the page says of each stage."""
    found, ended = page.partition(_FIRST.format("results"))[2].partition(_LAST.format("results"))[:2]
    parts = (part.partition("\n") for part in found.split("\n### ")[1:])
    return {stage: f"### {stage}\n{rest.rstrip()}\n" for stage, _, rest in parts} if ended else {}


def results(seen: Sequence[Comparison], earlier: Mapping[str, str] | None = None) -> str:
    """The tables of results by stage, in Markdown; of stages not seen those of an ``earlier`` run, if there are any."""
    unknown = {comparison.stage for comparison in seen} - set(STAGES)
    if unknown:
        raise ValueError(f"no section for {sorted(unknown)}")
    tests = len({comparison.case for comparison in seen})
    text = [f"Written from {len(seen)} comparisons in {tests} test{'s' * (tests != 1)}.", ""]
    missing = lacking(seen)
    kept = {stage: section for stage, section in (earlier or {}).items() if stage in missing}
    if kept:
        text += [f"From an earlier run: {', '.join(stage for stage in STAGES if stage in kept)}.", ""]
    if len(missing) > len(kept):
        text += [f"Not compared: {', '.join(stage for stage in missing if stage not in kept)}.", ""]
    for stage in STAGES:
        if stage in missing:
            text += [kept[stage]] if stage in kept else []
            continue
        rows: dict[tuple[str, str], Row] = {}
        for comparison in seen:
            if comparison.stage == stage:
                rows.setdefault((comparison.what, comparison.bar), Row()).add(comparison)
        lengths = {comparison.full for comparison in seen if comparison.stage == stage}
        text += [
            f"### {stage}",
            "",
            "Partly at full length." if len(lengths) == 2 else "At full length." if True in lengths else "Short form.",
            "",
            "| compared | bar | cases | values | largest difference | equal | outside the bar |",
        ]
        text += ["|---|---|---|---|---|---|---|"]
        text += [_line(what, bar, row) for (what, bar), row in sorted(rows.items())]
        text.append("")
    return "\n".join(text)


def accepted_table() -> str:
    """The table of accepted differences, in Markdown."""
    lines = ["| class | what | why |", "|---|---|---|"]
    lines += [f"| {name} | {accepted.what} | {accepted.why} |" for name, accepted in ACCEPTED.items()]
    return "\n".join([*lines, ""])


def with_section(text: str, name: str, section: str) -> str:
    """The page's text with what stands between the markers of a section replaced."""
    first, last = _FIRST.format(name), _LAST.format(name)
    before, found, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise ValueError(f"the page has no markers of {name}")
    return f"{before}{first}\n{section}\n{last}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; 1, and nothing written, when a stage was not compared (unless that is what is wanted)."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.page", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--partial", action="store_true", help="write what was compared, and leave what the page says of other stages"
    )
    options = parser.parse_args(arguments)
    seen = load(options.folder)
    missing = lacking(seen)
    if missing and not options.partial:
        sys.stderr.write(f"{PAGE} is left as it was: nothing was compared of {', '.join(missing)}\n")
        return 1
    text = PAGE.read_text(encoding="utf-8")
    text = with_section(text, "results", results(seen, sections(text)))
    PAGE.write_text(with_section(text, "accepted differences", accepted_table()), encoding="utf-8")
    return 0


def _line(what: str, bar: str, row: Row) -> str:
    part = row.equal / row.values if row.values else 1.0
    # Rounded down: all but all is not all.
    equal = "all" if row.equal == row.values else f"{int(part * 1e6) / 1e4:.4f} %"
    outside = ", ".join(f"{count} {name}" for name, count in sorted(row.outside.items())) or "0"
    return f"| {what} | {bar or EQUAL.text} | {len(row.cases)} | {row.values} | {row.largest()} | {equal} | {outside} |"


if __name__ == "__main__":
    sys.exit(main())
