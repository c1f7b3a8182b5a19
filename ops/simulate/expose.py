"""One detector of one exposure: scene, read-out, L1 file and truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ops.simulate import truth
from ops.simulate.bandpass import MEAN_GAIN, bandpass
from ops.simulate.characteristics import interior
from ops.simulate.cosmic_rays import draw_cosmic_rays
from ops.simulate.detector import Readout, read_out
from ops.simulate.files import write_model
from ops.simulate.focal_plane import DetectorGeometry, sky_to_pixels
from ops.simulate.metadata import fill_metadata
from ops.simulate.optics import point_spread
from ops.simulate.options import CHANNEL_COLUMNS, COLUMNS, SCIENCE_COLUMNS, Variant
from ops.simulate.plan import PlannedExposure, corners
from ops.simulate.scene import Sources, add_galaxies, add_stars, disperse
from ops.simulate.streams import Purpose
from stages.dq import GroupDQ

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ops.simulate.options import SimulateOptions
    from ops.simulate.references import ReferenceSet
    from ops.simulate.sky import Galaxies, Sky, Stars

__all__ = ["expose_detector"]

_LAMP_ELECTRONS = 300.0
_SPECTRUM_ROWS = {"GRISM": 900, "PRISM": 180}
_WAVEFRONT_DEFOCUS = 1.2
_MARGIN_PIXELS = 60.0


@dataclass(frozen=True)
class _Scene:
    """Light before the quantum efficiency, electrons per second, and the sources on the frame."""

    light: NDArray[np.float32]
    tables: dict[str, dict[str, NDArray[Any]]]


def _places(
    objects: Stars | Galaxies, exposure: PlannedExposure, geometry: DetectorGeometry
) -> tuple[Sources, NDArray[np.bool_], NDArray[np.bool_]]:
    """Where the objects fall; which reach the frame; which have their centre on it."""
    x, y = sky_to_pixels(exposure.true_attitude, geometry, exposure.aberration[2], objects.ra, objects.dec)
    rate = bandpass(exposure.element).rate(objects.mag)

    def within(margin: float) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = (
            (x > -0.5 - margin)
            & (x < SCIENCE_COLUMNS - 0.5 + margin)
            & (y > -0.5 - margin)
            & (y < geometry.science_rows - 0.5 + margin)
        )
        return result

    return Sources(x, y, rate), within(_MARGIN_PIXELS), within(0.0)


def _draw_scene(exposure: PlannedExposure, geometry: DetectorGeometry, sky: Sky) -> _Scene:
    kind = exposure.kind
    light = np.zeros((geometry.science_rows, SCIENCE_COLUMNS), dtype=np.float32)
    if kind.light == "lamp":
        light += np.float32(_LAMP_ELECTRONS)
    if kind.light not in {"sky", "dispersed", "defocused"}:
        return _Scene(light, {})
    tiles = sky.tiles(*corners(exposure, geometry))
    defocus = _WAVEFRONT_DEFOCUS if kind.light == "defocused" else 0.0
    spread = point_spread(geometry.detector, exposure.element, geometry.science_rows, defocus_waves=defocus)
    stars, galaxies = sky.stars(tiles), sky.galaxies(tiles)
    star_places, reaching, stars_inside = _places(stars, exposure, geometry)
    add_stars(light, Sources(star_places.x[reaching], star_places.y[reaching], star_places.rate[reaching]), spread)
    galaxy_places, _, galaxies_inside = _places(galaxies, exposure, geometry)
    landed = add_galaxies(light, galaxy_places, galaxies, spread)
    if kind.light == "dispersed":
        light = disperse(light, _SPECTRUM_ROWS[exposure.element])
    light += np.float32(bandpass(exposure.element).sky)
    galaxy_columns = truth.source_columns(galaxies, galaxy_places, galaxies_inside)
    galaxy_columns["electrons_per_s_on_frame"] = landed[galaxies_inside]
    for name in ("scale", "axis_ratio", "angle", "bulge"):
        galaxy_columns[name] = getattr(galaxies, name)[galaxies_inside]
    star_columns = truth.source_columns(stars, star_places, stars_inside)
    return _Scene(light, {"stars": star_columns, "galaxies": galaxy_columns})


def _flood(options: SimulateOptions) -> Readout:
    """Everything at the converter's upper end, reference pixels included."""
    resultants = len(options.read_pattern)
    data = np.full((resultants, options.rows, COLUMNS), 65535, dtype=np.uint16)
    return Readout(data, np.full((resultants, options.rows, CHANNEL_COLUMNS), 800, dtype=np.uint16))


