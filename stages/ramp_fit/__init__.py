"""Ramp fitting: from the ramp to the rate image, with jump detection.

`stages.ramp_fit.likelihood` has the default algorithm, `stages.ramp_fit.cas22` the older one, `stages.ramp_fit.image`
what both share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from stages.exposure import CAL_STEP_KEYS, Exposure, Level, StepStatus
from stages.ramp_fit.image import RateImage, jump_indices
from stages.ramp_fit.likelihood import fit_likelihood
from stages.ramp_fit.snowballs import SnowballParameters
from stages.step import ALL_TYPES, CalibrationStage
from stream.failure import PermanentError
from stream.stage import Slot, StageParameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from stages.references import Reference

__all__ = ["RampFit", "RampFitParameters", "become_image"]

BORDER = 4
_PLACEHOLDER = -999999
_KEPT = ("amp33", "border_ref_pix_", "dq_border_ref_pix_")


class RampFitParameters(StageParameters):
    """Parameters of ramp fitting, under the names and with the defaults that the mission gives them."""

    algorithm: Literal["likely", "ols_cas22"] = Field(
        default="likely", description="Maximum likelihood, or the older least-squares fit (deprecated)."
    )
    rejection_threshold: float = Field(
        default=4.5, description="Accepted for compatibility; the likelihood fit always searches at 4.5 sigma."
    )
    use_ramp_jump_detection: bool = Field(default=True, description="Search for jumps (ols_cas22 only).")
    threshold_intercept: float | None = Field(default=None, description="Replaces 5.5 (ols_cas22 only).")
    threshold_constant: float | None = Field(default=None, description="Replaces 1/3 (ols_cas22 only).")
    include_var_rnoise: bool = Field(default=False, description="Also store the read-noise variance.")
    record_jumps: bool = Field(default=True, description="Store the list of jumps (likely only).")
    expand_large_events: bool = Field(default=False, description="Expand the flags of snowballs (likely only).")
    min_sat_area: float = Field(default=1.0, description="Least area of a saturated core, pixels.")
    min_jump_area: float = Field(default=6.0, description="Least area of a group of jumps, pixels.")
    expand_factor: float = Field(default=1.9, description="Factor on the minor axis of a snowball.")
    sat_required_snowball: bool = Field(default=True, description="A snowball needs a saturated core.")
    min_sat_radius_extend: float = Field(default=0.5, description="Least minor axis of a core to be enlarged, pixels.")
    sat_expand: float = Field(default=2, description="Pixels by which saturated cores grow (doubled internally).")
    edge_size: float = Field(default=0, description="Within this distance of the edge no core is needed, pixels.")
    maximum_cores: str = Field(default="1", description="Accepted for compatibility; the slot decides on threads.")

    def snowballs(self) -> SnowballParameters | None:
        """What `stages.ramp_fit.snowballs` needs, or None if snowballs are left as they are."""
        if not self.expand_large_events:
            return None
        return SnowballParameters(**{name: getattr(self, name) for name in SnowballParameters.__dataclass_fields__})


class RampFit(CalibrationStage):
    """Fit the ramps; the exposure becomes an image (level 2)."""

    name = "ramp_fit"
    version = "2"
    cal_step: ClassVar[str] = "ramp_fit"
    parameters_type = RampFitParameters
    reference_types = ("readnoise", "gain")
    libraries = ("numpy", "numba", "scipy")
    branches = ALL_TYPES

    def process(
        self, exposure: Exposure, references: Mapping[str, Reference | None], parameters: Any, slot: Slot
    ) -> str | None:
        """Fit with the chosen algorithm, then replace the ramp by the image."""
        data, groupdq, pixeldq = (exposure.arrays[name] for name in ("data", "groupdq", "pixeldq"))
        read_pattern = exposure.read_pattern
        if len(read_pattern) != data.shape[0]:
            raise PermanentError(
                f"{exposure.id}: meta.exposure.read_pattern has {len(read_pattern)} resultants, but the ramp has "
                f"{data.shape[0]}"
            )
        fit = {
            "gain": _plane(exposure, references, "gain"),
            "readnoise": _plane(exposure, references, "readnoise"),
            "read_pattern": read_pattern,
            "frame_time": exposure.frame_time,
            "slot": slot,
            "with_var_rnoise": parameters.include_var_rnoise,
        }
        jumps = None
        if parameters.algorithm == "likely":
            groupdq = np.require(groupdq, np.uint8, ("C", "A", "W"))
            image = fit_likelihood(data, groupdq, pixeldq, snowballs=parameters.snowballs(), **fit)
            if parameters.record_jumps:
                jumps = jump_indices(groupdq)
                self.log.info("Found %d jumps", len(jumps))
        else:
            from stages.ramp_fit.cas22 import fit_cas22

            self.log.warning("Algorithm ols_cas22 is deprecated; use likely")
            image = fit_cas22(
                data,
                groupdq,
                pixeldq,
                search_jumps=parameters.use_ramp_jump_detection,
                intercept=parameters.threshold_intercept,
                slope=parameters.threshold_constant,
                **fit,
            )
        become_image(exposure, image, jumps)
        exposure.set_step(self.cal_step, StepStatus.COMPLETE)
        return None


def _plane(exposure: Exposure, references: Mapping[str, Reference | None], name: str) -> NDArray[np.float32]:
    reference = references.get(name)
    if reference is None:
        raise PermanentError(f"{exposure.id}: ramp_fit needs a {name} reference, and there is none (N/A)")
    plane = reference.array("data")
    expected = exposure.arrays["data"].shape[1:]
    if plane.shape != expected:
        raise PermanentError(
            f"{reference.path}: data has shape {plane.shape}; expected {expected}, as {exposure.id} has"
        )
    return plane


def become_image(exposure: Exposure, image: RateImage, jumps: NDArray[np.int16] | None) -> None:
    """Turn a ramp into an image: arrays and metadata, in place.

    amp33 and the border arrays stay, all else that belonged to the ramp goes. ``meta.cal_step`` is restricted to its 16
    keys, ``meta.photometry`` gets placeholders (-999999).

    Where refpix ran, the left and right border arrays are those of the ramp as the fit got it, corrected by every stage
    since: in the reference implementation they are views of the ramp from refpix on.
    """
    if exposure.meta.get("cal_step", {}).get("refpix") == StepStatus.COMPLETE:
        ramp = exposure.arrays["data"]
        exposure.set_array("border_ref_pix_left", ramp[:, :, :BORDER].copy())
        exposure.set_array("border_ref_pix_right", ramp[:, :, -BORDER:].copy())
    exposure.drop_arrays([name for name in exposure.arrays if not name.startswith(_KEPT)])
    exposure.extras.clear()
    for name in ("data", "dq", "err", "var_poisson", "chisq", "dumo"):
        exposure.set_array(name, getattr(image, name))
    if image.var_rnoise is not None:
        exposure.set_array("var_rnoise", image.var_rnoise)
    if jumps is not None:
        exposure.set_array("jump_indices", jumps)
    meta = exposure.meta
    status = meta.get("cal_step", {})
    meta["model_type"] = "ImageModel"
    meta["product_type"] = "l2"
    meta["cal_step"] = {key: status.get(key, str(StepStatus.INCOMPLETE)) for key in CAL_STEP_KEYS}
    meta["photometry"] = dict.fromkeys(
        ("conversion_megajanskys", "conversion_megajanskys_uncertainty", "pixel_area"), _PLACEHOLDER
    )
    exposure.level = Level.IMAGE
