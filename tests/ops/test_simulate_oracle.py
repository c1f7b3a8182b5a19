"""The field's own pipeline finds in simulated exposures what went into them.

Dark decay is taken out here, between the oracle's steps, because its own step needs frames of 4096 rows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest
from pyarrow import parquet

from ops.simulate import SimulateOptions, simulation
from ops.simulate.characteristics import Characteristics
from ops.simulate.detector import read_start_times
from stages.dq import PixelDQ
from tests.oracle.crds_cache import make_cache

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

ROWS = 192


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One small frame through the oracle's steps up to tweakreg: the truth's folder and name, image and catalog."""
    out = tmp_path_factory.mktemp("simulated")
    made = simulation.simulate(SimulateOptions(out=out, rows=ROWS))
    before = dict(os.environ)
    os.environ.update(make_cache(made.references, out / "cache"))
    try:
        image, catalog = _calibrate(made)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return made.truth, made.exposures[0].stem.removesuffix("_uncal"), image, catalog


def _calibrate(made: Any) -> tuple[Any, Any]:
    import warnings

    import roman_datamodels.datamodels as rdm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from romancal.assign_wcs import AssignWcsStep
        from romancal.dark_current import DarkCurrentStep
        from romancal.datamodels import ModelLibrary
        from romancal.dq_init import DQInitStep
        from romancal.flatfield import FlatFieldStep
        from romancal.linearity import LinearityStep
        from romancal.photom import PhotomStep
        from romancal.ramp_fitting import RampFitStep
        from romancal.refpix import RefPixStep
        from romancal.saturation import SaturationStep
        from romancal.source_catalog import SourceCatalogStep
        from romancal.tweakreg import TweakRegStep

        def with_references(*types: str, element: str = "") -> dict[str, str]:
            return {
                f"override_{name}": str(made.references / f"roman_wfi_wfi01_{element}{name}.asdf") for name in types
            }

        model = rdm.open(made.exposures[0])
        model = DQInitStep.call(model, **with_references("mask"))
        model = SaturationStep.call(model, **with_references("saturation"))
        model = RefPixStep.call(model, **with_references("refpix"))
        _subtract_dark_decay(model)
        tables = with_references("linearity", "inverselinearity", "integralnonlinearity")
        model = LinearityStep.call(model, **tables)
        model = RampFitStep.call(model, **with_references("readnoise", "gain"))
        model = DarkCurrentStep.call(model, **with_references("dark"))
        model = AssignWcsStep.call(model, **with_references("distortion", element="f158_"))
        model = PhotomStep.call(model, **with_references("photom"))
        model = FlatFieldStep.call(model, **with_references("flat", element="f158_"))
        catalog, _ = SourceCatalogStep.call(model, **with_references("apcorr"))
        model.meta["source_catalog"] = {"tweakreg_catalog": catalog.source_catalog}
        library = TweakRegStep.call(ModelLibrary([model]), abs_refcat=str(made.gaia))
        with library:
            model = library.borrow(0)
            library.shelve(model, 0, modify=False)
    return model, catalog.source_catalog


def _subtract_dark_decay(model: Any) -> None:
    term = Characteristics(0, "WFI01", ROWS).dark_decay()
    frame_time = model.meta.exposure.frame_time
    by_row, by_column = read_start_times(frame_time, "WFI01", ROWS)
    start = term.amplitude * np.exp(-(by_row[:, None] + by_column[None, :]) / term.time_constant)
    for k, reads in enumerate(model.meta.exposure.read_pattern):
        model.data[k] -= start * np.mean([np.exp(-(read - 1.5) * frame_time / term.time_constant) for read in reads])