def _resultant_dq(
    exposure: PlannedExposure, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.uint8] | None:
    """Flags that came down with the data: lost packets in one variant, saturation everywhere in the flooded one."""
    if exposure.kind.light == "flood":
        # Pixels without a usable threshold count as saturated too.
        return np.full(shape, GroupDQ.SATURATED, dtype=np.uint8)
    if exposure.variant is not Variant.RESULTANT_DQ:
        return None
    flags = np.zeros(shape, dtype=np.uint8)
    for _ in range(max(4, shape[1] // 64)):
        resultant, row = rng.integers(shape[0]), rng.integers(shape[1])
        column = 128 * rng.integers(COLUMNS // 128)
        flags[resultant, row, column : column + 128] |= np.uint8(GroupDQ.DROPOUT | GroupDQ.DO_NOT_USE)
    return flags


def _write_l1(
    path: Path,
    exposure: PlannedExposure,
    geometry: DetectorGeometry,
    readout: Readout,
    flags: NDArray[np.uint8] | None,
    options: SimulateOptions,
) -> None:
    import roman_datamodels.datamodels as rdm

    model = rdm.ScienceRawModel.create_fake_data(shape=(2, 8, 8))
    fill_metadata(model["meta"], exposure, geometry, options.read_pattern)
    model["data"] = readout.data
    model["amp33"] = readout.amp33
    if flags is not None:
        model["resultantdq"] = flags
    if readout.reference_read is not None:
        model["reference_read"] = readout.reference_read
        model["reference_amp33"] = readout.reference_amp33
    write_model(path, model, compression="lz4" if options.compress else None)


def expose_detector(
    exposure: PlannedExposure,
    detector: str,
    *,
    options: SimulateOptions,
    references: ReferenceSet,
    sky: Sky,
) -> Path:
    """Simulate one detector of an exposure and write its L1 file and its truth.

    Returns
    -------
    Path
        The L1 file, which appears only when it is complete, and after its truth.
    """
    geometry = DetectorGeometry.of(detector, options.science_rows)
    path = options.out / "l1" / exposure.file_name(detector)
    name = path.stem.removesuffix("_uncal")
    folder = options.out / "truth"
    own = references.characteristics(detector)
    rng = own.stream(Purpose.RESULTANT_DQ, exposure.key)
    if exposure.kind.light == "flood":
        readout = _flood(options)
    else:
        readout = _expose_to_scene(exposure, geometry, options, references, sky, name)
    truth.write_pointing(folder, name, exposure, geometry.v2_ref, geometry.v3_ref)
    flags = _resultant_dq(exposure, readout.data.shape, rng)
    _write_l1(path, exposure, geometry, readout, flags, options)
    return path


def _expose_to_scene(
    exposure: PlannedExposure,
    geometry: DetectorGeometry,
    options: SimulateOptions,
    references: ReferenceSet,
    sky: Sky,
    name: str,
) -> Readout:
    own = references.characteristics(geometry.detector)
    calibration = references.calibration(geometry.detector)
    scene = _draw_scene(exposure, geometry, sky)
    sensitivity = interior(own.sensitivity()[0])
    collected = scene.light * sensitivity
    frame_time = exposure.kind.frame_time
    rays = draw_cosmic_rays(
        own, exposure.key, rate=options.cosmic_ray_rate, frame_time=frame_time, reads=options.read_pattern[-1][-1]
    )
    readout = read_out(
        collected,
        detector=own,
        calibration=calibration,
        cosmic_rays=rays,
        exposure=exposure.key,
        read_pattern=options.read_pattern,
        frame_time=frame_time,
        keep_first_read=exposure.variant is Variant.REFERENCE_READ,
        threads=options.threads,
    )
    collected /= interior(calibration.gain)
    total = calibration.dark_slope.copy()
    interior(total)[:] += collected
    tables = dict(scene.tables)
    tables["cosmic_rays"] = truth.cosmic_ray_columns(
        rays,
        gain=calibration.gain,
        read_noise=calibration.read_noise,
        rate=total,
        read_pattern=options.read_pattern,
        frame_time=frame_time,
    )
    folder = options.out / "truth"
    truth.write_sources(folder, name, tables)
    # What is divided by a flat comes out as the light at the mean gain, all else as it was collected.
    flattened = exposure.kind.exposure_type in {"WFI_IMAGE", "WFI_LOLO", "WFI_WFSC"}
    truth.write_rate(folder, name, scene.light / np.float32(MEAN_GAIN) if flattened else collected)
    return readout
