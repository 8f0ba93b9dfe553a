"""Effective PSFs, PSF photometry and positions against analytic truth and pure noise."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from survey.kernels.psf import (
    EffectivePSF,
    fit_psf_flux,
    from_oversampled,
    gaussian_epsf,
    measure_motion,
    psf_magnitudes,
    refine_position,
    stamp_psf,
)

FWHM = 1.1
EPOCHS = 192


def pixel_gaussian(offset_y, offset_x, size, fwhm=FWHM):
    """Exact pixel-integrated Gaussian stamps (n, size, size)."""
    sigma = fwhm / np.sqrt(8 * np.log(2))
    edges = np.arange(size + 1) - size // 2 - 0.5
    profiles = [np.diff(ndtr((edges - np.asarray(o)[:, None]) / sigma), axis=1) for o in (offset_y, offset_x)]
    return profiles[0][:, :, None] * profiles[1][:, None, :]


@pytest.fixture
def rng():
    return np.random.default_rng(20250)


@pytest.fixture
def phases(rng):
    return rng.uniform(-0.5, 0.5, (2, EPOCHS))


@pytest.mark.parametrize(("fwhm", "oversampling", "limit"), [(1.1, 4, 1e-3), (1.1, 8, 5e-5), (2.5, 4, 1e-4)])
def test_gaussian_matches_its_integral_over_the_pixel(rng, fwhm, oversampling, limit):
    oy, ox = rng.uniform(-0.5, 0.5, (2, 50))
    psf = gaussian_epsf(fwhm, oversampling)
    truth = pixel_gaussian(oy, ox, psf.size, fwhm)
    assert np.abs(psf.evaluate(oy, ox, psf.size) - truth).max() < limit * truth.max()


@settings(max_examples=25, deadline=None)
@given(
    oy=st.floats(-0.5, 0.5), ox=st.floats(-0.5, 0.5), fwhm=st.floats(0.7, 3.0), oversampling=st.integers(2, 9)
)
def test_psf_sums_to_one_over_the_pixels_at_every_phase(oy, ox, fwhm, oversampling):
    psf = gaussian_epsf(fwhm, oversampling)
    assert psf.evaluate(oy, ox, psf.size).sum() == pytest.approx(1, abs=1e-12)


def test_gradient_is_the_derivative_of_the_stamps(rng):
    oy, ox = rng.uniform(-0.5, 0.5, (2, 5))
    psf, step = gaussian_epsf(FWHM), 1e-5
    slope_y, slope_x = psf.gradient(oy, ox, 9)
    numeric_y = (psf.evaluate(oy + step, ox, 9) - psf.evaluate(oy - step, ox, 9)) / (2 * step)
    numeric_x = (psf.evaluate(oy, ox + step, 9) - psf.evaluate(oy, ox - step, 9)) / (2 * step)
    np.testing.assert_allclose(slope_y, numeric_y, atol=1e-8)
    np.testing.assert_allclose(slope_x, numeric_x, atol=1e-8)


def test_width_and_noise_area_of_a_gaussian():
    psf = gaussian_epsf(3.0)
    sigma2 = 3.0**2 / (8 * np.log(2)) + 1 / 12
    assert psf.fwhm == pytest.approx(np.sqrt(8 * np.log(2) * sigma2), rel=0.01)
    assert psf.noise_equivalent_area == pytest.approx(4 * np.pi * sigma2, rel=0.01)


@pytest.mark.parametrize("n", [90, 91])
@pytest.mark.parametrize("oversampling", [9, 10])
def test_instrument_psf_is_integrated_over_the_pixel(rng, n, oversampling):
    cells = (np.arange(n + 1) - n / 2) / oversampling * np.sqrt(8 * np.log(2)) / FWHM
    profile = np.diff(ndtr(cells))
    psf = from_oversampled(3.7 * np.outer(profile, profile), oversampling, pixel_integrated=False)
    oy, ox = rng.uniform(-0.5, 0.5, (2, 20))
    truth = pixel_gaussian(oy, ox, 9)
    assert np.abs(psf.evaluate(oy, ox, 9) - truth).max() < 1e-4 * truth.max()


def test_gridded_psf_is_linear_between_its_positions():
    narrow, wide = gaussian_epsf(1.1, size=11).samples, gaussian_epsf(1.5, size=11).samples
    samples = np.concatenate([np.concatenate([narrow, wide], axis=1)] * 2, axis=0)
    psf = EffectivePSF(samples, 8, [0, 100], [0, 200])
    corner, middle, beyond = psf.evaluate([0.2] * 3, [0.1] * 3, 9, y=[0, 30, 500], x=[0, 50, 900])
    first, last = (EffectivePSF(s, 8).evaluate(0.2, 0.1, 9)[0] for s in (narrow, wide))
    np.testing.assert_allclose(corner, first, atol=1e-14)
    np.testing.assert_allclose(middle, 0.75 * first + 0.25 * last, atol=1e-14)
    np.testing.assert_allclose(beyond, last, atol=1e-14)
    np.testing.assert_allclose(psf.at(30, 50).evaluate(0.2, 0.1, 9)[0], middle, atol=1e-14)


def test_psf_round_trips_through_its_arrays():
    psf = gaussian_epsf(1.3, 5)
    again = EffectivePSF.from_arrays(psf.to_arrays())
    np.testing.assert_array_equal(again.evaluate(0.3, 0.1, 9), psf.evaluate(0.3, 0.1, 9))


def test_response_with_per_pixel_phases_equals_the_stamps(rng, phases):
    psf = gaussian_epsf(FWHM)
    per_frame = stamp_psf(psf, *phases, 4.3, 3.9, (9, 8))
    full = [np.broadcast_to(p[:, None, None], (EPOCHS, 9, 8)) for p in phases]
    np.testing.assert_allclose(stamp_psf(psf, *full, 4.3, 3.9, (9, 8)), per_frame, atol=1e-14)
    direct = psf.evaluate(4.3 - phases[0] - 4, 3.9 - phases[1] - 4, 9)[:, :, :8]
    np.testing.assert_allclose(per_frame, direct, atol=1e-14)


def test_psf_of_a_star_without_a_position_is_nan():
    assert np.isnan(gaussian_epsf(FWHM).evaluate([np.nan], [0.0], 5)).all()


@pytest.mark.parametrize(
    ("samples", "grid", "message"),
    [
        (np.ones((8, 9)), {}, "want \\(n, n\\)"),
        (np.ones((2, 1, 8, 8)), {}, "PSF grid of"),
        (np.ones((2, 1, 8, 8)), {"grid_y": [1, 1]}, "increase"),
        (np.full((8, 8), np.nan), {}, "finite"),
    ],
)
def test_malformed_psf_is_refused(samples, grid, message):
    with pytest.raises(ValueError, match=message):
        EffectivePSF(samples, 4, **grid)


def test_psf_without_flux_is_refused():
    with pytest.raises(ValueError, match="no positive total"):
        from_oversampled(np.zeros((20, 20)), 4, pixel_integrated=True)


def test_errors_match_the_scatter_of_constant_stars(rng, phases):
    psf = stamp_psf(gaussian_epsf(FWHM), *phases, 4.3, 3.9, (9, 9))
    errors = rng.uniform(0.5, 2.0, (40, EPOCHS, 9, 9))
    stamps = 3.0 * psf + errors * rng.standard_normal(errors.shape)
    mask = rng.random(errors.shape) < 0.03
    stamps[mask] = 1e6
    for background in (False, True):
        flux, error = fit_psf_flux(stamps + 5 * background, errors, mask, psf, background=background)
        good = np.isfinite(flux)
        pull = ((flux - 3.0) / error)[good]
        assert good.mean() > 0.95
        assert np.var(pull) == pytest.approx(1, abs=0.05)
        assert abs(pull.mean()) < 4 / np.sqrt(pull.size)


def test_variance_is_the_inverse_of_the_weighted_psf_square():
    psf = gaussian_epsf(FWHM).evaluate(0.1, 0.2, 9)
    _, error = fit_psf_flux(psf, np.full(psf.shape, 2.0), None, psf)
    assert error[0] == pytest.approx(2 / np.sqrt(np.sum(psf**2)), rel=1e-14)


def test_bad_samples_do_not_enter_and_lost_epochs_are_nan_without_warning():
    psf = gaussian_epsf(FWHM).evaluate(np.zeros(4), np.zeros(4), 9)
    stamps, errors = 7 * psf, np.ones(psf.shape)
    stamps[0, 2, 4], errors[0, 5, 4], errors[0, 4, 6] = np.nan, 0.0, np.inf
    mask = np.zeros(psf.shape, bool)
    mask[1, 4, 4] = True
    mask[2] = True
    psf[3] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flux, error = fit_psf_flux(stamps, errors, mask, psf)
    assert flux[0] == pytest.approx(7)
    assert np.isnan(flux[1:]).all()
    assert np.isinf(error[1:]).all()


@pytest.mark.parametrize(("signal_to_noise", "shaped"), [(10, True), (20, False), (200, False)])
def test_position_is_unbiased_with_honest_errors(rng, phases, signal_to_noise, shaped):
    psf, truth, trials = gaussian_epsf(FWHM), np.array([4.13, 3.8]), 500
    model = stamp_psf(psf, *phases, *truth, (9, 9))
    shape = np.exp(-0.5 * ((np.arange(EPOCHS) - 90) / 20) ** 2)
    total = np.sqrt(np.sum(shape**2 * np.sum(model**2, axis=(1, 2))))
    signal = (shape * signal_to_noise / total)[:, None, None] * model
    fits = [
        refine_position(
            signal + rng.standard_normal(signal.shape), np.ones(signal.shape), None, psf, *phases, (4.4, 3.5),
            light_curve=shape if shaped else None,
        )
        for _ in range(trials)
    ]  # fmt: skip
    assert np.mean([f.converged for f in fits]) > 0.97
    good = [f for f in fits if f.converged]
    pull = np.array([[f.y, f.x] - truth for f in good]) / [np.sqrt(np.diag(f.covariance)) for f in good]
    assert np.abs(pull.mean(axis=0)).max() < 4 / np.sqrt(len(good))
    assert np.std(pull) == pytest.approx(1, abs=0.1)


def test_position_and_flux_are_exact_without_noise(phases):
    psf = gaussian_epsf(FWHM)
    stamps = 20 * stamp_psf(psf, *phases, 104.37, 53.61, (7, 7), origin=(101, 51)) + 3
    fit = refine_position(
        stamps, np.ones(stamps.shape), None, psf, *phases, (104.0, 54.0), origin=(101, 51), background=True
    )
    assert fit.converged
    assert (fit.y, fit.x) == pytest.approx((104.37, 53.61), abs=1e-6)


def test_position_of_pure_noise_is_its_start(rng, phases):
    psf = gaussian_epsf(FWHM)
    stamps = np.full((EPOCHS, 9, 9), np.nan)
    fit = refine_position(stamps, np.ones(stamps.shape), None, psf, *phases, (4.0, 4.0))
    assert not fit.converged
    assert (fit.y, fit.x) == (4.0, 4.0)
    assert np.isinf(np.diag(fit.covariance)).all()


def test_light_curve_of_wrong_length_is_refused(phases):
    stamps = np.ones((EPOCHS, 9, 9))
    with pytest.raises(ValueError, match="light_curve of 3 values for 192 epochs"):
        refine_position(stamps, stamps, None, gaussian_epsf(FWHM), *phases, (4, 4), light_curve=[1, 2, 3])


def test_a_moving_object_is_told_from_a_resting_one(rng, phases):
    psf = gaussian_epsf(FWHM)
    for speed, moving in ((0.0, False), (0.6, True)):
        path = 4 + speed * (np.arange(EPOCHS) / EPOCHS - 0.5)
        model = psf.evaluate(path - phases[0] - 4, 4.2 - phases[1] - 4, 9)
        stamps = 30 * model + rng.standard_normal(model.shape)
        motion = measure_motion(stamps, np.ones(stamps.shape), None, psf, *phases, (4.0, 4.0))
        assert (motion.significance > 5) == moving
        assert motion.shift_y == pytest.approx(speed / 2, abs=0.05)


def test_magnitudes_have_limits_where_nothing_is_seen():
    magnitude, error, limit = psf_magnitudes([100, 1, -5, np.nan, 3], [1, 1, 1, 1, np.inf], 25.0)
    np.testing.assert_allclose(magnitude, [20, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(error, [0.0108574, *[np.nan] * 4], rtol=1e-5)
    np.testing.assert_allclose(
        limit, [np.nan, 25 - 2.5 * np.log10(4), 25 - 2.5 * np.log10(3), np.nan, np.nan]
    )
