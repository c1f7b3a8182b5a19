"""Compares values with the oracle's, fails where they leave their bar, keeps what it saw. Does not write the page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.accepted import ACCEPTED

__all__ = [
    "EQUAL",
    "F2",
    "F4",
    "SEEN",
    "Bar",
    "Comparison",
    "compare",
    "compare_same",
    "full_length",
    "load",
    "note",
    "save",
    "seeds",
]

OUTSIDE_FRACTION = 1e-4
"""Part of the values that may lie outside the bar, in listed classes of difference."""


def full_length() -> bool:
    """Whether the long form was asked for (``RAMPSTREAM_PARITY=full``)."""
    return os.environ.get("RAMPSTREAM_PARITY") == "full"


at_full_length = pytest.mark.skipif(not full_length(), reason="RAMPSTREAM_PARITY=full runs it")
"""For tests that the short form leaves out."""


@dataclass(frozen=True, slots=True)
class Bar:
    """How near is near enough: the largest of the allowances given.

    Attributes
    ----------
    text : str
        As the page says it.
    ulp : int
        Units in the last place of the oracle's value.
    of_median : float
        Fraction of the median of the oracle's absolute values.
    relative, absolute : float
        Fraction of the oracle's value, and plain number.
    """

    text: str
    ulp: int = 0
    of_median: float = 0.0
    relative: float = 0.0
    absolute: float = 0.0


EQUAL = Bar("equal")
F4 = Bar("2 ulp or 1e-6 of the median", ulp=2, of_median=1e-6)
F2 = Bar("1 ulp", ulp=1)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One array of one case against the oracle's.

    Attributes
    ----------
    ulp, relative, absolute : float
        Largest differences among the values that are finite on both sides; 0 where all are equal.
    outside : mapping
        Number of values outside the bar by class of accepted difference.
    full : bool
        Whether the run was at full length.
    """

    stage: str
    what: str
    case: str
    bar: str
    values: int
    equal: int
    ulp: float = 0.0
    relative: float = 0.0
    absolute: float = 0.0
    outside: Mapping[str, int] = field(default_factory=dict)
    full: bool = field(default_factory=full_length)


SEEN: list[Comparison] = []
"""What this process compared: read once, at the end, by the writer of the page."""


def seeds(few: int, many: int) -> range:
    """Seeds of generated cases: few, or many at full length."""
    return range(many if full_length() else few)


def compare(
    stage: str,
    what: str,
    ours: Any,
    theirs: Any,
    *,
    bar: Bar | None = None,
    allowance: Any = 0.0,
    accepted: Mapping[str, Any] | None = None,
) -> None:
    """Compare an array (or a number) with the oracle's.

    Parameters
    ----------
    stage, what : str
        Row of the page.
    ours, theirs : array_like
        Must agree in shape and type. NaN equals NaN.
    bar : Bar, optional
        By default that of the type: integers equal, `F4` and `F2` for floats of four and two bytes.
    allowance : array_like
        What each value may differ by on top of the bar.
    accepted : mapping, optional
        Mask of the values that belong to a class of `tests.parity.accepted.ACCEPTED`, by its name.

    Raises
    ------
    AssertionError
        A value outside the bar belongs to no class, or too many do.
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), f"{stage}: {what}"
    bar = _bar_of(theirs.dtype) if bar is None else bar
    different = ~((ours == theirs) | (_is_nan(ours) & _is_nan(theirs)))
    equal = different.size - int(np.count_nonzero(different))
    outside = different & ~_within(ours, theirs, bar, allowance)
    classes = {}
    for name, mask in (accepted or {}).items():
        found = outside & mask
        if found.any():
            classes[name] = int(np.count_nonzero(found))
            assert ACCEPTED[name].whole or classes[name] <= OUTSIDE_FRACTION * different.size, (
                f"{stage}: {what}: {name}"
            )
        # What is accepted is counted, and its size says nothing.
        outside, different = outside & ~found, different & ~found
    sizes = _largest(ours, theirs, different)
    SEEN.append(Comparison(stage, what, _case(), bar.text, ours.size, equal, *sizes, classes))
    if outside.any():
        where = tuple(int(i) for i in np.argwhere(outside)[0])
        raise AssertionError(
            f"{stage}: {np.count_nonzero(outside)} of {ours.size} values of {what} are outside the bar ({bar.text}), "
            f"the first at {where}: {ours[where]!r} instead of {theirs[where]!r}"
        )


def compare_same(stage: str, what: str, ours: Any, theirs: Any) -> None:
    """Compare what is no array: texts, statuses, metadata trees."""
    assert ours == theirs, f"{stage}: {what}"
    SEEN.append(Comparison(stage, what, _case(), EQUAL.text, 1, 1))


def note(stage: str, what: str, bar: str, *, values: int, equal: int, **largest: float) -> None:
    """Keep what another comparison found, which has its own assertions."""
    SEEN.append(Comparison(stage, what, _case(), bar, values, equal, **largest))


def save(path: Path, seen: Sequence[Comparison]) -> None:
    """Write what a process saw."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(comparison) for comparison in seen]), encoding="utf-8")


def load(folder: Path) -> list[Comparison]:
    """Read what all processes saw."""
    files = sorted(folder.glob("*.json"))
    return [Comparison(**row) for path in files for row in json.loads(path.read_text(encoding="utf-8"))]


def _case() -> str:
    return os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]


def _bar_of(dtype: np.dtype[Any]) -> Bar:
    return {"f4": F4, "f2": F2}.get(dtype.str[1:], EQUAL)


def _is_nan(array: Any) -> Any:
    return array != array  # noqa: PLR0124 - also for types that have no NaN


def _within(ours: Any, theirs: Any, bar: Bar, allowance: Any) -> Any:
    """Mask of the values that are as near as the bar allows."""
    if theirs.dtype.kind not in "iuf":
        return np.zeros(theirs.shape, bool)
    mine, oracle = ours.astype("f8"), theirs.astype("f8")
    with np.errstate(all="ignore"):
        distance, size = np.abs(mine - oracle), np.abs(oracle)
        finite = size[np.isfinite(size)]
        allowed = np.maximum(bar.relative * size, bar.absolute) + allowance
        allowed = np.maximum(allowed, bar.of_median * (np.median(finite) if finite.size else 0.0))
        allowed = np.maximum(allowed, bar.ulp * _unit(theirs))
        return distance <= np.where(np.isfinite(allowed), allowed, 0.0)


def _largest(ours: Any, theirs: Any, different: Any) -> tuple[float, float, float]:
    """Largest of the differences in ulp, relative and absolute, among values that are finite on both sides."""
    if theirs.dtype.kind not in "iuf" or not different.any():
        return 0.0, 0.0, 0.0
    mine, oracle, unit = ours[different].astype("f8"), theirs[different].astype("f8"), _unit(theirs)[different]
    finite = np.isfinite(mine) & np.isfinite(oracle)
    distance = np.abs(mine - oracle, where=finite, out=np.zeros(finite.shape))
    size = np.where(finite, np.maximum(np.abs(oracle), 1e-30), 1.0)
    return tuple(float(np.max(part, initial=0.0)) for part in (distance / unit, distance / size, distance))  # type: ignore[return-value]


def _unit(theirs: Any) -> Any:
    """One unit in the last place of each value, f8."""
    if theirs.dtype.kind != "f":
        return np.ones(theirs.shape)
    with np.errstate(all="ignore"):
        unit = np.spacing(np.abs(theirs)).astype("f8")
    return np.where(np.isfinite(unit), unit, 1.0)
