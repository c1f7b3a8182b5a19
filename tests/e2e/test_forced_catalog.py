"""A run that measures the sources of a given segmentation map: its products, and what a changed map means."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from roman_datamodels import datamodels

from tests.conftest import Simulated, run_in_process


def catalog_in(out: Path) -> Any:
    (path,) = out.glob("*_cat.parquet")
    return pq.read_table(path)


def test_forced_catalogs_are_products_and_the_map_counts_by_its_content(simulated: Simulated, tmp_path: Path) -> None:
    out, given = tmp_path / "out", tmp_path / "given_segm.asdf"

    def run(*options: str) -> Any:
        words = ("--preset", "granular", "--keep", "--set", "tweakreg.skip=true", *options)
        report = run_in_process(simulated, simulated.exposures, out, *words)
        assert report["exit"] == 0, report
        return report["exposures"][0], catalog_in(out)

    _, own = run()
    (made,) = out.glob("*_segm.asdf")
    shutil.copy(made, given)
    forced = ("--set", f"source_catalog.forced_segmentation={given}")
    done, found = run(*forced)
    assert "source_catalog" in done["stages_run"]
    assert "flat_field" in done["stages_reused"]
    assert {"forced_kron_flux", "forced_x_psf", "forced_ra", "kron_radius"} <= set(found.column_names)
    assert found.schema.metadata[b"roman.meta.image.forced_segmentation"] == str(given).encode()
    assert found["label"].to_pylist() == own["label"].to_pylist()
    (path,) = out.glob("*_cat.parquet")
    with datamodels.open(path) as model:
        assert type(model).__name__ == "ForcedImageSourceCatalogModel"

    with datamodels.open(given) as model:
        model.data = model.data.copy()
        model.data[model.data == 1] = 0
        model.save(tmp_path / "changed.asdf")
    (tmp_path / "changed.asdf").replace(given)
    _, less = run(*forced)
    assert less["label"].to_pylist() == own["label"].to_pylist()[1:]

    given.unlink()
    report = run_in_process(simulated, simulated.exposures, out, "--set", "tweakreg.skip=true", *forced)
    assert report["exit"] == 1
    assert "names the file" in report["exposures"][0]["reason"]
