"""Ramp fitting equals romancal's bit for bit, jump flags and image construction included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from stages.exposure import Exposure, Level
from stages.ramp_fit import RampFit, RampFitParameters
from stream.stage import Slot
from tests.parity.record import EQUAL, compare

# The oracle divides by zero and casts to infinity, with warnings.
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

FRAME_TIME = 3.04
PATTERNS = {
    "uneven, ten resultants": [[1], [2, 3], [5, 6, 7, 8], [10, 11], [12], [14, 15, 16, 17, 18, 19], [21, 22], [23, 24],
                               [25, 26, 27, 28], [30]],
    "single reads": [[i] for i in range(1, 9)],
    "four resultants": [[1, 2], [3], [5, 6, 7], [9, 10]],
    "sixteen resultants": [[1], [2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15, 16, 17]]
    + [list(range(k, k + 8)) for k in range(18, 114, 8)],
    "twenty-four resultants": [[2 * i + 1, 2 * i + 2] for i in range(24)],
}  # fmt: skip


@dataclass
class Ramp:
    """A random exposure in which everything happens."""

    pattern: list[list[int]]
    data: np.ndarray
    groupdq: np.ndarray
    pixeldq: np.ndarray
    gain: np.ndarray
    readnoise: np.ndarray

    def copy(self) -> Ramp:
        return Ramp(self.pattern, *(a.copy() for a in list(vars(self).values())[1:]))


def random_ramp(pattern: list[list[int]], seed: int, shape: tuple[int, int] = (60, 160)) -> Ramp:
    """Photons, read noise, cosmic rays of all sizes, saturation, flags, NaN, and bad gains and read noises."""
    rng = np.random.default_rng(seed)
    n, reads = len(pattern), pattern[-1][-1]
    flux = 10 ** rng.uniform(-1, 3, shape)
    gain = (1.8 + 0.1 * rng.normal(size=shape)).astype("f4")
    readnoise = (5 + rng.gamma(2, 1, shape)).astype("f4")
    events = [
        (rng.random(shape) < p, rng.integers(1, reads + 1, shape), 10 ** rng.uniform(1, 5, shape)) for p in (0.3, 0.1)
    ]
    resultant_of = {read: k for k, group in enumerate(pattern) for read in group}
    signal, data = np.zeros(shape), np.zeros((n, *shape), "f4")
    for read in range(1, reads + 1):
        signal += rng.poisson(flux * FRAME_TIME * gain) / gain
        for hit, when, size in events:
            signal += np.where(hit & (when == read), size, 0)
        if read in resultant_of:
            k = resultant_of[read]
            data[k] += ((signal + rng.normal(size=shape) * readnoise) / len(pattern[k])).astype("f4")
    groupdq = np.where(np.maximum.accumulate(data > 60000, axis=0), 2, 0).astype("u1")
    data = np.minimum(data, 65000).astype("f4")
    flagged = rng.random(data.shape) < 0.03
    groupdq[flagged] |= rng.choice(np.array([1, 2, 4, 8, 64, 128], "u1"), flagged.sum())
    onset = rng.integers(0, n, shape)
    groupdq[(np.arange(n)[:, None, None] >= onset) & (rng.random(shape) < 0.15)] |= 2
    data[rng.random(data.shape) < 0.003] = np.nan
    for array, values in ((gain, (0, np.nan, -1.5, np.inf)), (readnoise, (0, np.nan, 1e-3, 100))):
        for value in values:
            array[rng.random(shape) < 0.004] = value
    data[:, rng.random(shape) < 0.02] = 100
    pixeldq = np.where(rng.random(shape) < 0.05, 2049, 0).astype("u4")
    return Ramp(pattern, data, groupdq, pixeldq, gain, readnoise)


def run_oracle(ramp: Ramp, **parameters: Any) -> Any:
    """The ImageModel of romancal's step."""
    from roman_datamodels import datamodels
    from romancal.ramp_fitting import RampFitStep

    model = datamodels.RampModel.create_fake_data(shape=ramp.data.shape)
    model.data, model.groupdq, model.pixeldq = ramp.data.copy(), ramp.groupdq.copy(), ramp.pixeldq.copy()
    model.meta.exposure.read_pattern = ramp.pattern
    model.meta.exposure.frame_time = FRAME_TIME
    model.meta.exposure.nresultants = len(ramp.pattern)
    step = RampFitStep(**parameters)
    for name in ("gain", "readnoise"):
        kind = {"gain": datamodels.GainRefModel, "readnoise": datamodels.ReadnoiseRefModel}[name]
        reference = kind.create_fake_data(shape=ramp.gain.shape)
        reference.data = getattr(ramp, name)
        setattr(step, f"override_{name}", reference)
    with np.errstate(all="ignore"):
        return step.process(model)


class FakeReference:
    path = "fake.asdf"
    recorded_name = "/references/fake.asdf"

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def array(self, *keys: str) -> np.ndarray:
        assert keys == ("data",)
        return self.data


