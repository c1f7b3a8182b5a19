"""dq_init equals romancal's, bit for bit, on cases by hand and on generated ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.dq_init import DQInitParameters, DQInitStage
from stages.exposure import Exposure, Level
from stream.stage import Slot
from tests.parity.both_sides import run_oracle_step, run_stage, shown
from tests.parity.record import EQUAL, compare, compare_same, seeds
from tests.stages.ramp_frames import FakeReference

pytestmark = pytest.mark.oracle

N, ROWS, COLUMNS = 3, 48, 64

BORDERS = [f"{prefix}border_ref_pix_{side}" for prefix in ("", "dq_") for side in ("left", "right", "top", "bottom")]


def _raw(window: tuple[int, int, int, int], *, offset: int | None, seed: int = 7) -> Any:
    from roman_datamodels import datamodels as rdm

    rng = np.random.default_rng(seed)
    raw = rdm.ScienceRawModel.create_fake_data(shape=(N, ROWS, COLUMNS))
    raw.data = rng.integers(0, 65536, (N, ROWS, COLUMNS), dtype=np.uint16)
    raw.amp33 = rng.integers(0, 65536, (N, ROWS, 128), dtype=np.uint16)
    raw.reference_read = rng.integers(0, 65536, (ROWS, COLUMNS), dtype=np.uint16)
    raw.reference_amp33 = rng.integers(0, 65536, (ROWS, 128), dtype=np.uint16)
    raw.resultantdq = rng.integers(0, 256, (N, ROWS, COLUMNS), dtype=np.uint8)
    raw.meta.exposure.data_problem = True
    if offset is not None:
        raw.meta.instrument["data_encoding_offset"] = offset
    for edge, value in zip(("xstart", "xstop", "ystart", "ystop"), window, strict=True):
        raw.meta.guide_star[f"window_{edge}"] = value
    return raw


def _exposure(model: Any, level: Level) -> Exposure:
    import copy

    node = model._instance
    arrays = {key: np.array(value) for key, value in node.items() if isinstance(value, np.ndarray)}
    meta = copy.deepcopy(dict(node["meta"].items()))
    return Exposure("r0000101001001001001_0001_wfi01", level, _plain(meta), arrays)


def _plain(node: Any) -> Any:
    return {key: _plain(value) for key, value in node.items()} if hasattr(node, "items") else node


@pytest.mark.parametrize("expand", [0, 5])
@pytest.mark.parametrize(
    "window",
    [
        (10, 20, 30, 40),
        (0, 3, 0, 3),
        (5, -10, 7, -12),
        (40, 900, 44, 900),
        (-999999, 3, 4, 9),
        (20, 10, 3, 3),
        (4, 9, 48, 60),
    ],
)
def test_all_arrays_equal_the_oracles(window: tuple[int, int, int, int], expand: int) -> None:
    from roman_datamodels import datamodels as rdm
    from romancal.dq_init.dq_initialization import do_dqinit

    raw = _raw(window, offset=1234)
    mask = rdm.MaskRefModel.create_fake_data(shape=(ROWS, COLUMNS))
    mask.dq = np.random.default_rng(1).integers(0, 2**31, (ROWS, COLUMNS), dtype=np.uint32)
    exposure = _exposure(raw, Level.RAW)
    expected = do_dqinit(raw, mask, expand_gw_flagging=expand)

    parameters = DQInitParameters(expand_gw_flagging=expand)
    DQInitStage().process(exposure, {"mask": FakeReference(dq=mask.dq)}, parameters, Slot(threads=2))
    _assert_equal(exposure, expected)
    assert exposure.level is Level.RAMP
    assert exposure.meta["exposure"]["data_problem"] == expected.meta.exposure.data_problem == "True"
    assert exposure.meta["cal_step"] == dict(expected.meta.cal_step.items())


def test_a_ramp_equals_the_oracles() -> None:
    from roman_datamodels import datamodels as rdm
    from romancal.dq_init.dq_initialization import do_dqinit

    rng = np.random.default_rng(2)
    ramp = rdm.RampModel.create_fake_data(shape=(N, ROWS, COLUMNS))
    ramp.data = rng.normal(1000, 300, (N, ROWS, COLUMNS)).astype(np.float32)
    ramp.pixeldq = rng.integers(0, 2**31, (ROWS, COLUMNS), dtype=np.uint32)
    ramp.groupdq = rng.integers(0, 256, (N, ROWS, COLUMNS), dtype=np.uint8)
    ramp.amp33 = rng.integers(0, 65536, (N, ROWS, 128), dtype=np.uint16)
    ramp.meta.instrument["data_encoding_offset"] = 77
    for edge, value in zip(("xstart", "xstop", "ystart", "ystop"), (8, 12, 20, 30), strict=True):
        ramp.meta.guide_star[f"window_{edge}"] = value
    mask = rdm.MaskRefModel.create_fake_data(shape=(ROWS, COLUMNS))
    mask.dq = rng.integers(0, 2**31, (ROWS, COLUMNS), dtype=np.uint32)
    exposure = _exposure(ramp, Level.RAMP)
    expected = do_dqinit(ramp, mask)
    DQInitStage().process(exposure, {"mask": FakeReference(dq=mask.dq)}, DQInitParameters(), Slot())
    _assert_equal(exposure, expected)


def ramp_of_counts(window: tuple[int, int, int, int]) -> tuple[Exposure, Any]:
    """A raw exposure with a guide window, as both sides take it."""
    raw = _raw(window, offset=100)
    return _exposure(raw, Level.RAW), raw


def _window(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Edges inside, outside, negative or the wrong way round."""
    edges = [
        int(rng.choice([rng.integers(0, ROWS), rng.integers(-60, 90), -999999], p=[0.8, 0.15, 0.05])) for _ in "1234"
    ]
    return edges[0], edges[1], edges[2], edges[3]


