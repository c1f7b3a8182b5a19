"""Synthetic detectors on the sky with star catalogs and a known pointing error. Numbers only, no images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from stages.exposure import CAL_STEP_KEYS, Exposure, Level
from stages.tweakreg.tangent_plane import TangentPlane, plane_to_v2v3, sky_degrees, unit_vectors, v2v3_to_plane
from stages.wcs import aberration_scale

SIZE = 4088
SCALE = 0.11


def distortion(v2_ref: float, v3_ref: float, *, angle: float = 60.0, inverse: bool = True, box: bool = True) -> Any:
    """Polynomial distortion like the mission's: 0.11 arcsec pixels, a per cent of distortion across the detector."""
    from astropy.modeling import models

    half = (SIZE - 1) / 2
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    center = models.Shift(-half) & models.Shift(-half)

    def polynomial(linear: tuple[float, float], sign: float, offset: float) -> Any:
        return models.Polynomial2D(
            3, c0_0=offset, c1_0=SCALE * linear[0], c0_1=SCALE * linear[1],
            c2_0=sign * 1.5e-7, c1_1=sign * -0.8e-7, c0_2=sign * 0.6e-7, c3_0=4e-12, c1_2=-2e-12,
        )  # fmt: skip

    forward = polynomial((c, s), 1.0, v2_ref), polynomial((-s, 1.01 * c), -1.0, v3_ref)
    model = center | models.Mapping((0, 1, 0, 1)) | forward[0] & forward[1]
    if inverse:
        model.inverse = _fitted_inverse(v2_ref, v3_ref, angle)
    if box:
        model.bounding_box = ((-0.5, SIZE - 0.5), (-0.5, SIZE - 0.5))
    return model


@cache
def _fitted_inverse(v2_ref: float, v3_ref: float, angle: float) -> Any:
    from astropy.modeling import fitting, models

    model = distortion(v2_ref, v3_ref, angle=angle, inverse=False, box=False)
    half = (SIZE - 1) / 2

    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(-300, SIZE + 300, 25), np.linspace(-300, SIZE + 300, 25)))
    v2, v3 = model(x, y)
    fit = fitting.LinearLSQFitter()
    # normalised coordinates keep a fit of high degree well conditioned
    u, w = (v2 - v2_ref) / 300, (v3 - v3_ref) / 300
    to_x, to_y = (fit(models.Polynomial2D(6), u, w, target) for target in (x - half, y - half))
    normalise = models.Shift(-v2_ref) & models.Shift(-v3_ref) | models.Scale(1 / 300) & models.Scale(1 / 300)
    center = models.Shift(half) & models.Shift(half)
    return normalise | models.Mapping((0, 1, 0, 1)) | to_x & to_y | center


@dataclass
class SceneMember:
    """One detector of one exposure: nominal numbers, its distortion and the sources found on it."""

    id: str
    group: str
    numbers: dict[str, Any]
    distortion: Any
    x: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype="f4"))
    y: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype="f4"))

    def catalog(self) -> Any:
        """Source catalog in the product's column names (those that matter)."""
        from astropy.table import Table

        n = len(self.x)
        columns = {"label": np.arange(1, n + 1, dtype="i4"), "x_centroid": self.x, "y_centroid": self.y}
        columns |= {"x_centroid_win": self.x, "y_centroid_win": self.y, "x_psf": self.x, "y_psf": self.y}
        for name in ("", "_centroid", "_centroid_win", "_psf"):
            columns |= {f"ra{name}": np.zeros(n), f"dec{name}": np.zeros(n)}
        columns |= {"psf_flux": np.ones(n, dtype="f4"), "warning_flags": np.zeros(n, dtype="i4")}
        return Table(columns)

    def meta(self) -> dict[str, Any]:
        """The part of ``roman.meta`` that the WCS and the alignment read."""
        keys = ("v2_ref", "v3_ref", "ra_ref", "dec_ref", "roll_ref")
        return {
            "wcsinfo": {key: self.numbers[key] for key in keys} | {"vparity": -1, "v3yangle": -60.0, "s_region": "?"},
            "velocity_aberration": {"scale_factor": self.numbers["scale_factor"]},
            "observation": {"observation_id": self.group},
            "exposure": {"type": "WFI_IMAGE", "start_time": "2027-03-01T00:00:00.000"},
            "instrument": {"detector": "WFI01"},
            "ref_file": {"distortion": "N/A"},
            "cal_step": dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE"),
        }

    def exposure(self) -> Exposure:
        """The exposure after source_catalog, with a tiny image."""
        arrays = {"data": np.zeros((4, 4), dtype="f4")}
        exposure = Exposure(self.id, Level.IMAGE, self.meta(), arrays, catalog=self.catalog())
        exposure.wcs = dict(self.numbers)
        return exposure


