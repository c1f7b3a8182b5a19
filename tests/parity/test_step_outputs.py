"""Outputs of stages that are kept as files are those that romancal's steps save: names, arrays, metadata."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest

from stages.finalize.step_output import IN_PRODUCTS, STEP_SUFFIXES
from stages.pipeline import stage_names
from tests.conftest import Simulated, run_in_process, simulate
from tests.oracle.compare import compare_meta, wcs_difference
from tests.parity.test_end_to_end import SKIPPED, run_oracle

pytestmark = pytest.mark.oracle

UNSAVABLE = ("rampfit", "darkcurrent")
"""The oracle's steps between the fit and the WCS cannot save: its image has no ``wcs`` at all, which the schema wants."""

STEPS = {"ramp_fit": "rampfit", "flat_field": "flatfield"}
"""Names of steps in the oracle's pipeline that are not the stages' here."""
