"""Compares products with the truth of a simulation: rates, pulls, cosmic rays, stars, alignment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stages.dq import PixelDQ

__all__ = ["Judgement", "judge"]

BRIGHT_DN_S = 20.0
"""Pixels brighter than this are where a bias of half a per cent would be seen over the noise."""

ISOLATION_PIXELS = 20.0
STAR_SNR = 20.0
SIGMA = 6.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """How one exposure's products compare with what was simulated.

    Attributes
    ----------
    rate_bias : float
        Total measured over total true rate of bright good pixels, minus 1.
    pull_mean, pull_width : float
        Median, and half the width of the central 68 %, of (rate - truth) / err over good pixels.
    cosmic_rays, cosmic_rays_found : int
        Hits above 6 sigma on pixels with a usable ramp, and those flagged as jumps.
    stars, stars_within_3_sigma : int
        Isolated unsaturated stars, and those whose PSF flux is within 3 sigma of the truth.
    alignment_mas, pointing_error_mas : float
        Length of the mean vector from true to measured sky position of those stars, with the product's WCS, and
        how far the recorded pointing was off.
    """

    exposure: str
    rate_bias: float
    pull_mean: float
    pull_width: float
    cosmic_rays: int
    cosmic_rays_found: int
    stars: int
    stars_within_3_sigma: int
    alignment_mas: float
    pointing_error_mas: float

    def to_json(self) -> dict[str, Any]:
        """Return the judgement as a JSON value."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return a line for each comparison, for people."""
        rays = self.cosmic_rays_found / max(1, self.cosmic_rays)
        stars = self.stars_within_3_sigma / max(1, self.stars)
        return [
            f"rate of bright pixels        {100 * self.rate_bias:+.3f} % of the truth",
            f"pulls (rate - truth) / err   median {self.pull_mean:+.3f}, width {self.pull_width:.3f}",
            f"cosmic rays above 6 sigma    {100 * rays:.1f} % of {self.cosmic_rays} found",
            f"isolated stars               {100 * stars:.1f} % of {self.stars} within 3 sigma of their flux",
            f"alignment                    {self.alignment_mas:.2f} mas left of {self.pointing_error_mas:.0f} mas",
        ]


def judge(products: Path, truth: Path, exposure: str) -> Judgement:
    """Compare the products of one imaging exposure with its truth.

    Parameters
    ----------
    products : Path
        Folder with ``<exposure>_cal.asdf`` and the others.
    truth : Path
        ``truth`` folder of the simulation.
    exposure : str
        The exposure's id.
    """
    with asdf.open(products / f"{exposure}_cal.asdf", memmap=False) as file:
        image = file["roman"]
        data, err, dq = (np.array(image[name]) for name in ("data", "err", "dq"))
        photometry = dict(image["meta"]["photometry"])
    with asdf.open(truth / f"{exposure}_rate.asdf", memmap=False) as file:
        rate = np.array(file["rate"])
    sigma = err.astype(np.float64)
    good = ((dq & (PixelDQ.DO_NOT_USE | PixelDQ.SATURATED)) == 0) & np.isfinite(data) & np.isfinite(sigma) & (sigma > 0)
    bright = good & (rate > BRIGHT_DN_S)
    pulls = (data[good] - rate[good]) / sigma[good]
    low, middle, high = np.percentile(pulls, [15.865, 50, 84.135])
    rays, found = _cosmic_rays(truth / f"{exposure}_cosmic_rays.parquet", dq)
    stars = _stars(products, truth, exposure, dq, photometry)
    return Judgement(
        exposure=exposure,
        rate_bias=float(data[bright].sum(dtype=np.float64) / rate[bright].sum(dtype=np.float64) - 1),
        pull_mean=float(middle),
        pull_width=float(high - low) / 2,
        cosmic_rays=rays,
        cosmic_rays_found=found,
        **stars,
    )


