"""Where detectors sit, where the telescope points, and how pixels map to the sky. Not the pixel response.

Positions of the detectors are the instrument's published nominal ones, to a few arcseconds; distortion is a smooth
polynomial of realistic size. The pipeline sees the same polynomial as the ``distortion`` reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ops.simulate.options import SCIENCE_COLUMNS
from ops.simulate.streams import detector_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CENTER_V2", "CENTER_V3", "V3_IDEAL_ANGLE", "Attitude", "DetectorGeometry", "distortion_model"]

PIXEL_ARCSEC = 0.11
V3_IDEAL_ANGLE = -60.0
CENTER_V2, CENTER_V3 = 1546.3846, -892.7931
"""Centre of the instrument in the telescope's (V2, V3) frame, arcsec."""

_ARCSEC_PER_MM = 11.0
_POSITIONS_MM = (
    (22.14, 12.15), (22.29, -37.03), (22.44, -82.06), (66.42, 20.90), (66.92, -28.28), (67.42, -73.06),
    (110.70, 42.20), (111.48, -6.98), (112.64, -51.06),
)  # fmt: skip
_ORDER = 5


def _ideal_to_v2v3() -> NDArray[np.float64]:
    """Matrix from offsets in the ideal frame (parity -1) to offsets in (V2, V3)."""
    angle = np.deg2rad(V3_IDEAL_ANGLE)
    return np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def reference_point(detector: str) -> tuple[float, float]:
    """(v2_ref, v3_ref) of the detector in arcsec."""
    number = detector_number(detector)
    x, y = _POSITIONS_MM[(number - 1) % 9]
    offset = _ideal_to_v2v3() @ (np.array([x if number <= 9 else -x, y]) * _ARCSEC_PER_MM)
    return CENTER_V2 + float(offset[0]), CENTER_V3 + float(offset[1])


def _exponents() -> list[tuple[int, int]]:
    return [(i, j) for i in range(_ORDER + 1) for j in range(_ORDER + 1 - i)]


def _ideal_coefficients(detector: str) -> NDArray[np.float64]:
    """Coefficients (2, 21) of ideal X, Y in arcsec over pixel offsets from the reference pixel."""
    half = SCIENCE_COLUMNS / 2
    x, y = _POSITIONS_MM[(detector_number(detector) - 1) % 9]
    tilt = (x / 110.0, y / 80.0)
    sizes = {1: 0.0, 2: 4.0, 3: 1.2, 4: 0.15, 5: 0.03}
    out = np.zeros((2, len(_exponents())))
    for k, (i, j) in enumerate(_exponents()):
        order = i + j
        if order == 0:
            continue
        if order == 1:
            out[:, k] = (
                (PIXEL_ARCSEC * (1 + 0.002 * tilt[0]), 1e-5) if i else (-1e-5, PIXEL_ARCSEC * (1 - 0.002 * tilt[1]))
            )
            continue
        # Fixed, smooth pattern: terms of one order share a size in pixels at the edge and vary in sign.
        pattern = np.array([np.cos(1.7 * i + 0.6 * j + tilt[0]), np.sin(1.1 * i - 0.8 * j + tilt[1])])
        out[:, k] = PIXEL_ARCSEC * sizes[order] / (order + 1) * pattern / half**order
    return out


def _design(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([x**i * y**j for i, j in _exponents()], axis=-1)


@dataclass(frozen=True)
class DetectorGeometry:
    """Pixels of one detector in the telescope frame.

    Attributes
    ----------
    v2_ref, v3_ref : float
        Reference point, arcsec.
    x_ref, y_ref : float
        Reference pixel (zero-based, science frame).
    forward : ndarray, float64, (2, 21)
        Polynomial coefficients: (V2, V3) offsets in arcsec over pixel offsets.
    """

    detector: str
    science_rows: int
    v2_ref: float
    v3_ref: float
    x_ref: float
    y_ref: float
    forward: NDArray[np.float64]

    @classmethod
    def of(cls, detector: str, science_rows: int) -> DetectorGeometry:
        """Geometry of a detector of which ``science_rows`` rows are read."""
        v2_ref, v3_ref = reference_point(detector)
        forward = _ideal_to_v2v3() @ _ideal_coefficients(detector)
        return cls(detector, science_rows, v2_ref, v3_ref, (SCIENCE_COLUMNS - 1) / 2, (science_rows - 1) / 2, forward)

    def to_v2v3(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixels to (V2, V3) in arcsec."""
        offsets = _design(x - self.x_ref, y - self.y_ref) @ self.forward.T
        return offsets[..., 0] + self.v2_ref, offsets[..., 1] + self.v3_ref

    def to_pixels(
        self, v2: NDArray[np.float64], v3: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(V2, V3) in arcsec to pixels, by Newton steps with the linear part (error below 1e-9 pixel)."""
        terms = _exponents()
        linear = np.stack([self.forward[:, terms.index((1, 0))], self.forward[:, terms.index((0, 1))]], axis=1)
        inverse = np.linalg.inv(linear)
        target = np.stack([v2, v3], axis=-1)
        pixels = np.stack([np.full(v2.shape, self.x_ref), np.full(v2.shape, self.y_ref)], axis=-1)
        for _ in range(25):
            reached = np.stack(self.to_v2v3(pixels[..., 0], pixels[..., 1]), axis=-1)
            # Far outside the detector the polynomial means nothing; keep such points from running away.
            pixels = np.clip(pixels + (target - reached) @ inverse.T, -20_000, 24_000)
        return pixels[..., 0], pixels[..., 1]


def distortion_model(geometry: DetectorGeometry) -> Any:
    """Build the astropy model (x, y) -> (v2, v3) of the ``distortion`` reference, with its inverse.

    Returns
    -------
    astropy.modeling.Model
        Zero-based science pixels to arcsec. The inverse is a polynomial fit (error about 1e-3 pixel).
    """
    from astropy.modeling.models import Mapping, Shift

    axis = np.linspace(-60.0, SCIENCE_COLUMNS + 60.0, 60) - SCIENCE_COLUMNS / 2
    dx, dy = (a.ravel() for a in np.meshgrid(axis, axis))
    offsets = _design(dx, dy) @ geometry.forward.T
    scale = np.abs(offsets).max()
    design = _design(offsets[:, 0] / scale, offsets[:, 1] / scale)
    fitted = np.linalg.lstsq(design, np.stack([dx, dy], axis=1), rcond=None)[0].T
    backward = fitted / np.array([scale ** (i + j) for i, j in _exponents()])
    pixel_shift = Shift(-geometry.x_ref) & Shift(-geometry.y_ref)
    angle_shift = Shift(geometry.v2_ref) & Shift(geometry.v3_ref)
    split = Mapping((0, 1, 0, 1))
    model = pixel_shift | split | _polynomial(geometry.forward[0]) & _polynomial(geometry.forward[1]) | angle_shift
    back = Mapping((0, 1, 0, 1))
    model.inverse = (
        Shift(-geometry.v2_ref) & Shift(-geometry.v3_ref)
        | back
        | _polynomial(backward[0]) & _polynomial(backward[1])
        | Shift(geometry.x_ref) & Shift(geometry.y_ref)
    )
    return model


def _polynomial(coefficients: NDArray[np.float64]) -> Any:
    from astropy.modeling.models import Polynomial2D

    named = {f"c{i}_{j}": float(c) for (i, j), c in zip(_exponents(), coefficients, strict=True)}
    return Polynomial2D(_ORDER, **named)


def _rotation(axis: str, degrees: float) -> NDArray[np.float64]:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return {
        "x": np.array([[1, 0, 0], [0, c, s], [0, -s, c]]),
        "y": np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]),
        "z": np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]),
    }[axis].astype(np.float64)


