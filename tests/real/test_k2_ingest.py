"""Kepler target pixels through ingest: one frame a cadence, quality bits honoured."""

import numpy as np
import pytest

from survey.config import make_config
from survey.io.store import Field
from survey.run.api import create_field

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_a_k2_stack_becomes_a_cube(real_data, tmp_path):
    file = next((real_data / "k2").glob("ktwo221312395-c91*"))
    config = make_config(
        {"registration": {"mode": "none"}, "calibrate": {"scale": "unit", "background": "none"}}
    )
    summary = create_field(tmp_path / "field", [file], config, client="synchronous")
    assert summary.added == 1275
    assert len(summary.rejected) == 15
    assert all("QUALITY" in reason for _, reason in summary.rejected)
    field = Field.open(tmp_path / "field")
    assert field.shape == (10, 11)
    time = field.frames()["time"].values
    assert (np.diff(time) > 0).all()
    assert 25 < np.ptp(time) < 30
    flux, mask = (np.asarray(field.array("images/sky", name)[...]) for name in ("flux", "mask"))
    assert np.isfinite(flux[~mask]).all()
    assert mask.mean() < 0.05
