"""A partly processed input starts where it stands."""

from __future__ import annotations

import pytest

from stages.exposure import CAL_STEP_KEYS, Level
from stages.pipeline import TABLE, make_stage
from stages.standing import STAGES_BEFORE_CATALOG, stages_done, starting_stage
from stream.topology import StageRow, Topology

TOPOLOGY = Topology(StageRow(row.name, row.branches, joint=row.joint) for row in TABLE)
NAMES = list(STAGES_BEFORE_CATALOG)


def steps(**changed: str) -> dict[str, str]:
    return dict.fromkeys(CAL_STEP_KEYS, "INCOMPLETE") | changed


def complete_up_to(stage: str, **changed: str) -> dict[str, str]:
    done = NAMES[: NAMES.index(stage) + 1]
    return steps(**{STAGES_BEFORE_CATALOG[name]: "COMPLETE" for name in done}, **changed)


def test_the_keys_are_those_that_the_stages_set_in_the_pipeline_s_order() -> None:
    rows = [row for row in TABLE if row.name in STAGES_BEFORE_CATALOG]
    assert [row.name for row in rows] == NAMES
    assert [make_stage(row.entry).cal_step for row in rows] == list(STAGES_BEFORE_CATALOG.values())


def test_raw_counts_have_nothing_behind_them_whatever_they_say() -> None:
    assert stages_done(Level.RAW, complete_up_to("linearity")) == ()


def test_all_up_to_the_last_complete_stage_are_behind_a_ramp() -> None:
    assert stages_done(Level.RAMP, steps()) == ()
    found = stages_done(Level.RAMP, steps(dq_init="COMPLETE", refpix="COMPLETE", dark_decay="SKIPPED"))
    assert found == ("dq_init", "saturation", "refpix")


def test_a_ramp_without_a_mask_is_a_ramp_all_the_same() -> None:
    assert stages_done(Level.RAMP, steps(dq_init="SKIPPED")) == ("dq_init",)


def test_a_ramp_is_not_fitted_and_an_image_is() -> None:
    assert stages_done(Level.RAMP, complete_up_to("photom"))[-1] == "linearity"
    assert stages_done(Level.IMAGE, steps())[-1] == "ramp_fit"
    assert stages_done(Level.IMAGE, complete_up_to("flat_field"))[-1] == "flat_field"


@pytest.mark.parametrize(
    ("branch", "last", "start"),
    [
        ("WFI_IMAGE", "dq_init", "saturation"),
        ("WFI_IMAGE", "linearity", "saturation"),  # which tells whether anything is left of the ramp
        ("WFI_IMAGE", "ramp_fit", "dark_current"),
        ("WFI_IMAGE", "flat_field", "source_catalog"),
        ("WFI_SPECTRAL", "photom", "photom"),  # nothing is left, and something must bring it to the end
        ("WFI_WFSC", "flat_field", "flat_field"),
    ],
)
def test_it_starts_at_the_first_stage_that_is_left(branch: str, last: str, start: str) -> None:
    assert starting_stage(TOPOLOGY, branch, NAMES[: NAMES.index(last) + 1]) == start


def test_an_input_without_anything_behind_it_starts_at_the_first_stage() -> None:
    assert starting_stage(TOPOLOGY, "WFI_IMAGE", ()) == "dq_init"
    assert starting_stage(TOPOLOGY, "NOT_A_TYPE", ()) is None
