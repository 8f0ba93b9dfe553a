"""Held-out scatter of K2 target pixels (Campaigns 9 and 11) against the mission's own errors."""

import logging

import numpy as np
import pytest

from survey.io import _target_pixels
from survey.kernels.cpm import fit_cpm

pytestmark = [pytest.mark.real, pytest.mark.slow]
LOG = logging.getLogger(__name__)


def stack(path):
    """Flux, error and mask of the cadences whose QUALITY is good."""
    pixels = _target_pixels.load(path)
    good = (pixels.quality & _target_pixels.KEPLER_BAD) == 0
    good &= np.isfinite(pixels.time) & np.isfinite(pixels.flux[:, pixels.collected]).any(1)
    flux, error = pixels.flux[good], pixels.error[good]
    return flux, error, ~pixels.collected | ~np.isfinite(flux) | ~np.isfinite(error)


# Measured medians over pixels: 1.44, 1.87, 1.77 (200 nearest predictors at most; one pixel a block).
@pytest.mark.parametrize(
    ("pattern", "exclusion", "lines", "limit"),
    [("*c111*", 6, 3, 1.46), ("*c91*", 3, 0, 2.1), ("*c92*", 3, 0, 2.1)],
)
def test_held_out_scatter(real_data, pattern, exclusion, lines, limit):
    flux, error, mask = stack(next((real_data / "k2").glob(pattern)))
    fit = fit_cpm(
        flux, error, mask, n_predictors=200, exclusion=exclusion, row_column_exclusion=lines,
        farthest=max(flux.shape), block=1,
    )  # fmt: skip
    dead = mask.all(0)
    assert fit.mask[:, dead].all()
    assert np.isfinite(fit.residual[:, ~dead]).mean() > 0.99
    pulls = np.abs(fit.residual[:, ~dead]) / error[:, ~dead]
    scatter = float(np.nanmedian(1.4826 * np.nanmedian(pulls, axis=0)))
    LOG.info("%s: ridge %g, scatter %.3f FLUX_ERR", pattern, fit.ridge, scatter)
    assert scatter <= limit
