"""The small object that carries a member's sources to the joint alignment. Not the alignment.

Written beside the payload once there is a catalog, as an Arrow file: one row a source, and a JSON header with the
numbers of the WCS and what the alignment needs of the distortion, so that nobody has to build a WCS again:

* ``x, y`` (f4, pixel) and ``flux`` (f4, where the catalog has it): for people, the alignment does not read them;
* ``plane_x, plane_y`` (f8, arcsec): the same positions in the member's tangent plane
  (`stages.tweakreg.tangent_plane`);
* ``corners``: of the bounding box, ``hull``: the polygon around the sources (or the detector), in the plane;
* ``pixel_scales``: size of a pixel in the plane on a grid around the plane's origin, None where the distortion has no
  inverse;
* ``search``: size (degrees) and orientation of the pixels, for the cone in which a catalog is asked for stars.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.tweakreg.hull import bounding_hull
from stages.tweakreg.tangent_plane import ARCSEC_PER_RADIAN, TangentPlane, plane_to_v2v3, v2v3_to_plane
from stages.wcs import aberration_scale, distortion_bounding_box
from stream.failure import PermanentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from stages.exposure import Exposure

    Array = NDArray[np.float64]

__all__ = ["TiePoints", "read_tie_points", "tie_points_bytes"]

FORMAT = "rampstream-tie-points"
VERSION = 1

SCALE_GRID = np.linspace(-12.0, 12.0, 5)
"""Offsets (arcsec) at which the pixel scale is kept: a correction within the default search radii stays inside, and the
distortion is smooth enough there for a quartic to interpolate to 1e-9."""


@dataclass(frozen=True, slots=True)
class TiePoints:
    """Sources of one member in its tangent plane before any correction.

    Parameters
    ----------
    numbers : dict
        Of the WCS (`stages.wcs`).
    group : str or None
        Group to be aligned together; None when neither group_id nor observation_id is known.
    start_time : str
        ISO, UTC.
    box : list
        Bounding box [[xmin, xmax], [ymin, ymax]], pixel.
    positions : ndarray (n, 2), f8
        Plane coordinates, arcsec.
    corners, hull : ndarray (k, 2), f8
        Plane coordinates, arcsec.
    pixel_scales : ndarray (5, 5) or None
        Arcsec, at SCALE_GRID x SCALE_GRID (first index x).
    error : str or None
        Why this catalog cannot be used; the alignment then fails as a whole.
    search : dict
        ``vparity``, ``v3yangle`` (degrees) and ``pixel_size`` (degrees) at the reference point, each a number or None;
        empty in files of before there were searches.
    """

    numbers: dict[str, Any]
    group: str | None
    start_time: str
    box: list[list[float]]
    positions: Array
    corners: Array
    hull: Array
    pixel_scales: Array | None
    error: str | None = None
    search: dict[str, float | None] = field(default_factory=dict)

    def pixel_scale(self, plane: TangentPlane) -> float:
        """Size of a pixel (arcsec) in the plane at the place that the plane's origin has on the detector.

        1.0 where the distortion has no inverse, as the field's library has it. Positions from the detector go through
        a correction twice (see `stages.tweakreg.tangent_plane`), which scales areas by the square of its determinant.
        """
        if self.pixel_scales is None:
            return 1.0
        origin = plane.inverse_affine(plane.inverse_affine(np.zeros((1, 2))))[0] / SCALE_GRID[-1]
        x, y = np.meshgrid(SCALE_GRID / SCALE_GRID[-1], SCALE_GRID / SCALE_GRID[-1], indexing="ij")
        grid = np.polynomial.polynomial.polyvander2d(x.ravel(), y.ravel(), [4, 4])
        coefficients = np.linalg.solve(grid, self.pixel_scales.ravel())
        scale = np.polynomial.polynomial.polyval2d(origin[0], origin[1], coefficients.reshape(5, 5))
        return float(scale * abs(np.linalg.det(plane.matrix)))


def tie_points_bytes(exposure: Exposure, distortion: Any) -> bytes:
    """Pack the sources that the alignment may use.

    Parameters
    ----------
    exposure : Exposure
        With ``wcs`` and ``catalog`` (columns x, y, else x_psf, y_psf, in pixel; rows with ``warning_flags & 1`` and
        rows that are not strictly inside the bounding box are left out; no cut on brightness).
    distortion : astropy.modeling.Model
        (x, y) pixel to (v2, v3) arcsec.

    Returns
    -------
    bytes
        An Arrow file; equal for equal input.
    """
    if exposure.wcs is None or exposure.catalog is None:
        raise PermanentError(f"{exposure.id}: tie points need a WCS and a source catalog")
    numbers = exposure.wcs
    box = distortion_bounding_box(distortion, numbers["shape"])
    pixels, flux, error = _usable_sources(exposure.catalog, box)

    def to_plane(x: Array, y: Array) -> Array:
        return _pixels_to_plane(numbers, distortion, x, y)

    (xmin, xmax), (ymin, ymax) = box
    corners = to_plane(np.array([xmin, xmin, xmax, xmax]), np.array([ymin, ymax, ymax, ymin]))
    hull = bounding_hull(pixels.astype(float), box)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "numbers": numbers,
        "group": _group(exposure.meta),
        "start_time": _iso(exposure.meta["exposure"].get("start_time")),
        "box": box,
        "corners": corners.tolist(),
        "hull": to_plane(hull[:, 0], hull[:, 1]).tolist(),
        "pixel_scales": _pixel_scales(numbers, distortion, to_plane),
        "error": error,
        "search": _search(exposure.meta, numbers, distortion, to_plane),
    }
    positions = to_plane(pixels[:, 0].astype(float), pixels[:, 1].astype(float))
    columns = {"x": pixels[:, 0], "y": pixels[:, 1], "plane_x": positions[:, 0], "plane_y": positions[:, 1]}
    return _pack(header, columns | ({} if flux is None else {"flux": flux}))


def read_tie_points(data: bytes | memoryview, name: str = "data") -> TiePoints:
    """Read what `tie_points_bytes` wrote.

    Parameters
    ----------
    data : bytes or memoryview
        Positions are copied out of it.
    name : str
        For error messages.

    Raises
    ------
    PermanentError
        No tie points, or of a version this code does not know.
    """
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        header = json.loads(table.schema.metadata[b"header"])
        positions = np.column_stack([table[name].to_numpy() for name in ("plane_x", "plane_y")])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise PermanentError(f"{name}: no tie points: {error}") from error
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise PermanentError(f"{name}: expected {FORMAT} version {VERSION}, found version {header.get('version')!r}")
    scales = header["pixel_scales"]
    return TiePoints(
        numbers=header["numbers"],
        group=header["group"],
        start_time=header["start_time"],
        box=header["box"],
        positions=positions,
        corners=np.array(header["corners"], dtype=float),
        hull=np.array(header["hull"], dtype=float).reshape(-1, 2),
        pixel_scales=None if scales is None else np.array(scales, dtype=float),
        error=header["error"],
        search=header.get("search", {}),
    )


def _pack(header: dict[str, Any], columns: dict[str, Any]) -> bytes:
    import pyarrow as pa

    table = pa.table(columns).replace_schema_metadata({"header": json.dumps(header, sort_keys=True)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _group(meta: dict[str, Any]) -> str | None:
    group = meta.get("group_id") or meta.get("observation", {}).get("observation_id")
    return None if group is None else str(group)


def _iso(time: Any) -> str:
    return str(getattr(getattr(time, "utc", time), "isot", time))


def _usable_sources(catalog: Any, box: list[list[float]]) -> tuple[NDArray[np.float32], Any, str | None]:
    """Positions (n, 2) f4, their fluxes or None, and why the catalog cannot be used or None."""
    none = np.zeros((0, 2), dtype=np.float32)
    for x_name, y_name in (("x", "y"), ("x_psf", "y_psf")):
        if x_name in catalog.colnames and y_name in catalog.colnames:
            break
    else:
        found = ", ".join(catalog.colnames)
        return none, None, None if len(catalog) == 0 else f"expected columns x, y or x_psf, y_psf, found {found}"
    x, y = (np.asarray(catalog[name], dtype=np.float32) for name in (x_name, y_name))
    (xmin, xmax), (ymin, ymax) = box
    keep = (x > xmin) & (x < xmax) & (y > ymin) & (y < ymax)
    if "warning_flags" in catalog.colnames:
        keep &= (np.asarray(catalog["warning_flags"]) & 1) == 0
    flux = np.asarray(catalog["psf_flux"], dtype=np.float32)[keep] if "psf_flux" in catalog.colnames else None
    return np.column_stack([x[keep], y[keep]]), flux, None


def _pixels_to_plane(numbers: dict[str, Any], distortion: Any, x: Array, y: Array) -> Array:
    v2, v3 = distortion(x, y)
    scale = aberration_scale(numbers)
    if scale is not None:
        v2 = scale * v2 + (1 - scale) * numbers["v2_ref"]
        v3 = scale * v3 + (1 - scale) * numbers["v3_ref"]
    return v2v3_to_plane(numbers, v2, v3)


def _plane_to_pixels(numbers: dict[str, Any], distortion: Any, xy: Array) -> tuple[Array, Array] | None:
    """Pixel positions of uncorrected plane coordinates; None where the distortion has no inverse."""
    try:
        inverse = distortion.inverse
    except NotImplementedError:
        return None
    v2, v3 = plane_to_v2v3(numbers, xy)
    scale = aberration_scale(numbers)
    if scale is not None:
        v2 = (v2 - (1 - scale) * numbers["v2_ref"]) / scale
        v3 = (v3 - (1 - scale) * numbers["v3_ref"]) / scale
    x, y = inverse(v2, v3)
    return x, y


def _search(
    meta: dict[str, Any], numbers: dict[str, Any], distortion: Any, to_plane: Callable[[Array, Array], Array]
) -> dict[str, float | None]:
    wcsinfo = meta.get("wcsinfo") or {}
    found = {
        name: float(value) if isinstance(value := wcsinfo.get(name), int | float | np.number) else None
        for name in ("vparity", "v3yangle")
    }
    pixels = _plane_to_pixels(numbers, distortion, np.zeros((1, 2)))
    if pixels is None:
        return {**found, "pixel_size": None}
    (x,), (y,) = pixels
    # the tangent point is at the reference point, so that distances from it need no more than an arctangent
    steps = to_plane(np.array([x, x + 1, x]), np.array([y, y, y + 1])) / ARCSEC_PER_RADIAN
    sides = np.arctan(np.hypot(*(steps[1:] - steps[0]).T))
    return {**found, "pixel_size": float(np.rad2deg(np.sqrt(sides[0] * sides[1])))}


def _pixel_scales(
    numbers: dict[str, Any], distortion: Any, to_plane: Callable[[Array, Array], Array]
) -> list[list[float]] | None:
    """Square root of the area of a pixel at each point of the grid around the plane's origin."""
    grid_x, grid_y = np.meshgrid(SCALE_GRID, SCALE_GRID, indexing="ij")
    pixels = _plane_to_pixels(numbers, distortion, np.column_stack([grid_x.ravel(), grid_y.ravel()]))
    if pixels is None:
        return None
    x, y = pixels
    a, b, c, d = (to_plane(x + dx, y + dy) for dx, dy in ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)))
    diagonals = (c - a)[:, 0] * (d - b)[:, 1] - (c - a)[:, 1] * (d - b)[:, 0]
    scales: list[list[float]] = np.sqrt(0.5 * np.abs(diagonals)).reshape(grid_x.shape).tolist()
    return scales
