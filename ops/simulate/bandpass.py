"""Optical elements: wavelengths, effective areas and zero points. Approximate curves, consistent among themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MEAN_GAIN", "PIXEL_AREA_SR", "Bandpass", "bandpass", "photometry_table"]

MEAN_GAIN = 1.8
"""Electrons per DN to which flat and photometric calibration are normalised."""

PIXEL_AREA_SR = (0.11 / 206264.80624709636) ** 2
COLLECTING_AREA_M2 = 3.6

_AB_PHOTONS = 3631e-26 / 6.62607015e-34
"""Photons per m^2, second and unit of ln(frequency) from a source of 0 AB mag."""

_EDGES_UM = {
    "F062": (0.48, 0.76, 1.7), "F087": (0.76, 0.977, 1.9), "F106": (0.927, 1.192, 2.0), "F129": (1.131, 1.454, 2.0),
    "F146": (0.927, 2.0, 1.9), "F158": (1.38, 1.774, 2.0), "F184": (1.683, 2.0, 1.9), "F213": (1.95, 2.3, 1.8),
    "GRISM": (1.0, 1.93, 1.3), "PRISM": (0.75, 1.8, 1.6),
}  # fmt: skip
_SKY_ELECTRONS = {"F146": 1.3, "F213": 4.5, "GRISM": 1.0, "PRISM": 1.2}


@dataclass(frozen=True)
class Bandpass:
    """One optical element.

    Attributes
    ----------
    wavelength_um : float
        Central wavelength.
    electrons_at_zero : float
        Electrons per second from a source of 0 AB mag.
    sky : float
        Electrons per second and pixel of zodiacal light and thermal emission.
    """

    element: str
    wavelength_um: float
    electrons_at_zero: float
    sky: float

    def rate(self, magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Electrons per second of sources of the given AB magnitudes."""
        return self.electrons_at_zero * np.power(10.0, -0.4 * magnitudes)

    @property
    def mjy_sr_per_dn_s(self) -> float:
        """Surface brightness in MJy/sr of 1 DN/s in a pixel."""
        jansky = 3631.0 * MEAN_GAIN / self.electrons_at_zero
        return jansky * 1e-6 / PIXEL_AREA_SR


def bandpass(element: str) -> Bandpass:
    """Bandpass of an element; DARK is given that of F158 (no light passes anyway)."""
    low, high, area = _EDGES_UM.get(element, _EDGES_UM["F158"])
    return Bandpass(
        element, (low + high) / 2, _AB_PHOTONS * area * np.log(high / low), _SKY_ELECTRONS.get(element, 0.6)
    )


def photometry_table() -> dict[str, dict[str, Any]]:
    """``phot_table`` of the ``photom`` reference."""
    table: dict[str, dict[str, Any]] = {}
    nothing = dict.fromkeys(("photmjsr", "uncertainty", "pixelareasr"))
    for element, (low, high, area) in _EDGES_UM.items():
        wavelength = np.linspace(0.4, 2.6, 1001).astype(np.float32)
        inside = (wavelength > low) & (wavelength < high)
        entry: dict[str, Any] = {
            "collecting_area": COLLECTING_AREA_M2,
            "wavelength": wavelength,
            "effective_area": np.where(inside, area, 0.0).astype(np.float32),
        }
        imaging = element.startswith("F")
        factor = bandpass(element).mjy_sr_per_dn_s
        photometry = {"photmjsr": factor, "uncertainty": 0.02 * factor, "pixelareasr": PIXEL_AREA_SR}
        table[element] = {**(photometry if imaging else nothing), **entry}
    table["GRISM_0"] = dict(table["GRISM"])
    curves = dict.fromkeys(("collecting_area", "wavelength", "effective_area"))
    table["DARK"] = table["NOT_CONFIGURED"] = {**nothing, **curves}
    return table