def _rates(calibrated: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    truth, name, image, _ = calibrated
    with asdf.open(truth / f"{name}_rate.asdf") as file:
        rate = np.array(file["rate"], dtype=np.float64)
    data, error = np.array(image.data, dtype=np.float64), np.array(image.err, dtype=np.float64)
    bad = PixelDQ.DO_NOT_USE | PixelDQ.SATURATED | PixelDQ.JUMP_DET | PixelDQ.HOT | PixelDQ.NO_LIN_CORR
    bad |= PixelDQ.NO_FLAT_FIELD | PixelDQ.TELEGRAPH | PixelDQ.LOW_QE
    good = ((np.array(image.dq) & np.uint32(bad)) == 0) & np.isfinite(data)
    return rate, data, error, good


def test_bright_rates_are_unbiased(calibrated: Any) -> None:
    rate, data, _, good = _rates(calibrated)
    bright = good & (rate > 5) & (rate < 1000)
    assert bright.sum() > 200
    assert data[bright].sum() / rate[bright].sum() == pytest.approx(1.0, abs=0.003)


def test_sky_is_unbiased_and_its_errors_are_true(calibrated: Any) -> None:
    rate, data, error, good = _rates(calibrated)
    sky = good & (rate < 0.4)
    pull = (data[sky] - rate[sky]) / error[sky]
    assert data[sky].mean() == pytest.approx(rate[sky].mean(), rel=0.02)
    assert 1.4826 * np.median(np.abs(pull - np.median(pull))) == pytest.approx(1.0, abs=0.05)
    assert abs(np.median(pull)) < 0.1


def test_strong_cosmic_rays_are_found_and_few_others(calibrated: Any) -> None:
    truth, name, image, _ = calibrated
    hits = parquet.read_table(truth / f"{name}_cosmic_rays.parquet")
    row, column, sigma, resultant = (hits[key].to_numpy() for key in ("row", "column", "sigma", "resultant"))
    dq = np.array(image.dq)
    jump = (dq & np.uint32(PixelDQ.JUMP_DET)) > 0
    strong = (sigma > 15) & (resultant > 0) & ((dq[row, column] & np.uint32(3)) == 0)
    assert strong.sum() > 300
    assert jump[row, column][strong].mean() > 0.98
    untouched = np.ones(jump.shape, dtype=bool)
    untouched[row, column] = False
    assert jump[untouched].mean() < 1e-3


def test_stars_are_found_where_they_are(calibrated: Any) -> None:
    truth, name, image, catalog = calibrated
    stars = parquet.read_table(truth / f"{name}_stars.parquet")
    x, y, mag, dn = (stars[key].to_numpy() for key in ("x", "y", "mag", "dn_per_s"))
    distance = np.hypot(np.array(catalog["x_psf"])[:, None] - x, np.array(catalog["y_psf"])[:, None] - y)
    clear = (mag > 17) & (mag < 20.5)
    found = clear & (distance.min(axis=0) < 0.1)
    assert found.sum() >= 20
    assert found.sum() / clear.sum() > 0.8
    per_dn = image.meta.photometry.conversion_megajanskys * image.meta.photometry.pixel_area * 1e15
    ratio = np.array(catalog["psf_flux"])[distance.argmin(axis=0)][found] / per_dn / dn[found]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01)


def test_alignment_finds_the_pointing_error(calibrated: Any) -> None:
    truth, name, image, _ = calibrated
    error = json.loads((Path(truth) / f"{name}_pointing.json").read_text())["error"]
    assert np.hypot(error["east_mas"], error["north_mas"]) > 100
    fit = image.meta.wcs_fit_results
    assert fit["status"] == "SUCCESS"
    assert fit["nmatches"] >= 30
    stars = parquet.read_table(truth / f"{name}_stars.parquet")
    ra, dec = image.meta.wcs(stars["x"].to_numpy(), stars["y"].to_numpy())
    off_ra = (ra - stars["ra"].to_numpy()) * np.cos(np.deg2rad(dec)) * 3.6e6
    off_dec = (dec - stars["dec"].to_numpy()) * 3.6e6
    assert np.nanmax(np.hypot(off_ra, off_dec)) < 5.0
