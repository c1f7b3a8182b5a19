"""The reference set: every type that the pipeline asks for, written once for each detector. Not their selection."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ops.simulate.bandpass import MEAN_GAIN, photometry_table
from ops.simulate.characteristics import Characteristics, interior
from ops.simulate.correlated_noise import coefficients
from ops.simulate.detector import Calibration
from ops.simulate.files import complete, write_model
from ops.simulate.focal_plane import DetectorGeometry, distortion_model
from ops.simulate.optics import JITTER_MAS, OVERSAMPLE, SPECTRAL_TYPES, encircled_energy, point_spread
from ops.simulate.options import CHANNEL_COLUMNS, CHANNELS, IMAGING_ELEMENTS
from ops.simulate.streams import Purpose, detector_number
from stages.dq import PixelDQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["EXPOSURE_TYPES", "ReferenceSet"]

EXPOSURE_TYPES = ("WFI_IMAGE", "WFI_SPECTRAL", "WFI_IM_DARK", "WFI_SP_DARK", "WFI_FLAT", "WFI_LOLO", "WFI_WFSC")
_USEAFTER = "2020-01-01T00:00:00.000"


def _meta(reference_type: str, detector: str, **instrument: str) -> dict[str, Any]:
    from astropy.time import Time

    meta: dict[str, Any] = {
        "reftype": reference_type.upper(),
        "author": "rampstream simulate",
        "description": f"Simulated {reference_type} reference, consistent with the exposures simulated with it.",
        "pedigree": "DUMMY",
        "useafter": Time(_USEAFTER, format="isot", scale="utc"),
        "telescope": "ROMAN",
        "origin": "STSCI",
        "instrument": {"name": "WFI", "detector": detector, **instrument},
    }
    if reference_type in {"dark", "readnoise"}:
        meta["exposure"] = {"type": "WFI_IMAGE", "p_exptype": "".join(f"{name}|" for name in EXPOSURE_TYPES)}
    return meta


def _model(class_name: str, meta: dict[str, Any], **content: Any) -> Any:
    import roman_datamodels.datamodels as rdm

    model = getattr(rdm, class_name).create_minimal({"meta": meta, **content})
    for key, value in content.items():
        model[key] = value
    for key, value in meta.items():
        model.meta[key] = value
    return model


class ReferenceSet:
    """The references of a simulation in one folder.

    Parameters
    ----------
    folder : Path
        Where they are, or will be.
    seed : int
        Decides all of them.
    rows : int
        Rows of the frame.
    """

    def __init__(self, folder: Path, *, seed: int, rows: int) -> None:
        self.folder = folder
        self._seed = seed
        self._rows = rows
        self._opened: tuple[str, Calibration] | None = None

    def characteristics(self, detector: str) -> Characteristics:
        """What the detector is like."""
        return Characteristics(self._seed, detector, self._rows)

    def path(self, reference_type: str, detector: str | None = None, element: str | None = None) -> Path:
        """File of a reference."""
        parts = [part.lower() for part in (detector, element) if part]
        return self.folder / ("_".join(["roman_wfi", *parts, reference_type]) + ".asdf")

    def ensure(self, detector: str, elements: Iterable[str], report: Callable[[str], None]) -> None:
        """Write the references of a detector, and those common to all, that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, build in self._plan(detector, sorted(set(elements))):
            if not path.exists():
                report(f"writing {path.name}")
                build(path)

    def _plan(self, detector: str, elements: list[str]) -> Iterator[tuple[Path, Callable[[Path], None]]]:
        """Every file of a detector with the function that writes it."""
        own = self.characteristics(detector)
        for name, build in _BUILDERS.items():
            yield self.path(name, None if name == "darkdecaysignal" else detector), partial(_write, build, own)
        for name, build_element in _ELEMENT_BUILDERS.items():
            for element in elements:
                # Only imaging is divided by a flat and fitted with a PSF.
                if name == "distortion" or element in IMAGING_ELEMENTS:
                    yield self.path(name, detector, element), partial(_write, build_element, own, element)
        for field in ("north", "south"):
            yield self.folder / f"roman_wfi_dustmap_{field}.fits", partial(_write_dust_map, field)

    def calibration(self, detector: str) -> Calibration:
        """Open what the read-out needs, memory-mapped; the detector asked for last is kept open."""
        if self._opened is None or self._opened[0] != detector:
            self._opened = (detector, self._open(detector))
        return self._opened[1]

    def _open(self, detector: str) -> Calibration:
        return Calibration(
            gain=self._array("gain", detector, "data"),
            read_noise=self._array("readnoise", detector, "data"),
            dark_slope=self._array("dark", detector, "dark_slope"),
            inverse_linearity=self._array("inverselinearity", detector, "coeffs"),
            inl=self.characteristics(detector).inl_correction(),
        )

    def _array(self, reference_type: str, detector: str, key: str) -> NDArray[Any]:
        import asdf

        with asdf.open(self.path(reference_type, detector), memmap=True, lazy_load=False) as file:
            # A plain view keeps the mapping alive after the file is closed.
            return np.asarray(file["roman"][key])


