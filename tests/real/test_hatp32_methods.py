"""Four methods as stages of one field: rotated, drifting frames whose PSF changes (issue 2, point 0).

Half of the frames, from the whole night. chi2 in stars: over the frames, the median of the mean
(difference / error)^2 in pixels whose reference stands more than 20 sigma of the sky above it; sky: the
median square, over that of a Gaussian, in pixels farther than six from any such. Measured, in stars:
105 (oversampled, one PSF for all frames), 4.5 (sfft), 6.0 (cpm on the placed cube; 130 before); sky: 0.86,
0.83, 0.81. The limits are these with a fifth to spare, or tighter than the first measured. All pairs:
chi2 / dof 0.2 to 1.3 in six stars, median 1.1 (64 to 88 before errors grew with the light under a star).
"""

import logging

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, maximum_filter
from scipy.stats import chi2

from survey.io.store import Field
from survey.run.api import run
from survey.run.nn2 import nn2_light_curves, run_nn2
from survey.stages.calibrated import calibrated_frames
from tests.real.hatp32 import night_settings

pytestmark = [pytest.mark.real, pytest.mark.slow]
logger = logging.getLogger(__name__)

STAR, SATURATED = 23.0, 2500.0
LIMITS = {"oversampled": 130.0, "sfft": 6.0, "cpm": 7.2}
# Random partners of a frame.
PARTNERS = 4


def settings(real_data, method):
    config = night_settings(real_data, every=2)
    config.method = method
    config.cpm.grid = "sky"  # stars move through detector pixels by 2 px a frame
    config.nn2.pairs = PARTNERS
    return config


@pytest.fixture(scope="module")
def field(real_data, tmp_path_factory):
    path = tmp_path_factory.mktemp("methods") / "field"
    config = settings(real_data, "oversampled")
    summary = run(path, config, frames=config.input.frames)
    assert summary.ok, summary.failures
    return path


def chi2_in_stars(path, method):
    """Median over unflagged frames, of bright, unsaturated pixels and of bare sky."""
    field = Field.open(path)
    level = np.asarray(field.array("reference", "coefficients")[:, :, 0, 0])
    stars = (level > STAR) & (level < SATURATED)
    bare = ~binary_dilation(level > STAR, iterations=6)
    found = []
    for k in np.flatnonzero(calibrated_frames(field)["flags"].values == 0):
        flux, error, mask = (
            np.asarray(field.array(f"difference/{method}", name)[k]) for name in ("flux", "error", "mask")
        )
        square = np.where(mask, np.nan, (flux / error) ** 2)
        found.append((np.nanmean(square[stars]), np.nanmedian(square[bare]) / chi2.median(1)))
    return np.nanmedian(found, axis=0)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", ["oversampled", "sfft", "cpm"])
def test_differences(field, real_data, method):
    if method != "oversampled":
        summary = run(field, settings(real_data, method))
        assert summary.ok, summary.failures
    stars, sky = chi2_in_stars(field, method)
    logger.info("%s: chi2 in stars %.2f, sky %.2f", method, stars, sky)
    assert stars < LIMITS[method]
    assert 0.7 < sky < 1.2


@pytest.mark.timeout(3600)
def test_all_pairs(field, real_data):
    config = settings(real_data, "oversampled")
    opened = Field.open(field)
    level = np.asarray(opened.array("reference", "coefficients")[:, :, 0, 0])
    inner = np.zeros(level.shape, bool)
    inner[120:-120, 200:-200] = True
    bright = np.argwhere(inner & (level > 150) & (level < 900) & (level == local_maximum(level)))
    objects = [
        {"object_id": f"star-{i}", "y": float(y), "x": float(x), "kind": "target"}
        for i, (y, x) in enumerate(bright[:: max(len(bright) // 6, 1)][:6])
    ]
    assert len(objects) >= 4
    summary = run_nn2(field, config, objects=objects)
    if not summary.ok:
        raise RuntimeError(summary.failures)
    rows = nn2_light_curves(field)
    ratio = [np.nanmedian(np.asarray(row["chi2"], float)) / max(row["dof"], 1) for row in rows]
    logger.info("nn2: chi2/dof %s of %d stars", np.round(ratio, 2), len(rows))
    assert 0.3 < np.median(ratio) < 6


def local_maximum(level):
    """Largest value within three pixels."""
    return maximum_filter(level, 7)
