"""Independent random streams by name, so that adding a detector or an exposure changes no other one."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

__all__ = ["Purpose", "detector_number", "stream"]


class Purpose(IntEnum):
    """What a stream is for; its number enters the seed and must never change."""

    GAIN = 1
    READ_NOISE = 2
    DARK = 3
    QUANTUM_EFFICIENCY = 4
    FULL_WELL = 5
    LINEARITY = 6
    INTEGRAL_NONLINEARITY = 7
    MASK = 8
    PEDESTAL = 9
    COUPLING = 10
    SATURATION = 11
    STARS = 20
    GALAXIES = 21
    MOTIONS = 22
    POINTING = 30
    READ_OUT = 31
    CORRELATED_NOISE = 32
    COSMIC_RAYS = 33
    RESULTANT_DQ = 34
    DEFECTS = 35


def detector_number(detector: str) -> int:
    """1 for ``WFI01``."""
    return int(detector[3:])


def stream(seed: int, purpose: Purpose, *keys: int) -> np.random.Generator:
    """Return the stream of the purpose and keys (detector number, exposure, block of rows, tile of the sky, …).

    SFC64 is the fastest of numpy's generators inside compiled code, which draws billions of numbers from it.
    """
    spawn_key = (int(purpose), *(key & 0xFFFFFFFF for key in keys))
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=spawn_key)))
