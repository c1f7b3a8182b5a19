"""The world coordinate system of an exposure, built from its numbers. Not stored as an object between stages.

A GWCS that was read back from a file is not bit-equal to the one written, and pickling one is slow. So what travels
with an exposure are the numbers below; everything that needs the transform builds it with `build_wcs` from them and
the distortion reference.

========================== ============================================================================
key                        meaning
========================== ============================================================================
v2_ref, v3_ref             reference point of the detector in the telescope's frame, arcsec
ra_ref, dec_ref            sky position of the reference point (ICRS), degrees
roll_ref                   position angle of the V3 axis at the reference point, degrees
scale_factor               differential velocity aberration, or None
shape                      [ny, nx] of the science frame
corrections                affine corrections in the order in which they were made: {matrix (2x2), shift (arcsec)}
name                       name of the WCS, or None
========================== ============================================================================
"""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from stream.failure import PermanentError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "aberration_scale",
    "build_l1_wcs",
    "build_wcs",
    "distortion_bounding_box",
    "footprint",
    "s_region",
    "wcs_numbers",
]

log = logging.getLogger("stages.wcs")

BORDER = 4
"""Reference pixels on each side of the L1 frame that the science frame leaves out."""

_POINTING = ("v2_ref", "v3_ref", "ra_ref", "dec_ref", "roll_ref")


def wcs_numbers(meta: Mapping[str, Any], shape: tuple[int, int], *, source: str = "the exposure") -> dict[str, Any]:
    """Collect the numbers of a WCS without corrections.

    Parameters
    ----------
    meta : mapping
        ``roman.meta`` with ``wcsinfo`` (arcsec for v2_ref and v3_ref, degrees for the rest) and
        ``velocity_aberration.scale_factor``.
    shape : (ny, nx)
        Of the science frame.
    source : str
        Named in the error.

    Returns
    -------
    dict
        See the module's table; plain Python values.

    Raises
    ------
    PermanentError
        A number is missing or not finite.
    """
    wcsinfo = meta.get("wcsinfo") or {}
    numbers: dict[str, Any] = {}
    for key in _POINTING:
        value = wcsinfo.get(key)
        if not isinstance(value, int | float | np.number) or not np.isfinite(value):
            raise PermanentError(f"{source}: meta.wcsinfo.{key} must be a finite number, found {value!r}")
        numbers[key] = float(value)
    scale = (meta.get("velocity_aberration") or {}).get("scale_factor")
    numbers["scale_factor"] = None if scale is None else float(scale)
    numbers["shape"] = [int(shape[0]), int(shape[1])]
    numbers["corrections"] = []
    numbers["name"] = None
    return numbers


def aberration_scale(numbers: Mapping[str, Any]) -> float | None:
    """Scale of the differential velocity aberration; None where it does nothing, 1.0 where the number is unusable."""
    scale = numbers.get("scale_factor")
    if scale is None or scale == 1.0:
        return None
    if scale <= 0:
        log.warning("Velocity aberration scale must be positive, found %s: set to 1.0", scale)
        return 1.0
    return float(scale)


def distortion_bounding_box(distortion: Any, shape: tuple[int, int] | list[int]) -> list[list[float]]:
    """Bounding box [[xmin, xmax], [ymin, ymax]] of the distortion, or that of the frame of shape (ny, nx)."""
    try:
        box = distortion.bounding_box
    except NotImplementedError:
        ny, nx = shape
        return [[-0.5, nx - 0.5], [-0.5, ny - 0.5]]
    (xmin, xmax), (ymin, ymax) = box.bounding_box(order="F")
    return [[float(xmin), float(xmax)], [float(ymin), float(ymax)]]


def build_wcs(numbers: Mapping[str, Any], distortion: Any) -> Any:
    """Build the WCS from detector pixels to ICRS.

    Parameters
    ----------
    numbers : mapping
        See the module's table.
    distortion : astropy.modeling.Model
        From zero-based trimmed science pixels (x, y) to (v2, v3) in arcsec. Not changed.

    Returns
    -------
    gwcs.WCS
        Frames ``detector``, ``v2v3``, ``v2v3vacorr``, [``v2v3corr``,] ``world``; with the bounding box of
        `distortion_bounding_box`. Has an inverse where the distortion has one.
    """
    import gwcs
    from astropy import coordinates, units
    from gwcs import coordinate_frames as frames

    def plane(name: str, axes: tuple[str, str], unit: Any) -> Any:
        return frames.Frame2D(name=name, axes_order=(0, 1), axes_names=axes, unit=(unit, unit))

    to_v2v3 = deepcopy(distortion)
    to_v2v3.inputs, to_v2v3.outputs = ("x", "y"), ("v2", "v3")
    world = frames.CelestialFrame(name="world", reference_frame=coordinates.ICRS())
    wcs = gwcs.WCS(
        [
            (plane("detector", ("x", "y"), units.pix), to_v2v3),
            (plane("v2v3", ("v2", "v3"), units.arcsec), _aberration_model(numbers)),
            (plane("v2v3vacorr", ("v2", "v3"), units.arcsec), _sky_model(numbers)),
            (world, None),
        ]
    )
    box = distortion_bounding_box(distortion, numbers["shape"])
    wcs.bounding_box = tuple(tuple(limits) for limits in box)
    if numbers["corrections"]:
        wcs = _corrected(wcs, numbers)
    if numbers.get("name") is not None:
        wcs.name = numbers["name"]
    return wcs