def _write(build: Callable[..., Any], *arguments: Any) -> None:
    """Write what ``build`` makes of all arguments but the last, which is the path."""
    write_model(arguments[-1], build(*arguments[:-1]))


def _mask(own: Characteristics) -> Any:
    return _model("MaskRefModel", _meta("mask", own.detector), dq=own.mask())


def _saturation(own: Characteristics) -> Any:
    rng = own.stream(Purpose.SATURATION)
    thresholds = own.thresholds()
    dq = np.zeros(own.shape, dtype=np.uint32)
    inner, flags = interior(thresholds), interior(dq)
    chosen = rng.random(inner.shape, dtype=np.float32)
    flags[chosen < 3e-5] = PixelDQ.NO_SAT_CHECK
    inner[chosen > 1 - 2e-5] = np.nan
    return _model("SaturationRefModel", _meta("saturation", own.detector), data=thresholds, dq=dq)


def _refpix(own: Characteristics) -> Any:
    return _model("RefpixRefModel", _meta("refpix", own.detector), **coefficients(own))


def _darkdecaysignal(own: Characteristics) -> Any:
    table = {}
    for number in range(1, 19):
        term = Characteristics(0, f"WFI{number:02d}", own.rows).dark_decay()
        table[f"WFI{number:02d}"] = {"amplitude": term.amplitude, "time_constant": term.time_constant}
    return _model("DarkdecaysignalRefModel", _meta("darkdecaysignal", "WFI01"), decay_table=table)


def _linearity(own: Characteristics) -> Any:
    rng = own.stream(Purpose.DEFECTS)
    coeffs = own.polynomial(own.nonlinearity(), inverse=False)
    dq = np.full(own.shape, PixelDQ.NO_LIN_CORR, dtype=np.uint32)
    flags = interior(dq)
    chosen = rng.random(flags.shape, dtype=np.float32)
    flags[:] = np.where(chosen < 1e-4, PixelDQ.NO_LIN_CORR, 0)
    interior(coeffs)[:, chosen > 1 - 2e-5] = np.nan
    return _model("LinearityRefModel", _meta("linearity", own.detector), coeffs=coeffs, dq=dq)


def _inverselinearity(own: Characteristics) -> Any:
    coeffs = own.polynomial(own.nonlinearity(), inverse=True)
    dq = np.zeros(own.shape, dtype=np.uint32)
    return _model("InverselinearityRefModel", _meta("inverselinearity", own.detector), coeffs=coeffs, dq=dq)


def _integralnonlinearity(own: Characteristics) -> Any:
    meta = _meta("integralnonlinearity", own.detector) | {
        "n_channels": CHANNELS,
        "n_pixels_per_channel": own.rows * CHANNEL_COLUMNS,
    }
    correction = own.inl_correction()
    flipped = detector_number(own.detector) % 3 == 0
    table = {
        f"science_channel_{k + 1:02d}": {
            "instrument_channel": CHANNELS - 1 - k if flipped else k,
            "correction": np.ascontiguousarray(correction[k]),
        }
        for k in range(CHANNELS)
    }
    value = np.arange(correction.shape[1], dtype=np.uint16)
    return _model("IntegralnonlinearityRefModel", meta, inl_table=table, value=value)


def _readnoise(own: Characteristics) -> Any:
    return _model("ReadnoiseRefModel", _meta("readnoise", own.detector), data=own.read_noise())


def _gain(own: Characteristics) -> Any:
    return _model("GainRefModel", _meta("gain", own.detector), data=own.gain())


def _dark(own: Characteristics) -> Any:
    slope, dq = own.dark()
    error = (0.05 * slope + np.float32(1e-4)).astype(np.float32)
    meta = _meta("dark", own.detector, optical_element="DARK")
    return _model("DarkRefModel", meta, dark_slope=slope, dark_slope_error=error, dq=dq)


def _photom(own: Characteristics) -> Any:
    return _model("WfiImgPhotomRefModel", _meta("photom", own.detector), phot_table=photometry_table())


