"""Exposures and associations that are wrong, each in one way, made from a good one or from nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stages.asdf_arrays import write_asdf
from stages.l1 import open_l1
from tests.stages.input_files import complete_meta, write_l1, write_reference

__all__ = ["altered_copy", "association", "equal_flats", "linked_references", "sourceless", "wrong_files"]

NAME = "r0000101001001001{:03}_0001_wfi01"
PATTERN = [[1], [2, 3], [4, 5, 6]]


def altered_copy(source: Path, target: Path, *, data: Any = None, **changes: Any) -> Path:
    """The same exposure in a file of its own, with other pixels or metadata (``group__key=value``)."""
    exposure = open_l1(source)
    for name, value in changes.items():
        group, _, key = name.partition("__")
        exposure.meta[group][key] = value
    target.parent.mkdir(parents=True, exist_ok=True)
    pixels = exposure.arrays["data"] if data is None else data
    return write_l1(target, meta=exposure.meta, data=pixels, amp33=exposure.arrays["amp33"])


def sourceless(source: Path, target: Path) -> Path:
    """The exposure with the same sky in every pixel: nothing to find."""
    data = open_l1(source).arrays["data"]
    rng = np.random.default_rng(20270101)
    level = np.median(data[:, 16:-16, 16:-16].astype("f4"), axis=(1, 2))
    steps = np.diff(level, prepend=level[0])[:, None, None]
    flat = np.cumsum(steps + rng.normal(0.0, 1.5, data.shape).astype("f4"), axis=0) + level[0]
    pixels = np.array(data)
    pixels[:, 4:-4, 4:-4] = np.rint(flat)[:, 4:-4, 4:-4].astype("u2")
    return altered_copy(source, target, data=pixels)


def wrong_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files and, by what is wrong with them, a pattern of what a run should say."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[Path, str]] = {}

    def place(what: str, pattern: str) -> Path:
        path = folder / f"{NAME.format(100 + len(found))}_uncal.asdf"
        found[what] = (path, pattern)
        return path

    place("not ASDF", "not an ASDF file").write_text("hello")
    place("empty", "not an ASDF file").write_bytes(b"")
    path = write_l1(place("cut off", "truncated"))
    path.write_bytes(path.read_bytes()[:-5000])
    write_l1(place("model", r"'roman' is a wfi_mosaic; expected wfi_science_raw"), tag="wfi_mosaic-2.1.0")
    write_asdf(place("no roman", "no key 'roman'"), {"other": 1})
    write_l1(
        place("columns", r"roman\.data has shape \(3, 16, 2048\); expected \(resultants, rows, 4096\)"),
        data=np.zeros((3, 16, 2048), "u2"),
    )
    write_l1(place("dtype", r"roman\.data has dtype float32; expected uint16"), data=np.zeros((3, 16, 4096), "f4"))
    write_l1(
        place("read pattern", r"meta\.exposure\.read_pattern has 2 resultants, the data have 3"),
        meta=complete_meta(exposure__read_pattern=PATTERN[:2]),
    )
    write_l1(
        place("resultant count", r"meta\.exposure\.nresultants is 5, the data have 3 resultants"),
        meta=complete_meta(exposure__nresultants=5),
    )
    write_l1(
        place("metadata", r"2 required metadata are missing: meta\.exposure\.frame_time, meta\.wcsinfo"),
        meta=complete_meta(exposure__frame_time=..., wcsinfo=...),
    )
    place("nowhere", "there is no such file")
    write_l1(
        place("rows", r"saturation\.asdf: data has shape \(128, 4096\), the frame of \w+ \(16, 4096\)"),
        meta=complete_meta(),
    )
    write_l1(
        place("no reference", r"no reference file of type \w+ for detector WFI02"),
        meta=complete_meta(instrument__detector="WFI02"),
    )
    write_l1(
        place(
            "two references", r"two reference files of type flat fit .* equally well .*flat_a\.asdf and .*flat_b\.asdf"
        ),
        rows=128,
        meta=complete_meta(instrument__optical_element="F129"),
    )
    return found


def association(path: Path, name: str, members: list[Path]) -> Path:
    """An association file of one product."""
    entries = [{"expname": str(member), "exptype": "science"} for member in members]
    path.write_text(json.dumps({"asn_type": "image", "products": [{"name": name, "members": entries}]}))
    return path


def linked_references(source: Path, target: Path) -> Path:
    """A folder of references that can be added to."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).symlink_to(path)
    return target


def equal_flats(references: Path, element: str) -> None:
    """Two flats of one element that nothing tells apart."""
    for name in ("flat_a.asdf", "flat_b.asdf"):
        write_reference(references / name, "flat", element=element, data=np.ones((8, 8), "f4"))
