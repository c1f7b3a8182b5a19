"""The arrays and metadata of one exposure as they flow through the stages. Not a file format.

An `Exposure` is a plain container. Metadata are nested dicts of plain Python values (and astropy ``Time`` where the
file has a time), exactly the ``roman.meta`` tree of the file. Arrays are kept by name:

=================== ===== ======================= ====================================================
name                dtype shape                   from
=================== ===== ======================= ====================================================
data                u2    (n, R, 4096)            L1, before dq_init
data                f4    (n, R, 4096)            ramp, DN, from dq_init to linearity
data                f4    (R-8, 4088)             rate, DN/s, from ramp_fit on
pixeldq             u4    (R, 4096)               dq_init to ramp_fit
groupdq             u1    (n, R, 4096)            dq_init to ramp_fit
dq                  u4    (R-8, 4088)             from ramp_fit on
err, var_poisson    f2    (R-8, 4088)             from ramp_fit on (also var_rnoise, var_flat if asked for)
chisq, dumo         f2    (R-8, 4088)             from ramp_fit on
jump_indices        i2    (N, 3)                  from ramp_fit on, if asked for
amp33               u2    (n, R, 128)             L1 on
border_ref_pix_*    f4    (n, R, 4), (n, 4, 4096) dq_init on (left, right, top, bottom)
dq_border_ref_pix_* u4    (R, 4), (4, 4096)       dq_init on
segmentation        u4    (R-8, 4088)             source_catalog
detection_image     f4    (R-8, 4088)             source_catalog
=================== ===== ======================= ====================================================

R is 4096 but for small test frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from astropy.table import Table
    from numpy.typing import NDArray

__all__ = ["CAL_STEP_KEYS", "Exposure", "ExposureType", "Level", "StepStatus"]

CAL_STEP_KEYS = (
    "assign_wcs",
    "dark",
    "dark_decay",
    "dq_init",
    "flat_field",
    "flux",
    "linearity",
    "outlier_detection",
    "photom",
    "source_catalog",
    "ramp_fit",
    "refpix",
    "saturation",
    "skymatch",
    "tweakreg",
    "wfi18_transient",
)
"""Keys of ``meta.cal_step``; flux, outlier_detection and skymatch belong to later levels and stay INCOMPLETE."""


class StepStatus(StrEnum):
    """Vocabulary of ``meta.cal_step``."""

    INCOMPLETE = "INCOMPLETE"
    NOT_APPLICABLE = "N/A"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


class ExposureType(StrEnum):
    """``meta.exposure.type``; the branch on which an exposure starts."""

    IMAGE = "WFI_IMAGE"
    SPECTRAL = "WFI_SPECTRAL"
    IMAGE_DARK = "WFI_IM_DARK"
    SPECTRAL_DARK = "WFI_SP_DARK"
    FLAT = "WFI_FLAT"
    LOLO = "WFI_LOLO"
    WFSC = "WFI_WFSC"


class Level(StrEnum):
    """How far the arrays have come."""

    RAW = "raw"
    RAMP = "ramp"
    IMAGE = "image"


@dataclass(slots=True)
class Exposure:
    """One detector's exposure on its way.

    Parameters
    ----------
    id : str
        Base name of the L1 file without ``_uncal``.
    level : Level
        Raw counts, ramp, or rate image.
    meta : dict
        The ``roman.meta`` tree.
    arrays : dict of ndarray
        See the module's table. Use `set_array` and `touch`, so that a payload rewrites only what changed.
    extras : dict
        Other top-level keys of the ``roman`` node, carried along.
    catalog : astropy Table or None
        The source catalog, in the columns of the product, once source_catalog has run.
    wcs : dict or None
        The numbers from which the WCS is built (see `stages.wcs`), once assign_wcs has run.
    logs : list of str
        Lines for ``meta.cal_logs``.
    versions : dict of int
        How often each array was declared changed.
    tie_points : bytes or None
        What the joint alignment needs of this exposure, once source_catalog has run.
    source_tag : str
        ASDF tag of the input's ``roman`` node: the products are written in the same generation of schemas.
    done : frozenset of str
        Stages that a partly processed input had behind it: they leave it as it is.
    """

    id: str
    level: Level
    meta: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    extras: dict[str, Any] = field(default_factory=dict)
    catalog: Table | None = None
    wcs: dict[str, Any] | None = None
    logs: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    tie_points: bytes | None = None
    source_tag: str = ""
    done: frozenset[str] = frozenset()

    def set_array(self, name: str, array: NDArray[Any]) -> None:
        """Put an array and mark it as changed."""
        self.arrays[name] = array
        self.touch((name,))

    def drop_arrays(self, names: Iterable[str]) -> None:
        """Remove arrays that later stages do not need."""
        for name in names:
            if self.arrays.pop(name, None) is not None:
                self.touch((name,))  # an array put under the same name later must not look unchanged

    def touch(self, names: Iterable[str]) -> None:
        """Mark arrays as changed in place."""
        for name in names:
            self.versions[name] = self.versions.get(name, 0) + 1

    @property
    def detector(self) -> str:
        """``WFI01`` to ``WFI18``."""
        return str(self.meta["instrument"]["detector"])

    @property
    def exposure_type(self) -> str:
        """``meta.exposure.type``."""
        return str(self.meta["exposure"]["type"])

    @property
    def read_pattern(self) -> list[list[int]]:
        """Read numbers (from 1) averaged into each resultant."""
        return [[int(r) for r in reads] for reads in self.meta["exposure"]["read_pattern"]]

    @property
    def frame_time(self) -> float:
        """Seconds per read."""
        return float(self.meta["exposure"]["frame_time"])

    def set_step(self, key: str, status: StepStatus) -> None:
        """Record ``meta.cal_step.<key>``."""
        if key not in CAL_STEP_KEYS:
            raise KeyError(f"{key!r} is not a key of meta.cal_step; expected one of {CAL_STEP_KEYS}")
        self.meta.setdefault("cal_step", dict.fromkeys(CAL_STEP_KEYS, str(StepStatus.INCOMPLETE)))[key] = str(status)


def is_fully_saturated(groupdq: NDArray[np.uint8], pixeldq: NDArray[np.uint32]) -> bool:
    """Whether every element of groupdq, or every element of pixeldq, carries SATURATED (bit 1), borders included."""
    return _all_saturated(groupdq.reshape(-1, groupdq.shape[-1])) or _all_saturated(pixeldq)


def _all_saturated(flags: NDArray[Any]) -> bool:
    # In blocks of rows: the first one answers for nearly every exposure, without a pass over the cube.
    return all(bool(np.all(flags[first : first + 64] & 2)) for first in range(0, len(flags), 64))
