"""What `subtract_sfft` refuses, and what it finds out by itself: cut-off stars, the noise of an image."""

import numpy as np
import pytest

from survey.kernels._sfft_inputs import plateaus
from survey.kernels._sfft_noise import whitening_kernel
from survey.kernels.sfft import subtract_sfft
from survey.simulate.pairs import simulate_pair


@pytest.fixture(scope="module")
def pair():
    return simulate_pair((256, 256), n_stars=300, n_transients=0, seed=2)


@pytest.mark.parametrize("given", [{}, {"image_gain": 1.5, "template_gain": 1.5}])
def test_sfft__images_without_stars_in_common_are_refused(given):
    rng = np.random.default_rng(4)
    image, template = rng.normal(300, 15, (2, 128, 128))
    with pytest.raises(ValueError, match="template's light is not in the image"):
        subtract_sfft(
            image, template, kernel_shape=(5, 5), kernel_poly_order=0, direction="template", **given
        )


def test_sfft__negative_images_are_refused(pair):
    with pytest.raises(ValueError, match="flux scale -"):
        subtract_sfft(600 - pair.image, pair.template, kernel_shape=(5, 5), direction="template")


def test_plateaus__of_cut_off_stars_and_none_else(pair):
    """The brightest star's peak is none; where stars are cut off, all that stand as high are."""
    none = np.zeros(pair.image.shape, bool)
    image = np.where(pair.mask, 0, pair.image)
    assert not plateaus(image, none).any()
    full = np.sort(image, axis=None)[-60]
    cut = np.minimum(image, full)
    np.testing.assert_array_equal(plateaus(cut, none), cut >= full - 0.02 * (full - np.median(cut)))
    # hot pixels above that level do not hide it, nor does a flat galaxy that stars outshine tell one
    hot = cut.copy()
    hot[40::90, 50::90] = full * np.linspace(1.5, 9, 9).reshape(3, 3)
    expected = plateaus(cut, none)
    expected[40::90, 50::90] = True
    np.testing.assert_array_equal(plateaus(hot, none), expected)
    galaxy = image.copy()
    galaxy[100:103, 100:103] = np.sort(image, axis=None)[-100]
    assert not plateaus(galaxy, none).any()
    # those that are known to be bad tell nothing
    assert not plateaus(cut, plateaus(cut, none)).any()


@pytest.mark.parametrize("at", [(0, 0), (0.25, 0.25), (0.5, 0), (0.5, 0.5), (0.3, 0.1)])
def test_plateaus__a_broad_star_is_none(at):
    y, x = np.mgrid[-20:21, -20:21]
    star = 1e4 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / 2 / (11 / 2.355) ** 2)
    wide = np.pad(star, 80)
    assert not plateaus(wide, np.zeros(wide.shape, bool)).any()


def test_sfft__cut_off_stars_do_not_bend_the_flux_scale(pair):
    """Some thirty stars at the detector's limit that no mask knows."""
    kwargs = {"image_gain": pair.gain, "template_gain": pair.template_gain, "direction": "template"}
    image = np.minimum(pair.image, np.sort(pair.image, axis=None)[-300])
    template = np.minimum(pair.template, np.sort(pair.template, axis=None)[-300])
    found = subtract_sfft(image, template, kernel_shape=(11, 11), kernel_poly_order=1, **kwargs)
    assert found.kernel.flux_scale(128, 128) == pytest.approx(0.8, rel=0.01)


def test_sfft__an_image_that_is_convolved_has_its_skys_noise(pair):
    """A sharp noisy image less a broad deep template, nothing else given: errors as with those of the sky."""
    sharp = pair.template + np.random.default_rng(8).normal(0, 30, pair.template.shape)
    given = {"kernel_shape": (7, 7), "kernel_poly_order": 1, "direction": "image"}
    measured = subtract_sfft(sharp, pair.image, **given)
    sky = np.hypot(np.median(pair.template_error), 30), np.median(pair.error)
    known = subtract_sfft(sharp, pair.image, error=np.full(sharp.shape, sky[0]),
                          template_error=np.full(sharp.shape, sky[1]), **given)  # fmt: skip
    assert np.nanmedian(measured.error) == pytest.approx(np.nanmedian(known.error), rel=0.1)
    assert np.nanmedian(measured.error) > 1.1 * sky[1] / 0.8


def test_sfft__one_pass_looks_at_all_of_a_large_image():
    rng = np.random.default_rng(6)
    template = rng.normal(0, 1, (800, 800)) + 100 * (rng.random((800, 800)) > 0.99)
    image = 0.7 * template + rng.normal(0, 0.1, template.shape)
    found = subtract_sfft(
        image, template, error=np.full(image.shape, 0.1), kernel_shape=(1, 1), kernel_poly_order=0,
        flux_poly_order=0, bg_poly_order=0, direction="template", max_iter=1,
    )  # fmt: skip
    weights = template - template.mean()
    exact = (weights * image).sum() / (weights * template).sum()
    assert found.kernel.flux_scale(0, 0) == pytest.approx(exact, abs=1e-9)


def test_sfft__the_whitening_kernel_is_the_middles():
    """A kernel that grows to the right: what is kept is of the cell that holds the middle."""
    pair = simulate_pair((512, 770), n_stars=900, n_transients=0, seed=3)
    given = {
        "error": pair.error, "template_error": pair.template_error, "mask": pair.mask,
        "template_mask": pair.template_mask, "direction": "template", "kernel_shape": (5, 5),
    }  # fmt: skip
    whole = subtract_sfft(pair.image, pair.template, decorrelate=True, **given)
    cell = np.s_[256:512, 256:513]
    good = ~subtract_sfft(pair.image, pair.template, **given).mask[cell]
    variances = (np.median(e[cell][good] ** 2) for e in (pair.error, pair.template_error))
    expected = whitening_kernel(whole.kernel.evaluate((256 + 512) / 2, (256 + 511) / 2), *variances)
    np.testing.assert_allclose(whole.decorrelation, expected, atol=1e-6)