def _cosmic_rays(path: Path, dq: NDArray[np.uint32]) -> tuple[int, int]:
    hits = {name: column.to_numpy() for name, column in zip(*_columns(path), strict=True)}
    row, column = hits["row"], hits["column"]
    inside = (row >= 0) & (row < dq.shape[0]) & (column >= 0) & (column < dq.shape[1])
    large = inside & (hits["sigma"] > SIGMA) & (hits["resultant"] > 0)
    flags = dq[row[large], column[large]]
    usable = (flags & (PixelDQ.DO_NOT_USE | PixelDQ.SATURATED)) == 0
    return int(usable.sum()), int(((flags & PixelDQ.JUMP_DET) != 0)[usable].sum())


def _columns(path: Path) -> tuple[list[str], list[Any]]:
    table = pq.read_table(path)
    return table.column_names, table.columns


def _stars(
    products: Path, truth: Path, exposure: str, dq: NDArray[np.uint32], photometry: dict[str, Any]
) -> dict[str, Any]:
    catalog = {n: c.to_numpy() for n, c in zip(*_columns(products / f"{exposure}_cat.parquet"), strict=True)}
    stars = {n: c.to_numpy() for n, c in zip(*_columns(truth / f"{exposure}_stars.parquet"), strict=True)}
    galaxies = {n: c.to_numpy() for n, c in zip(*_columns(truth / f"{exposure}_galaxies.parquet"), strict=True)}
    places = np.column_stack([stars["x"], stars["y"]])
    everything = np.vstack([places, np.column_stack([galaxies["x"], galaxies["y"]])])
    neighbour = cKDTree(everything).query(places, k=2)[0][:, 1]
    found = np.column_stack([catalog["x_psf"], catalog["y_psf"]]).astype(np.float64)
    found[~np.isfinite(found)] = -1e6
    distance, index = cKDTree(found).query(places)
    flux, error = catalog["psf_flux"][index].astype(np.float64), catalog["psf_flux_err"][index].astype(np.float64)
    expected = stars["dn_per_s"] * photometry["conversion_megajanskys"] * photometry["pixel_area"] * 1e15
    usable = (
        (neighbour > ISOLATION_PIXELS)
        & (distance < 1)
        & (error > 0)
        & (expected > STAR_SNR * error)
        & (catalog["psf_flags"][index] == 0)
        & _clean(dq, places)
    )
    within = np.abs(flux - expected) < 3 * error
    ra, dec = _sky(products / f"{exposure}_wcs.asdf", places[usable])
    east = (ra - stars["ra"][usable]) * np.cos(np.radians(dec)) * 3.6e6
    north = (dec - stars["dec"][usable]) * 3.6e6
    import json

    error_mas = json.loads((truth / f"{exposure}_pointing.json").read_text())["error"]
    return {
        "stars": int(usable.sum()),
        "stars_within_3_sigma": int(within[usable].sum()),
        "alignment_mas": float(np.hypot(np.mean(east), np.mean(north))) if usable.any() else float("nan"),
        "pointing_error_mas": float(np.hypot(error_mas["east_mas"], error_mas["north_mas"])),
    }


def _clean(dq: NDArray[np.uint32], places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether no pixel of the 5x5 fit box is saturated or not to be used."""
    bad = (dq & (PixelDQ.DO_NOT_USE | PixelDQ.SATURATED)) != 0
    clean = np.zeros(len(places), dtype=bool)
    for i, (x, y) in enumerate(np.round(places).astype(int)):
        inside = 3 <= x < dq.shape[1] - 3 and 3 <= y < dq.shape[0] - 3
        clean[i] = inside and not bad[y - 2 : y + 3, x - 2 : x + 3].any()
    return clean


def _sky(path: Path, places: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with asdf.open(path, memmap=False) as file:
        wcs = file["roman"]["wcs_l2"]
        ra, dec = wcs(places[:, 0], places[:, 1])
    return np.asarray(ra), np.asarray(dec)
