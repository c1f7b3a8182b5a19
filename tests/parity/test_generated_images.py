"""The stages of the rate image equal romancal's steps on generated images, references good, bad and missing."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from stages.assign_wcs import AssignWcs
from stages.dark_current import DarkCurrent
from stages.dq import PixelDQ
from stages.exposure import CAL_STEP_KEYS, Exposure, ExposureType, Level
from stages.flat_field import FlatField
from stages.photom import Photom
from stages.saturated import become_saturated_image
from stages.wcs import build_wcs
from stream.stage import Slot
from tests.parity import both_sides as both
from tests.parity.random_ramps import random_ramp, reference_plane
from tests.parity.record import EQUAL, Bar, compare, compare_same, seeds
from tests.stages.sky_scene import boresight, make_member

# The oracle divides by zero, casts to infinity and warns of elements that a table lacks.
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

SHAPE = (40, 56)
BAD = (0.0, np.nan, -0.7, np.inf, 1e-30)
PLANES = ("data", "dq", "err", "var_poisson", "var_rnoise", "chisq", "dumo")
PHOTOMETRY = ("conversion_megajanskys", "conversion_megajanskys_uncertainty", "pixel_area")
ELEMENTS = ("F062", "F087", "F106", "F129", "F146", "F158", "F184", "F213", "GRISM", "PRISM", "DARK", "NOT_CONFIGURED")


def random_image(seed: int) -> tuple[Exposure, Any]:
    """One image as the stages and as the oracle's steps take it: all magnitudes, and values that are no numbers."""
    from roman_datamodels import datamodels

    rng = np.random.default_rng(seed)
    data = rng.normal(size=SHAPE) * 10 ** rng.uniform(-3, 5, SHAPE)
    arrays: dict[str, Any] = {"data": reference_plane(rng, data, values=(0, np.nan, np.inf))}
    arrays["dq"] = rng.choice(np.array([0, 1, 2, 4, 5, 1 << 20, 1 << 31], np.uint32), SHAPE)
    for name in PLANES[2:]:
        with np.errstate(over="ignore"):
            plane = 10 ** rng.uniform(-9, 6, SHAPE) * (np.sign(data) if name == "dumo" else 1)
            arrays[name] = reference_plane(rng, plane, values=(0, np.nan)).astype(np.float16)
    meta: dict[str, Any] = {
        "exposure": {"type": str(rng.choice(list(ExposureType)))},
        "instrument": {"optical_element": str(rng.choice(ELEMENTS)), "detector": "WFI01"},
        "cal_step": dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE"),
        "photometry": dict.fromkeys(PHOTOMETRY, -999999),
        "ref_file": {},
    }
    model = datamodels.ImageModel.create_fake_data(shape=SHAPE)
    for name, array in arrays.items():
        model[name] = array.copy()
    for name in ("exposure", "instrument", "photometry"):
        model.meta[name].update(meta[name])
    model.meta["cal_step"] = dict(meta["cal_step"])
    return Exposure("r0000101001001001001_0001_wfi01", Level.IMAGE, copy.deepcopy(meta), arrays), model


@pytest.mark.parametrize("seed", seeds(4, 120))
def test_dark_current(seed: int) -> None:
    from roman_datamodels.datamodels import DarkRefModel
    from romancal.dark_current import DarkCurrentStep

    rng = np.random.default_rng([seed, 2])
    exposure, model = random_image(seed)
    frame = (SHAPE[0] + 8, SHAPE[1] + 8)
    tree, dark = None, None
    if seed % 4 != 3:
        slope = reference_plane(rng, rng.normal(0.01, 0.02, frame), values=BAD)
        tree = {"dark_slope": slope, "dq": rng.integers(0, 2**32, frame, dtype=np.uint32)}
        dark = DarkRefModel.create_fake_data(shape=(2, *frame))
        dark.dark_slope, dark.dq = tree["dark_slope"].copy(), tree["dq"].copy()
    model = both.run_oracle_step(DarkCurrentStep, model, {"dark": dark})
    both.run_stage(DarkCurrent, exposure, {"dark": tree})
    both.compare_arrays("dark_current", exposure, model, PLANES, bar=EQUAL)
    assert exposure.meta["cal_step"]["dark"] == ("SKIPPED" if tree is None else "COMPLETE")


