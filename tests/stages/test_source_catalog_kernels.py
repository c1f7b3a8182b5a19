"""Each kernel of source_catalog against the slow and obvious way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.source_catalog import kron, least_squares
from stages.source_catalog.background import _clip_sorted, estimate_background, mesh_surface
from stages.source_catalog.deblend import deblend_segments
from stages.source_catalog.detection import detect, gaussian_taps, label_segments
from stages.source_catalog.neighbours import nearest_neighbours
from stages.source_catalog.overlap import circle_pixel_overlap, ellipse_pixel_overlap
from stages.source_catalog.psf import group_sources
from stages.source_catalog.psf_model import build_psf, match_jitter, psf_values
from tests.stages import catalog_scene as cs

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, n=st.integers(1, 400), decimals=st.integers(0, 5))
@example(seed=29, n=400, decimals=1)  # bounds that widen again
def test_clipping_of_sorted_values_is_that_of_astropy(seed: int, n: int, decimals: int) -> None:
    from astropy.stats import sigma_clip

    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=n) * np.where(rng.random(n) < 0.1, 20, 1), decimals).astype(np.float32)
    kept = sigma_clip(values[None], sigma=3, maxiters=5, cenfunc="median", stdfunc="mad_std", axis=1, masked=False)
    values.sort()
    first, last, _, _ = _clip_sorted(values)
    expected = np.sort(kept[np.isfinite(kept)])
    np.testing.assert_array_equal(values[first:last], expected)


def test_surface_is_scipys_zoom_of_the_mesh() -> None:
    from scipy.ndimage import zoom

    mesh = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    coefficients, iy, wy, ix, wx = mesh_surface(mesh, (30, 20), (115, 117))
    rows = np.einsum("yk,ykb->yb", wy, coefficients[iy])
    surface = np.einsum("xk,yxk->yx", wx, rows[:, ix])
    expected = zoom(mesh.astype(float), (30, 20), order=3, mode="reflect", grid_mode=True)[:115, :117]
    np.testing.assert_allclose(surface, expected, atol=1e-12)


def test_a_constant_image_has_that_background_and_no_rms() -> None:
    data = np.full((90, 130), 3.5, dtype=np.float32)
    background = estimate_background(data, np.zeros(data.shape, dtype=np.bool_), 40)
    assert (background.level == 3.5).all()
    assert (background.rms == 0).all()
    assert background.level.shape == (3, 4)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, ny=st.integers(1, 12), nx=st.integers(1, 14), minimum=st.integers(1, 5))
def test_labels_are_scipys_without_the_small_ones(seed: int, ny: int, nx: int, minimum: int) -> None:
    from scipy.ndimage import label

    detected = np.random.default_rng(seed).random((ny, nx)) < 0.45
    expected, n = label(detected, structure=np.ones((3, 3)))
    large = np.bincount(expected.ravel(), minlength=n + 1) >= minimum
    large[0] = False
    ours = np.empty(detected.shape, dtype=np.uint32)
    assert label_segments(detected, minimum, ours) == np.count_nonzero(large)
    np.testing.assert_array_equal(ours, np.where(large, np.cumsum(large), 0)[expected])


def test_filter_leaves_masked_pixels_out_of_both_sums() -> None:
    rng = np.random.default_rng(2)
    data = rng.normal(size=(20, 25)).astype(np.float32)
    masked = rng.random(data.shape) < 0.2
    masked[8:17, 8:17] = True
    data[masked] = np.nan
    background = estimate_background(data, masked, 50)
    ours, detected = np.empty_like(data), np.empty(data.shape, dtype=np.bool_)
    detect(data, masked, background, 2.0, 1.0, convolved=ours, detected=detected)
    taps = gaussian_taps(2.0)
    kernel, half = np.outer(taps, taps), taps.size // 2
    padded, valid = np.pad(np.where(masked, 0, data).astype(float), half), np.pad(~masked, half, constant_values=True)
    for y, x in np.ndindex(*data.shape):
        window = (slice(y, y + taps.size), slice(x, x + taps.size))
        weight = np.sum(kernel * valid[window])
        expected = np.sum(kernel * padded[window]) / weight if weight else np.nan
        np.testing.assert_allclose(ours[y, x], expected, rtol=1e-6, atol=1e-7)
    assert np.isnan(ours[12, 12])
    assert not detected[masked].any()


@settings(max_examples=80, deadline=None)
@given(
    a=st.floats(0.05, 6),
    ratio=st.floats(0.1, 1),
    angle=st.floats(0, 6.3),
    x=st.floats(-0.5, 0.5),
    y=st.floats(-0.5, 0.5),
)
def test_overlaps_add_up_to_the_area(a: float, ratio: float, angle: float, x: float, y: float) -> None:
    c, s = np.cos(angle), np.sin(angle)
    pixels = [(i - x, j - y) for i in range(-8, 9) for j in range(-8, 9)]
    ellipse = np.array([ellipse_pixel_overlap(dx, dy, a, ratio * a, c, s) for dx, dy in pixels])
    circle = np.array([circle_pixel_overlap(dx, dy, a) for dx, dy in pixels])
    round_ellipse = np.array([ellipse_pixel_overlap(dx, dy, a, a, c, s) for dx, dy in pixels])
    assert abs(ellipse.sum() - np.pi * ratio * a**2) < 1e-9
    np.testing.assert_allclose(circle, round_ellipse, atol=2e-12)
    assert ellipse.max(initial=0) <= 1 + 1e-12


def test_half_light_radius_is_the_root_that_scipy_finds() -> None:
    from scipy.optimize import brentq

    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[:31, :31]
    clean = np.exp(-0.5 * ((xx - 15.3) ** 2 + (yy - 14.8) ** 2) / 3**2) + rng.normal(0, 0.01, xx.shape)
    for half in (0.2 * clean.sum(), 0.5 * clean.sum(), 0.8 * clean.sum()):
        arguments = (clean, 0, 0, 15.3, 14.8)
        low, high = (kron._missing_light(*arguments, r, half) for r in (0.1, 14.0))
        ours = kron._half_light_root(*arguments, 0.1, 14.0, low, high, half)
        assert ours == brentq(
            lambda r, half=half, arguments=arguments: kron._missing_light(*arguments, r, half), 0.1, 14
        )


def psf_fields(**keywords: Any) -> tuple[Any, ...]:
    stamps, meta = cs.epsf_contents(**keywords)
    psf = build_psf(stamps[0, 1], 4, np.array(meta["pixel_x"]), np.array(meta["pixel_y"]), cs.GUIDE_STAR, meta)
    return (psf.coefficients, psf.knots_x, psf.knots_y, psf.grid_x, psf.grid_y, psf.oversample)


@pytest.mark.parametrize("truth", [[(500.0, 80.2, 90.7)], [(500.0, 80.2, 90.7), (200.0, 83.1, 91.2)]])
def test_group_fit_takes_scipys_steps(truth: list[tuple[float, float, float]]) -> None:
    from scipy.optimize import least_squares as scipy_least_squares

    fields = psf_fields()
    rng = np.random.default_rng(4)
    regions = [np.mgrid[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].reshape(2, -1) for _, x, y in truth]
    py, px = np.concatenate(regions, axis=1)

    def model(parameters: Any) -> Any:
        total, out = np.zeros(px.size), np.empty(px.size)
        for flux, x, y in parameters.reshape(-1, 3):
            psf_values(*fields, flux, x, y, px, py, out)
            total += out
        return total

    data = model(np.array(truth).ravel()) + rng.normal(0, 1, px.size)
    weights = rng.uniform(0.5, 1.5, px.size)
    start = np.array(truth).ravel() * 0.97
    start[1::3], start[2::3] = start[1::3] + 2, start[2::3] + 3
    expected = scipy_least_squares(
        lambda p: (model(p) - data) * weights,
        start.copy(),
        xtol=1e-7,
        diff_step=np.sqrt(np.finfo(float).eps),
        max_nfev=100,
    )
    fitted = start.copy()
    status, residuals, covariance = least_squares.fit_group(fields, fitted, px, py, data, weights)
    assert status == expected.status
    np.testing.assert_allclose(fitted, expected.x, rtol=1e-9)
    np.testing.assert_allclose(residuals, expected.fun, atol=1e-6)
    np.testing.assert_allclose(covariance, np.linalg.pinv(expected.jac.T @ expected.jac), rtol=1e-4, atol=1e-12)


def test_spline_of_the_stamp_is_scipys() -> None:
    from scipy.interpolate import RectBivariateSpline

    stamp = cs.psf_stamp(41, 4, 1).astype(np.float32)
    same_jitter = {"jitter_major": 8.0, "jitter_minor": 8.0, "jitter_position_angle": 0.0}
    psf = build_psf(stamp[None], 4, np.array([5.0]), np.array([7.0]), same_jitter, same_jitter)
    rng = np.random.default_rng(5)
    px, py, out = rng.integers(0, 14, 200), rng.integers(0, 14, 200), np.empty(200)
    psf_values(
        psf.coefficients, psf.knots_x, psf.knots_y, psf.grid_x, psf.grid_y, psf.oversample, 3.0, 6.3, 5.9, px, py, out
    )
    spline = RectBivariateSpline(np.arange(41), np.arange(41), stamp)
    y, x = 4 * (py - 5.9) + 20, 4 * (px - 6.3) + 20
    inside = (y >= 0) & (y <= 40) & (x >= 0) & (x <= 40)
    np.testing.assert_allclose(out, np.where(inside, 3 * spline(y, x, grid=False), 0), atol=3e-7)


@pytest.mark.parametrize(("angle", "axis"), [(0.0, 0), (90.0, 1)])
def test_more_jitter_broadens_the_stamp_along_its_axis_and_keeps_its_sum(angle: float, axis: int) -> None:
    offset = np.arange(121) - 60
    profile = np.exp(-0.5 * (offset / 4.0) ** 2)  # without wings that would reach around the edges of the stamp
    stamp = np.outer(profile, profile).astype(np.float32)[None]
    reference = {"jitter_major": 0.0, "jitter_minor": 0.0, "jitter_position_angle": 0.0}
    image = {"jitter_major": 40.0, "jitter_minor": 0.0, "jitter_position_angle": angle}
    broad = match_jitter(stamp, 4, image, reference)[0]
    along, across = (np.sum(broad.sum(axis=a) * offset**2) / broad.sum() for a in (1 - axis, axis))
    assert abs(broad.sum() / stamp.sum() - 1) < 1e-5
    rms = np.sqrt(along - across) * 0.11 / 4 * 1000  # position angle 0 is along y
    assert abs(rms / 40 - 1) < 0.01


@settings(max_examples=40, deadline=None)
@given(seed=seeds, n=st.integers(0, 40))
def test_groups_are_the_connected_components_of_close_pairs(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 40, (2, n)).astype(np.float32)
    if n > 2:
        x[1] = np.nan
    members, starts = group_sources(x, y)
    assert sorted(members) == list(range(n))
    group = np.empty(n, dtype=int)
    for g in range(starts.size - 1):
        group[members[starts[g] : starts[g + 1]]] = g
    close = np.hypot(x[:, None] - x, y[:, None] - y) <= 5
    reach = close | np.eye(n, dtype=bool)
    for _ in range(n):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    np.testing.assert_array_equal(group[:, None] == group, reach)


def test_nearest_neighbour_of_a_lost_centroid_is_unknown() -> None:
    x, y = np.array([0, 3, np.nan, 10], np.float32), np.array([0, 4, 1, 0], np.float32)
    label, distance = nearest_neighbours(np.array([1, 2, 5, 9]), x, y, 0.1)
    np.testing.assert_array_equal(label, [2, 1, -1, 2])
    np.testing.assert_allclose(distance, [0.5, 0.5, np.nan, np.hypot(7, 4) / 10], rtol=1e-6)
    assert nearest_neighbours(np.array([4]), x[:1], y[:1], 0.1)[0] == -1


def test_deblending_gives_each_of_two_blended_peaks_a_label_after_the_others() -> None:
    yy, xx = np.mgrid[:30, :60]
    image = sum(np.exp(-0.5 * ((xx - x) ** 2 + (yy - 15) ** 2) / 2.5**2) for x in (15, 24, 48)).astype(np.float32)
    segmentation = np.empty(image.shape, dtype=np.uint32)
    assert label_segments(image > 0.05, 5, segmentation) == 2
    deblend_segments(image, segmentation, 5)
    assert [segmentation[15, x] for x in (48, 15, 24)] == [1, 2, 3]
    np.testing.assert_array_equal(segmentation > 0, image > 0.05)
