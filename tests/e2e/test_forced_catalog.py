"""A run that measures the segments of a given map: its products, and what a changed map means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pyarrow.parquet as pq
import pytest
from roman_datamodels import datamodels

from ops.workbench import Workbench
from stages.l1 import inspect_l1
from stream.failure import PermanentError
from stream.stage import Slot
from tests.conftest import ROWS, Simulated, run_in_process

SHAPE = (ROWS - 8, 4088)


def write_map(path: Path, labels: int) -> Path:
    """A map of square segments, brightest in the middle, all over the frame."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    number = (y // 60) * 16 + x // 256 + 1
    inside = (np.abs(y % 60 - 30) < 6) & (np.abs(x % 256 - 128) < 6) & (number <= labels)
    distance = (y % 60 - 30.0) ** 2 + (x % 256 - 128.0) ** 2
    tree = {
        "data": np.where(inside, number, 0).astype(np.uint32),
        "detection_image": np.exp(-distance / 20).astype(np.float32),
    }
    asdf.AsdfFile({"roman": tree}).write_to(path)
    return path


def test_forced_catalogs_are_products(simulated: Simulated, tmp_path: Path) -> None:
    out, given = tmp_path / "out", write_map(tmp_path / "given.asdf", 20)
    words = ("--set", f"source_catalog.forced_segmentation={given}", "--set", "tweakreg.skip=true")
    report = run_in_process(simulated, simulated.exposures, out, *words)
    assert report["exit"] == 0, report
    (path,) = out.glob("*_cat.parquet")
    found = pq.read_table(path)
    assert {"forced_kron_flux", "forced_x_psf", "forced_ra", "kron_radius"} <= set(found.column_names)
    assert found["label"].to_pylist() == list(range(1, 21))
    assert found.schema.metadata[b"roman.meta.image.forced_segmentation"] == str(given).encode()
    assert found.schema.metadata[b"roman.meta.model_type"] == b"ForcedImageSourceCatalogModel"
    (made,) = out.glob("*_segm.asdf")
    with datamodels.open(made) as model, asdf.open(given) as file:
        np.testing.assert_array_equal(model.data, file["roman"]["data"])


def test_a_segmentation_map_counts_by_its_content(simulated: Simulated, tmp_path: Path) -> None:
    given = write_map(tmp_path / "given.asdf", 20)
    facts = inspect_l1(simulated.exposures[0])

    def recipe() -> str:
        environment: dict[str, Any] = {
            "entries": {"source_catalog": "stages.source_catalog:SourceCatalogStage"},
            "parameters": {"source_catalog": {"forced_segmentation": str(given)}},
            "references": str(simulated.references), "pins": {}, "gaia": "none", "cache": str(tmp_path / "cache"),
        }  # fmt: skip
        return Workbench(environment, Slot()).recipe("source_catalog", facts)

    before = recipe()
    assert recipe() == before
    write_map(given, 19)
    assert recipe() != before
    given.unlink()
    with pytest.raises(PermanentError, match=r"a parameter of source_catalog names the file .*given.asdf, which does"):
        recipe()
