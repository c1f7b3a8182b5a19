"""The reference-pixel correction equals romancal's: amp33 exactly, data to the last bit but for rounding of f8 sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.dq import PixelDQ
from stages.refpix import RefpixStage
from stream.stage import Slot
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


@pytest.mark.parametrize("off", [None, *SWITCHES])
def test_data_and_amp33_equal_the_oracles(off: str | None) -> None:
    arrays, tree = _case(4, 24)
    expected = _oracle(arrays, tree, [name != off for name in SWITCHES])

    exposure = ramp_exposure(**{k: v.copy() for k, v in arrays.items()})
    parameters = RefpixStage.parameters_type() if off is None else RefpixStage.parameters_type(**{off: False})
    RefpixStage().process(exposure, {"refpix": FakeReference(**tree)}, parameters, Slot(threads=2))
    ours, theirs = exposure.arrays["data"], np.asarray(expected.data)
    different = ours != theirs
    assert different.mean() < 1e-6
    np.testing.assert_allclose(ours, theirs, rtol=3e-7, atol=1e-5)
    np.testing.assert_array_equal(exposure.arrays["amp33"], np.asarray(expected.amp33))
    for side in ("left", "right", "top", "bottom"):
        name = f"border_ref_pix_{side}"
        if side in ("left", "right"):
            np.testing.assert_allclose(exposure.arrays[name], np.asarray(expected[name]), rtol=3e-7, atol=1e-5)
