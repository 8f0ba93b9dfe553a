"""Effective PSFs from a field's own stars against the PSF that made them."""

import logging

import numpy as np
import pytest

from survey.kernels.legendre import design_matrix
from survey.kernels.psf import (
    build_epsf,
    build_epsf_from_reference,
    fit_epsf,
    gaussian_epsf,
    reference_stamps,
    select_psf_stars,
)

TRUTH = gaussian_epsf(1.1, oversampling=12)
SIDE = 13


def flux_bias(psf, truth=TRUTH):
    """Mean and scatter over phases of the relative flux error of a star fitted with `psf`."""
    oy, ox = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 200))
    p, t = psf.evaluate(oy, ox, 11), truth.evaluate(oy, ox, 11)
    ratio = np.sum(p * t, axis=(1, 2)) / np.sum(p * p, axis=(1, 2)) - 1
    return ratio.mean(), ratio.std()


def star_stamps(rng, stars, epochs, density=0.0):
    """Noisy stamps of bright stars, crowded by neighbours of a steep luminosity function."""
    stamps, offsets = [], []
    phases = rng.uniform(-0.5, 0.5, (epochs, 2))
    for _ in range(stars):
        position, flux = rng.uniform(-0.5, 0.5, 2), 10 ** rng.uniform(4, 4.7)
        n = rng.poisson(density * (SIDE + 6) ** 2)
        near = rng.uniform(-SIDE / 2 - 3, SIDE / 2 + 3, (n, 2))
        faint = np.minimum(2.0 * rng.random(n) ** (-1 / 0.7), 0.3 * flux)
        faint[np.hypot(*(near - position).T) < 1.0] *= 0.05
        clean = flux * TRUTH.evaluate(*(position - phases).T, SIDE) + 3.4
        for (y, x), f in zip(near, faint, strict=True):
            clean += f * TRUTH.evaluate(y - phases[:, 0], x - phases[:, 1], SIDE)
        stamps.append(clean)
        offsets.append(position + rng.normal(0, 0.1, 2) - phases)
    clean = np.concatenate(stamps)
    errors = np.sqrt(clean / 146 + 0.01)
    offset = np.concatenate(offsets)
    star = np.repeat(np.arange(stars), epochs)
    return clean + errors * rng.standard_normal(clean.shape), errors, offset[:, 0], offset[:, 1], star


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_isolated_stars_give_their_psf_to_a_thousandth(rng):
    stamps, errors, oy, ox, star = star_stamps(rng, 12, 20)
    mask = rng.random(stamps.shape) < 0.02
    stamps[mask] = np.where(rng.random(mask.sum()) < 0.5, np.nan, 1e7)
    fit = fit_epsf(stamps, errors, mask, oy, ox, star=star, neighbours=0)
    assert fit.converged
    mean, scatter = flux_bias(fit.psf)
    assert abs(mean) < 1e-3
    assert scatter < 1e-3
    sums = fit.psf.evaluate(rng.uniform(-0.5, 0.5, 20), rng.uniform(-0.5, 0.5, 20), fit.psf.size).sum((1, 2))
    np.testing.assert_allclose(sums, 1, atol=1e-12)


def test_crowded_stars_give_fluxes_to_three_thousandths(rng):
    stamps, errors, oy, ox, star = star_stamps(rng, 25, 20, density=0.63)
    psf = build_epsf(stamps, errors, None, oy, ox, star=star)
    mean, scatter = flux_bias(psf)
    assert abs(mean) < 3e-3
    assert scatter < 2e-3
    assert psf.fwhm == pytest.approx(TRUTH.fwhm, rel=0.01)


def test_threads_change_no_bit(rng):
    stamps, errors, oy, ox, star = star_stamps(rng, 8, 12, density=0.63)
    one, three = (
        build_epsf(stamps, errors, None, oy, ox, star=star, iterations=3, threads=n) for n in (1, 3)
    )
    np.testing.assert_array_equal(one.samples, three.samples)


def test_positions_of_the_stars_come_out_centred(rng):
    stamps, errors, oy, ox, star = star_stamps(rng, 12, 20)
    fit = fit_epsf(stamps, errors, None, oy + 0.2, ox - 0.1, star=star, neighbours=0)
    value, slope_y, slope_x = fit.psf.response(0.0, 0.0)
    assert np.hypot(slope_y, slope_x) < 5e-3 * value
    assert np.mean(fit.shift_y) == pytest.approx(-0.2, abs=0.1)