@pytest.mark.parametrize("seed", seeds(5, 120))
def test_flat_field(seed: int) -> None:
    from roman_datamodels.datamodels import FlatRefModel
    from romancal.flatfield import FlatFieldStep

    rng = np.random.default_rng([seed, 3])
    exposure, model = random_image(seed)
    # As it should be three times, of another shape, missing.
    shape = (SHAPE, SHAPE, SHAPE, (SHAPE[0], SHAPE[1] + 8), None)[seed % 5]
    tree, flat = None, None
    if shape is not None:
        flags = np.array([0, PixelDQ.NO_FLAT_FIELD, PixelDQ.LOW_QE, PixelDQ.DO_NOT_USE], np.uint32)
        tree = {
            "data": reference_plane(rng, rng.normal(1, 0.2, shape), values=BAD),
            "err": reference_plane(rng, rng.uniform(0, 0.05, shape), values=(np.nan, 0)),
            "dq": rng.choice(flags, shape, p=[0.85, 0.05, 0.05, 0.05]),
        }
        flat = FlatRefModel.create_fake_data(shape=shape)
        for name, array in tree.items():
            flat[name] = array.copy()
    with_variance = seed % 2 == 1
    model = both.run_oracle_step(FlatFieldStep, model, {"flat": flat}, include_var_flat=with_variance)
    both.run_stage(FlatField, exposure, {"flat": tree}, include_var_flat=with_variance)
    done = shape == SHAPE
    names = (*PLANES, "var_flat") if with_variance and done else PLANES
    for name in ("err", "var_flat") if with_variance and done else ():
        # f4 in the oracle, which then cannot save them ("var-flat-f2")
        with np.errstate(over="ignore"):
            model[name] = np.asarray(model[name]).astype(np.float16)
    both.compare_arrays("flat_field", exposure, model, names, bar=EQUAL)
    assert exposure.meta["cal_step"]["flat_field"] == ("COMPLETE" if done else "SKIPPED")


@pytest.mark.parametrize("element", [*ELEMENTS, "f158", "F999"])
def test_photometry_of_every_element(element: str) -> None:
    from roman_datamodels.datamodels import WfiImgPhotomRefModel
    from romancal.photom import PhotomStep

    numbers = np.random.default_rng(len(element) + ord(element[1])).uniform(0.1, 1, 3)
    none = dict.fromkeys(("photmjsr", "uncertainty", "pixelareasr"))
    table = {name: dict(zip(none, map(float, numbers), strict=True)) for name in ELEMENTS if name.startswith("F")}
    table |= {name: none for name in ELEMENTS if not name.startswith("F")}
    reference = WfiImgPhotomRefModel.create_fake_data()
    reference.phot_table = table
    for given in (reference, None):
        for kind in ExposureType:
            exposure, model = random_image(3)
            exposure.meta["instrument"]["optical_element"] = element
            exposure.meta["exposure"]["type"] = str(kind)
            # Not every element tried here may be written to a file.
            model._instance["meta"]["instrument"]["optical_element"] = element
            model.meta.exposure.type = str(kind)
            model = both.run_oracle_step(PhotomStep, model, {"photom": given})
            both.run_stage(Photom, exposure, {"photom": None if given is None else {"phot_table": table}})
            compare_same("photom", "`meta.photometry`", exposure.meta["photometry"], dict(model.meta.photometry))
            both.compare_arrays("photom", exposure, model, ("data", "dq"), bar=EQUAL)
            if given is not None and element in table:
                assert exposure.meta["photometry"]["pixel_area"] == table[element]["pixelareasr"]


