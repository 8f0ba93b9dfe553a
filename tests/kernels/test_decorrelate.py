"""Differences made white again: noise, PSF, and what a PSF fit gains by it."""

import logging

import numpy as np
from numpy.testing import assert_allclose
from scipy.ndimage import binary_dilation
from scipy.signal import fftconvolve

from survey.kernels.decorrelate import decorrelate, filtered_psf, whitening_filter
from survey.kernels.pair_flux import Difference, point_fluxes
from survey.kernels.psf import gaussian_epsf

LOG = logging.getLogger(__name__)
SHARP, BROAD = 2.6, 5.2


def broadening():
    """Kernel (15, 15) from the sharp to the broad PSF."""
    sigma = np.sqrt(BROAD**2 - SHARP**2) / 2.3548
    at = np.arange(15) - 7
    kernel = np.exp(-(at[:, None] ** 2 + at**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def pair(seed, image_noise=1.0, template_noise=1.0, size=240):
    """Difference of two empty images of white noise, the template convolved, and the images' errors."""
    rng = np.random.default_rng(seed)
    image, template = (
        rng.normal(size=(2, size, size)) * np.array([image_noise, template_noise])[:, None, None]
    )
    kernel = broadening()
    flux = image - fftconvolve(template, kernel, mode="same")
    error = np.full(flux.shape, np.hypot(image_noise, template_noise * np.sqrt(np.sum(kernel**2))))
    plain = Difference(flux, error, np.zeros(flux.shape, bool), gaussian_epsf(BROAD, 2))
    return plain, np.full(flux.shape, image_noise), np.full(flux.shape, template_noise)


def test_whitening_filter__of_a_one_pixel_kernel_does_nothing():
    assert_allclose(whitening_filter(np.array([[0.7]]), 1.0, 2.0), np.sqrt(3 / (1 + 2 * 0.49)), rtol=1e-10)


def test_whitening_filter__keeps_the_level_of_the_noise():
    kernel = broadening()
    white = whitening_filter(kernel, 1.0, 2.0)
    both = fftconvolve(kernel, white)
    assert_allclose(np.sum(white**2) + 2 * np.sum(both**2), 3, rtol=1e-3)
    assert white.shape[0] % 2 == 1
    assert_allclose(white, white[::-1, ::-1], atol=1e-12)


def test_decorrelate__noise_is_white_and_errors_hold():
    plain, image_error, template_error = pair(1, template_noise=3.0)
    found = decorrelate(plain, broadening(), image_error, template_error)
    core = found.flux[40:-40, 40:-40]
    assert_allclose(core.std() / found.error[100, 100], 1, atol=0.02)

    def neighbours(a):
        return np.mean(a[:, 1:] * a[:, :-1]) / np.mean(a * a)

    before, after = neighbours(plain.flux[40:-40, 40:-40]), neighbours(core)
    LOG.info("correlation of neighbours %.3f, made white %.3f", before, after)
    assert before > 0.1
    assert abs(after) < 0.01


def test_decorrelate__fluxes_stay_and_scatter_less():
    y, x = (a.ravel() for a in np.meshgrid(np.arange(30, 211, 18), np.arange(30, 211, 18), indexing="ij"))
    plain, image_error, template_error = pair(2, template_noise=3.0)
    psf = plain.psf.evaluate(0.0, 0.0, 31)[0]
    for row, column in zip(y, x, strict=True):
        plain.flux[row - 15 : row + 16, column - 15 : column + 16] += 300 * psf
    found = decorrelate(plain, broadening(), image_error, template_error)
    before, _ = point_fluxes(plain, y, x, 10)
    after, error = point_fluxes(found, y, x, 10)
    LOG.info(
        "flux %.1f +- %.1f, made white %.1f +- %.1f", before.mean(), before.std(), after.mean(), after.std()
    )
    assert_allclose(after.mean(), 300, atol=4 * after.std() / np.sqrt(len(y)))
    assert after.std() < 0.96 * before.std()
    assert_allclose(after.std() / error.mean(), 1, atol=0.2)


def test_decorrelate__bad_pixels_stay_few():
    plain, image_error, template_error = pair(3)
    plain.mask[100, 120] = True
    plain.flux[100, 120] = 1e6
    found = decorrelate(plain, broadening(), image_error, template_error)
    assert found.mask[100, 120]
    assert 1 <= found.mask.sum() <= 9
    assert np.abs(found.flux[~found.mask]).max() < 10


def test_decorrelate__errors_of_bad_pixels_mean_nothing():
    """Whatever stands there, in any unit of flux: 1.0 is large beside some errors, small beside others."""
    plain, image_error, template_error = pair(3)
    plain.mask[100:103, 120] = True
    good = ~plain.mask
    found = [
        decorrelate(
            Difference(unit * plain.flux, unit * plain.error, plain.mask, plain.psf),
            broadening(),
            np.where(good, unit * image_error, placeholder),
            np.where(good, unit * template_error, placeholder),
        )
        for unit, placeholder in ((1.0, 1.0), (1e-3, 1.0), (1e4, 1.0), (1.0, np.inf))
    ]
    for other, unit in zip(found[1:], (1e-3, 1e4, 1.0), strict=True):
        assert_allclose(other.error / unit, found[0].error, rtol=1e-9)
        assert_allclose(other.flux / unit, found[0].flux, rtol=1e-9, atol=1e-9)
    near = binary_dilation(plain.mask, iterations=4) & ~found[0].mask
    assert_allclose(found[0].error[near], np.sqrt(2), rtol=0.01)


def test_decorrelate__of_no_good_pixel_has_none():
    plain, image_error, template_error = pair(3, size=60)
    plain.mask[:] = True
    assert decorrelate(plain, broadening(), image_error, template_error).mask.all()


def test_filtered_psf__is_the_convolution_at_any_phase():
    psf, kernel = gaussian_epsf(3.0, 2), np.zeros((3, 3))
    kernel[1, 1], kernel[1, 2] = 0.6, 0.3
    direct = psf.evaluate(0.3, -0.2, 25)[0]
    want = 0.6 * direct + 0.3 * np.roll(direct, 1, axis=1)
    assert_allclose(filtered_psf(psf, kernel).evaluate(0.3, -0.2, 25)[0], want, atol=2e-5)
