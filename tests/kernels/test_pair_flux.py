"""What errors copies of an object in empty places measure, beside the noise map's."""

import logging

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.ndimage import gaussian_filter

from survey.kernels.pair_flux import Difference, copies_scale, empty_places, point_fluxes
from survey.kernels.psf import gaussian_epsf

LOG = logging.getLogger(__name__)
HALF = 7


def noise(blur, seed=0, size=320):
    """A difference of noise alone whose map is right for a pixel; blurred, its pixels are not independent."""
    flux = np.random.default_rng(seed).normal(size=(size, size))
    if blur:
        flux = gaussian_filter(flux, blur)
        flux /= flux.std()
    return Difference(flux, np.ones(flux.shape), np.zeros(flux.shape, bool), gaussian_epsf(3.5, 2))


@pytest.mark.parametrize(("blur", "least", "most"), [(0.0, 0.85, 1.15), (0.7, 1.5, 3.0)])
def test_copies__say_how_far_fluxes_really_scatter(blur, least, most):
    image = noise(blur)
    y, x = empty_places(np.zeros(image.flux.shape), image.error, image.mask, HALF + 1, most=500)
    scale, bias, count = copies_scale(image, y, x, HALF)
    assert count > 400
    assert least < scale < most
    assert abs(bias) < 4 * scale / np.sqrt(count)
    # The same for a source that is there: what is put in comes out with that scatter.
    other, found = noise(blur, seed=1), []
    for row in range(20, 300, 20):
        for column in range(20, 300, 20):
            stamp = other.psf.evaluate(0.0, 0.0, 2 * HALF + 1)[0]
            other.flux[row - HALF : row + HALF + 1, column - HALF : column + HALF + 1] += 50 * stamp
            found.append((row, column))
    flux, error = point_fluxes(other, *np.array(found, float).T, HALF)
    LOG.info("copies %.2f, sources %.2f of the noise map's error", scale, np.std((flux - 50) / error))
    assert_allclose(np.std((flux - 50) / error), scale, rtol=0.2)
    assert_allclose(flux.mean(), 50, atol=4 * flux.std() / np.sqrt(len(flux)))


def test_copies__are_none_where_nothing_is_empty():
    image = noise(0.0, size=64)
    assert copies_scale(image, [20.0], [20.0], HALF)[2] == 1
    assert np.isnan(copies_scale(image, [20.0], [20.0], HALF)[0])
    y, x = empty_places(np.full(image.flux.shape, 9.0), image.error, image.mask, HALF + 1)
    assert len(y) == len(x) == 0
