"""Whatever the method, the same command gives differences, events and light curves."""

import shutil
from typing import get_args

import numpy as np
import pytest
import xarray as xr

from survey.cli.running import run as run_command
from survey.config import Config
from survey.io.store import Field
from survey.run.api import run
from survey.run.progress import Silent
from survey.run.results import light_curve, list_events
from survey.run.settle import settle
from survey.stages.calibrated import calibrated_frames, frame_map
from survey.stages.differences import drift, made_on, read_difference, star_motion
from survey.stages.methods import METHODS
from tests.small_field import OTHERS, method_config


def test_every_method_can_be_asked_for():
    assert set(get_args(Config.model_fields["method"].annotation)) == set(METHODS)
    choice = next(p for p in run_command.params if p.name == "method")
    assert set(choice.type.choices) == set(METHODS)


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_finds_the_events(finished, others, method):
    path, summaries = others
    assert summaries[method].status == "done", summaries[method].failures
    events = list_events(path, method)
    sources = [source for source in finished.truth.truth if source["kind"] == "microlensing"]
    for source in sources:
        distance = np.hypot(
            (events["ra"] - source["ra"]) * np.cos(np.radians(source["dec"])), events["dec"] - source["dec"]
        )
        assert distance.min() * 3600 < 0.2, f"{method}: {source} not among {len(events)} events"
    curve = light_curve(path, method, event=str(events["object_id"][0]))
    assert np.isfinite(curve["flux"]).mean() > 0.8


def test_the_reference_is_not_made_again_for_another_method(others):
    _, summaries = others
    for summary in summaries.values():
        assert "oversampled" not in summary.stages
        assert "psf (partial)" not in summary.stages


def test_a_second_run_computes_nothing(others):
    path, _ = others
    again = run(path, method_config("cpm"), client="synchronous")
    assert again.ok
    assert again.computed == 0


def test_cpm_takes_the_grid_on_which_stars_stay_in_their_pixels(finished, others, monkeypatch):
    """Dithered: the sky grid, read back as such by settings that leave it open. Steady: the detector."""
    path, _ = others
    field, config = Field.open(path), method_config("cpm")
    frames = calibrated_frames(field)
    motion = star_motion(field, frames)
    assert 0.6 * np.median(frames["psf_fwhm"]) < motion < drift(field, frames)
    before = Field.open(finished.path)  # without differences of cpm, which would tell
    settled, warnings = settle(before, config, Silent())
    assert (settled.cpm.grid, made_on(field, config), warnings) == ("sky", "sky", [])
    window = (slice(20, 31), slice(40, 52))
    stored = np.asarray(field.array("difference/cpm", "flux")[(slice(None), *window)])
    np.testing.assert_array_equal(read_difference(field, window, frames, config, ("flux",))["flux"], stored)
    monkeypatch.setattr("survey.run.settle.star_motion", lambda *_: 0.1)
    assert settle(before, config, Silent())[0].cpm.grid == "detector"


def test_star_motion__is_the_scatter_of_places(finished):
    """Shifts by -1, 0 and 1 px in x; a flagged frame far away does not count."""
    maps = np.tile([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], (4, 1, 1))
    maps[:, 0, 0] = [-1, 0, 1, 500]
    frames = xr.Dataset(
        {
            "map": (("time", "axis", "term"), maps),
            "map_center": (("time", "axis"), np.zeros((4, 2))),
            "map_scale": ("time", np.ones(4)),
            "flags": ("time", [0, 0, 0, 1]),
        }
    )
    assert star_motion(Field.open(finished.path), frames) == pytest.approx((2 / 3) ** 0.5)


@pytest.mark.slow
def test_differences_on_the_detector_are_read_on_the_sky(finished, tmp_path):
    path = tmp_path / "field"
    shutil.copytree(finished.path, path)
    config = method_config("cpm")
    config.cpm.grid = "detector"
    summary = run(path, config, client="synchronous")
    assert summary.ok
    assert any('set [cpm] grid = "sky"' in warning for warning in summary.warnings)
    field = Field.open(path)
    frames = calibrated_frames(field)
    window = (slice(20, 31), slice(40, 52))
    got = read_difference(field, window, frames, config, ("flux", "mask"))
    detector = np.asarray(field.array("difference/cpm", "flux")[...])
    assert 1 <= drift(field, frames) < 20
    for k in (0, 17, 71):
        for y, x in ((20, 40), (30, 51), (25, 47)):
            xd, yd = frame_map(frames, k).evaluate(float(x), float(y))
            expected = detector[k, round(yd), round(xd)]
            np.testing.assert_equal(got["flux"][k, y - 20, x - 40], expected)
