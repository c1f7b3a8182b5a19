"""A mosaic of exposures that point wrongly, as the benchmark of large associations makes it, in small."""

from __future__ import annotations

import numpy as np
import pytest

from bench.association_oracle import ORACLE_MOSAICS, compare_with_library
from bench.association_scene import Mosaic
from stages.gaia import StarList
from stages.tweakreg import Tweakreg, TweakregParameters
from stream.stage import Member, Slot


def test_exposures_of_several_detectors_end_where_they_truly_pointed():
    mosaic = Mosaic(members=14, detectors=4, half_degrees=0.02, noise=0.005)
    members = []
    for exposure in range(mosaic.exposures):
        members += [Member(one.id, "ok", {}, one.tie_points()) for one in mosaic.observed(exposure)]
    assert len(members) == 14
    stars = StarList(*mosaic.reference_stars)
    uncorrected = np.concatenate([mosaic.errors(k, {m.id: [] for m in members}) for k in range(mosaic.exposures)])
    assert np.linalg.norm(uncorrected, axis=1).max() > 200
    parameters = TweakregParameters(expand_refcat=True, abs_repeats="mean")
    document = Tweakreg().solve(members, stars, parameters, Slot())
    assert document["summary"]["complete"] == 14
    corrections = {name: member["corrections"] for name, member in document["members"].items()}
    errors = np.concatenate([mosaic.errors(k, corrections) for k in range(mosaic.exposures)])
    assert errors.shape == (14 * 9, 3)
    assert np.sqrt(np.mean(np.sum(errors**2, axis=1))) < 0.5


@pytest.mark.oracle
def test_four_members_end_where_the_library_has_them_within_a_hundredth_of_a_mas():
    agreement = compare_with_library(ORACLE_MOSAICS[0])
    assert (agreement.members, agreement.exposures, agreement.aligned) == (4, 4, 4)
    assert agreement.moved_mas > 200
    assert agreement.largest_mas < 0.01