def _apcorr(own: Characteristics) -> Any:
    data: dict[str, Any] = {}
    radii = np.concatenate([np.arange(0.25, 5, 0.25), np.arange(5, 22.5, 0.5)])
    for element in (*IMAGING_ELEMENTS, "GRISM", "PRISM", "DARK"):
        empty = dict.fromkeys(
            ("ap_corrections", "ee_fractions", "ee_radii", "sky_background_rin", "sky_background_rout")
        )
        data[element] = empty
        if element in IMAGING_ELEMENTS:
            energy = encircled_energy(own.detector, element, radii)
            data[element] = {
                "ap_corrections": 1 / energy,
                "ee_fractions": energy,
                "ee_radii": radii.copy(),
                "sky_background_rin": 2.4,
                "sky_background_rout": 2.8,
            }
    return _model("ApcorrRefModel", _meta("apcorr", own.detector), data=data)


def _flat(own: Characteristics, element: str) -> Any:
    sensitivity, dq = own.sensitivity()
    values = np.ascontiguousarray(interior(sensitivity * MEAN_GAIN / own.gain()).astype(np.float32))
    flags = np.ascontiguousarray(interior(dq))
    rng = own.stream(Purpose.DEFECTS, 1)
    chosen = rng.random(values.shape, dtype=np.float32)
    values[chosen < 3e-5] = np.nan
    flags[chosen < 1e-5] |= np.uint32(PixelDQ.NO_FLAT_FIELD)
    meta = _meta("flat", own.detector, optical_element=element)
    return _model("FlatRefModel", meta, data=values, err=np.abs(0.002 * values).astype(np.float32), dq=flags)


def _distortion(own: Characteristics, element: str) -> Any:
    geometry = DetectorGeometry.of(own.detector, own.rows - 8)
    meta = _meta("distortion", own.detector, optical_element=element)
    meta |= {"input_units": "pixel", "output_units": "arcsec"}
    return _model("DistortionRefModel", meta, coordinate_distortion_transform=distortion_model(geometry))


def _epsf(own: Characteristics, element: str) -> Any:
    by_type = [point_spread(own.detector, element, own.rows - 8, colour=c) for c in SPECTRAL_TYPES.values()]
    spread = by_type[1]
    meta = _meta("epsf", own.detector, optical_element=element) | {
        "oversample": OVERSAMPLE,
        "spectral_type": list(SPECTRAL_TYPES),
        "defocus": [0],
        "pixel_x": [float(x) for x in spread.pixel_x],
        "pixel_y": [float(y) for y in spread.pixel_y],
        "jitter_major": JITTER_MAS,
        "jitter_minor": JITTER_MAS,
        "jitter_position_angle": 0.0,
    }
    return _model("EpsfRefModel", meta, psf=np.stack([colour.stamps for colour in by_type])[None])


def _write_dust_map(field: str, path: Path) -> None:
    """Small zenithal equal-area map of reddening of one galactic hemisphere."""
    from astropy.io import fits

    size = 256
    axis = (np.arange(size) - (size - 1) / 2) / (size / 2)
    x, y = np.meshgrid(axis, axis)
    # In this projection 1 - sin|b| is the square of the distance from the pole.
    height = np.clip(1 - (x * x + y * y), 0.02, 1)
    reddening = (0.03 / height * (1 + 0.3 * np.sin(7 * x) * np.cos(5 * y))).astype(np.float32)
    header = fits.Header()
    scale = 2 / size * np.rad2deg(np.sqrt(2))
    north = field == "north"
    for axis_number, (name, sign) in enumerate((("GLON-ZEA", -1 if north else 1), ("GLAT-ZEA", 1)), start=1):
        header[f"CTYPE{axis_number}"] = name
        header[f"CRPIX{axis_number}"] = (size + 1) / 2
        header[f"CDELT{axis_number}"] = sign * scale
        header[f"CUNIT{axis_number}"] = "deg"
    header["CRVAL1"], header["CRVAL2"] = 0.0, 90.0 if north else -90.0
    header["LONPOLE"] = 180.0
    header["FIELD"] = field
    header["BUNIT"] = "mag"
    header["REFTYPE"] = "DUSTMAP"
    with complete(path) as partial:
        fits.PrimaryHDU(reddening, header).writeto(partial, overwrite=True)


_BUILDERS: dict[str, Callable[[Characteristics], Any]] = {
    "mask": _mask,
    "saturation": _saturation,
    "refpix": _refpix,
    "darkdecaysignal": _darkdecaysignal,
    "linearity": _linearity,
    "inverselinearity": _inverselinearity,
    "integralnonlinearity": _integralnonlinearity,
    "readnoise": _readnoise,
    "gain": _gain,
    "dark": _dark,
    "photom": _photom,
    "apcorr": _apcorr,
}
_ELEMENT_BUILDERS: dict[str, Callable[[Characteristics, str], Any]] = {
    "flat": _flat,
    "distortion": _distortion,
    "epsf": _epsf,
}