@pytest.mark.parametrize("seed", seeds(6, 200))
def test_generated_exposures_equal_the_oracles(seed: int) -> None:
    from roman_datamodels import datamodels as rdm
    from romancal.dq_init import DQInitStep

    rng = np.random.default_rng(seed)
    raw = _raw(_window(rng), offset=int(rng.integers(0, 65536)) if rng.random() < 0.7 else None, seed=seed)
    raw.meta.exposure.data_problem = bool(rng.random() < 0.5)
    for optional in ("resultantdq", "reference_read", "reference_amp33"):
        if rng.random() < 0.4:
            del raw._instance[optional]
    # The mask as it should be, of another shape, and missing.
    rows = (ROWS, ROWS + 8, None)[seed % 3]
    mask, tree = None, None
    if rows is not None:
        mask = rdm.MaskRefModel.create_fake_data(shape=(rows, COLUMNS))
        mask.dq = rng.integers(0, 2**31, (rows, COLUMNS), dtype=np.uint32)
        tree = {"dq": mask.dq}
    expand = int(rng.integers(0, 9))
    exposure = _exposure(raw, Level.RAW)
    expected = run_oracle_step(DQInitStep, raw, {"mask": mask}, expand_gw_flagging=expand)
    run_stage(DQInitStage, exposure, {"mask": tree}, expand_gw_flagging=expand)
    _assert_equal(exposure, expected)
    compare_same("dq_init", "`cal_step`", exposure.meta["cal_step"], dict(expected.meta.cal_step.items()))
    assert exposure.meta["cal_step"]["dq_init"] == ("COMPLETE" if rows == ROWS else "SKIPPED")
    assert exposure.meta["exposure"]["data_problem"] == expected.meta.exposure.data_problem


def _assert_equal(exposure: Exposure, expected: Any) -> None:
    for name in ("data", "groupdq", "pixeldq", "amp33", *BORDERS):
        compare("dq_init", shown(name), exposure.arrays[name], np.asarray(expected[name]), bar=EQUAL)
    assert not {"resultantdq", "reference_read", "reference_amp33"} & exposure.arrays.keys()
