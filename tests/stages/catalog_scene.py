"""Small images with stars and galaxies, and the references of source_catalog, all from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.exposure import CAL_STEP_KEYS, Exposure, Level
from stages.source_catalog import SourceCatalogParameters, SourceCatalogStage
from stages.wcs import wcs_numbers
from stream.stage import Slot

ELEMENT = "F158"
EE_RADII = np.array([0.0, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 40])
PHOTOMETRY = {
    "conversion_megajanskys": 0.78,
    "conversion_megajanskys_uncertainty": 0.01,
    "pixel_area": 2.8083e-13,
}
GUIDE_STAR = {"jitter_major": 11.0, "jitter_minor": 9.0, "jitter_position_angle": 70.0}
WCSINFO = {"v2_ref": 100.0, "v3_ref": -300.0, "ra_ref": 270.0, "dec_ref": 66.0, "roll_ref": 33.0}
SCALE_FACTOR = 1.00003


@dataclass
class Scene:
    """Arrays of a rate image: data f4, err f2, dq u4, and where the sources are."""

    data: Any
    err: Any
    dq: Any
    truth: Any = field(default_factory=lambda: np.empty((0, 3)))


def scene(
    seed: int = 1, shape: tuple[int, int] = (150, 200), sources: int = 30, *, bad: float = 0.0, gradient: float = 0.0
) -> Scene:
    """Gaussian sources of many shapes on noise; ``bad`` is the fraction of flagged pixels of each of several kinds."""
    rng = np.random.default_rng(seed)
    ny, nx = shape
    yy, xx = np.mgrid[:ny, :nx]
    data = rng.normal(1.0, 0.1, shape) + gradient * (xx + yy) / nx
    truth = []
    for _ in range(sources):
        x, y, flux = rng.uniform(0, nx), rng.uniform(0, ny), 10 ** rng.uniform(0.5, 2.2)
        sigma, ratio, angle = rng.uniform(0.9, 2.5), rng.uniform(0.4, 1), rng.uniform(0, 3)
        u = (xx - x) * np.cos(angle) + (yy - y) * np.sin(angle)
        v = (yy - y) * np.cos(angle) - (xx - x) * np.sin(angle)
        peak = flux / (2 * np.pi * sigma**2 * ratio)
        data += peak * np.exp(-0.5 * (u**2 / sigma**2 + v**2 / (ratio * sigma) ** 2))
        truth.append((x, y, flux))
    err = np.sqrt(0.01 + 0.01 * np.clip(data - 1, 0, None))
    dq = np.zeros(shape, dtype=np.uint32)
    if bad:
        dice = rng.random(shape)
        dq[dice < bad] = 1
        dq[(dice > bad) & (dice < 2 * bad)] = 4
        data[(dice > 2 * bad) & (dice < 2.3 * bad)] = np.nan
        err[(dice > 3 * bad) & (dice < 3.3 * bad)] = 0
        err[(dice > 4 * bad) & (dice < 4.1 * bad)] = np.nan
    return Scene(data.astype(np.float32), err.astype(np.float16), dq, np.array(truth).reshape(-1, 3))


def psf_stamp(size: int, oversample: int, k: int) -> Any:
    """Effective PSF number k, its sum the square of the oversampling."""
    yy, xx = np.mgrid[:size, :size] - (size - 1) / 2
    sx, sy = (0.9 + 0.06 * k) * oversample, (0.95 + 0.03 * k) * oversample
    core = np.exp(-0.5 * (xx**2 / sx**2 + yy**2 / sy**2 + 0.02 * k * xx * yy / sx / sy))
    stamp = core + 0.02 / (1 + (xx**2 + yy**2) / (4 * oversample) ** 2) ** 1.5
    return stamp * oversample**2 / stamp.sum()


def apcorr_curve() -> dict[str, Any]:
    fractions = 1 - np.exp(-0.5 * (EE_RADII / 1.2) ** 1.2)
    return {
        "ee_fractions": fractions,
        "ee_radii": EE_RADII.copy(),
        "ap_corrections": np.ones(EE_RADII.size),
        "sky_background_rin": 2.0,
        "sky_background_rout": 3.0,
    }


def epsf_contents(*, old_format: bool = False) -> tuple[Any, dict[str, Any]]:
    """Stamps (defocus, spectral type, grid, y, x) f4 and the metadata of an epsf reference."""
    oversample = 4
    grid = ((0, 0), (0, 200), (200, 0), (200, 200))
    stamps = np.array([psf_stamp(81, oversample, k) for k in range(4)])
    if old_format:
        stamps /= oversample**2
    meta = {
        "oversample": oversample,
        "pixel_x": [float(x) for x, _ in grid],
        "pixel_y": [float(y) for _, y in grid],
        "jitter_major": 8.0,
        "jitter_minor": 6.0,
        "jitter_position_angle": 20.0,
    }
    return np.array([[0.5 * stamps, stamps]], dtype=np.float32), meta


def distortion() -> Any:
    """Nearly linear distortion with a linear inverse."""
    from astropy.modeling import models

    scale, v2, v3 = 0.11, 100.0, -300.0
    matrix = np.array([[scale, 1e-4], [-2e-4, scale]])
    x = models.Polynomial2D(2, c0_0=v2, c1_0=matrix[0, 0], c0_1=matrix[0, 1], c2_0=1e-7)
    y = models.Polynomial2D(2, c0_0=v3, c1_0=matrix[1, 0], c0_1=matrix[1, 1], c0_2=-1e-7)
    model = models.Mapping((0, 1, 0, 1)) | (x & y)
    inverse = np.linalg.inv(matrix)
    offset = -inverse @ np.array([v2, v3])
    model.inverse = models.Mapping((0, 1, 0, 1)) | (
        models.Polynomial2D(1, c0_0=offset[0], c1_0=inverse[0, 0], c0_1=inverse[0, 1])
        & models.Polynomial2D(1, c0_0=offset[1], c1_0=inverse[1, 0], c0_1=inverse[1, 1])
    )
    return model


class FakeReference:
    """A reference file in memory."""

    def __init__(self, name: str, tree: dict[str, Any]) -> None:
        self.path = Path(f"/references/{name}.asdf")
        self.recorded_name = str(self.path)
        self.tree = tree

    def value(self, *keys: str) -> Any:
        node: Any = self.tree
        for key in keys:
            node = node[key]
        return node

    def array(self, *keys: str) -> Any:
        return self.value(*keys)


def references(*, old_format: bool = False) -> dict[str, Any]:
    stamps, meta = epsf_contents(old_format=old_format)
    return {
        "apcorr": FakeReference("apcorr", {"data": {ELEMENT: apcorr_curve()}}),
        "epsf": FakeReference("epsf", {"psf": stamps, "meta": meta}),
        "distortion": FakeReference("distortion", {"coordinate_distortion_transform": distortion()}),
        "dustmap_north": None,
        "dustmap_south": None,
    }


def exposure(image: Scene) -> Exposure:
    meta = {
        "filename": "x_uncal.asdf",
        "exposure": {"type": "WFI_IMAGE", "start_time": "2027-01-01T00:00:00.000"},
        "instrument": {"detector": "WFI01", "optical_element": ELEMENT},
        "observation": {"observation_id": "1"},
        "photometry": dict(PHOTOMETRY),
        "guide_star": dict(GUIDE_STAR),
        "wcsinfo": dict(WCSINFO),
        "velocity_aberration": {"scale_factor": SCALE_FACTOR},
        "cal_step": dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE"),
        "ref_file": {"apcorr": "?", "epsf": "?", "distortion": "crds://distortion.asdf"},
    }
    arrays = {"data": image.data.copy(), "err": image.err.copy(), "dq": image.dq.copy()}
    return Exposure("x", Level.IMAGE, meta, arrays, wcs=wcs_numbers(meta, image.data.shape))


def catalog_of(image: Scene, refs: dict[str, Any] | None = None, *, threads: int = 1, **parameters: Any) -> Exposure:
    """Run the stage on a scene."""
    item = exposure(image)
    stage = SourceCatalogStage()
    stage.run(
        item, references() if refs is None else refs, SourceCatalogParameters(**parameters), Slot(threads=threads)
    )
    return item
