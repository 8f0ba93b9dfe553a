"""The search in days: the same events as in images where frames come regularly, and a word where none can."""

import shutil

import numpy as np
import pytest
import xarray as xr

from survey.io.store import Field
from survey.run.api import run
from survey.stages import candidates, detect, psf
from tests.run.conftest import small_config

CADENCE = 15 / 1440


def searched(field, config):
    """Peaks and events of all tiles, by the stages alone."""
    state = detect.prepare(field, psf.load(field), config)
    payloads = [
        detect.apply(detect.read(field, u, config), state, config).payload
        for u in detect.tile_units(field, config)
    ]
    peaks = detect.merged(payloads, config)
    units = candidates.units(field, peaks)
    rows = [candidates.apply(candidates.read(field, u, config), state, config).payload for u in units]
    thresholds = (np.array(payloads[0]["thresholds"]) * detect.noise_factors(payloads)).tolist()
    return peaks, candidates.combine(rows, thresholds, field, config)


def test_days_find_what_as_many_images_find(finished):
    field = Field.open(finished.path)
    config = small_config()
    peaks, events = searched(field, config)
    config.detect.unit = "days"
    config.detect.temporal_sigma = [CADENCE * s for s in (2, 4, 8, 16)]
    in_days, same = searched(field, config)
    assert len(events) > 2
    assert len(in_days) == len(peaks)
    np.testing.assert_allclose(in_days["snr"], peaks["snr"], rtol=1e-4)
    np.testing.assert_allclose(in_days["time"], CADENCE * peaks["time"], rtol=1e-4)
    np.testing.assert_allclose(in_days["temporal_sigma"], CADENCE * peaks["temporal_sigma"], rtol=1e-9)
    for one, other in zip(events, same, strict=True):
        for name in ("x", "y", "time", "sigma_days", "snr"):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
        assert (one["unit"], other["unit"]) == ("images", "days")
        assert other["temporal_sigma"] == other["sigma_days"]


def test_time_and_width_in_days_of_irregular_frames(finished):
    frames = Field.open(finished.path).frames().isel(time=[0, 1, 2, 3, 5, 8])
    frames = frames.assign_coords(time=np.array([100.0, 101.0, 102.0, 104.0, 104.5, 110.0]))
    config = small_config()
    assert detect.to_days(frames, config, 2.5, 1.0) == pytest.approx((103.0, 0.5 * (104.25 - 101.5)))
    assert detect.to_days(frames, config, 6.0, 0.0) == pytest.approx((111.0, 0.0)), "beyond: median cadence"
    config.detect.unit = "days"
    assert detect.to_days(frames, config, 2.5, 1.0) == (102.5, 1.0)
    np.testing.assert_array_equal(detect.search_time(frames, config), [0, 1, 2, 4, 4.5, 10])


def test_scales_longer_than_the_field_are_told(finished, tmp_path):
    field = tmp_path / "field"
    shutil.copytree(finished.path, field)
    config = small_config()
    config.detect.unit = "days"
    summary = run(field, config, client="synchronous")
    assert summary.ok, summary.failures
    assert summary.events == 0
    (said,) = (w for w in summary.warnings if "[detect]" in w)
    assert said.startswith("no event of 2, 4, 8, 16 days can be found in frames that span 0.74 days: ")
    assert "temporal_sigma" in said


def test_an_event_near_a_morning_is_not_as_long_as_the_day_after():
    config, night = small_config(), np.arange(20) * 0.01
    frames = xr.Dataset(coords={"time": np.concatenate([night, 1 + night])})
    for middle in (18.0, 21.0, 10.0):
        assert detect.to_days(frames, config, middle, 2.0)[1] == pytest.approx(0.02), middle
    assert detect.to_days(frames, config, 19.5, 16.0)[1] == pytest.approx(0.56), "from night to night"
