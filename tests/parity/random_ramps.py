"""Random exposures in which everything happens, as arrays: one seed, one case. Makes no models and runs no stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stages.dq import GroupDQ, PixelDQ

__all__ = ["FRAME_TIMES", "RandomRamp", "random_ramp", "read_pattern", "reference_plane"]

FRAME_TIMES = (3.04, 3.16247)
FULL_WELL = 60000.0
FLAGS = np.array([int(flag) for flag in GroupDQ], np.uint8)


@dataclass
class RandomRamp:
    """A ramp in DN and what belongs to it.

    Attributes
    ----------
    pattern : list of list of int
        Read numbers of each resultant.
    data, groupdq, pixeldq, amp33 : ndarray
        As dq_init leaves them.
    well : ndarray, f4, (R, C)
        Full well in DN.
    saturated : str
        "some", "almost" or "fully": how much of it.
    """

    seed: int
    pattern: list[list[int]]
    frame_time: float
    data: Any
    groupdq: Any
    pixeldq: Any
    amp33: Any
    well: Any
    detector: str = "WFI01"
    saturated: str = "some"

    @property
    def rng(self) -> np.random.Generator:
        """A stream of its own for references, independent of the ramp's."""
        return np.random.default_rng([self.seed, 1])

    def copy(self) -> RandomRamp:
        """The same with arrays of its own."""
        return replace(self, **{k: v.copy() for k, v in vars(self).items() if isinstance(v, np.ndarray)})


def read_pattern(rng: np.random.Generator, least: int = 4, most: int = 16) -> list[list[int]]:
    """Uneven resultants of 1 to 8 reads, some with skipped reads before them."""
    pattern, read = [], 1
    for _ in range(rng.integers(least, most + 1)):
        read += int(rng.choice([0, 0, 0, 1, 3]))
        count = int(rng.choice([1, 1, 2, 3, 4, 8]))
        pattern.append(list(range(read, read + count)))
        read += count
    return pattern


def random_ramp(
    seed: int,
    shape: tuple[int, int] = (24, 256),
    *,
    pattern: list[list[int]] | None = None,
    saturated: str = "some",
    flagged: bool = True,
) -> RandomRamp:
    """Build a case.

    Parameters
    ----------
    seed : int
        All else follows from it.
    shape : tuple of int
        Rows and columns.
    pattern : list of list of int, optional
        Read numbers; by default 4 to 16 uneven resultants.
    saturated : str
        "some": onsets at every resultant, in every read of it; "almost": all but one pixel from the first resultant on;
        "fully".
    flagged : bool
        Whether groupdq and pixeldq come with flags: missing and flagged groups, dropouts, earlier jumps.
    """
    rng = np.random.default_rng(seed)
    pattern = read_pattern(rng) if pattern is None else pattern
    time = float(rng.choice(FRAME_TIMES))
    well = (FULL_WELL * rng.uniform(0.9, 1.05, shape)).astype(np.float32)
    data = _averaged_reads(rng, pattern, well, time)
    if saturated != "some":
        data[:] = 65535
        if saturated == "almost":
            data[:, shape[0] // 2, shape[1] // 2] = np.linspace(100, 900, len(data))
    else:
        _spoil(rng, data)
    groupdq, pixeldq = np.zeros(data.shape, np.uint8), np.zeros(shape, np.uint32)
    if flagged:
        _flag(rng, groupdq, pixeldq)
    amp33 = np.clip(rng.normal(300, 20, (len(data), shape[0], 128)), 0, 65535).astype(np.uint16)
    amp33[rng.random(amp33.shape) < 0.01] = 0
    return RandomRamp(seed, pattern, time, data, groupdq, pixeldq, amp33, well, saturated=saturated)


def reference_plane(rng: np.random.Generator, plane: Any, *, values: tuple[float, ...], part: float = 0.01) -> Any:
    """The plane as f4 with each of ``values`` in a part of its pixels."""
    plane = np.asarray(plane, np.float32).copy()
    for value in values:
        plane[rng.random(plane.shape) < part] = value
    return plane


def _averaged_reads(rng: np.random.Generator, pattern: list[list[int]], well: Any, time: float) -> Any:
    """Resultants of reads that end at the full well: flux, photon and read noise, cosmic rays of all sizes."""
    shape, reads = well.shape, pattern[-1][-1]
    # A third of the pixels reach the full well in a read that is chosen evenly, the first and the last among them.
    onset = rng.integers(1, reads + 1, shape)
    flux = np.where(rng.random(shape) < 0.35, well / (onset * time), 10 ** rng.uniform(-1, 2.7, shape))
    hits = _cosmic_rays(rng, shape, reads)
    of_read = {read: k for k, group in enumerate(pattern) for read in group}
    signal, data = rng.uniform(0, 800, shape), np.zeros((len(pattern), *shape), np.float32)
    for read in range(1, reads + 1):
        signal += rng.normal(flux * time, np.sqrt(flux * time / 1.8))
        for mask, charge in hits.get(read, ()):
            signal[mask] += charge
        if read in of_read:
            measured = np.minimum(signal + rng.normal(0, 6, shape), well)
            data[of_read[read]] += (measured / len(pattern[of_read[read]])).astype(np.float32)
    return data


def _cosmic_rays(rng: np.random.Generator, shape: tuple[int, int], reads: int) -> dict[int, list[tuple[Any, float]]]:
    """Masks and charges by read: single pixels, neighbours, pixels hit twice in a row, snowballs."""
    hits: dict[int, list[tuple[Any, float]]] = {}
    for _ in range(shape[0] * shape[1] // 40):
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        read, charge = int(rng.integers(1, reads + 1)), float(10 ** rng.uniform(1, 5))
        dy, dx = rng.integers(1, 3), rng.integers(1, 4)
        hits.setdefault(read, []).append((np.s_[y : y + dy, x : x + dx], charge))
        if rng.random() < 0.3:
            hits.setdefault(min(read + int(rng.integers(1, 3)), reads), []).append((np.s_[y, x], charge * 2))
    rows, columns = np.indices(shape)
    for _ in range(3):
        y, x, size = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(3, 8)
        distance = np.hypot((columns - x) * rng.uniform(0.6, 1), rows - y)
        read = int(rng.integers(1, reads + 1))
        hits.setdefault(read, []).extend([(distance < size, 900.0), (distance < size / 3, 80000.0)])
    return hits


def _spoil(rng: np.random.Generator, data: Any) -> None:
    """The A/D floor, negative values and values that are no numbers."""
    for value, part in ((0, 0.004), (-3, 0.004), (np.nan, 0.002)):
        data[rng.random(data.shape) < part] = value


def _flag(rng: np.random.Generator, groupdq: Any, pixeldq: Any) -> None:
    flagged = rng.random(groupdq.shape) < 0.02
    groupdq[flagged] |= rng.choice(FLAGS, int(flagged.sum()))
    # Missing groups: some in a row, up to the whole ramp of a pixel.
    first, last = np.sort(rng.integers(0, len(groupdq) + 1, (2, *pixeldq.shape)), axis=0)
    index = np.arange(len(groupdq))[:, None, None]
    missing = (index >= first) & (index < last) & (rng.random(pixeldq.shape) < 0.05)
    groupdq[missing] |= rng.choice(FLAGS, int(missing.sum()))
    bits = np.array([0, PixelDQ.DO_NOT_USE, PixelDQ.BAD_REF_PIXEL, PixelDQ.HOT | PixelDQ.DEAD], np.uint32)
    pixeldq |= rng.choice(bits, pixeldq.shape, p=[0.9, 0.04, 0.03, 0.03])
