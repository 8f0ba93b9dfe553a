"""Subtraction of simulated pairs: built noise, precision, direction, decorrelation, sums over tiles."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from survey.kernels._sfft_fit import KernelModel
from survey.kernels._sfft_inputs import autocorrelation_width
from survey.kernels._sfft_pass import Scene, sweep
from survey.kernels._sfft_samples import ShiftedSamples, block_side
from survey.kernels._sfft_solve import add_sums
from survey.kernels.sfft import subtract_sfft
from survey.simulate.pairs import simulate_pair
from tests.kernels.pair_quality import measure


@pytest.fixture(scope="module")
def simulated():
    return simulate_pair((320, 384), n_stars=400, n_transients=6, seed=3)


def of_pair(pair, **kwargs):
    options = {
        "mask": pair.mask, "template_mask": pair.template_mask, "image_gain": pair.gain,
        "template_gain": pair.template_gain, "kernel_shape": (11, 11),
    }  # fmt: skip
    return subtract_sfft(pair.image, pair.template, **(options | kwargs))


def test_sfft__simulated_pair_with_built_noise(simulated):
    """Noise from the gains alone: chi2 in star pixels, transients' fluxes, no false alarms."""
    s = of_pair(simulated)
    q = measure(simulated, s)
    assert 0.9 < q.chi2_star < 1.1
    assert q.found == q.bright > 3
    assert abs(np.median(s.error[~s.mask] / simulated.error[~s.mask]) - 1) < 0.08
    assert np.abs((q.ratio - 1) / q.ratio_error).max() < 4


def test_sfft__float32_agrees_with_float64(simulated):
    double = of_pair(simulated)
    args = (simulated.image.astype(np.float32), simulated.template.astype(np.float32))
    single = subtract_sfft(
        *args, mask=simulated.mask, template_mask=simulated.template_mask, image_gain=simulated.gain,
        template_gain=simulated.template_gain, kernel_shape=(11, 11),
    )  # fmt: skip
    assert single.difference.dtype == np.float32
    good = ~double.mask
    np.testing.assert_array_equal(single.mask, double.mask)
    assert np.abs(single.scaled - double.scaled)[good].max() < 0.05


def test_sfft__the_narrower_psf_is_convolved(simulated):
    """Image and template swapped: the same pair, the other direction, fluxes in the image's units."""
    forward = of_pair(simulated)
    assert forward.direction == "template"
    back = subtract_sfft(
        simulated.template, simulated.image, mask=simulated.template_mask, template_mask=simulated.mask,
        image_gain=simulated.template_gain, template_gain=simulated.gain, kernel_shape=(11, 11),
    )  # fmt: skip
    assert back.direction == "image"
    good = ~forward.mask & ~back.mask
    assert_allclose(back.scaled[good], -forward.scaled[good], atol=0.05)
    scale = forward.kernel.flux_scale(192, 160)
    assert_allclose(scale, 0.8, rtol=6e-3)  # 11 pixels do not hold all of the wings
    assert_allclose(
        back.difference[good] * scale,
        -forward.difference[good],
        atol=0.1 * np.median(forward.error[good]),
        rtol=0.005,
    )
    forced = of_pair(simulated, direction="image", kernel_shape=(7, 7))
    assert forced.direction == "image"
    with pytest.raises(ValueError, match="direction 'both'"):
        of_pair(simulated, direction="both")


def test_sfft__widths_do_not_see_the_sky_s_gradient():
    """Few stars on a sky that rises by a thousand counts: the widths are the stars'."""
    rng, (y, x) = np.random.default_rng(0), np.indices((256, 256))
    none = np.zeros((256, 256), bool)
    for fwhm in (2.5, 4.0):
        image = rng.normal(0, 3, (256, 256))
        for cy, cx, flux in zip(*rng.uniform(20, 236, (2, 30)), 10 ** rng.uniform(3, 4.5, 30), strict=True):
            image += flux * 0.11 * (2.355 / fwhm) ** 2 * np.exp(
                -2.77 * ((y - cy) ** 2 + (x - cx) ** 2) / fwhm**2
            )  # fmt: skip
        flat, tilted = (autocorrelation_width(image + slope * x, none) for slope in (0.0, 4.0))
        assert flat == pytest.approx(fwhm / 2.355, rel=0.05)
        assert tilted == pytest.approx(flat, rel=0.02)


def test_sfft__decorrelated_noise_is_white():
    """A noisy template correlates neighbouring pixels of the difference; whitened they are not."""
    pair = simulate_pair(
        (256, 256), n_stars=300, n_transients=0, image_fwhm=(3.0, 3.0), template_gain=1.0, seed=5
    )
    options = {"kernel_poly_order": 0, "flux_poly_order": 0, "error": pair.error}

    def correlation(s):
        z = np.where(s.mask, 0, np.clip(s.scaled, -4, 4))
        return (z[:, 1:] * z[:, :-1]).mean() / (z**2).mean(), z[~s.mask].std()

    plain, white = of_pair(pair, **options), of_pair(pair, decorrelate=True, **options)
    assert correlation(plain)[0] > 0.05
    assert abs(correlation(white)[0]) < 0.015
    assert abs(correlation(white)[1] - 1) < 0.03
    assert white.decorrelation.sum() == pytest.approx(1)


