"""The source catalog against romancal's where it is delicate: edges, blends, one source, the PSF's grid, parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.source_catalog import SourceCatalogParameters
from tests.parity.record import at_full_length
from tests.parity.test_source_catalog import assert_same, offline
from tests.stages import catalog_scene as cs

__all__ = ["offline"]

pytestmark = pytest.mark.oracle


ALONE = {
    "bkg_boxsize": [37, 75],
    "kernel_fwhm": [1.2, 4.7],
    "snr_threshold": [1.5, 8.0],
    "npixels": [3, 60],
    "deblend": [True],
    "fit_psf": [False],
}


def scene_at(
    seed: int, shape: tuple[int, int], places: Any, *, flux: float = 40.0, sigma: float = 1.6, bad: float = 0.0
) -> cs.Scene:
    """Round sources at given places (x, y) on the noise of an empty scene, with errors to match."""
    scene = cs.scene(seed, shape, 0, bad=bad)
    y, x = np.mgrid[: shape[0], : shape[1]]
    added = np.zeros(shape)
    for k, (x0, y0) in enumerate(places):
        peak = flux * (1 + 0.3 * k % 2) / (2 * np.pi * sigma**2)
        added += peak * np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / sigma**2)
    scene.data += added.astype(np.float32)
    variance = scene.err.astype(np.float64) ** 2 + 0.01 * added
    scene.err = np.sqrt(variance).astype(np.float16)
    return scene


def test_no_parameter_is_left_out() -> None:
    elsewhere = {"skip", "forced_segmentation"}
    assert set(SourceCatalogParameters.model_fields) == set(ALONE) | elsewhere
    for name, values in ALONE.items():
        assert SourceCatalogParameters.model_fields[name].default not in values


@pytest.mark.parametrize("place", [(40.3, 31.8), pytest.param((0.2, 0.4), marks=at_full_length)])
def test_one_source_alone(place: tuple[float, float]) -> None:
    assert len(assert_same(scene_at(21, (70, 80), [place]), npixels=9)) == 1


def test_sources_on_every_edge_and_in_every_corner() -> None:
    """Centres on the outermost pixels, just inside, and outside, of which a part is on the image."""
    ny, nx = 96, 110
    edge = [(nx / 2, 0.3), (0.2, ny / 2), (nx - 1.2, ny / 2), (nx / 2, ny - 1.4)]
    near = [(25.0, 2.6), (2.4, 25.0), (nx - 3.3, 25.0), (25.0, ny - 3.5)]
    beyond = [(80.0, -1.1), (-1.2, 75.0), (nx + 0.3, 75.0), (80.0, ny + 0.2)]
    corners = [(0.4, 0.4), (nx - 1.3, 0.1), (0.2, ny - 1.4), (nx - 1.1, ny - 1.2)]
    assert len(assert_same(scene_at(22, (ny, nx), edge + near + beyond + corners, flux=60.0), npixels=5)) > 12


@pytest.mark.parametrize("deblend", [True, pytest.param(False, marks=at_full_length)])
def test_blends_are_split_and_fitted_together(deblend: bool) -> None:
    pairs = [(20 + 34 * k, 20 + 28 * j, 3.2 + 0.9 * (3 * j + k)) for k in range(3) for j in range(3)]
    places = [(x, y) for x, y, _ in pairs] + [(x + gap, y + 0.4 * gap) for x, y, gap in pairs]
    places += [(20.0 - 5.5, 20.0 + 2.0), (88.0, 76.0 - 6.5)]  # two of them have three parts
    catalog = assert_same(scene_at(23, (100, 120), places, flux=90.0, bad=0.003), npixels=5, deblend=deblend)
    assert len(catalog) > (12 if deblend else 7)


@pytest.mark.parametrize("crowd", [150, pytest.param(400, marks=at_full_length)])
def test_a_crowded_field(crowd: int) -> None:
    scene = cs.scene(24, (120, 120) if crowd < 200 else (250, 250), crowd, bad=0.004, gradient=0.2)
    assert len(assert_same(scene, npixels=4, deblend=True, snr_threshold=2.5, bkg_boxsize=60)) > crowd / 4


@pytest.mark.parametrize("old_format", [False, pytest.param(True, marks=at_full_length)])
def test_the_psf_between_on_and_beyond_the_points_of_its_grid(
    monkeypatch: pytest.MonkeyPatch, old_format: bool
) -> None:
    """Three by three points inside the image, in no order: sources on points, on lines, between, and on all sides."""
    lines = (30.0, 60.0, 90.0)
    grid = [(x, y) for x in lines for y in lines]
    order = np.random.default_rng(1).permutation(9)

    def contents(*, old_format: bool = False) -> tuple[Any, dict[str, Any]]:
        stamps = np.array([cs.psf_stamp(41, 4, int(k)) for k in order])
        stamps = stamps / 16 if old_format else stamps
        meta = original(old_format=old_format)[1]
        meta |= {"pixel_x": [grid[k][0] for k in order], "pixel_y": [grid[k][1] for k in order]}
        return np.array([[0.5 * stamps, stamps]], dtype=np.float32), meta

    original = cs.epsf_contents
    monkeypatch.setattr(cs, "epsf_contents", contents)
    where = (8.3, 30.0, 44.6, 60.0, 76.2, 90.0, 111.4)
    places = [(x, y) for x in where for y in where]
    catalog = assert_same(scene_at(25, (120, 120), places, flux=60.0), old_format=old_format, npixels=9)
    assert len(catalog) == len(places)


@at_full_length
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ALONE.items() for value in values])
@pytest.mark.parametrize("seed", [31, 32])
def test_each_parameter_alone(name: str, value: Any, seed: int) -> None:
    scene = cs.scene(seed, (140, 150), 40, bad=0.004, gradient=0.3)
    assert_same(scene, **{name: value})
