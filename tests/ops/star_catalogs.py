"""One star list in the three forms that ``--gaia`` takes: a table, a HATS catalog, and a service on the loopback."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from astropy import units as u
from astropy_healpix import HEALPix

from stages.gaia import StarList, StarMotion

Columns = dict[str, Any]


def star_columns(seed: int, ra: Any, dec: Any, *, incomplete: int = 0) -> Columns:
    """Gaia's columns for stars at positions of epoch 2016; of the first ``incomplete`` no motion is known."""
    rng = np.random.default_rng(seed)
    n = len(ra)
    columns = {
        "source_id": rng.permutation(n).astype(np.int64) + 4_000_000_000_000_000_000,
        "ra": np.asarray(ra, dtype=float),
        "dec": np.asarray(dec, dtype=float),
        "pmra": rng.normal(0, 40, n),
        "pmdec": rng.normal(0, 40, n),
        "parallax": rng.lognormal(0.5, 1.0, n),
        "ref_epoch": np.full(n, 2016.0),
        "phot_g_mean_mag": rng.uniform(12, 21, n).astype("f4"),
    }
    for name in ("pmra", "pmdec", "parallax"):
        columns[name][:incomplete] = np.nan
    columns["phot_g_mean_mag"][-2:] = np.nan
    return columns


def write_table(path: Path, stars: Columns) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(stars), path)
    return path


def write_hats(root: Path, stars: Columns, *, order: int = 4, most: int = 400, name: str = "properties") -> Path:
    """Lay stars out as HATS does: pixels with more than ``most`` stars are split, three row groups a partition."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = np.asarray(HEALPix(2**29, order="nested").lonlat_to_healpix(stars["ra"] * u.deg, stars["dec"] * u.deg))
    rows, partitions = np.argsort(index, kind="stable"), []
    errors = {f"{axis}_error": np.full(len(index), 0.1) for axis in ("ra", "dec", "parallax", "pmra", "pmdec")}
    table = pa.table({"_healpix_29": index, **stars, **errors}).take(rows)
    todo = [(order, int(pixel)) for pixel in np.unique(index >> 2 * (29 - order))]
    while todo:
        k, pixel = todo.pop()
        inside = np.flatnonzero(index[rows] >> 2 * (29 - k) == pixel)
        if len(inside) > most:
            todo += [(k + 1, 4 * pixel + child) for child in range(4)]
        elif len(inside):
            path = root / f"dataset/Norder={k}/Dir={pixel // 10000 * 10000}/Npix={pixel}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.take(inside), path, row_group_size=-(-len(inside) // 3))
            partitions.append((k, pixel, len(inside)))
    (root / name).write_text(f"obs_collection=stars\nhats_col_ra=ra\nhats_col_dec=dec\nhats_nrows={len(index)}\n")
    lines = [f"{k},{pixel},{count}" for k, pixel, count in sorted(partitions)]
    (root / "partition_info.csv").write_text("\n".join(["Norder,Npix,num_rows", *lines]) + "\n")
    return root


def moved(stars: Columns, epoch: float) -> tuple[Any, Any, Any]:
    """Identifiers and positions at an epoch of the stars whose motion is known."""
    motion = StarMotion(*(stars[name] for name in ("ref_epoch", "pmra", "pmdec", "parallax")))
    known = np.isfinite(stars["pmra"])
    there = StarList(ra=stars["ra"], dec=stars["dec"], motion=motion).at(epoch)
    return stars["source_id"][known], there.ra, there.dec


@dataclass
class StandIn:
    """A catalog service that keeps to the protocol, and can be told to misbehave."""

    stars: Columns
    port: int = 0
    asked: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    """Status of the next answers, in order; 200 after that."""
    body: bytes | None = None
    """What is answered instead of stars."""
    cut: bool = False
    """Whether the connection breaks before the whole answer is sent."""
    slow: float = 0.0
    """Seconds between bytes."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/webservices"

    def answer(self, path: str) -> bytes:
        """Stars in the cone, moved to the epoch."""
        values = dict(parse_qsl(urlsplit(path).query))
        assert values["FORMAT"] == "CSV"
        where, radius = (float(values["RA"]), float(values["DEC"])), float(values["SR"])
        ids, ra, dec = moved(self.stars, float(values["EPOCH"]))
        known = np.isfinite(self.stars["pmra"])
        inside = separation(self.stars["ra"], self.stars["dec"], *where) <= radius
        lines = ["#catalog " + values["CAT"], "hstID,objID,ra,raErr,dec,epoch,pmra,pmdec,parallax,mag"]
        columns = zip(*(self.stars[name] for name in ("ref_epoch", "pmra", "pmdec", "phot_g_mean_mag")), strict=True)
        place = iter(zip(ids, ra, dec, strict=True))
        for number, (epoch, pmra, pmdec, mag) in enumerate(columns):
            here = next(place) if known[number] else (self.stars["source_id"][number], *where)
            motion = f"{float(pmra)!r},{float(pmdec)!r}" if known[number] else ","
            if inside[number]:
                brightness = "" if np.isnan(mag) else float(mag)
                lines.append(
                    f"x,{here[0]},{float(here[1])!r},0.1,{float(here[2])!r},{float(epoch)!r},{motion},,{brightness}"
                )
        return ("\n".join(lines) + "\n").encode() if len(lines) > 2 else b"No data records for this region\n"


def separation(ra: Any, dec: Any, ra0: float, dec0: float) -> Any:
    """Degrees, by half angles, for small and large ones alike."""
    a, b = np.deg2rad(dec), np.deg2rad(dec0)
    half = np.sin((a - b) / 2) ** 2 + np.cos(a) * np.cos(b) * np.sin(np.deg2rad(ra - ra0) / 2) ** 2
    return np.rad2deg(2 * np.arcsin(np.sqrt(half)))


@contextlib.contextmanager
def standing_in(stars: Columns, **misbehaviour: Any) -> Iterator[StandIn]:
    """A running stand-in."""
    service = StandIn(stars, **misbehaviour)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.asked.append(self.path)
            assert self.headers["Content-Type"] == "text/csv"
            status = service.statuses.pop(0) if service.statuses else 200
            data = service.answer(self.path) if service.body is None else service.body
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            data = data[: len(data) // 2] if service.cut else data
            with contextlib.suppress(OSError):
                for at in range(0, len(data), 1 if service.slow else len(data)):
                    time.sleep(service.slow)
                    self.wfile.write(data[at : at + (1 if service.slow else len(data))])

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
