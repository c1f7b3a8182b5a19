"""The output of one stage as a file of the field: a ramp or a rate image, named by the step's suffix. Not a product.

It is what the field's step writes with ``save_results``. Who made it, its name and date are its own, as in products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.exposure import Exposure, Level
from stages.finalize.image_product import write_image
from stages.finalize.product_file import plain_metadata, write_product
from stages.finalize.statistics import image_statistics
from stages.ground_test import with_own_nodes
from stages.product_names import base_name, separator
from stages.ramp_fit.image import BORDER

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["STEP_SUFFIXES", "rename_image", "write_step_output"]

STEP_SUFFIXES = {
    "dq_init": "dqinit",
    "saturation": "saturation",
    "refpix": "refpix",
    "dark_decay": "dark_decay",
    "wfi18_transient": "wfi18_transient",
    "linearity": "linearity",
    "ramp_fit": "rampfit",
    "dark_current": "darkcurrent",
    "assign_wcs": "assignwcs",
    "photom": "photom",
    "flat_field": "flat",
    "tweakreg": "tweakreg",
}
"""Suffix of each stage's output, as the field's steps have it; a stage of one's own has its name."""


def step_output_name(filename: str, stage: str) -> str:
    """Name of the file for the input's name, ``meta.filename``."""
    return f"{base_name(filename)}{separator(filename)}{STEP_SUFFIXES.get(stage, stage)}.asdf"


def write_step_output(
    folder: Path, exposure: Exposure, stage: str, *, distortion: Any, software: Mapping[str, str]
) -> str:
    """Write an exposure as it left a stage.

    Parameters
    ----------
    folder : Path
        Where to; the file is named after the exposure and the stage.
    exposure : Exposure
        At level RAMP or IMAGE.
    stage : str
        The stage that it left last.
    distortion : astropy Model or None
        From which the WCS is built, where there is one.
    software : mapping
        ``name`` and ``version`` for ``meta.calibration_software_*``.

    Returns
    -------
    str
        The file's name.

    Raises
    ------
    PermanentError
        The exposure does not follow the schema.
    """
    name = step_output_name(exposure.meta["filename"], stage)
    meta = exposure.meta
    meta["calibration_software_name"], meta["calibration_software_version"] = software["name"], software["version"]
    if exposure.level is Level.IMAGE:
        arrays = exposure.arrays
        meta["statistics"] = image_statistics(arrays["data"], arrays["dq"], arrays["err"])
        write_image(folder / name, exposure, _wcs(exposure, distortion))
        return name
    written = with_own_nodes(plain_metadata(meta) | {"model_type": "RampModel"}, exposure.source_tag)
    content = {"meta": written, **exposure.arrays, **_side_columns(exposure)}
    extras = {key: value for key, value in exposure.extras.items() if key not in content}
    write_product(folder / name, "RampModel", "ramp", exposure.source_tag, content | extras)
    return name


def rename_image(folder: Path, product: Path, filename: str, stage: str) -> str:
    """Write the ``_cal`` product under the name of a step's output; returns the name."""
    from roman_datamodels import datamodels

    name = step_output_name(filename, stage)
    with datamodels.open(product) as model:
        model.meta.get("source_catalog", {}).pop("tweakreg_catalog_name", None)  # the pipeline adds it after the step
        model.save(folder / name)
    return name


def _side_columns(exposure: Exposure) -> dict[str, Any]:
    """The copies of the left and right border: in the field's ramps they are views of the data."""
    data = exposure.arrays["data"]
    return {"border_ref_pix_left": data[..., :BORDER], "border_ref_pix_right": data[..., -BORDER:]}


def _wcs(exposure: Exposure, distortion: Any) -> Any:
    if exposure.wcs is None:
        return None
    from stages.wcs import build_wcs

    return build_wcs(exposure.wcs, distortion)