def unit_vector(longitude: NDArray[np.float64] | float, latitude: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Unit vectors (…, 3) of angles in degrees."""
    lon, lat = np.deg2rad(longitude), np.deg2rad(latitude)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat) + 0 * lon], axis=-1)


def angles(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude in (-180, 180] and latitude of unit vectors (…, 3), degrees."""
    lon = np.rad2deg(np.arctan2(vectors[..., 1], vectors[..., 0]))
    return lon, np.rad2deg(np.arctan2(vectors[..., 2], np.hypot(vectors[..., 0], vectors[..., 1])))


@dataclass(frozen=True)
class Attitude:
    """Where the telescope points: the rotation from the (V2, V3) frame to ICRS.

    Attributes
    ----------
    matrix : ndarray, float64, (3, 3)
        Acts on column unit vectors (cos v3 cos v2, cos v3 sin v2, sin v3).
    """

    matrix: NDArray[np.float64]

    @classmethod
    def pointing(cls, v2: float, v3: float, ra: float, dec: float, roll: float) -> Attitude:
        """Attitude that puts (v2, v3), arcsec, on (ra, dec) with the roll angle there, degrees."""
        z, y, x = "z", "y", "x"
        matrix = (
            _rotation(z, -ra)
            @ _rotation(y, dec)
            @ _rotation(x, roll)
            @ _rotation(y, -v3 / 3600)
            @ _rotation(z, v2 / 3600)
        )
        return cls(matrix)

    def at(self, v2: float, v3: float) -> tuple[float, float, float]:
        """(ra, dec, roll) in degrees at a point of the telescope frame, arcsec."""
        ra, dec = angles(self.matrix @ unit_vector(v2 / 3600, v3 / 3600))
        rest = _rotation("y", -float(dec)) @ _rotation("z", float(ra)) @ self.matrix
        rest = rest @ _rotation("z", -v2 / 3600) @ _rotation("y", v3 / 3600)
        return float(ra) % 360.0, float(dec), float(np.rad2deg(np.arctan2(rest[1, 2], rest[1, 1]))) % 360.0

    def to_sky(
        self, v2: NDArray[np.float64], v3: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(V2, V3) in arcsec to (ra, dec) in degrees."""
        ra, dec = angles(unit_vector(v2 / 3600, v3 / 3600) @ self.matrix.T)
        return ra % 360.0, dec

    def to_v2v3(
        self, ra: NDArray[np.float64], dec: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(ra, dec) in degrees to (V2, V3) in arcsec."""
        v2, v3 = angles(unit_vector(ra, dec) @ self.matrix)
        return v2 * 3600, v3 * 3600


def sky_to_pixels(
    attitude: Attitude,
    geometry: DetectorGeometry,
    aberration_scale: float,
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(ra, dec) in degrees to zero-based science pixels, the pipeline's velocity aberration undone."""
    v2, v3 = attitude.to_v2v3(ra, dec)
    v2 = (v2 - (1 - aberration_scale) * geometry.v2_ref) / aberration_scale
    v3 = (v3 - (1 - aberration_scale) * geometry.v3_ref) / aberration_scale
    return geometry.to_pixels(v2, v3)


def pixels_to_sky(
    attitude: Attitude,
    geometry: DetectorGeometry,
    aberration_scale: float,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Zero-based science pixels to (ra, dec) in degrees."""
    v2, v3 = geometry.to_v2v3(x, y)
    v2 = aberration_scale * v2 + (1 - aberration_scale) * geometry.v2_ref
    v3 = aberration_scale * v3 + (1 - aberration_scale) * geometry.v3_ref
    return attitude.to_sky(v2, v3)
