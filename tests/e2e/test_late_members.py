"""Members that come after their association was closed: by workers of the whole pipeline on Kafka and S3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.asdf_container import open_container, plain
from tests.conftest import Simulated, digests
from tests.e2e.site import Servers, Site

BOTH = "--group-detectors=WFI01,WFI02"


@pytest.fixture(scope="module")
def detectors(simulated_association: Simulated) -> list[Path]:
    """The two detectors of one exposure."""
    name = simulated_association.exposures[0].name.partition("_wfi")[0]
    found = [path for path in simulated_association.exposures if path.name.startswith(name)]
    assert len(found) == 2
    return found


@pytest.fixture(scope="module")
def set_up(
    servers: Servers, simulated_association: Simulated, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Site]:
    """Set a run up by its name and what its settings file says of when an association closes."""

    def run(name: str, rules: str) -> Site:
        site = Site(tmp_path_factory.mktemp(name), name, servers)
        config = site.folder / "run.toml"
        config.write_text(f"[associations]\n{rules}\n")
        site.apply(simulated_association, "--config", config)
        return site

    return run


@pytest.fixture(scope="module")
def together(set_up: Callable[[str, str], Site], detectors: list[Path]) -> dict[str, str]:
    """Products of a run to which both came in time."""
    site = set_up("together", "deadline = 3600")
    with site.worker():
        site("ingest", *detectors, BOTH)
        told = site.until(lambda told: told["complete"])
        assert (told["revision"], told["closed"]) == (1, "complete")
    return digests(site.products())


def members(folder: Path) -> dict[str, tuple[list[str], list[str], str]]:
    """Of each image: the members that it was expected to be made with, those that it was, and how it was aligned."""
    found = {}
    for path in folder.rglob("*_cal.asdf"):
        meta: dict[str, Any] = plain(
            {key: open_container(path).node("roman", "meta")[key] for key in ("asn", "cal_step")}
        )
        found[path.name.removesuffix("_cal.asdf")] = (
            meta["asn"]["expected_members"], meta["asn"]["used_members"], meta["cal_step"]["tweakreg"],
        )  # fmt: skip
    return found


def test_a_detector_that_misses_the_deadline_is_aligned_in_a_second_revision(
    set_up: Callable[[str, str], Site], detectors: list[Path], together: dict[str, str]
) -> None:
    site = set_up("late", "deadline = 5\nrevision_delay = 1")
    first, second = (path.name.removesuffix("_uncal.asdf") for path in detectors)
    with site.worker():
        site("ingest", detectors[0], BOTH)
        told = site.until(lambda told: told["complete"])
        assert (told["revision"], told["closed"], told["expected"]) == (1, "deadline", 2)
        one = site.products("first")
        assert members(one) == {first: ([first, second], [first], "COMPLETE")}

        site("ingest", detectors[1], BOTH)
        told = site.until(lambda told: told["complete"] and told["revision"] == 2)
        assert (told["closed"], told["changes"], told["waited_for"]) == ("changed", 0, 0)
    assert set(members(one)) == {first}, "what was fetched stays as it was"
    two = site.products("second")
    used = ([first, second], [first, second], "COMPLETE")
    assert members(two) == {first: used, second: used}
    assert digests(two) == together
    image = f"{first}_cal.asdf"
    assert digests(one)[image] != together[image], "alone it was aligned otherwise, or at least labelled so"


def test_an_operator_closes_for_one_detector_and_reopens_for_the_other_while_no_worker_runs(
    set_up: Callable[[str, str], Site], detectors: list[Path], together: dict[str, str]
) -> None:
    site = set_up("operated", 'deadline = "none"\nrevision_delay = 86400\non_missing = "wait"')
    first, second = (path.name.removesuffix("_uncal.asdf") for path in detectors)
    with site.worker():
        site("ingest", detectors[1], BOTH)
        told = site.until(lambda told: told["present"] == {"ok": 1})
        assert (told["closed"], told["deadline"], told["waited_for"]) == (None, None, 1)
        assert "would be ordered: align 1 of 2 members" in site("associations", "close", "*")
    site("associations", "close", "*", "--execute")
    with site.worker():
        told = site.until(lambda told: told["complete"])
        assert (told["revision"], told["closed"]) == (1, "operator")
        assert members(site.products("closed")) == {second: ([first, second], [second], "COMPLETE")}
        site("ingest", detectors[0], BOTH)
        told = site.until(lambda told: told["changes"] == 1)
        assert (told["revision"], told["complete"]) == (1, True), "it would wait for a day"
    site("associations", "reopen", "*", "--execute")
    with site.worker():
        site.until(lambda told: told["complete"] and told["revision"] == 2)
    assert digests(site.products("reopened")) == together