def run_stage(ramp: Ramp, *, threads: int = 1, **parameters: Any) -> Exposure:
    ramp = ramp.copy()
    exposure = Exposure(
        id="r0000101001001001001_0001_wfi01",
        level=Level.RAMP,
        meta={
            "exposure": {"read_pattern": ramp.pattern, "frame_time": FRAME_TIME, "type": "WFI_IMAGE"},
            "ref_file": {},
        },
        arrays={"data": ramp.data, "groupdq": ramp.groupdq, "pixeldq": ramp.pixeldq},
    )
    references = {"gain": FakeReference(ramp.gain), "readnoise": FakeReference(ramp.readnoise)}
    RampFit().run(exposure, references, RampFitParameters(**parameters), Slot(threads=threads))  # type: ignore[arg-type]
    return exposure


def assert_equal(exposure: Exposure, model: Any, names: tuple[str, ...]) -> None:
    for name in names:
        compare("ramp_fit", f"`{name}`", exposure.arrays[name], np.asarray(model[name]), bar=EQUAL)


IMAGE_ARRAYS = ("data", "dq", "err", "var_poisson", "chisq", "dumo")


@pytest.mark.parametrize("name", list(PATTERNS))
def test_likelihood_fit_equals_romancal_bit_for_bit(name: str) -> None:
    ramp = random_ramp(PATTERNS[name], seed=len(name))
    model = run_oracle(ramp, include_var_rnoise=True)
    exposure = run_stage(ramp, include_var_rnoise=True, threads=2)
    assert_equal(exposure, model, (*IMAGE_ARRAYS, "var_rnoise", "jump_indices"))
    assert (exposure.arrays["dq"] & 4).any()
    assert np.isfinite(exposure.arrays["data"]).mean() > 0.8


def test_default_parameters_leave_the_same_arrays_out() -> None:
    ramp = random_ramp(PATTERNS["four resultants"], seed=3, shape=(20, 40))
    model, exposure = run_oracle(ramp), run_stage(ramp)
    assert "var_rnoise" not in exposure.arrays
    assert "var_rnoise" not in model
    without = run_stage(ramp, record_jumps=False)
    assert "jump_indices" not in without.arrays
    assert "jump_indices" not in run_oracle(ramp, record_jumps=False)


def snowball_scene(seed: int) -> Ramp:
    """Saturated cores with rings of charge on a faint sky, some at the edge, some growing late."""
    rng = np.random.default_rng(seed)
    pattern = [[i] for i in range(1, 11)]
    shape = (70, 80)
    y, x = np.indices(shape)
    data = (np.arange(10)[:, None, None] * 20 + rng.normal(size=(10, *shape))).astype("f4")
    groupdq = np.zeros(data.shape, "u1")
    for _ in range(7):
        k, angle = rng.integers(1, 9), rng.uniform(0, np.pi)
        dy, dx = y - rng.uniform(0, shape[0]), x - rng.uniform(0, shape[1])
        u, v = dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)
        size, ratio = rng.uniform(2, 9), rng.uniform(0.5, 1)
        distance = np.hypot(u, v / ratio)
        data[k:, distance < size] += 500
        late = k + rng.integers(0, 2)
        groupdq[late:, distance < size * rng.uniform(0, 0.5)] |= 2
    return Ramp(pattern, data, groupdq, np.zeros(shape, "u4"), np.full(shape, 1.8, "f4"), np.full(shape, 5, "f4"))


SNOWBALL_SETTINGS: list[dict[str, Any]] = [
    {},
    {"sat_required_snowball": False},
    {"edge_size": 12, "min_jump_area": 15.0},
    {"expand_factor": 2.7, "min_sat_radius_extend": 2.5, "sat_expand": 3},
    {"min_sat_area": 8.0, "expand_factor": 1.2},
]


@pytest.mark.parametrize(("seed", "settings"), list(enumerate(SNOWBALL_SETTINGS)), ids=str)
def test_expanded_snowballs_equal_romancal_bit_for_bit(seed: int, settings: dict[str, Any]) -> None:
    ramp = snowball_scene(seed)
    exposure = run_stage(ramp, expand_large_events=True, **settings)
    model = run_oracle(ramp, expand_large_events=True, **settings)
    assert_equal(exposure, model, (*IMAGE_ARRAYS, "jump_indices"))
    plain = run_stage(ramp)
    assert (exposure.arrays["dq"] & 4 > 0).sum() > (plain.arrays["dq"] & 4 > 0).sum()


CAS22_PATTERNS = {
    **{name: PATTERNS[name] for name in ("uneven, ten resultants", "single reads", "four resultants")},
    "three resultants": [[1, 2, 3], [4], [6, 7]],
    "two resultants": [[1], [3, 4]],
    "one resultant": [[1, 2]],
}
CAS22_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in CAS22_PATTERNS),
    ("uneven, ten resultants", {"threshold_intercept": 4.0, "threshold_constant": 0.5}),
    ("uneven, ten resultants", {"use_ramp_jump_detection": False}),
]


@pytest.mark.parametrize(("name", "settings"), CAS22_SETTINGS, ids=str)
def test_least_squares_fit_equals_romancal_bit_for_bit(name: str, settings: dict[str, Any]) -> None:
    ramp = random_ramp(CAS22_PATTERNS[name], seed=len(name) + 50)
    common = {"algorithm": "ols_cas22", "include_var_rnoise": True, **settings}
    model = run_oracle(ramp, **common)
    exposure = run_stage(ramp, **common)
    assert_equal(exposure, model, (*IMAGE_ARRAYS, "var_rnoise"))
    assert "jump_indices" not in exposure.arrays
