"""NN2 on ten DECam frames of one field: the few stars of a small, empty corner of the sky."""

import logging

import numpy as np
import pytest

from survey.config import make_config
from survey.io.store import Field
from survey.kernels.stars import StarFlag, find_stars
from survey.run.api import create_field
from survey.run.nn2 import nn2_light_curves, run_nn2
from survey.stages.calibrated import calibrated_frames, read_calibrated
from survey.stages.nn2_compare import compare_with_templates

LOG = logging.getLogger(__name__)
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def curves(real_data, tmp_path_factory):
    files = sorted((real_data / "decam").glob("*.fits"))
    if len(files) != 10:
        pytest.skip(f"{real_data / 'decam'} holds {len(files)} of the ten frames")
    path = tmp_path_factory.mktemp("decam") / "field"
    # All headers carry one time.
    config = make_config({"input": {"duplicates": "keep"}})
    create_field(path, files, config, client="synchronous")
    field = Field.open(path)
    reference = int(np.argmin(np.abs(calibrated_frames(field)["scale"].values - 1)))
    tile = read_calibrated(field, (slice(0, 256), slice(0, 256)))
    found = find_stars(tile.flux[reference], tile.error[reference], tile.mask[reference], threshold=8)
    inside = (np.minimum(found.x, found.y) > 20) & (np.maximum(found.x, found.y) < 236)
    stars = found.select(inside & ((found.flags & ~int(StarFlag.BLENDED)) == 0))
    objects = [
        {"object_id": f"s{k:03d}", "kind": "target", "y": stars.y[k], "x": stars.x[k], "refine": False}
        for k in range(len(stars))
    ]
    assert run_nn2(path, config, objects=objects, client="synchronous").ok
    return nn2_light_curves(path)


def test_decam__all_pairs_are_measured(curves):
    assert len(curves) >= 8
    assert all(row["connected"] and row["dof"] == 36 for row in curves)
    assert all(np.isfinite(row["flux"]).all() for row in curves)


def test_decam__nn2_scatters_less_than_most_templates(curves):
    table, _ = compare_with_templates(curves)
    LOG.info("NN2 over each template: %s", table.ratio.round(3))
    assert np.median(table.ratio) < 0.95
    assert np.sum(table.ratio < 1) >= 8


@pytest.mark.xfail(
    reason="robust width 1.47: PSFs of six stars, resampled pixels, the brightest star and one that changes",
    strict=True,
)
def test_decam__pulls_of_the_stars_are_one_wide(curves):
    pulls = []
    for row in curves:
        flux, error = np.array(row["flux"]), np.hypot(row["external_error"], row["internal_error"])
        weight = 1 / error**2
        share = weight / weight.sum()
        pulls.append((flux - np.sum(flux * share)) / error / np.sqrt(1 - share))
    width = 1.4826 * np.median(np.abs(pulls))
    LOG.info("pull width %.2f", width)
    assert abs(width - 1) < 0.15