def test_reference_stamps_and_single_stamps_agree(rng):
    shape, stars = (80, 80), 9
    y, x = (a.ravel() + rng.uniform(-0.5, 0.5, stars) for a in np.mgrid[12:70:26, 12:70:26])
    node = (np.arange(5) - 2) / 5
    phase = np.array([(a, b) for a in node for b in node])
    design = design_matrix(phase[:, 0], phase[:, 1], 5, 1.2)
    samples = np.full((25, *shape), 3.4)
    for k in range(25):
        for ys, xs in zip(y, x, strict=True):
            cy, cx = round(ys), round(xs)
            stamp = 1e4 * TRUTH.evaluate(ys - phase[k, 0] - cy, xs - phase[k, 1] - cx, SIDE)[0]
            samples[k, cy - 6 : cy + 7, cx - 6 : cx + 7] += stamp
    theta = np.linalg.solve(design, samples.reshape(25, -1)).T.reshape(*shape, 5, 5)
    stamps, oy, ox, star = reference_stamps(theta, y, x, side=SIDE)
    direct = 1e4 * TRUTH.evaluate(oy, ox, SIDE) + 3.4
    np.testing.assert_allclose(stamps, direct, atol=1e-8 * direct.max())
    assert np.bincount(star).tolist() == [25] * stars
    mean, scatter = flux_bias(build_epsf_from_reference(theta, y, x, noise=0.05, side=SIDE, neighbours=0))
    assert abs(mean) < 1e-3
    assert scatter < 1e-3


def test_stars_at_the_border_have_no_stamp():
    theta = np.zeros((30, 30, 5, 5))
    _, _, _, star = reference_stamps(theta, [2.0, 15.0, 27.0], [15.0, 15.0, 15.0], side=SIDE)
    assert np.unique(star).tolist() == [1]
    assert reference_stamps(theta, [2.0], [2.0], side=SIDE)[0].shape == (0, SIDE, SIDE)


def test_bright_isolated_unsaturated_stars_are_selected():
    y, x = np.array([20, 20, 50, 50, 70, 3, 70]), np.array([20, 22, 50, 52, 20, 50, 70])
    flux = np.array([100, 90, 500, 20, 9e5, 800, 300])
    chosen = select_psf_stars(y, x, flux, (100, 100), flux_range=(50, 1e5))
    assert chosen.tolist() == [2, 6]
    assert select_psf_stars([], [], [], (100, 100)).size == 0


def test_too_few_stars_are_refused(rng):
    stamps, errors, oy, ox, star = star_stamps(rng, 4, 10)
    with pytest.raises(ValueError, match="only 4 of 4 stars"):
        build_epsf(stamps, errors, None, oy, ox, star=star)
    with pytest.raises(ValueError, match="only 0 of 0 stars"):
        build_epsf(stamps[:0], errors[:0], None, oy[:0], ox[:0])


def test_phases_that_leave_the_pixel_unseen_are_refused(rng):
    stamps, errors, _, _, star = star_stamps(rng, 8, 2)
    with pytest.raises(ValueError, match="fall into 1 of 16 cells"):
        build_epsf(stamps, errors, None, np.zeros(16), np.zeros(16), star=star)


def test_a_psf_cut_by_its_stamps_is_reported(rng, caplog):
    wide = gaussian_epsf(5.0, oversampling=4)
    oy, ox = rng.uniform(-0.5, 0.5, (2, 100))
    stamps = 1e4 * wide.evaluate(oy, ox, SIDE)
    with caplog.at_level(logging.WARNING):
        build_epsf(
            stamps,
            np.ones(stamps.shape),
            None,
            oy,
            ox,
            star=np.arange(100) // 10,
            oversampling=2,
            neighbours=0,
        )
    assert "does not fall to zero" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [({"stamps": np.ones((5, 4, 7))}, "want \\(n, side, side\\)"), ({"size": 15}, "15 px cannot be made")],
)
def test_malformed_stamps_are_refused(change, message):
    stamps = change.pop("stamps", np.ones((5, SIDE, SIDE)))
    with pytest.raises(ValueError, match=message):
        build_epsf(stamps, np.ones(stamps.shape), None, np.zeros(5), np.zeros(5), **change)