def test_sfft__only_the_stars_given_enter_the_fit(simulated):
    bright = simulated.stars[simulated.stars[:, 2] > 3000, :2]
    s = of_pair(simulated, stars=bright, star_radius=9)
    y, x = np.indices(s.mask.shape)
    distance = np.min(np.hypot(y[..., None] - bright[:, 0], x[..., None] - bright[:, 1]), axis=-1)
    np.testing.assert_array_equal(s.fit_mask[distance > 9], True)
    assert 0.85 < measure(simulated, s).chi2_star < 1.2


def test_sweep__sums_of_tiles_are_those_of_the_field(simulated):
    """Normal equations of tiles, each with the reach of the kernel around it, add to the whole image's."""
    image, template = simulated.image - 300, simulated.template - 150
    model = KernelModel((5, 5), 1, 0, 1, image.shape)
    excluded = simulated.mask.copy()
    excluded[:2], excluded[-2:], excluded[:, :2], excluded[:, -2:] = True, True, True, True
    whole = sweep(model, ShiftedSamples(template, (5, 5)), Scene(image, simulated.error**2, excluded), None)
    side, parts = block_side(image.shape), []
    for y0 in (0, 160):
        for x0 in (0, 192):
            window = (slice(max(y0 - 2, 0), y0 + 162), slice(max(x0 - 2, 0), x0 + 194))
            top, left = y0 - window[0].start, x0 - window[1].start
            core = np.ones(image[window].shape, bool)
            core[top : top + 160, left : left + 192] = False
            parts.append(
                sweep(
                    model, ShiftedSamples(template[window], (5, 5)),
                    Scene(image[window], simulated.error[window] ** 2, excluded[window] | core,
                          origin=(window[0].start, window[1].start)), None,
                    corners=[(top + y, left + x) for y in range(0, 160, side) for x in range(0, 192, side)],
                )
            )  # fmt: skip
    total = add_sums(parts)
    assert total.pixels == whole.pixels
    assert_allclose(total.matrix, whole.matrix, rtol=1e-9, atol=1e-9 * np.abs(whole.matrix).max())
    assert_allclose(total.gradient, whole.gradient, rtol=1e-9, atol=1e-9 * np.abs(whole.gradient).max())


def moved_pair(n, kernel_noise, seed=0, shape=(160, 160)):
    """Stars of 0.8 of their flux, a template that lies (0.4, 0.3) pixels off, and the errors of both."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape, dtype=float)
    image, template = np.zeros(shape), np.zeros(shape)
    for a, b, flux in zip(*rng.uniform(5, 155, (2, n)), 10 ** rng.uniform(3, 4.6, n), strict=True):
        for plane, scale, sigma, (dy, dx) in ((template, 1.0, 1.2, (0, 0)), (image, 0.8, 1.6, (0.4, 0.3))):
            r2 = (y + dy - a) ** 2 + (x + dx - b) ** 2
            plane += scale * flux / (2 * np.pi * sigma**2) * np.exp(-r2 / 2 / sigma**2)
    errors = np.sqrt(225 + image), np.sqrt(kernel_noise**2 + template)
    image += errors[0] * rng.normal(size=shape)
    template += errors[1] * rng.normal(size=shape)
    return image, template, *errors


def test_sfft__noise_of_a_template_at_phases_hardly_draws_the_flux_scale():
    """A template as noisy as the image, 24 stars: 2.3 % off where bare sky was fitted along."""
    scales = []
    for seed in range(3):
        image, template, error, template_error = moved_pair(24, 15.0, seed)
        s = subtract_sfft(
            image, template, error=error, template_error=template_error, phase_y=0.4, phase_x=0.3,
            kernel_shape=(9, 9), kernel_poly_order=0, flux_poly_order=0, bg_poly_order=0,
        )  # fmt: skip
        scales.append(float(s.kernel.flux_scale(80, 80)))
    assert np.mean(scales) == pytest.approx(0.8, rel=0.011)


def test_sfft__a_masked_core_does_not_ring_at_phases():
    image, template, error, _ = moved_pair(40, 0.1, shape=(120, 120))
    y, x = np.indices(image.shape, dtype=float)
    r2 = (y - 60) ** 2 + (x - 60) ** 2
    r2_moved = (y + 0.4 - 60) ** 2 + (x + 0.3 - 60) ** 2
    template += 2e6 / (2 * np.pi * 1.3**2) * np.exp(-r2 / 2 / 1.3**2)
    star = 2e6 / (2 * np.pi * 1.45**2) * np.exp(-r2_moved / 2 / 1.45**2)
    error = np.hypot(error, np.sqrt(star))
    rng = np.random.default_rng(2)
    core = template > 4e4
    s = subtract_sfft(
        image + star + np.sqrt(star) * rng.normal(size=image.shape), np.where(core, 4e4, template),
        template_mask=core, error=error, phase_y=0.4, phase_x=0.3, kernel_shape=(3, 3), kernel_poly_order=0,
        flux_poly_order=0,
    )  # fmt: skip
    near = ~s.mask & (r2 < 13**2)
    assert np.nanmean(s.scaled[near] ** 2) < 2.2
