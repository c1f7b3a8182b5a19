"""Velocity aberration: scale of the field and apparent place of a target."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.velocity_aberration import SPEED_OF_LIGHT, set_velocity_aberration, velocity_aberration


def test_observatory_at_rest_sees_the_true_sky(caplog):
    with caplog.at_level(logging.WARNING):
        assert velocity_aberration((0.0, 0.0, 0.0), 370.0, -20.0) == (1.0, 370.0, -20.0)
    assert "velocity is zero" in caplog.text


def test_motion_across_the_line_of_sight_moves_the_target_forward_by_v_over_c():
    _, ra, dec = velocity_aberration((0.0, 30.0, 0.0), 0.0, 0.0)
    assert np.deg2rad(ra) == pytest.approx(30.0 / SPEED_OF_LIGHT, rel=1e-6)
    assert dec == 0.0


def test_motion_towards_the_target_changes_the_scale_alone():
    scale, ra, dec = velocity_aberration((30.0, 0.0, 0.0), 0.0, 0.0)
    b = 30.0 / SPEED_OF_LIGHT
    assert scale == pytest.approx(np.sqrt((1 + b) / (1 - b)), rel=1e-15)
    assert (ra, dec) == (0.0, 0.0)


@settings(deadline=None)
@given(
    st.tuples(*[st.floats(-40, 40)] * 3).filter(lambda v: sum(x * x for x in v) > 1),
    st.floats(0, 360),
    st.floats(-89, 89),
)
def test_going_there_and_back_gives_the_true_place(velocity, ra, dec):
    scale, ra_app, dec_app = velocity_aberration(velocity, ra, dec)
    back = tuple(-v for v in velocity)
    inverse, ra_true, dec_true = velocity_aberration(back, ra_app, dec_app)
    assert scale * inverse == pytest.approx(1.0, abs=1e-14)
    assert dec_true == pytest.approx(dec, abs=1e-9)
    assert (ra_true - ra + 180) % 360 - 180 == pytest.approx(0.0, abs=1e-7)
    assert 0 <= ra_app < 360


def test_metadata_are_filled_in():
    meta = {
        "ephemeris": {"velocity_x": 10.0, "velocity_y": -20.0, "velocity_z": 5.0},
        "wcsinfo": {"ra_ref": 10.0, "dec_ref": 20.0},
    }
    set_velocity_aberration(meta)
    scale, ra, dec = velocity_aberration((10.0, -20.0, 5.0), 10.0, 20.0)
    assert meta["velocity_aberration"] == {"scale_factor": scale, "ra_reference": ra, "dec_reference": dec}
