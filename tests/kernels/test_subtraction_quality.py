"""Quality of subtractions over ten simulated pairs with 500 transients (issue 5, point 7)."""

import logging

import numpy as np
import pytest

from survey.kernels.sfft import subtract_sfft
from survey.kernels.zogy import subtract_zogy
from survey.simulate.pairs import moffat, simulate_pair
from tests.kernels.pair_quality import bias, measure

LOG = logging.getLogger(__name__)
SEEDS = range(10)
GRID = np.mgrid[-12:13, -12:13]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def inputs(pair):
    return {
        "mask": pair.mask, "template_mask": pair.template_mask, "image_gain": pair.gain,
        "template_gain": pair.template_gain,
    }  # fmt: skip


def summary(found):
    ratio, error = (np.concatenate([getattr(q, name) for q in found]) for name in ("ratio", "ratio_error"))
    LOG.info(
        "chi2 in stars %.3f (worst %.3f), in sky %.3f, found %d of %d, false at most %d, bias %.4f +- %.4f",
        np.mean([q.chi2_star for q in found]), max(q.chi2_star for q in found),
        np.mean([q.chi2_sky for q in found]), sum(q.found for q in found), sum(q.bright for q in found),
        max(q.false for q in found), *bias(ratio, error),
    )  # fmt: skip
    return ratio, error


@pytest.mark.parametrize("rotation", [0.0, 0.5])
def test_quality_of_sfft(rotation):
    """Noise built from the gains; a rotated image is placed by nearest pixel and never interpolated."""
    found = []
    for seed in SEEDS:
        pair = simulate_pair(seed=seed, rotation=rotation)
        s = subtract_sfft(
            pair.image, pair.template, phase_y=pair.phase_y, phase_x=pair.phase_x, kernel_shape=(15, 15),
            **inputs(pair),
        )  # fmt: skip
        found.append(measure(pair, s))
    ratio, error = summary(found)
    assert max(q.chi2_star for q in found) <= 1.2
    assert sum(q.found for q in found) >= 0.97 * sum(q.bright for q in found) > 400
    assert max(q.false for q in found) <= 15
    assert abs(bias(ratio, error)[0]) <= 0.005


def at(plane, y, x):
    """A map of PSF fluxes at a sub-pixel position: its peak is a paraboloid."""
    cy, cx = round(y), round(x)
    dy, dx = y - cy, x - cx
    p = plane[cy - 1 : cy + 2, cx - 1 : cx + 2]
    slope = (p[2, 1] - p[0, 1]) / 2 * dy + (p[1, 2] - p[1, 0]) / 2 * dx
    bend = (p[2, 1] + p[0, 1] - 2 * p[1, 1]) * dy**2 / 2 + (p[1, 2] + p[1, 0] - 2 * p[1, 1]) * dx**2 / 2
    return p[1, 1] + slope + bend + (p[2, 2] + p[0, 0] - p[2, 0] - p[0, 2]) / 4 * dy * dx


def test_quality_of_zogy():
    """The true PSFs are given. False alarms are not asked for: tiles hold a PSF constant over 96 pixels."""
    found = []
    for seed in SEEDS:
        pair = simulate_pair(seed=seed)
        s = subtract_zogy(
            pair.image, pair.template, image_psf=lambda y, x, p=pair: moffat(*GRID, p.image_fwhm(y, x)),
            template_psf=moffat(*GRID, pair.template_fwhm), **inputs(pair),
        )  # fmt: skip
        q = measure(pair, s, significance=s.significance)
        y, x, flux, _ = pair.transients.T
        measured = np.array([at(s.psf_flux, *position) for position in zip(y, x, strict=True)])
        good = np.isfinite(measured)
        sigma = s.psf_flux_error[np.rint(y).astype(int), np.rint(x).astype(int)]
        q.ratio, q.ratio_error = (measured / flux)[good], (sigma / np.abs(flux))[good]
        found.append(q)
    ratio, error = summary(found)
    assert abs(bias(ratio, error)[0]) <= 0.01
    assert sum(q.found for q in found) >= 0.97 * sum(q.bright for q in found)
