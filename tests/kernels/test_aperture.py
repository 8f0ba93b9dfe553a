import numpy as np
import pytest
from star_fields import render

from survey.kernels.aperture import aperture_flux, ensemble_light_curve


def test_aperture_flux__recovers_flux_and_error_on_a_sky():
    rng = np.random.default_rng(1)
    flux, error = [], []
    for _ in range(60):
        x, y = 20 + rng.uniform(-0.5, 0.5, 2)
        model = render((41, 41), [x], [y], [5e4], 2.5) + 300
        sigma = np.sqrt(model / 4)
        f, e = aperture_flux(model + rng.normal(size=model.shape) * sigma, sigma, None, x, y, 5.0, (8, 14))
        flux.append(f[0])
        error.append(e[0])
    assert np.mean(flux) == pytest.approx(5e4, rel=2e-3)
    assert np.std(flux) / np.mean(error) == pytest.approx(1, abs=0.25)


def test_aperture_flux__ring_ignores_a_neighbour():
    image = render((60, 60), [30.0, 40.5], [30.0, 30.2], [1e4, 5e3], 2.5) + 50
    image += np.random.default_rng(2).normal(0, 1, image.shape)
    flux, _ = aperture_flux(image, np.ones(image.shape), None, 30.0, 30.0, 4.0, (8, 14))
    assert flux[0] == pytest.approx(1e4, rel=0.02)


def test_aperture_flux__bad_pixels_and_edges_give_nan():
    image = np.ones((40, 40))
    mask = np.zeros(image.shape, bool)
    mask[10, 10] = True
    image[20, 20] = np.nan
    flux, error = aperture_flux(
        image, np.ones(image.shape), mask, [11, 20, 30, 2, np.nan], [11, 20, 30, 30, 5], 3.0
    )
    np.testing.assert_array_equal(np.isfinite(flux), [False, False, True, False, False])
    np.testing.assert_array_equal(np.isfinite(error), np.isfinite(flux))


def test_aperture_flux__refuses_radii_that_shrink():
    with pytest.raises(ValueError, match="grow outwards"):
        aperture_flux(np.ones((9, 9)), np.ones((9, 9)), None, 4, 4, 3.0, (2.0, 5.0))


def night(seed, n_time=120, n_star=25):
    rng = np.random.default_rng(seed)
    level = 10 ** rng.uniform(3.5, 5, n_star)
    level[[0, 3, 4]] = 2e4
    transparency = 1 - 0.1 * np.linspace(0, 1, n_time) ** 2 + 0.02 * rng.normal(size=n_time)
    error = np.sqrt(level + 900.0) * np.ones((n_time, 1))
    truth = np.ones((n_time, n_star))
    truth[40:80, 0] = 0.975
    truth[:, 3] += 0.05 * np.sin(np.arange(n_time) / 7)
    truth[:, 4] += 0.3 * rng.random(n_time)
    flux = truth * transparency[:, None] * level + rng.normal(size=error.shape) * error
    return flux, error, transparency


def test_ensemble_light_curve__transit_comes_out_unbiased_with_honest_errors():
    out = np.ones(120, bool)
    out[38:82] = False
    depth, pulls = [], []
    for seed in range(12):
        flux, error, transparency = night(seed)
        curve = ensemble_light_curve(flux, error, target=0, baseline=out)
        depth.append(1 - np.mean(curve.flux[42:78]))
        pulls.append((curve.flux[out] - 1) / curve.error[out])
        assert not set(curve.comparisons) & {0, 3, 4}
        assert np.corrcoef(curve.ensemble, transparency)[0, 1] > 0.99
    assert np.mean(depth) == pytest.approx(0.025, abs=0.001)
    assert np.std(np.concatenate(pulls)) == pytest.approx(1.0, abs=0.15)


def test_ensemble_light_curve__missing_epochs_of_a_comparison_leave_no_step():
    flux, error, _ = night(3)
    brightest = int(np.argmax(flux[0]))
    whole = ensemble_light_curve(flux, error, target=0)
    flux[:20, brightest] = np.nan
    some = ensemble_light_curve(flux, error, target=0)
    assert abs(np.mean(some.flux[:20]) - np.mean(whole.flux[:20])) < 2e-3
    mask = np.zeros(flux.shape, bool)
    mask[5, 0] = True
    assert np.isnan(ensemble_light_curve(flux, error, target=0, mask=mask).flux[5])


def test_ensemble_light_curve__choice_of_comparison_stars():
    flux, error, _ = night(4)
    curve = ensemble_light_curve(flux, error, target=0, candidates=[1, 2, 5, 6, 7])
    assert set(curve.comparisons) <= {1, 2, 5, 6, 7}
    near = ensemble_light_curve(flux, error, target=0, brightness=(0.5, 2))
    level = np.median(flux, axis=0)
    assert np.all(np.abs(np.log2(level[near.comparisons] / level[0])) <= 1.001)
    color = np.linspace(0, 2.4, 25)
    blue = ensemble_light_curve(flux, error, target=0, color=color, color_range=0.85)
    assert blue.comparisons.max() <= 8
    assert near.weights.sum() == pytest.approx(1)


def test_ensemble_light_curve__needs_comparison_stars():
    flux, error, _ = night(5)
    with pytest.raises(ValueError, match="1 comparison stars, at least 2 needed"):
        ensemble_light_curve(flux, error, target=0, candidates=[1])
    with pytest.raises(ValueError, match="no good epoch"):
        ensemble_light_curve(np.full((5, 3), np.nan), np.ones((5, 3)), target=0)