@pytest.mark.parametrize("seed", seeds(3, 72))
def test_assign_wcs(seed: int) -> None:
    from roman_datamodels.datamodels import DistortionRefModel
    from romancal.assign_wcs import AssignWcsStep

    rng = np.random.default_rng([seed, 4])
    pointing = boresight(rng.uniform(0, 360), np.rad2deg(np.arcsin(rng.uniform(-1, 1))), rng.uniform(0, 360))
    v2, v3 = rng.uniform(-1800, 1800), rng.uniform(-1300, -300)
    member = make_member(
        "m", "g", pointing, v2, v3, angle=rng.uniform(0, 360), inverse=seed % 3 != 1, box=seed % 2 == 0
    )
    scales = (float(1 + rng.normal(0, 1e-4)), 1.0, None, -1.0)
    exposure, model = random_image(seed)
    for meta in (exposure.meta, model.meta):
        meta["wcsinfo"] = copy.deepcopy(member.meta()["wcsinfo"])
        meta["velocity_aberration"] = {"scale_factor": scales[seed % 4]}
    reference = DistortionRefModel.create_fake_data()
    reference["coordinate_distortion_transform"] = member.distortion
    model = both.run_oracle_step(AssignWcsStep, model, {"distortion": reference})
    both.run_stage(AssignWcs, exposure, {"distortion": {"coordinate_distortion_transform": member.distortion}})
    wcs = build_wcs(exposure.wcs, member.distortion)
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(-0.5, SHAPE[1] - 0.5, 9), np.linspace(-0.5, SHAPE[0] - 0.5, 9)))
    degrees = Bar("1e-12 degrees", absolute=1e-12)
    for what, ours, theirs in zip(("right ascension", "declination"), wcs(x, y), model.meta.wcs(x, y), strict=True):
        compare("assign_wcs", what, ours, theirs, bar=degrees)
    region = exposure.meta["wcsinfo"]["s_region"]
    compare_same("assign_wcs", "`s_region`", region, model.meta.wcsinfo.s_region)
    both.compare_arrays("assign_wcs", exposure, model, ("data", "dq"), bar=EQUAL)
    assert region.startswith("POLYGON ICRS  ")


def test_assign_wcs_without_a_distortion() -> None:
    from romancal.assign_wcs import AssignWcsStep

    exposure, model = random_image(1)
    model = both.run_oracle_step(AssignWcsStep, model, {"distortion": None})
    both.run_stage(AssignWcs, exposure, {"distortion": None})
    both.compare_arrays("assign_wcs", exposure, model, ("data", "dq"), bar=EQUAL)
    assert exposure.meta["cal_step"]["assign_wcs"] == "SKIPPED"


@pytest.mark.parametrize("seed", seeds(2, 30))
def test_the_image_of_a_fully_saturated_exposure(seed: int) -> None:
    from romancal.pipeline import ExposurePipeline

    case = random_ramp(seed, (24, 40))
    case.groupdq |= np.uint8(PixelDQ.SATURATED)
    model = ExposurePipeline().create_fully_saturated_zeroed_image(both.their_ramp(case))
    exposure = both.our_ramp(case)
    become_saturated_image(exposure, Slot())
    for name in ("data", "dq", "err", "var_poisson", "chisq", "amp33", *both.BORDERS):
        compare("saturated", both.shown(name), exposure.arrays[name], np.asarray(model[name]), bar=EQUAL)
    dumo = exposure.arrays["dumo"]
    assert np.asarray(model.dumo).any()
    compare("saturated", "`dumo`", dumo, np.asarray(model.dumo), accepted={"saturated-product": dumo == 0})
    # The oracle's tweakreg says so later, for all that have no catalog.
    theirs = {**model.meta.cal_step, "tweakreg": "SKIPPED"}
    compare_same("saturated", "`cal_step`", exposure.meta["cal_step"], theirs)
    assert not dumo.any()
