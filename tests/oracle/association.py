"""Run romancal's ExposurePipeline on an association in memory, in a process of its own. Not part of the product.

In memory, for what is fully saturated it cannot save. ``python -m tests.oracle.association ASSOCIATION --references DIR
--gaia TABLE --out DIR --cache DIR [--set step.name=value]`` writes ``DIR/<exposure>.npz`` with what the alignment says
of each member (`member_outcome`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.oracle.crds_cache import make_cache
from tests.oracle.pipeline import step_parameters

__all__ = ["grid", "run_association"]


def grid(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of an image, x and y, at which its WCS is looked at."""
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, 17), np.linspace(0, shape[0] - 1, 17))
    return x, y


def run_association(association: Path, *, gaia: Path, out: Path, steps: dict[str, dict[str, Any]]) -> None:
    """Run the oracle; ``CRDS_PATH`` and its like are set."""
    from romancal.pipeline import ExposurePipeline

    steps.setdefault("tweakreg", {}).setdefault("abs_refcat", str(gaia))
    images, catalogs, _ = ExposurePipeline.call(str(association), save_results=False, steps=steps)
    tables: dict[str, Any] = {}
    with catalogs:
        for catalog in catalogs:
            tables[catalog.meta.filename.rpartition("_")[0]] = catalog.source_catalog
            catalogs.shelve(catalog, modify=False)
    out.mkdir(parents=True, exist_ok=True)
    with images:
        for image in images:
            name = image.meta.filename.rpartition("_")[0]
            np.savez(out / f"{name}.npz", **member_outcome(image, tables.get(name)))
            images.shelve(image, modify=False)


def member_outcome(image: Any, catalog: Any) -> dict[str, Any]:
    """Statuses and fit results as JSON, the WCS on a grid, the image, and the columns of the catalog."""
    meta = image.meta
    told = {
        "cal_step": {key: str(value) for key, value in meta.cal_step.items()},
        "wcs_fit_results": json.loads(json.dumps(dict(meta.get("wcs_fit_results") or {}), default=_plain)),
        "s_region": meta.wcsinfo.get("s_region"),
        "name": None if meta.get("wcs") is None else meta.wcs.name,
    }
    found: dict[str, Any] = {"told": json.dumps(told), "data": np.asarray(image.data), "dq": np.asarray(image.dq)}
    if meta.get("wcs") is not None:
        found["ra"], found["dec"] = meta.wcs(*grid(image.data.shape))
    if catalog is not None:
        found |= {f"column {name}": np.asarray(catalog[name]) for name in catalog.colnames}
    return found


def _plain(value: Any) -> Any:
    return list(value) if hasattr(value, "__iter__") else value.item()


def main() -> int:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("association", "--references", "--gaia", "--out", "--cache"):
        parser.add_argument(name, type=Path, **({"required": True} if name.startswith("-") else {}))
    parser.add_argument("--set", action="append", default=[], metavar="step.parameter=value")
    options = parser.parse_args()
    os.environ.update(make_cache(options.references.resolve(), options.cache.resolve()))
    run_association(
        options.association.resolve(), gaia=options.gaia.resolve(), out=options.out.resolve(),
        steps=step_parameters(options.set),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
