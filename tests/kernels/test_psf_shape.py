"""PSF fluxes that do not take a star's shape for light (issue 5, 7)."""

import numpy as np
import pytest

from survey.kernels.psf import fit_psf_flux, gaussian_epsf
from survey.kernels.psf_shape import fit_flux_and_shape, shape_terms

SIZE, TIMES = 13, 60
FWHM = 2.2


@pytest.fixture(scope="module")
def star():
    """Stamps of a constant star: widths, places and phases wander, the model is one width at one place."""
    rng = np.random.default_rng(5)
    py, px = rng.uniform(-0.5, 0.5, (2, TIMES))
    known = gaussian_epsf(FWHM).evaluate(py, px, SIZE)
    shift, widths = rng.normal(0, 0.05, (2, TIMES)), FWHM * (1 + rng.normal(0, 0.04, TIMES))
    true = np.concatenate(
        [
            gaussian_epsf(w).evaluate([a], [b], SIZE)
            for w, a, b in zip(widths, py + shift[0], px + shift[1], strict=True)
        ]
    )
    y, x = np.indices((SIZE, SIZE)) - SIZE // 2
    return known, true, y[None] + py[:, None, None], x[None] + px[:, None, None]


def test_terms_have_no_flux():
    y, x = (np.indices((41, 41)) - 20) / 2
    terms = shape_terms(y[None], x[None], np.array([2.0]))[0]
    assert np.abs(terms.sum(axis=(0, 1))).max() / 4 < 1e-3
    assert np.abs(terms).max() > 0.02


def test_changes_of_shape_are_not_flux(star):
    known, true, dy, dx = star
    flux, noise, good = 5000.0, 2.0, np.zeros(known.shape, bool)
    rng = np.random.default_rng(1)
    variation = np.where(np.arange(TIMES) < 20, -0.03, 0.0) * flux
    # what a difference holds: the star as it is, less what the model says it was
    data = (flux + variation)[:, None, None] * true - flux * known + rng.normal(0, noise, known.shape)
    errors = np.full(known.shape, noise)
    plain, _ = fit_psf_flux(data, errors, good, known)
    found, error = fit_flux_and_shape(
        data, errors, good, known, dy, dx, fwhm=np.full(TIMES, FWHM), amplitude=0.1 * flux
    )
    assert np.std(plain - variation) > 0.02 * flux
    assert np.std(found - variation) < 0.004 * flux
    assert np.mean(found[:20]) == pytest.approx(-0.03 * flux, abs=0.002 * flux)
    assert np.std((found - variation) / error) == pytest.approx(1, abs=0.3)


def test_faint_stars_are_fitted_as_ever(star):
    known, _, dy, dx = star
    rng = np.random.default_rng(2)
    data = 50 * known + rng.normal(0, 1, known.shape)
    mask = rng.random(known.shape) < 0.02
    errors = np.ones(known.shape)
    plain = fit_psf_flux(data, errors, mask, known, min_coverage=0.8)
    same = fit_flux_and_shape(data, errors, mask, known, dy, dx, fwhm=np.full(TIMES, FWHM), amplitude=0.0)
    for a, b in zip(plain, same, strict=True):
        assert np.allclose(a, b, equal_nan=True, rtol=1e-9)
    assert np.isnan(plain[0]).sum() < TIMES / 2


def test_epochs_without_a_model_or_data_are_left_out(star):
    known, _, dy, dx = star
    model, mask = known.copy(), np.zeros(known.shape, bool)
    model[0], mask[1] = 0.0, True
    flux, error = fit_flux_and_shape(
        known, np.ones(known.shape), mask, model, dy, dx, fwhm=np.full(TIMES, FWHM), amplitude=0.1
    )
    assert np.isnan(flux[:2]).all()
    assert np.isinf(error[:2]).all()
    assert np.isfinite(flux[2:]).all()
