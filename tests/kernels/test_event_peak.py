"""The highest flux of an event: right for point lenses of any width and Gaussians; errors of white noise."""

import numpy as np
import pytest

from survey.kernels.event_peak import _profile, fit_peak
from survey.report.truth import excess

TIME = np.arange(96.0)


def point_lens(t_e, u0, peak=50.0):
    source = {"t0": 47.3, "tE": t_e, "u0": u0, "flux": 1.0}
    change = excess(source, TIME)
    return change * (peak / float(excess(source, 47.3)))


def gaussian(sigma, peak=50.0):
    return peak * np.exp(-0.5 * ((TIME - 47.3) / sigma) ** 2)


@pytest.mark.parametrize("sigma", [4.0, 8.0])
@pytest.mark.parametrize(
    "shape", [point_lens(8, 0.1), point_lens(20, 0.3), point_lens(10, 0.6), gaussian(2.5), gaussian(6)]
)
def test_peaks_of_known_shapes_are_right_to_two_percent(shape, sigma):
    peak = fit_peak(TIME, shape, np.ones(96), 47.0, sigma)
    assert peak.flux == pytest.approx(50, rel=0.025)
    assert peak.time == pytest.approx(47.3, abs=0.1)
    down = fit_peak(TIME, -shape, np.ones(96), 47.0, sigma)
    assert down.flux == pytest.approx(-50, rel=0.025)


def test_slopes_of_the_profile_are_its_derivatives():
    x, p = np.linspace(-6, 6, 25), np.array([1.0, 0.3, 0.2, 0.7, 0.0])
    _, *slopes = _profile(x, p)
    for k, slope in enumerate(slopes, 1):
        step = 1e-6 * (np.arange(5) == k)
        numeric = (_profile(x, p + step)[0] - _profile(x, p - step)[0]) / 2e-6
        np.testing.assert_allclose(slope, numeric, atol=1e-8)


def test_no_bias_and_honest_errors_with_noise():
    rng = np.random.default_rng(3)
    shape = point_lens(12, 0.3)
    found = [fit_peak(TIME, shape + rng.normal(0, 1.5, 96), np.full(96, 1.5), 47.0, 4.0) for _ in range(100)]
    flux, error, _ = np.array(found).T
    assert np.mean(flux) == pytest.approx(50, rel=0.02)
    assert np.std((flux - 50) / error) == pytest.approx(1.0, abs=0.3)


def test_a_curve_that_says_nothing_has_no_peak():
    flux = np.full(96, np.nan)
    flux[40:43] = 1.0
    assert np.isnan(fit_peak(TIME, flux, np.ones(96), 41.0, 2.0).flux)
    assert np.isnan(fit_peak(TIME, np.zeros(96), np.ones(96), 41.0, 2.0).flux)
