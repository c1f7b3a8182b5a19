"""Local star tables: formats, column rules, missing values and propagation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import Distance, SkyCoord
from astropy.table import MaskedColumn, QTable, Table
from astropy.time import Time
from erfa import ErfaWarning

from stages.gaia import StarList, StarMotion, barycentric_earth, decimal_year, propagate, read_star_table
from stream.failure import PermanentError


@pytest.fixture
def table():
    return Table({"ra": [10.0, 11.0, 359.5], "dec": [-5.0, 0.25, 89.0], "mag": [15.0, 18.5, 20.0]})


@pytest.mark.parametrize("suffix", ["ecsv", "csv", "fits", "parquet"])
def test_every_format_of_the_field_gives_the_same_stars(tmp_path, table, suffix):
    path = tmp_path / f"stars.{suffix}"
    table.write(path)
    stars = read_star_table(path)
    np.testing.assert_array_equal(stars.ra, table["ra"])
    np.testing.assert_array_equal(stars.dec, table["dec"])
    np.testing.assert_array_equal(stars.mag, table["mag"])
    assert stars.motion is None
    assert len(stars) == 3
    assert stars.ra.dtype == np.float64


def test_column_names_count_in_any_case_and_units_do_not(tmp_path):
    path = tmp_path / "stars.ecsv"
    QTable({"Ra": [1.0, 2.0] * u.arcsec, "DEC": [3.0, 4.0] * u.deg, "Weight": [1.0, 2.0]}).write(path)
    stars = read_star_table(path)
    np.testing.assert_array_equal(stars.ra, [1.0, 2.0])
    np.testing.assert_array_equal(stars.weight, [1.0, 2.0])


def test_sky_centroid_serves_where_ra_and_dec_are_missing(tmp_path):
    path = tmp_path / "stars.ecsv"
    QTable({"Sky_Centroid": SkyCoord([1.0, 2.0], [3.0, 4.0], unit="deg")}).write(path)
    np.testing.assert_allclose(read_star_table(path).dec, [3.0, 4.0], atol=1e-13)


def test_two_spellings_of_one_column_are_refused(tmp_path):
    path = tmp_path / "stars.ecsv"
    Table({"ra": [1.0], "RA": [1.0], "dec": [2.0]}).write(path)
    with pytest.raises(PermanentError, match="two columns 'ra' and 'RA'"):
        read_star_table(path)


def test_table_without_positions_is_refused_with_what_it_has(tmp_path):
    path = tmp_path / "stars.csv"
    Table({"x": [1.0], "y": [2.0]}).write(path)
    with pytest.raises(PermanentError, match="ra and dec, or sky_centroid; found x, y"):
        read_star_table(path)


def test_file_that_is_missing_or_no_table_is_named(tmp_path):
    with pytest.raises(PermanentError, match=r"none\.ecsv does not exist"):
        read_star_table(tmp_path / "none.ecsv")
    path = tmp_path / "stars.xyz"
    path.write_bytes(b"\x00\x01")
    with pytest.raises(PermanentError, match=r"stars\.xyz cannot be read"):
        read_star_table(path)


def test_masked_positions_stay_rows_without_a_place(tmp_path):
    path = tmp_path / "stars.ecsv"
    Table({"ra": MaskedColumn([1.0, 2.0], mask=[False, True]), "dec": [3.0, 4.0]}).write(path)
    stars = read_star_table(path)
    assert len(stars) == 2
    np.testing.assert_array_equal(np.isnan(stars.ra), [False, True])


def test_digest_is_that_of_the_content(tmp_path, table):
    for name in ("a.ecsv", "b.ecsv"):
        table.write(tmp_path / name)
    a, b = (read_star_table(tmp_path / name) for name in ("a.ecsv", "b.ecsv"))
    table["ra"][0] += 1e-9
    table.write(tmp_path / "a.ecsv", overwrite=True)
    assert a.digest == b.digest != read_star_table(tmp_path / "a.ecsv").digest


def test_table_without_motions_is_taken_as_it_is(tmp_path, table):
    table["pmra"] = 100.0  # neither pmdec nor parallax
    table.write(tmp_path / "stars.ecsv")
    stars = read_star_table(tmp_path / "stars.ecsv")
    assert stars.at(2030.0) is stars


def test_stars_with_motions_are_moved_and_those_without_dropped(tmp_path, table):
    table["pmra"], table["pmdec"], table["parallax"] = [100.0, np.nan, 5.0], [3.0, 3.0, 3.0], [1.0, 1.0, 1.0]
    table["ref_epoch"] = 2016.0
    table.write(tmp_path / "stars.parquet")
    stars = read_star_table(tmp_path / "stars.parquet").at(2027.5)
    assert len(stars) == 2
    np.testing.assert_array_equal(stars.mag, [15.0, 20.0])
    assert (stars.ra[0] - 10.0) * 3.6e6 * np.cos(np.deg2rad(5.0)) == pytest.approx(1150.0, abs=1.5)
    assert stars.at(2040.0) is stars


def one_star(pmra=0.0, pmdec=0.0, parallax=0.0):
    return StarMotion(*(np.array([value]) for value in (2016.0, pmra, pmdec, parallax)))


def test_proper_motion_agrees_with_astropy_for_a_fast_star():
    ra, dec = propagate(np.array([269.45]), np.array([4.69]), one_star(-801.0, 10362.0), 2027.3)
    star = SkyCoord(
        269.45 * u.deg, 4.69 * u.deg, distance=Distance(100 * u.pc), pm_ra_cosdec=-801 * u.mas / u.yr,
        pm_dec=10362 * u.mas / u.yr, obstime=Time(2016.0, format="decimalyear"), radial_velocity=0 * u.km / u.s,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ErfaWarning)  # the distance is only there to make the velocity small
        moved = star.apply_space_motion(new_obstime=Time(2027.3, format="decimalyear"))
    # a calendar year is not always 365.25 days, so that the two time scales differ by hours
    assert abs(dec[0] - moved.dec.deg) * 3.6e6 < 10362 / 365.25
    assert abs(ra[0] - moved.ra.deg) * 3.6e6 < 801 / 365.25


def test_parallax_moves_a_star_away_from_the_side_where_the_earth_is():
    earth = barycentric_earth(2027.25)
    assert np.linalg.norm(earth) == pytest.approx(1.0, abs=0.03)
    x = np.cross(earth, [0.0, 0.0, 1.0])
    ra0, dec0 = np.rad2deg(np.arctan2(x[1], x[0])) % 360, 0.0
    ra, dec = propagate(np.array([ra0]), np.array([dec0]), one_star(parallax=1000.0), 2027.25)
    moved = (
        SkyCoord(ra, dec, unit="deg").cartesian.xyz.value[:, 0] - SkyCoord(ra0, dec0, unit="deg").cartesian.xyz.value
    )
    assert np.rad2deg(np.linalg.norm(moved)) * 3600 == pytest.approx(np.linalg.norm(earth), rel=1e-4)
    assert moved @ earth < 0


def test_decimal_year_takes_text_and_times():
    assert decimal_year("2027-01-01T00:00:00.000") == pytest.approx(2027.0, abs=1e-9)
    assert decimal_year(Time("2027-07-02T12:00:00")) == pytest.approx(2027.5, abs=1e-9)


def test_list_of_no_stars_is_allowed():
    assert len(StarList(ra=np.zeros(0), dec=np.zeros(0))) == 0
