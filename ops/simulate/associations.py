"""Association files of the simulated exposures. Not how associations are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ops.simulate.files import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from ops.simulate.plan import PlannedExposure

__all__ = ["association", "write_associations"]


def association(product_name: str, members: list[str]) -> dict[str, Any]:
    """Association of science members (paths relative to the association's folder) under one product name."""
    return {
        "asn_type": "None",
        "asn_rule": "DMS_ELPP_Base",
        "code_version": "simulated",
        "degraded_status": "No known degraded exposures in association.",
        "program": "00001",
        "data_release_id": "p",
        "version_id": None,
        "target": None,
        "constraints": "No constraints",
        "asn_id": "a3001",
        "asn_pool": "none",
        "skycell_wcs_info": "none",
        "products": [
            {"name": product_name, "members": [{"expname": name, "exptype": "science"} for name in members]},
        ],
    }


def write_associations(folder: Path, exposures: list[PlannedExposure]) -> list[Path]:
    """Write one association for each visit, and one for each exposure that has several detectors."""
    by_product: dict[str, list[str]] = {}
    for exposure in exposures:
        members = [f"../l1/{exposure.file_name(detector)}" for detector in exposure.detectors]
        by_product.setdefault(f"r{exposure.visit_id}_{exposure.variant}", []).extend(members)
    for exposure in exposures:
        if len(exposure.detectors) > 1 and exposure.exposures_in_visit > 1:
            members = [f"../l1/{exposure.file_name(detector)}" for detector in exposure.detectors]
            by_product[f"r{exposure.visit_id}_{exposure.number:04d}_{exposure.variant}"] = members
    paths = []
    for product, members in by_product.items():
        path = folder / f"{product}_asn.json"
        write_json(path, association(product, members))
        paths.append(path)
    return paths
