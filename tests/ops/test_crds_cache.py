"""A run is pinned to one CRDS context: neither what comes into use later, nor another cache, changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from ops.crds_cache import crds_cache, defined_context
from ops.run_inputs import RunInputs, defined_references
from ops.settings import RunSettings
from stages.crds_context import CrdsContext
from stream.failure import FatalError, PermanentError
from tests.stages.small_crds import CONTEXT, RULES, SmallCrds, make_small_cache, write_rules


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallCrds:
    monkeypatch.delenv("CRDS_CONTEXT", raising=False)
    monkeypatch.delenv("CRDS_PATH", raising=False)
    return make_small_cache(tmp_path / "crds")


def settings(small: SmallCrds, **more: Any) -> RunSettings:
    return RunSettings(crds_path=small.cache, **more)


def opened(definition: Any, small: SmallCrds, folder: Path) -> dict[str, Any]:
    async def open_inputs() -> dict[str, Any]:
        inputs = await RunInputs.opened({"references": definition, "gaia": "gaia.parquet"}, folder, settings(small))
        return inputs.environment

    return anyio.run(open_inputs)


def test_the_definition_names_the_context_and_its_rules_and_no_machine(small: SmallCrds) -> None:
    found = anyio.run(defined_references, f"crds://{CONTEXT}", settings(small))
    digest = CrdsContext(small.cache, CONTEXT).digest()
    assert found == {"crds": CONTEXT, "mappings": digest, "parameters": True}
    assert defined_context(f"crds:{CONTEXT}", settings(small, parameter_references=False)) == {
        "crds": CONTEXT,
        "mappings": digest,
        "parameters": False,
    }


def test_an_open_context_is_pinned_when_the_run_is_defined(
    small: SmallCrds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = defined_context("crds:", settings(small))
    small.tell(operational_context="roman_0002.pmap", latest_context="roman_0002.pmap")
    assert opened(definition, small, tmp_path / "work")["references"]["crds"] == CONTEXT
    with pytest.raises(PermanentError, match=r"roman_0002\.pmap is not in this CRDS cache"):
        defined_context("crds:", settings(small))
    monkeypatch.setenv("CRDS_CONTEXT", CONTEXT)
    assert defined_context("crds:", settings(small)) == definition


def test_a_cache_that_does_not_tell_what_is_in_use_needs_a_name(small: SmallCrds) -> None:
    (small.config / "server_config").unlink()
    with pytest.raises(PermanentError, match="does not tell which context is in use"):
        defined_context("crds:", settings(small))
    assert defined_context(f"crds://{CONTEXT}", settings(small))["crds"] == CONTEXT


def test_each_machine_has_the_cache_where_it_likes(small: SmallCrds, tmp_path: Path) -> None:
    definition = defined_context(f"crds://{CONTEXT}", settings(small))
    other = make_small_cache(tmp_path / "elsewhere")
    assert opened(definition, other, tmp_path / "work") == {
        "references": {**definition, "path": str(other.cache)},
        "gaia": "gaia.parquet",
        "cache": str(tmp_path / "work"),
        "cache_bytes": None,
    }


def test_a_worker_with_other_rules_under_the_name_stops(small: SmallCrds, tmp_path: Path) -> None:
    definition = defined_context(f"crds://{CONTEXT}", settings(small))
    parkey, match, extra = RULES["flat"]
    write_rules(small.mappings, {**RULES, "flat": (parkey, match.replace("flat_0002", "flat_0001"), extra)})
    with pytest.raises(FatalError, match=rf"context {CONTEXT} is not the one that the run is defined with"):
        opened(definition, small, tmp_path / "work")
    (small.mappings / CONTEXT).unlink()
    with pytest.raises(FatalError, match=r"cannot be had: .*is not in this CRDS cache"):
        opened(definition, small, tmp_path / "work")


def test_the_setting_wins_over_the_variable(small: SmallCrds, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PermanentError, match="say where with CRDS_PATH"):
        crds_cache(RunSettings())
    monkeypatch.setenv("CRDS_PATH", "/somewhere")
    assert crds_cache(RunSettings()) == Path("/somewhere")
    assert crds_cache(settings(small)) == small.cache


def test_a_client_that_would_read_from_the_network_is_refused(
    small: SmallCrds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRDS_S3_ENABLED", "1")
    with pytest.raises(PermanentError, match="CRDS_S3_ENABLED is set"):
        defined_context(f"crds://{CONTEXT}", settings(small))