def _aberration_model(numbers: Mapping[str, Any]) -> Any:
    from astropy.modeling import models

    scale = aberration_scale(numbers)
    if scale is None:
        model = models.Identity(2)
    else:
        model = models.Scale(scale, name="dva_scale_v2") & models.Scale(scale, name="dva_scale_v3")
        v2_ref, v3_ref = numbers["v2_ref"], numbers["v3_ref"]
        if v2_ref != 0 or v3_ref != 0:
            model |= models.Shift((1 - scale) * v2_ref, name="dva_v2_shift") & models.Shift(
                (1 - scale) * v3_ref, name="dva_v3_shift"
            )
            model.name = "DVA_Correction"
    model.inputs = model.outputs = ("v2", "v3")
    return model


def _sky_model(numbers: Mapping[str, Any]) -> Any:
    from astropy.modeling import models
    from gwcs.geometry import CartesianToSpherical, SphericalToCartesian

    angles = [
        numbers["v2_ref"] / 3600,
        -numbers["v3_ref"] / 3600,
        numbers["roll_ref"],
        numbers["dec_ref"],
        -numbers["ra_ref"],
    ]
    model = (
        models.Scale(1 / 3600) & models.Scale(1 / 3600)
        | SphericalToCartesian(wrap_lon_at=180)
        | models.RotationSequence3D(angles, axes_order="zyxyz")
        | CartesianToSpherical(wrap_lon_at=360)
    )
    model.name = "v23tosky"
    model.inputs, model.outputs = ("v2", "v3"), ("ra", "dec")
    return model


def _corrected(wcs: Any, numbers: Mapping[str, Any]) -> Any:
    """Insert the frame ``v2v3corr`` as the field's corrector does: later corrections multiply into the first."""
    from tweakwcs.correctors import RomanWCSCorrector

    corrector = RomanWCSCorrector(wcs, {key: numbers[key] for key in ("v2_ref", "v3_ref", "roll_ref")})
    for correction in numbers["corrections"]:
        corrector.set_correction(matrix=correction["matrix"], shift=correction["shift"])
    return corrector.wcs


def build_l1_wcs(l2_wcs: Any) -> Any:
    """Make the equivalent WCS for L1 pixels, which count the reference-pixel border.

    Parameters
    ----------
    l2_wcs : gwcs.WCS
        For science pixels. Not changed.

    Returns
    -------
    gwcs.WCS
        With ``l1(x + 4, y + 4) == l2(x, y)``; upper limits of the bounding box are 8 pixels higher, so that the border
        is inside.
    """
    import gwcs
    from astropy.modeling import models

    try:
        box = l2_wcs.bounding_box
    except NotImplementedError:
        box = None
    steps = [(deepcopy(step.frame), deepcopy(step.transform)) for step in l2_wcs.pipeline]
    frame, to_v2v3 = steps[0]
    if box is not None:
        box = tuple((low, high + 2 * BORDER) for low, high in box.bounding_box(order="F"))
    steps[0] = (frame, models.Shift(-BORDER) & models.Shift(-BORDER) | to_v2v3)
    wcs = gwcs.WCS(steps, name=l2_wcs.name)
    wcs.bounding_box = box
    return wcs


def footprint(wcs: Any) -> Any:
    """Sky positions of the bounding box corners.

    Parameters
    ----------
    wcs : gwcs.WCS
        With a bounding box.

    Returns
    -------
    ndarray, shape (4, 2), f8
        RA, Dec in degrees of (xmin, ymin), (xmin, ymax), (xmax, ymax), (xmax, ymin): corners of the box, not pixel
        centres; RA not negative.
    """
    (xmin, xmax), (ymin, ymax) = wcs.bounding_box.bounding_box(order="F")
    ra, dec = wcs(np.array([xmin, xmin, xmax, xmax], dtype=float), np.array([ymin, ymax, ymax, ymin], dtype=float))
    return np.column_stack([np.where(ra < 0, ra + 360.0, ra), dec])


def s_region(wcs: Any) -> str | None:
    """Text of ``meta.wcsinfo.s_region``, or None (leave the old one) when a corner has no sky position."""
    corners = footprint(wcs)
    if not np.all(np.isfinite(corners)):
        log.warning("The footprint has corners without a sky position: s_region stays as it was")
        return None
    return "POLYGON ICRS  " + " ".join(f"{value:.9f}" for value in corners.ravel())
