"""The reference-pixel correction equals romancal's: amp33 exactly, data to the last bit but for rounding of f8 sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.dq import PixelDQ
from stages.refpix import RefpixStage
from stream.stage import Slot
from tests.parity.both_sides import BORDERS, compare_arrays, our_ramp, run_oracle_step, run_stage, shown, their_ramp
from tests.parity.random_ramps import RandomRamp, random_ramp, read_pattern
from tests.parity.record import EQUAL, compare, seeds
from tests.stages.ramp_frames import FakeReference, ramp_exposure

pytestmark = pytest.mark.oracle

SWITCHES = ("remove_offset", "remove_trends", "cosine_interpolate", "fft_interpolate")


def _case(n: int, rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(n)
    shape = (n, rows, 4096)
    drift = np.cumsum(rng.normal(0, 0.3, (n, rows, 1)), axis=1)
    data = rng.normal(0, 8, shape) + drift + 3000 * rng.random(shape[1:]) + 5 * np.arange(n)[:, None, None]
    data[rng.random(shape) < 0.001] = 65535
    amp33 = np.rint(rng.normal(40, 6, (n, rows, 128)) + 2 * drift)
    amp33[:, rng.random((rows, 128)) < 0.01] = 0
    pixeldq = np.where(rng.random(shape[1:]) < 0.01, int(PixelDQ.BAD_REF_PIXEL), 0).astype(np.uint32)
    frequencies = 70 * rows + 1
    tree = {
        name: rng.normal(0, scale, (32, frequencies)) + 1j * rng.normal(0, scale, (32, frequencies))
        for name, scale in (("gamma", 0.1), ("zeta", 0.1), ("alpha", 0.4))
    }
    arrays = {"data": data.astype(np.float32), "amp33": np.abs(amp33).astype(np.uint16), "pixeldq": pixeldq}
    return arrays, tree


def _oracle(arrays: dict[str, Any], tree: dict[str, Any], switches: list[bool]) -> Any:
    from roman_datamodels import datamodels as rdm
    from romancal.refpix.refpix import run_steps

    n, rows, columns = arrays["data"].shape
    ramp = rdm.RampModel.create_fake_data(shape=(n, rows, columns))
    ramp.data, ramp.amp33, ramp.pixeldq = (arrays[k].copy() for k in ("data", "amp33", "pixeldq"))
    reference = rdm.RefpixRefModel.create_fake_data()
    for name, array in tree.items():
        reference[name] = array
    return run_steps(ramp, reference, *switches)


def one_case() -> tuple[RandomRamp, dict[str, Any]]:
    """A small exposure, and a reference for it."""
    case = random_ramp(21, (10, 4096), pattern=[[1], [2, 3], [4]])
    case.data[np.isnan(case.data)] = 0
    return case, _case(2, 10)[1]


@pytest.mark.parametrize("off", [None, *SWITCHES])
def test_data_and_amp33_equal_the_oracles(off: str | None) -> None:
    arrays, tree = _case(4, 24)
    expected = _oracle(arrays, tree, [name != off for name in SWITCHES])

    exposure = ramp_exposure(**{k: v.copy() for k, v in arrays.items()})
    parameters = RefpixStage.parameters_type() if off is None else RefpixStage.parameters_type(**{off: False})
    RefpixStage().process(exposure, {"refpix": FakeReference(**tree)}, parameters, Slot(threads=2))
    assert (exposure.arrays["data"] != np.asarray(expected.data)).mean() < 1e-6
    for name in ("data", "amp33", "border_ref_pix_left", "border_ref_pix_right"):
        compare("refpix", shown(name), exposure.arrays[name], np.asarray(expected[name]))


@pytest.mark.parametrize("seed", seeds(2, 40))
def test_generated_exposures_equal_the_oracles(seed: int) -> None:
    from roman_datamodels.datamodels import RefpixRefModel
    from romancal.refpix import RefPixStep

    rng = np.random.default_rng(seed)
    case = random_ramp(seed, (int(rng.integers(8, 15)), 4096), pattern=read_pattern(rng, 2, 6))
    case.data[np.isnan(case.data)] = 0
    _, tree = _case(2, case.data.shape[1])
    for array in tree.values():
        array[rng.integers(0, 32)] = 0
    tree["alpha"][rng.integers(0, 32), rng.integers(0, 99)] = np.nan  # one channel without a number
    reference = RefpixRefModel.create_fake_data()
    for name, array in tree.items():
        reference[name] = array
    switches = {name: bool(rng.random() < 0.7) for name in SWITCHES}
    model = run_oracle_step(RefPixStep, their_ramp(case), {"refpix": reference}, **switches)
    exposure = run_stage(RefpixStage, our_ramp(case), {"refpix": tree}, **switches)
    compare_arrays("refpix", exposure, model, ("data", "amp33", "groupdq", "pixeldq", *BORDERS))
    assert 1 <= np.isnan(exposure.arrays["data"][0, 0]).sum() / 128 < 4


def test_without_a_reference_nothing_changes() -> None:
    from romancal.refpix import RefPixStep

    case = random_ramp(5, (8, 4096), pattern=[[1], [2, 3]])
    model = run_oracle_step(RefPixStep, their_ramp(case), {"refpix": None})
    exposure = run_stage(RefpixStage, our_ramp(case), {"refpix": None})
    compare_arrays("refpix", exposure, model, ("data", "amp33", "groupdq", "pixeldq", *BORDERS), bar=EQUAL)
    assert exposure.meta["cal_step"]["refpix"] == "SKIPPED"
