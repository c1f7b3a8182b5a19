"""The detector chain, the pointing and the noise are what the references and the truth say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from ops.simulate.bandpass import bandpass
from ops.simulate.characteristics import FULL_WELL_DN, Characteristics, interior
from ops.simulate.correlated_noise import AMP33_NOISE_DN, coefficients, coupling, draw_noise
from ops.simulate.cosmic_rays import CosmicRays, draw_cosmic_rays
from ops.simulate.detector import ENCODING_OFFSET, Calibration, Readout, read_out, read_start_times
from ops.simulate.focal_plane import (
    Attitude,
    DetectorGeometry,
    distortion_model,
    pixels_to_sky,
    sky_to_pixels,
    unit_vector,
)
from ops.simulate.optics import OVERSAMPLE, point_spread
from ops.simulate.options import DEFAULT_READ_PATTERN
from ops.simulate.scene import Sources, add_stars, disperse
from ops.simulate.sky import Stars
from ops.simulate.star_table import star_table

ROWS = 64
FRAME_TIME = 3.04
NO_RAYS = CosmicRays(np.empty((0, 4), np.int64), np.empty(0, np.int64), np.zeros(ROWS + 1, np.int64))


@pytest.fixture(scope="module")
def detector() -> Characteristics:
    return Characteristics(5, "WFI01", ROWS)


@pytest.fixture(scope="module")
def calibration(detector: Characteristics) -> Calibration:
    return Calibration(
        gain=detector.gain(),
        read_noise=detector.read_noise(),
        dark_slope=detector.dark()[0],
        inverse_linearity=detector.polynomial(detector.nonlinearity(), inverse=True),
        inl=detector.inl_correction(),
    )


def exposed(
    detector: Characteristics, calibration: Calibration, light: float, rays: CosmicRays = NO_RAYS, *, threads: int = 1
) -> Readout:
    return read_out(
        np.full((ROWS - 8, 4088), light, dtype=np.float32),
        detector=detector,
        calibration=calibration,
        cosmic_rays=rays,
        exposure=7,
        read_pattern=DEFAULT_READ_PATTERN,
        frame_time=FRAME_TIME,
        keep_first_read=False,
        threads=threads,
    )


def linear_resultants(detector: Characteristics, calibration: Calibration, readout: Readout) -> np.ndarray:
    """Undo offset, dark decay, integral and classic non-linearity of the averaged resultants, as far as means allow."""
    term = detector.dark_decay()
    by_row, by_column = read_start_times(FRAME_TIME, detector.detector, ROWS)
    start = np.exp(-(by_row[:, None] + by_column[None, :]) / term.time_constant)
    forward = detector.polynomial(detector.nonlinearity(), inverse=False).astype(np.float64)
    channel = np.arange(4096) // 128
    out = np.empty(readout.data.shape)
    for k, reads in enumerate(DEFAULT_READ_PATTERN):
        decay = np.mean([np.exp(-(read - 1.5) * FRAME_TIME / term.time_constant) for read in reads])
        raw = readout.data[k].astype(np.float64) - ENCODING_OFFSET
        raw -= interior_only(term.amplitude * start * decay)
        place = np.clip(raw, 0, 65534)
        index = place.astype(int)
        table = calibration.inl
        raw += table[channel, index] + (place - index) * (table[channel, index + 1] - table[channel, index])
        out[k] = sum(forward[power] * raw**power for power in range(forward.shape[0]))
    return out


def interior_only(frame: np.ndarray) -> np.ndarray:
    out = np.zeros_like(frame)
    interior(out)[:] = interior(frame)
    return out


@pytest.mark.parametrize("light", [1.0, 40.0, 400.0])
def test_the_light_comes_back_after_undoing_the_chain(
    detector: Characteristics, calibration: Calibration, light: float
) -> None:
    linear = linear_resultants(detector, calibration, exposed(detector, calibration, light))
    seconds = [np.mean(reads) * FRAME_TIME for reads in DEFAULT_READ_PATTERN]
    slope = (linear[-1] - linear[1]) / (seconds[-1] - seconds[1])
    # Reference rows tell each channel's drift, which all pixels share.
    drift = np.median(np.concatenate([slope[:4], slope[-4:]]).reshape(8, 32, 128), axis=(0, 2))
    slope -= np.repeat(drift, 128)[None, :]
    electrons = interior((slope - calibration.dark_slope) * calibration.gain)
    full = interior(linear[-1]) > 0.95 * FULL_WELL_DN
    assert full.mean() < 0.01
    assert np.median(electrons[~full]) == pytest.approx(light, rel=2e-3, abs=0.03)


def test_charge_is_counted_in_electrons(detector: Characteristics, calibration: Calibration) -> None:
    """Photon noise: with the gain divided out, the variance of a difference is that of counting, plus read noise."""
    linear = linear_resultants(detector, calibration, exposed(detector, calibration, 200.0))
    gained = interior((linear[2] - linear[0]) * calibration.gain)
    good = interior(calibration.read_noise) < 9
    # Variances of averaged reads of one ramp: Casertano (2022), tau and mean time of each resultant.
    tau = [
        sum((2 * len(r) + 1 - 2 * k) * t for k, t in enumerate(r, 1)) / len(r) ** 2 for r in DEFAULT_READ_PATTERN[:3]
    ]
    tbar = [np.mean(reads) for reads in DEFAULT_READ_PATTERN[:3]]
    rate = 200.0 * FRAME_TIME
    expected = rate * (tau[0] + tau[2] - 2 * tbar[0]) + (6.0 * 1.8) ** 2 * (1 + 1 / 3)
    white = gained - gained.mean(axis=1, keepdims=True)
    mad = 1.4826 * np.median(np.abs(white[good] - np.median(white[good])))
    assert mad**2 == pytest.approx(expected, rel=0.05)


def test_threads_change_no_bit(detector: Characteristics, calibration: Calibration) -> None:
    one, two = (exposed(detector, calibration, 3.0, threads=threads) for threads in (1, 2))
    assert np.array_equal(one.data, two.data)
    assert np.array_equal(one.amp33, two.amp33)


def test_no_light_reaches_reference_pixels(detector: Characteristics, calibration: Calibration) -> None:
    dark, bright = (exposed(detector, calibration, light).data.astype(int) for light in (0.0, 300.0))
    for border in (np.s_[:, :4], np.s_[:, -4:], np.s_[:, :, :4], np.s_[:, :, -4:]):
        assert np.median(np.abs(dark[border] - bright[border])) < 30
    assert np.median(interior(bright - dark)[-1]) > 5000


def test_a_full_pixel_stays_full(detector: Characteristics, calibration: Calibration) -> None:
    data = exposed(detector, calibration, 20_000.0).data.astype(np.float64) - ENCODING_OFFSET
    thresholds = interior(detector.thresholds())
    assert np.all(interior(data)[2:] > thresholds)
    assert data.max() + ENCODING_OFFSET < 65535


def test_cosmic_rays_step_up_only_where_and_when_the_truth_says(
    detector: Characteristics, calibration: Calibration
) -> None:
    rays = draw_cosmic_rays(detector, 7, rate=50.0, frame_time=FRAME_TIME, reads=34)
    assert len(rays.hits) > 300
    difference = exposed(detector, calibration, 1.0, rays).data.astype(int) - exposed(detector, calibration, 1.0).data
    last_read = np.array([reads[-1] for reads in DEFAULT_READ_PATTERN])
    expected = np.zeros(difference.shape, dtype=bool)
    for row, read, column, _ in rays.hits:
        expected[np.searchsorted(last_read, read + 1) :, row, column] = True
    assert not np.any(difference[~expected])
    row, read, column, electrons = rays.hits.T
    alone = np.bincount(row * 4096 + column, minlength=ROWS * 4096)[row * 4096 + column] == 1
    moderate = alone & (electrons > 300) & (electrons < 20_000)
    step = difference[-1, row, column][moderate & (read < 30)]
    linear = (electrons / calibration.gain[row, column])[moderate & (read < 30)]
    assert np.median(step / linear) == pytest.approx(1.0, abs=0.02)


def test_linearity_and_its_inverse_are_inverse(detector: Characteristics) -> None:
    a = detector.nonlinearity()
    back, forth = (detector.polynomial(a, inverse=inverse).astype(np.float64) for inverse in (True, False))
    for linear in (10.0, 1e3, 2e4, 6e4):
        raw = sum(back[k] * linear**k for k in range(6))
        again = sum(forth[k] * raw**k for k in range(6))
        assert np.abs(again - linear).max() < 2e-6 * linear + 1e-9
        assert np.all(interior(raw) < linear)


def test_read_times_are_those_of_the_specification() -> None:
    by_row, by_column = read_start_times(3.04, "WFI01", 4096)
    assert by_row.max() + by_column.max() == pytest.approx(3.0235042, abs=1e-7)
    # WFI01 is read from the top row down, its first channel from left to right, its second from right to left.
    assert np.all(np.diff(by_row) < 0)
    assert by_column[0] == by_column[255] == 0
    turned_row, turned_column = read_start_times(3.04, "WFI03", 4096)
    assert np.all(np.diff(turned_row) > 0)
    assert np.array_equal(turned_column, by_column[::-1])
    assert turned_row[256] - turned_row[255] > 20 * (turned_row[255] - turned_row[254])


def test_the_coefficients_take_the_correlated_noise_out(detector: Characteristics) -> None:
    """The correction of the spec (rfft, weights, irfft) on noise alone."""
    noise = draw_noise(detector, 3, 4)
    length = noise.common.shape[1]
    weights = coefficients(detector)
    assert weights["alpha"].shape == (32, 70 * ROWS + 1)
    strength = coupling(detector)
    rng = np.random.default_rng(2)
    before, after = [], []
    columns = np.arange(length) % 140 < 4
    for common, drift in zip(noise.common, noise.drift, strict=True):
        amp33 = common + AMP33_NOISE_DN * rng.standard_normal(length)
        sides = [np.where(columns, s * common + drift, 0) * 35 for s in (strength[0], strength[31])]
        spectra = [fft.rfft(signal) for signal in (*sides, amp33)]
        for channel in (3, 17):
            total = sum(s * weights[w][channel] for s, w in zip(spectra, ("gamma", "zeta", "alpha"), strict=True))
            wanted = strength[channel] * common + drift
            before.append(wanted.std())
            after.append((wanted - fft.irfft(total, n=length)).std())
    assert np.mean(before) > 2.0
    assert np.mean(after) < 0.5 * np.mean(before)


@settings(deadline=None, max_examples=25)
@given(
    number=st.integers(1, 18),
    roll=st.floats(0, 359),
    ra=st.floats(0, 359.9),
    dec=st.floats(-85, 85),
    scale=st.floats(0.9999, 1.0001),
)
def test_pixels_and_sky_are_inverse(number: int, roll: float, ra: float, dec: float, scale: float) -> None:
    geometry = DetectorGeometry.of(f"WFI{number:02d}", 4088)
    attitude = Attitude.pointing(1546.0, -892.0, ra, dec, roll)
    x, y = np.array([0.0, 4087.0, 2000.5, 17.0]), np.array([0.0, 4087.0, 3.0, 4000.0])
    back = sky_to_pixels(attitude, geometry, scale, *pixels_to_sky(attitude, geometry, scale, x, y))
    assert np.abs(back[0] - x).max() < 1e-6
    assert np.abs(back[1] - y).max() < 1e-6


@pytest.mark.parametrize("number", [1, 9, 18])
def test_the_distortion_reference_is_the_geometry(number: int) -> None:
    geometry = DetectorGeometry.of(f"WFI{number:02d}", 4088)
    model = distortion_model(geometry)
    x, y = np.array([0.0, 4087.0, 100.0]), np.array([50.0, 4087.0, 3000.0])
    v2, v3 = geometry.to_v2v3(x, y)
    assert np.allclose(model(x, y), (v2, v3), rtol=0, atol=1e-10)
    assert np.allclose(model.inverse(v2, v3), (x, y), rtol=0, atol=2e-3)
    step = np.hypot(*(b - a for a, b in zip(model(2000.0, 2000.0), model(2001.0, 2000.0), strict=True)))
    assert step == pytest.approx(0.11, rel=0.02)


def test_an_attitude_gives_back_its_pointing() -> None:
    attitude = Attitude.pointing(1300.0, -1000.0, 10.0, 20.0, 30.0)
    assert attitude.at(1300.0, -1000.0) == pytest.approx((10.0, 20.0, 30.0))


def test_stars_carry_their_flux_at_their_place() -> None:
    spread = point_spread("WFI01", "F158", 200)
    assert np.allclose(spread.stamps.sum(axis=(1, 2)), OVERSAMPLE**2, rtol=1e-4)
    scene = np.zeros((200, 4088), dtype=np.float32)
    add_stars(scene, Sources(np.array([1000.3]), np.array([100.7]), np.array([500.0])), spread)
    assert scene.sum() == pytest.approx(500.0, rel=2e-3)
    y, x = np.indices(scene.shape)
    assert (scene * x).sum() / scene.sum() == pytest.approx(1000.3, abs=0.15)
    assert (scene * y).sum() / scene.sum() == pytest.approx(100.7, abs=0.15)


def test_dispersing_keeps_the_light_that_stays_on_the_frame() -> None:
    scene = np.zeros((300, 4088), dtype=np.float32)
    scene[10, 5] = 90.0
    spectrum = disperse(scene, 180)
    assert spectrum.sum() == pytest.approx(90.0, rel=1e-5)
    assert np.allclose(spectrum[10:190, 5], 0.5, rtol=1e-4)


def test_motions_lead_from_the_catalog_epoch_to_the_true_place() -> None:
    from astropy.coordinates import get_body_barycentric
    from astropy.time import Time

    time = Time("2027-06-01T00:00:00", scale="utc")
    stars = Stars(np.arange(50) + (3 << 32), np.linspace(79, 81, 50), np.linspace(-31, -29, 50), np.full(50, 18.0))
    table = star_table(stars, 1, time, proper_motions=True)
    earth = get_body_barycentric("earth", time).xyz.to_value("au")
    lon, lat = np.deg2rad(table["ra"]), np.deg2rad(table["dec"])
    east = np.stack([-np.sin(lon), np.cos(lon), 0 * lon], axis=1)
    north = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)], axis=1)
    k = np.pi / (180 * 3600e3)
    years = time.decimalyear - table["epoch"]
    moved = unit_vector(table["ra"], table["dec"])
    moved = moved + k * (years * table["pmra"])[:, None] * east + k * (years * table["pmdec"])[:, None] * north
    moved -= k * table["parallax"][:, None] * ((east @ earth)[:, None] * east + (north @ earth)[:, None] * north)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    order = np.argsort(table["objID"])
    off = np.linalg.norm(moved[order] - unit_vector(stars.ra, stars.dec), axis=1) / k
    start = np.linalg.norm(unit_vector(table["ra"], table["dec"])[order] - unit_vector(stars.ra, stars.dec), axis=1) / k
    assert off.max() < 1e-2
    assert start.mean() > 10


def test_a_plain_star_table_is_at_the_epoch_of_observation() -> None:
    from astropy.time import Time

    stars = Stars(np.arange(3), np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0]), np.array([20.0, 17.0, 23.0]))
    table = star_table(stars, 1, Time("2027-06-01T00:00:00", scale="utc"), proper_motions=False)
    assert table["ra"].tolist() == [2.0, 1.0]  # brightest first, too faint ones not listed
    assert np.all(np.abs(table["epoch"] - 2027.41) < 0.01)
    assert set(table) == {"ra", "dec", "mag", "objID", "epoch"}


def test_photometry_agrees_with_the_zero_point() -> None:
    band = bandpass("F158")
    nanojansky_per_dn_s = band.mjy_sr_per_dn_s * (0.11 / 206264.80624709636) ** 2 * 1e15
    rate = band.rate(np.array([31.4 - 2.5 * np.log10(1000.0)]))[0] / 1.8
    assert rate * nanojansky_per_dn_s == pytest.approx(1000.0, rel=1e-3)
