"""The mission's rules for choosing a reference file, over headers alone. Not where the files or their headers are.

A file matches when each key of its type does: the detector, the optical element, the exposure type (``exposure.type``
or one of ``exposure.p_exptype``, separated by ``|``). A key that a file leaves out, or gives as N/A, matches everything
with less weight. Of the heaviest matches the one with the latest USEAFTER not after the exposure's start wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stream.failure import PermanentError

if TYPE_CHECKING:
    from stream.stage import Facts

__all__ = ["ALWAYS", "OPTIONAL_TYPES", "SELECTION_KEYS", "Header", "choose", "keys_of"]

_DETECTOR = ("detector",)
_ELEMENT = ("detector", "optical_element")
_TYPE = ("detector", "exposure_type")

SELECTION_KEYS: dict[str, tuple[str, ...]] = {
    "mask": _DETECTOR,
    "saturation": _DETECTOR,
    "refpix": _DETECTOR,
    "darkdecaysignal": (),
    "linearity": _DETECTOR,
    "inverselinearity": _DETECTOR,
    "integralnonlinearity": _DETECTOR,
    "readnoise": _TYPE,
    "gain": _DETECTOR,
    "dark": _TYPE,
    "distortion": _ELEMENT,
    "photom": _DETECTOR,
    "flat": _ELEMENT,
    "apcorr": _DETECTOR,
    "epsf": _ELEMENT,
    "area": _DETECTOR,
    "dustmap_north": (),
    "dustmap_south": (),
}
"""Facts of the exposure that decide about each type, besides the start time; other types go by the detector."""

OPTIONAL_TYPES = frozenset(
    {
        "mask", "saturation", "refpix", "linearity", "inverselinearity", "integralnonlinearity", "dark", "distortion",
        "photom", "flat", "dustmap_north", "dustmap_south", "area",
    }
)  # fmt: skip
"""Types that may be N/A: the stage that uses them is then skipped, or leaves out a term."""

ALWAYS = "0001-01-01T00:00:00.000"
"""USEAFTER of a file that has none (the dust maps)."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself; ``values`` holds the accepted values of each key, in upper case."""

    reference_type: str | None
    useafter: str
    values: dict[str, list[str]]


def keys_of(reference_type: str) -> tuple[str, ...]:
    """Facts that decide about a type, besides the start time."""
    return SELECTION_KEYS.get(reference_type, _DETECTOR)


def choose(
    reference_type: str,
    candidates: Iterable[tuple[str, Header]],
    facts: Facts,
    *,
    where: str,
    optional: frozenset[str] = OPTIONAL_TYPES,
) -> str | None:
    """Name of the reference for an exposure, or None for N/A.

    Parameters
    ----------
    reference_type : str
        A key of `SELECTION_KEYS`, or a type of one's own.
    candidates : iterable of (str, Header)
        All files of the type: name and header.
    facts : dict
        With ``detector``, ``optical_element``, ``exposure_type``, ``start_time`` (ISO, UTC, to the millisecond).
    where : str
        Where the files are, for messages: ``in DIR``.
    optional : frozenset of str
        Types for which finding none is an answer.

    Raises
    ------
    PermanentError
        None fits where one is required, or two fit equally well: the text names the keys, or both files.
    """
    wanted = {key: str(facts[key]).strip().upper() for key in keys_of(reference_type)}
    start = str(facts["start_time"])
    fitting = [
        ((weight, header.useafter), name)
        for name, header in candidates
        if header.useafter <= start and (weight := _weight(header, wanted)) is not None
    ]
    if not fitting:
        if reference_type in optional:
            return None
        raise PermanentError(
            f"no reference file of type {reference_type} for {_described(wanted)} "
            f"with USEAFTER not after {start} {where}"
        )
    best = max(rank for rank, _ in fitting)
    winners = sorted(name for rank, name in fitting if rank == best)
    if len(winners) > 1:
        raise PermanentError(
            f"two reference files of type {reference_type} fit {_described(wanted)} equally well "
            f"(USEAFTER {best[1]}): "
            f"{winners[0]} and {winners[1]}; remove one or pin the one to use"
        )
    return winners[0]


def _weight(header: Header, wanted: Mapping[str, str]) -> int | None:
    weight = 0
    for key, value in wanted.items():
        accepted = header.values.get(key, [])
        if value in accepted:
            weight += 1
        elif accepted:
            return None
    return weight


def _described(wanted: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in wanted.items()) or "any exposure"
