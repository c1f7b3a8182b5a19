"""Apply a member's part of the joint alignment to its exposure. Not the solution itself (`stages.tweakreg`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stages.exposure import Exposure, StepStatus
from stages.wcs import build_wcs, s_region

if TYPE_CHECKING:
    from collections.abc import Mapping

    from astropy.table import Table

__all__ = ["apply_alignment", "refresh_sky_columns"]

_SKY_COLUMNS = (
    ("x_centroid", "y_centroid", "ra_centroid", "dec_centroid"),
    ("x_centroid", "y_centroid", "ra", "dec"),
    ("x_centroid_win", "y_centroid_win", "ra_centroid_win", "dec_centroid_win"),
    ("x_psf", "y_psf", "ra_psf", "dec_psf"),
)


def apply_alignment(exposure: Exposure, result: Mapping[str, Any], distortion: Any) -> Any:
    """Put the outcome for one member into its exposure.

    Parameters
    ----------
    exposure : Exposure
        Changed in place: ``cal_step.tweakreg``; ``meta.wcs_fit_results`` where the member took part; and when the
        status is COMPLETE also ``wcs``, ``meta.wcsinfo.s_region`` and the sky columns of the catalog.
    result : mapping
        ``solution["members"][exposure.id]``.
    distortion : astropy.modeling.Model or None
        Distortion of the exposure; None when it has no WCS.

    Returns
    -------
    gwcs.WCS or None
        The exposure's final WCS.
    """
    exposure.set_step("tweakreg", StepStatus(result["status"]))
    if result["wcs_fit_results"] is not None:
        exposure.meta["wcs_fit_results"] = dict(result["wcs_fit_results"])
    if exposure.wcs is None or distortion is None:
        return None
    if result["status"] != StepStatus.COMPLETE:
        return build_wcs(exposure.wcs, distortion)
    exposure.wcs = {**exposure.wcs, "corrections": [*result["corrections"]], "name": result["name"]}
    wcs = build_wcs(exposure.wcs, distortion)
    region = s_region(wcs)
    if region is not None:
        exposure.meta["wcsinfo"]["s_region"] = region
    if exposure.catalog is not None:
        refresh_sky_columns(exposure.catalog, wcs)
    return wcs


def refresh_sky_columns(catalog: Table, wcs: Any) -> None:
    """Recompute the sky columns (f8, degrees) from the pixel columns, in place.

    A set is refreshed only if all its four columns exist. The new columns have neither unit nor description, as in the
    mission's products.
    """
    from astropy.table import Column

    for x_name, y_name, ra_name, dec_name in _SKY_COLUMNS:
        if not {x_name, y_name, ra_name, dec_name} <= set(catalog.colnames):
            continue
        ra, dec = wcs(np.asarray(catalog[x_name]), np.asarray(catalog[y_name]))
        catalog.replace_column(ra_name, Column(np.asarray(ra, dtype=float), name=ra_name))
        catalog.replace_column(dec_name, Column(np.asarray(dec, dtype=float), name=dec_name))
