"""Whatever the method, the same command gives differences, events and light curves."""

import shutil
from typing import get_args

import numpy as np
import pytest

from survey.cli.running import run as run_command
from survey.config import Config
from survey.io.store import Field
from survey.run.api import run
from survey.run.results import light_curve, list_events
from survey.stages.calibrated import calibrated_frames, frame_map
from survey.stages.differences import drift, read_difference
from survey.stages.methods import METHODS
from tests.run.conftest import small_config


def test_every_method_can_be_asked_for():
    assert set(get_args(Config.model_fields["method"].annotation)) == set(METHODS)
    choice = next(p for p in run_command.params if p.name == "method")
    assert set(choice.type.choices) == set(METHODS)


# HOTPANTS is another program, see test_pairwise.
OTHERS = sorted(set(METHODS) - {"oversampled", "hotpants"})


@pytest.fixture(scope="module")
def others(finished, tmp_path_factory):
    """A copy of the finished field on which the other methods were run as well."""
    path = tmp_path_factory.mktemp("methods") / "field"
    shutil.copytree(finished.path, path)
    summaries = {}
    for method in OTHERS:
        summaries[method] = run(path, settings(method), client="synchronous")
    return path, summaries


def settings(method, grid="sky"):
    """The frames are dithered by pixels, so that cpm finds a star in one pixel only on the sky grid."""
    config = small_config()
    config.method = method
    config.cpm.grid = grid
    return config


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_finds_the_events(finished, others, method):
    path, summaries = others
    assert summaries[method].ok, summaries[method].failures
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
    again = run(path, settings("cpm"), client="synchronous")
    assert again.ok
    assert again.computed == 0


def test_differences_on_the_detector_are_read_on_the_sky(finished, tmp_path):
    path = tmp_path / "field"
    shutil.copytree(finished.path, path)
    config = settings("cpm", grid="detector")
    assert run(path, config, client="synchronous").ok
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
