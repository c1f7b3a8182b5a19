"""finalize: the last stage. Applies the alignment to one exposure, completes its metadata and writes the products.

===================== ====================== =======================================
product               file                   for
===================== ====================== =======================================
image                 ``*_cal.asdf``         every exposure
WCS                   ``*_wcs.asdf``         every exposure but a fully saturated one
source catalog        ``*_cat.parquet``      imaging and low-light exposures
segmentation map      ``*_segm.asdf``        imaging and low-light exposures
===================== ====================== =======================================
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.exposure import Exposure, ExposureType, Level, StepStatus, is_fully_saturated
from stages.finalize.catalog_product import write_catalog
from stages.finalize.content_digest import array_digests, content_digest
from stages.finalize.image_product import IMAGE_ARRAYS, write_image
from stages.finalize.product_file import plain_metadata
from stages.finalize.segmentation_product import SEGMENTATION_ARRAYS, write_segmentation
from stages.finalize.statistics import image_statistics
from stages.finalize.wcs_product import write_wcs
from stages.product_names import product_name
from stages.step import ALL_TYPES
from stream.failure import PermanentError
from stream.stage import Facts, Slot, StageParameters, StageResult

__all__ = ["SOFTWARE_NAME", "Finalize", "finalize_exposure"]

SOFTWARE_NAME = "Rampstream"
"""``meta.calibration_software_name`` of the products."""

_WITHOUT_FLAT = frozenset(
    {ExposureType.SPECTRAL, ExposureType.IMAGE_DARK, ExposureType.SPECTRAL_DARK, ExposureType.FLAT}
)
_WITHOUT_CATALOG = _WITHOUT_FLAT | {ExposureType.WFSC}

log = logging.getLogger("stages.finalize")


class Finalize:
    """The finalizing stage (see `stream.stage.Stage`); `finalize_exposure` is what it does with a solution."""

    name = "finalize"
    version = "4"
    parameters_type: type[StageParameters] = StageParameters
    reference_types: tuple[str, ...] = ("distortion",)
    libraries: tuple[str, ...] = ("numpy", "astropy", "gwcs", "tweakwcs", "roman_datamodels", "rad", "asdf")
    branches: frozenset[str] = ALL_TYPES | {"SATURATED"}

    def references_for(self, facts: Facts, parameters: Any) -> Sequence[str]:  # noqa: ARG002
        """The distortion, from which the WCS is built anew."""
        return self.reference_types

    def run(self, item: Exposure, references: Mapping[str, Any], parameters: Any, slot: Slot) -> StageResult:  # noqa: ARG002
        """Complete the metadata of an exposure that no solution is for, without writing products."""
        _complete(item, None, _distortion(item, references))
        return StageResult(item)

    def finalize(
        self,
        item: Exposure,
        *,
        solution: Mapping[str, Any] | None,
        association: Mapping[str, Any],
        references: Mapping[str, Any],
        versions: Mapping[str, str],
        out_dir: Path,
        reference_digests: Mapping[str, str] | None = None,
        crds: Mapping[str, str] | None = None,
        slot: Slot | None = None,
    ) -> dict[str, Any]:
        """See `finalize_exposure`."""
        return finalize_exposure(
            item, solution, association, references, versions, out_dir,
            reference_digests=reference_digests, crds=crds, slot=slot,
        )  # fmt: skip


def finalize_exposure(
    exposure: Exposure,
    solution: Mapping[str, Any] | None,
    association: Mapping[str, Any],
    references: Mapping[str, Any],
    versions: Mapping[str, str],
    out_dir: Path,
    *,
    reference_digests: Mapping[str, str] | None = None,
    crds: Mapping[str, str] | None = None,
    slot: Slot | None = None,
) -> dict[str, Any]:
    """Apply the alignment, complete the metadata and write the products.

    Parameters
    ----------
    exposure : Exposure
        At level IMAGE, or a fully saturated ramp. Changed in place.
    solution : mapping or None
        The joint alignment's document (``{"members": {id: …}}``), or None when there was none.
    association : mapping
        ``table_name`` (base name of the association file) and ``pool_name`` where there are any; ``expected`` and
        ``used``: ids of the members that belong to it, and of those that were aligned jointly.
    references : mapping
        With the opened ``distortion``, unless the exposure has no WCS.
    versions : mapping
        ``rampstream``: the version for ``meta.calibration_software_version``.
    out_dir : Path
        Folder for the products; made if it does not exist.
    reference_digests : mapping, optional
        Digest of reference files by recorded name, for the content digests.
    crds : mapping, optional
        ``version`` and ``context`` for ``meta.ref_file.crds``; the input's values stay where there is none.
    slot : Slot, optional
        Threads and buffers.

    Returns
    -------
    dict
        ``files`` (names in the order written), ``digests`` (content digest by name) and ``summary``: what a person is
        shown (``sources``, ``shift`` and ``rms`` in arcsec, ``nmatches``, ``statuses``, ``median``).

    Raises
    ------
    PermanentError
        The exposure is not yet an image, or a product does not follow its schema.
    """
    slot = slot or Slot()
    saturated = _as_image(exposure, slot)
    distortion = _distortion(exposure, references)
    _label(exposure, association, versions)
    if crds is not None:
        exposure.meta.setdefault("ref_file", {})["crds"] = dict(crds)
    _forget_alignment(exposure, distortion)
    measured = plain_metadata(exposure.meta)  # what catalog and segmentation map repeat: as before the alignment
    wcs = _complete(exposure, _member_solution(exposure, solution), distortion)
    out_dir.mkdir(parents=True, exist_ok=True)
    names = {suffix: product_name(exposure.meta["filename"], suffix) for suffix in ("cal", "wcs", "segm", "cat")}
    with_catalog = exposure.catalog is not None
    if with_catalog and exposure.meta["cal_step"]["tweakreg"] == StepStatus.COMPLETE:
        exposure.meta["source_catalog"] = {"tweakreg_catalog_name": names["cat"]}
    elif with_catalog and exposure.meta["cal_step"]["tweakreg"] == StepStatus.FAILED:
        exposure.meta["source_catalog"] = {}  # as the mission's pipeline leaves it

    arrays: dict[str, dict[str, str]] = {}
    written = [names["cal"]]
    write_image(out_dir / names["cal"], exposure, wcs)
    image_arrays = {key: exposure.arrays[key] for key in IMAGE_ARRAYS if key in exposure.arrays}
    arrays[names["cal"]] = array_digests(image_arrays, threads=slot.threads)
    if not saturated:
        write_wcs(out_dir / names["wcs"], wcs, exposure.meta, exposure.source_tag)
        written.append(names["wcs"])
    if with_catalog:
        write_catalog(out_dir / names["cat"], exposure.catalog, measured, exposure.source_tag)
        write_segmentation(out_dir / names["segm"], exposure.arrays, measured, exposure.source_tag)
        written += [names["cat"], names["segm"]]
        maps = {key: exposure.arrays[name] for key, name in SEGMENTATION_ARRAYS.items() if name in exposure.arrays}
        arrays[names["segm"]] = array_digests(maps, threads=slot.threads)
    digests = {
        name: content_digest(out_dir / name, reference_digests=reference_digests, known_arrays=arrays.get(name))
        for name in written
    }
    return {"files": written, "digests": digests, "summary": _summary(exposure)}


def _as_image(exposure: Exposure, slot: Slot) -> bool:
    """Make sure that there is an image; True for a fully saturated exposure."""
    if exposure.level is Level.RAMP and is_fully_saturated(exposure.arrays["groupdq"], exposure.arrays["pixeldq"]):
        from stages.saturated import become_saturated_image

        become_saturated_image(exposure, slot)
    if exposure.level is not Level.IMAGE:
        raise PermanentError(f"{exposure.id}: at level {exposure.level}; expected an image, or a fully saturated ramp")
    return bool(exposure.meta["cal_step"]["ramp_fit"] == StepStatus.SKIPPED)


def _distortion(exposure: Exposure, references: Mapping[str, Any]) -> Any:
    if exposure.wcs is None:
        return None
    reference = references.get("distortion")
    if reference is None:
        raise PermanentError(
            f"{exposure.id}: the exposure has a WCS; expected the distortion reference to build it from"
        )
    from stages.assign_wcs import read_distortion

    return read_distortion(reference)


def _label(exposure: Exposure, association: Mapping[str, Any], versions: Mapping[str, str]) -> None:
    meta = exposure.meta
    meta["calibration_software_name"] = SOFTWARE_NAME
    meta["calibration_software_version"] = versions["rampstream"]
    meta["product_type"] = "l2"
    asn = {key: association[key] for key in ("table_name", "pool_name") if association.get(key) is not None}
    expected, used = list(association.get("expected", ())), list(association.get("used", ()))
    if asn or len(expected) > 1:
        asn |= {"expected_members": expected, "used_members": used}
    if asn:
        meta["asn"] = asn


def _member_solution(exposure: Exposure, solution: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if solution is None:
        return None
    found: Mapping[str, Any] | None = solution["members"].get(exposure.id)
    if found is None:
        log.warning("The alignment has no result for %s", exposure.id)
    return found


def _complete(exposure: Exposure, result: Mapping[str, Any] | None, distortion: Any) -> Any:
    """Set what no stage has set, apply the alignment, and return the final WCS."""
    exposure_type = exposure.exposure_type
    if exposure_type in _WITHOUT_FLAT:
        exposure.set_step("flat_field", StepStatus.SKIPPED)
    if exposure_type in _WITHOUT_CATALOG:
        exposure.set_step("source_catalog", StepStatus.SKIPPED)
    if result is None or exposure.catalog is None:
        exposure.set_step("tweakreg", StepStatus.SKIPPED)
        wcs = _unaligned_wcs(exposure, distortion)
    else:
        from stages.align import apply_alignment

        wcs = apply_alignment(exposure, result, distortion)
    arrays = exposure.arrays
    exposure.meta["statistics"] = image_statistics(arrays["data"], arrays["dq"], arrays["err"])
    if exposure.meta["statistics"]["good_pixel_fraction"] == 0:
        log.warning("No good pixel: the statistics of the image are NaN")
    return wcs


def _unaligned_wcs(exposure: Exposure, distortion: Any) -> Any:
    if exposure.wcs is None:
        return None
    from stages.wcs import build_wcs

    return build_wcs(exposure.wcs, distortion)


def _forget_alignment(exposure: Exposure, distortion: Any) -> None:
    """An image that may have come in aligned has the footprint of its own WCS until it is aligned anew."""
    if exposure.wcs is None or "assign_wcs" not in exposure.done:
        return
    from stages.wcs import s_region

    region = s_region(_unaligned_wcs(exposure, distortion))
    if region is not None:
        exposure.meta["wcsinfo"]["s_region"] = region


def _summary(exposure: Exposure) -> dict[str, Any]:
    fit = exposure.meta.get("wcs_fit_results", {})
    median = exposure.meta["statistics"]["image_median"]
    return {
        "exposure_type": exposure.exposure_type,
        "detector": exposure.detector,
        "optical_element": exposure.meta["instrument"]["optical_element"],
        "sources": None if exposure.catalog is None else len(exposure.catalog),
        "shift": plain_metadata(fit.get("shift")),
        "rms": plain_metadata(fit.get("rmse")),
        "nmatches": plain_metadata(fit.get("nmatches")),
        "median": median if median == median else None,  # noqa: PLR0124 - NaN is not JSON
        "statuses": dict(exposure.meta["cal_step"]),
    }
