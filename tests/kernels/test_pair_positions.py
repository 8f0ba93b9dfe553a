"""Positions fitted on many differences: errors that hold, for bright and faint sources."""

import logging

import numpy as np
import pytest

from survey.kernels.pair_flux import Difference
from survey.kernels.pair_position import common_position
from survey.kernels.psf import gaussian_epsf

LOG = logging.getLogger(__name__)
FRAMES, EDGE = 16, 31
PSF = gaussian_epsf(3.5, 2)


def differences(seed, peak, dipole=0.0):
    """Differences of 16 frames, four a frame, of a source 0.2, -0.1 px from the stamps' middle.

    A host beneath it, whose place differs by ``dipole`` px (rms) from frame to frame, is left over in each.
    """
    rng = np.random.default_rng(seed)
    flux = peak * np.exp(-0.5 * ((np.arange(FRAMES) - 7.5) / 2.5) ** 2)
    star = PSF.evaluate(0.2, -0.1, EDGE)[0]
    slope = np.array([g[0] for g in PSF.gradient(-1.0, 1.5, EDGE)])
    host = 1000 * np.tensordot(dipole * rng.normal(size=(FRAMES, 2)), slope, 1)
    images = flux[:, None, None] * star + host + rng.normal(size=(FRAMES, EDGE, EDGE))
    pairs = np.array([(i, (i + k) % FRAMES) for i in range(FRAMES) for k in (3, 5)])
    error, mask = np.full((EDGE, EDGE), np.sqrt(2)), np.zeros((EDGE, EDGE), bool)
    return [Difference(images[j] - images[i], error, mask, PSF) for i, j in pairs], pairs


def pulls(peak, dipole=0.0, n=24):
    found = []
    for seed in range(n):
        images, pairs = differences(seed, peak, dipole)
        middle = np.full((len(images), 2), EDGE // 2) + np.array([0.4, -0.3])
        turn = np.broadcast_to(np.eye(2), (len(images), 2, 2))
        shift, error = common_position(images, middle, turn, 8, frames=pairs)
        if np.isfinite(error):
            found.append([*(shift - [-0.2, 0.2]), error])
    off = np.array(found)
    return off[:, :2] / off[:, 2:], off[:, 2], len(off) / n


@pytest.mark.parametrize(("peak", "dipole"), [(400, 0.0), (60, 0.0), (200, 0.05), (400, 0.15)])
def test_common_position__errors_hold(peak, dipole):
    pull, error, share = pulls(peak, dipole)
    width = float(np.sqrt(np.mean(pull**2)))
    LOG.info(
        "peak %d, dipole %.2f: pull width %.2f, error %.3f px, %.2f found",
        peak,
        dipole,
        width,
        np.median(error),
        share,
    )
    assert 0.7 < width < 1.35
