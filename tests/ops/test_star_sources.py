"""A table, a HATS catalog and a service give the same stars, and each says what is wrong with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from astropy_healpix import HEALPix

from ops.star_hats import HatsCatalog
from ops.star_service import ask_service, stars_of_answer
from ops.star_sources import check_source, defined_stars, stars_in
from stages.gaia import StarList, read_star_table, write_star_table
from stages.tweakreg.cone import SearchCone
from stream.failure import Failure, FatalError, PermanentError, RetriableError
from tests.ops.star_catalogs import separation, standing_in, star_columns, write_hats, write_table
from tests.s3_server import server
from tests.servers import S3Server
from tests.stages.sky_scene import sky_stars

__all__ = ["server"]

CONE = SearchCone(10.0, 0.3, 0.4, 2027.2)


@pytest.fixture(scope="module")
def stars() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return star_columns(1, rng.uniform(8, 12, 8000), rng.uniform(-2, 2, 8000), incomplete=900)


@pytest.fixture(scope="module")
def hats(stars: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hats(tmp_path_factory.mktemp("hats"), stars)


def defined(text: str | Path) -> Any:
    return anyio.run(defined_stars, str(text))


def answered(text: str | Path, tmp_path: Path, cone: SearchCone = CONE) -> StarList:
    """Stars of a catalog as the alignment gets them: kept as a table, and moved to the epoch."""
    path = tmp_path / "answer.parquet"
    write_star_table(path, stars_in(defined(text), cone, timeout=30.0))
    return read_star_table(path).at(cone.epoch)


def in_order(stars: StarList) -> tuple[Any, Any, Any]:
    order = np.argsort(stars.ra)
    assert stars.mag is not None
    return stars.ra[order], stars.dec[order], stars.mag[order]


def assert_same(found: StarList, expected: StarList) -> None:
    assert len(found) == len(expected) > 100
    for a, b in zip(in_order(found), in_order(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)  # degrees: 4e-6 mas


def test_a_table_a_hats_catalog_and_a_service_give_the_same_stars(
    stars: dict[str, Any], hats: Path, tmp_path: Path
) -> None:
    write_table(tmp_path / "all.parquet", stars)
    inside = separation(stars["ra"], stars["dec"], CONE.ra, CONE.dec) <= CONE.radius
    assert not np.isfinite(stars["pmra"][inside]).all()
    cut = {name: values[inside] for name, values in stars.items()}
    table = read_star_table(defined(write_table(tmp_path / "cut.parquet", cut))).at(CONE.epoch)
    assert_same(answered(hats, tmp_path), table)
    with standing_in(stars) as service:
        assert_same(answered(service.url, tmp_path), table)
    # the whole table has the same stars there too: it is only not cut
    whole = read_star_table(tmp_path / "all.parquet").at(CONE.epoch)
    assert set(table.ra) < set(whole.ra)


def test_the_answer_of_a_service_is_taken_as_moved_already(stars: dict[str, Any], tmp_path: Path) -> None:
    with standing_in(stars) as service:
        write_star_table(tmp_path / "a.parquet", stars_in(defined(service.url), CONE, timeout=30.0))
    assert read_star_table(tmp_path / "a.parquet").motion is None


def test_equal_stars_in_another_order_are_kept_as_equal_bytes(hats: Path, tmp_path: Path) -> None:
    found = HatsCatalog.open(str(hats)).stars(CONE)
    order = np.random.default_rng(0).permutation(len(found["ra"]))
    write_star_table(tmp_path / "a.parquet", found)
    write_star_table(tmp_path / "b.parquet", {name: values[order] for name, values in found.items()})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    mag = read_star_table(tmp_path / "a.parquet").mag
    assert mag is not None
    assert (np.diff(mag[np.isfinite(mag)]) <= 0).all()


# --- HATS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cone",
    [
        SearchCone(0.0, 0.0, 0.3, 2027.0),
        SearchCone(359.9, -41.0, 1.0, 2027.0),
        SearchCone(123.0, 89.95, 0.4, 2027.0),
        SearchCone(45.0, -90.0, 2.0, 2027.0),
        SearchCone(45.0, 41.81, 0.05, 2027.0),
        SearchCone(200.0, 30.0, 40.0, 2027.0),
    ],
)
def test_no_star_in_the_cone_is_missed_wherever_it_points(tmp_path: Path, cone: SearchCone) -> None:
    ra, dec = sky_stars(np.random.default_rng(5), cone.ra, cone.dec, 1.5 * cone.radius * 3600, 4000)
    stars = star_columns(6, ra, dec)
    write_hats(tmp_path, stars, order=1, most=300)
    found = HatsCatalog.open(str(tmp_path)).stars(cone)
    inside = separation(ra, dec, cone.ra, cone.dec) <= cone.radius
    assert 0 < inside.sum() < 4000
    assert set(found["objID"]) == set(stars["source_id"][inside])


def test_partitions_and_row_groups_that_the_field_does_not_touch_are_not_read(
    stars: dict[str, Any], hats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    copy = tmp_path / "copy"
    shutil.copytree(hats, copy)
    cone = SearchCone(10.0, 0.3, 0.05, 2027.2)
    expected = HatsCatalog.open(str(copy)).stars(cone)
    groups: list[tuple[int, int]] = []
    read = pq.ParquetFile.read_row_groups

    def counted(file: Any, wanted: list[int], **options: Any) -> Any:
        groups.append((len(wanted), file.num_row_groups))
        return read(file, wanted, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    for path in copy.glob("dataset/*/*/*.parquet"):
        order, pixel = (int(part.partition("=")[2].removesuffix(".parquet")) for part in (path.parts[-3], path.name))
        index = HEALPix(2**order, order="nested").cone_search_lonlat(*_quantities(cone))
        if pixel not in index:
            path.unlink()
    found = HatsCatalog.open(str(copy)).stars(cone)
    assert set(found["objID"]) == set(expected["objID"])
    assert 0 < sum(wanted for wanted, _ in groups) < sum(all_of_them for _, all_of_them in groups)


def _quantities(cone: SearchCone) -> tuple[Any, Any, Any]:
    from astropy import units as u

    return cone.ra * u.deg, cone.dec * u.deg, cone.radius * u.deg


def test_a_hats_catalog_is_the_same_from_object_storage(
    stars: dict[str, Any], hats: Path, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(hats, server.root / "gaia_hats")
    url = "s3://rampstream/gaia_hats"
    definition = defined(url)
    assert definition == {"hats": url, "version": defined(hats)["version"]}
    assert defined(f"hats:{url}/") == definition
    assert_same(answered(url, tmp_path), answered(hats, tmp_path))
    (server.root / "gaia_hats" / "properties").unlink()
    with pytest.raises(PermanentError, match="gaia_hats: there is no such object, and no catalog in the HATS layout"):
        defined(url)


def test_a_run_is_pinned_to_the_catalog_that_it_was_defined_with(hats: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(hats, copy)
    definition = defined(f"hats:{copy}")
    check_source(definition)
    with (copy / "properties").open("a") as file:
        file.write("hats_creation_date=2027-01-01\n")
    with pytest.raises(FatalError, match="not the one that the run is defined with"):
        check_source(definition)
    with pytest.raises(FatalError, match="not the one that the run is defined with"):
        stars_in(definition, CONE, timeout=1.0)


def test_what_is_wrong_with_a_hats_catalog_is_said(stars: dict[str, Any], tmp_path: Path) -> None:
    root = write_hats(tmp_path / "c", stars, name="hats.properties")
    listed = (root / "partition_info.csv").read_text()
    assert len(HatsCatalog.open(str(root)).partitions) == len(listed.splitlines()) - 1
    with pytest.raises(PermanentError, match=r"no catalog in the HATS layout: there is no properties"):
        defined(tmp_path)
    (root / "partition_info.csv").write_text("Norder,Dir\n1,0\n")
    with pytest.raises(PermanentError, match=r"partition_info.csv: expected the columns Norder and Npix"):
        defined(root)
    (root / "partition_info.csv").unlink()
    with pytest.raises(PermanentError, match=r"has no partition_info\.csv"):
        defined(root)
    (root / "partition_info.csv").write_text(listed)
    catalog = HatsCatalog.open(str(root))
    for path in root.glob("dataset/*/*/*.parquet"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PermanentError, match=r"Npix=\d+\.parquet is no whole Parquet file"):
        catalog.stars(CONE)
    shutil.rmtree(root / "dataset")
    with pytest.raises(PermanentError, match=r"Npix=\d+\.parquet is gone, although partition_info.csv lists it"):
        catalog.stars(CONE)


def test_a_cone_without_stars_has_none(hats: Path, tmp_path: Path, stars: dict[str, Any]) -> None:
    empty = SearchCone(200.0, 40.0, 0.2, 2027.2)
    assert len(answered(hats, tmp_path, empty)) == 0
    with standing_in(stars) as service:
        assert len(answered(service.url, tmp_path, empty)) == 0


# --- the service ------------------------------------------------------------------------------------------------------


def ask(url: str, *, timeout: float = 30.0, waits: list[float] | None = None) -> dict[str, Any]:
    return ask_service(url, "GAIADR3", CONE, timeout=timeout, sleep=(waits if waits is not None else []).append)


def test_a_service_in_trouble_is_asked_again(stars: dict[str, Any]) -> None:
    waits: list[float] = []
    with standing_in(stars, statuses=[503, 429]) as service:
        assert len(ask(service.url, waits=waits)["ra"]) > 100
        assert len(service.asked) == 3
        assert len(waits) == 2
        service.statuses = [500] * 9
        with pytest.raises(RetriableError, match="refused with status 500"):
            ask(service.url)
        assert len(service.asked) == 6


def test_a_request_that_is_refused_is_not_repeated(stars: dict[str, Any]) -> None:
    with standing_in(stars, statuses=[400]) as service:
        with pytest.raises(PermanentError, match=r"refused with status 400 .*CatalogSearch\.aspx\?RA=10\.0&DEC=0\.3&"):
            ask(service.url)
        assert len(service.asked) == 1


def test_an_answer_that_is_cut_off_is_no_answer(stars: dict[str, Any]) -> None:
    with standing_in(stars, cut=True) as service, pytest.raises(RetriableError, match=r"cut off|cannot be reached"):
        ask(service.url)


def test_the_time_limit_is_for_the_whole_answer(stars: dict[str, Any]) -> None:
    with (
        standing_in(stars, slow=0.02) as service,
        pytest.raises(RetriableError, match=r"did not answer within tweakreg\.vo_timeout"),
    ):
        ask(service.url, timeout=0.3)
    with pytest.raises(RetriableError, match=r"did not answer within tweakreg\.vo_timeout"):
        ask("http://127.0.0.1:9/webservices", timeout=0.0)


def test_a_service_that_is_not_there_can_be_tried_again(stars: dict[str, Any]) -> None:
    with standing_in(stars) as service:
        pass
    with pytest.raises(RetriableError, match="cannot be reached"):
        ask(service.url)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>We are sorry</html>", r"no column ra, dec, .*answer begins '<html>We are sorry"),
        (b"ra,dec,mag,objID,epoch,pmra\n1,2,3,4,5,6\n", "no column pmdec"),
        (b"ra,dec,mag,objID,epoch,pmra,pmdec\none,2,3,4,5,6,7\n", "text where numbers belong: .*'one'"),
    ],
)
def test_an_answer_that_is_no_list_of_stars_is_quoted(stars: dict[str, Any], answer: bytes, said: str) -> None:
    with standing_in(stars, body=answer) as service, pytest.raises(PermanentError, match=said):
        ask(service.url)


def test_rows_without_proper_motion_are_dropped_and_other_columns_ignored() -> None:
    text = "# note\n\nobjID,dec,ra,mag,epoch,pmra,pmdec,what\na,2,1,,2027.5,0.1,0.2,x\nb,2,1,15,2027.5,,0.2,x\n"
    found = stars_of_answer(text, where="here")
    assert (found["ra"], found["dec"], found["objID"]) == ([1.0], [2.0], ["a"])
    assert np.isnan(found["mag"])


# --- what --gaia may say ----------------------------------------------------------------------------------------------


def test_every_form_of_the_option_is_named_by_what_it_pins(
    hats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASTROMETRIC_CATALOG_URL", raising=False)
    (tmp_path / "t.csv").write_text("ra,dec\n1,2\n")
    assert defined(tmp_path / "t.csv") == str(tmp_path / "t.csv")
    assert defined(hats)["hats"] == str(hats)
    assert defined("service") == {"service": "https://gsss.stsci.edu/webservices", "catalog": "GAIADR3"}
    assert defined("service:gaiadr2")["catalog"] == "GAIADR2"
    assert defined("https://host/path/?CAT=GAIAREFCAT") == {"service": "https://host/path", "catalog": "GAIAREFCAT"}
    monkeypatch.setenv("ASTROMETRIC_CATALOG_URL", "http://mirror/ws/")
    assert defined("service") == {"service": "http://mirror/ws", "catalog": "GAIADR3"}


@pytest.mark.parametrize("text", ["service:HIPPARCOS", "https://", "none.csv", "hats:none", "s3://x"])
def test_what_cannot_be_a_source_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(Failure, match=text.removeprefix("hats:")):
        defined(text)