def detector_numbers(boresight: dict[str, float], v2: float, v3: float) -> dict[str, Any]:
    """WCS numbers of a detector at (v2, v3) for a telescope pointing given at another reference point."""
    plane = TangentPlane.of(boresight)
    here = v2v3_to_plane(boresight, np.array([v2, v2]), np.array([v3, v3 + 0.01]))
    (ra, ra_up), (dec, dec_up) = sky_degrees(plane.detector_to_sky(here))
    numbers = {**boresight, "v2_ref": v2, "v3_ref": v3, "ra_ref": float(ra), "dec_ref": float(dec)}
    east = (ra_up - ra) * np.cos(np.deg2rad(dec))
    numbers["roll_ref"] = float(np.rad2deg(np.arctan2(east, dec_up - dec)))
    return numbers


def boresight(
    ra: float = 270.0, dec: float = 66.0, roll: float = 30.0, scale: float | None = 1.00003
) -> dict[str, Any]:
    """Numbers of a detector that sits at v2, v3 = 1300, -900 arcsec."""
    return {
        "v2_ref": 1300.0, "v3_ref": -900.0, "ra_ref": ra, "dec_ref": dec, "roll_ref": roll, "scale_factor": scale,
        "shape": [SIZE, SIZE], "corrections": [], "name": None,
    }  # fmt: skip


def sky_stars(
    rng: np.random.Generator, ra: float, dec: float, radius: float, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` stars, uniform in a square of half side ``radius`` arcsec around a position."""
    plane = TangentPlane.of({"ra_ref": ra, "dec_ref": dec})
    return sky_degrees(plane.sky(rng.uniform(-radius, radius, (count, 2))))


def observe(
    member: SceneMember,
    ra: np.ndarray,
    dec: np.ndarray,
    rng: np.random.Generator,
    *,
    matrix: np.ndarray | None = None,
    shift: tuple[float, float] = (0.0, 0.0),
    noise: float = 0.02,
    limit: int | None = None,
) -> SceneMember:
    """Fill in the stars on the detector when its true plane is matrix, shift (arcsec) away from the nominal."""
    numbers = member.numbers
    plane = TangentPlane.of(numbers).corrected(np.eye(2) if matrix is None else matrix, np.asarray(shift, dtype=float))
    v2, v3 = plane_to_v2v3(numbers, plane.inverse_affine(TangentPlane.of(numbers).from_sky(unit_vectors(ra, dec))))
    scale = aberration_scale(numbers) or 1.0
    v2 = (v2 - (1 - scale) * numbers["v2_ref"]) / scale
    v3 = (v3 - (1 - scale) * numbers["v3_ref"]) / scale
    near = np.hypot(v2 - numbers["v2_ref"], v3 - numbers["v3_ref"]) < 0.8 * SIZE * SCALE
    x, y = member.distortion.inverse(v2[near], v3[near])
    x, y = x + rng.normal(0, noise, x.shape), y + rng.normal(0, noise, y.shape)
    inside = (x > 1) & (x < SIZE - 2) & (y > 1) & (y < SIZE - 2)
    member.x, member.y = x[inside][:limit].astype("f4"), y[inside][:limit].astype("f4")
    return member


def make_member(name: str, group: str, pointing: dict[str, Any], v2: float, v3: float, **kwargs: Any) -> SceneMember:
    """A detector without sources."""
    return SceneMember(name, group, detector_numbers(pointing, v2, v3), distortion(v2, v3, **kwargs))


def oracle_image(member: SceneMember) -> Any:
    """The same exposure as romancal's image model, its WCS made by romancal, with the catalog attached."""
    from astropy.time import Time
    from roman_datamodels.datamodels import DistortionRefModel, ImageModel
    from romancal.assign_wcs import AssignWcsStep

    image = ImageModel.create_fake_data(shape=(4, 4))
    meta = member.meta()
    image.meta.wcsinfo.update(meta["wcsinfo"])
    image.meta.velocity_aberration.update(meta["velocity_aberration"])
    image.meta.observation.update(meta["observation"])
    image.meta.exposure.start_time = Time(meta["exposure"]["start_time"])
    image.meta.filename = f"{member.id}_uncal.asdf"
    image.meta["cal_step"] = dict(meta["cal_step"])
    reference = DistortionRefModel.create_fake_data()
    reference["coordinate_distortion_transform"] = member.distortion
    step = AssignWcsStep()
    step.override_distortion = reference
    image = step.process(image)
    image.meta["source_catalog"] = {"tweakreg_catalog": member.catalog()}
    return image
