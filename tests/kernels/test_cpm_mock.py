"""The paper's mock observations: how close to photon noise, and what is left of a signal."""

import logging

import numpy as np
import pytest

from survey.kernels.cpm import fit_cpm
from survey.simulate.wander import simulate_wander

LOG = logging.getLogger(__name__)
NOISE = 1e-4


def residual_over_noise(mock, **kwargs):
    """RMS in time of each held-out residual, the injected signal taken off, over photon noise."""
    fit = fit_cpm(mock.flux, mock.error, mock.mask, block=4, **kwargs)
    rows, columns = kwargs.get("target", (slice(None), slice(None)))
    left = fit.residual - mock.signal_image[:, rows, columns]
    return np.sqrt(np.mean(left**2, axis=0)) / NOISE, fit


def kept(mock, half=3, **kwargs):
    """Amplitude of the injected sinusoid in the residuals of the variable's aperture, over the truth."""
    y, x = (round(p) for p in mock.variable)
    target = (slice(y - half, y + half + 1), slice(x - half, x + half + 1))
    fit = fit_cpm(mock.flux, mock.error, mock.mask, target=target, block=2 * half + 1, **kwargs)
    curve, truth = fit.residual.sum((1, 2)), mock.signal_image[(slice(None), *target)].sum((1, 2))
    return float(curve @ truth / (truth @ truth))


def test_mock__a_frame_does_not_depend_on_their_number():
    few, many = (simulate_wander(shape=(20, 24), n_frames=n, n_stars=30) for n in (3, 6))
    assert many.flux.shape == (6, 20, 24)
    # The unit is the median pixel of the mean frame, which does.
    ratio = few.clean / many.clean[:3]
    np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=1e-10)


def test_mock__noise_and_pointing_are_as_asked_for():
    mock = simulate_wander("ground", shape=(24, 24), n_frames=200, n_stars=40, pointing=2.0)
    assert (mock.flux - mock.clean).std() == pytest.approx(NOISE, rel=0.01)
    assert 0 <= mock.shift_y.min() < 0.1
    assert 1.9 < mock.shift_y.max() <= 2.0
    assert 0.45 < mock.angle.max() <= 0.5


def test_mock__unknown_kind():
    with pytest.raises(ValueError, match="kind must be 'space' or 'ground', not 'moon'"):
        simulate_wander("moon")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "limit"), [("space", 1.30), ("ground", 1.85)])
def test_held_out_residuals_are_near_photon_noise(kind, limit):
    """Wang et al. 2017, sections 3.2 and 3.3: 80 x 80 pixels, 1000 epochs; the inner half of the frame."""
    mock = simulate_wander(kind)
    ratio, fit = residual_over_noise(mock, target=(slice(20, 60), slice(20, 60)))
    median, high = np.median(ratio), np.percentile(ratio, 90)
    LOG.info("%s: ridge %g, residual / noise %.3f, 90th percentile %.2f", kind, fit.ridge, median, high)
    assert median <= limit
    left = fit.residual - mock.signal_image[:, 20:60, 20:60]
    pull = float(np.median((left / fit.error).std(0)))
    LOG.info("%s: scatter / error %.3f", kind, pull)
    assert pull == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["space", "ground"])
def test_the_injected_sinusoid_is_kept(kind):
    share = kept(simulate_wander(kind), ridge=0.1)
    LOG.info("%s: %.3f of the amplitude", kind, share)
    assert 0.97 <= share < 1.03
