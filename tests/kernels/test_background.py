import numpy as np
import pytest
from star_fields import render, star_field

from survey.kernels.background import clipped_statistics, measure_background, noise_model


def test_clipped_statistics__digitised_sky_is_known_better_than_a_count():
    rng = np.random.default_rng(1)
    level, rms = clipped_statistics(np.rint(rng.normal(350.3, 1.1, 20000)))
    assert level == pytest.approx(350.3, abs=0.05)
    assert rms == pytest.approx(np.hypot(1.1, 12**-0.5), rel=0.05)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_measure_background__ignores_stars_and_bad_pixels(order):
    rng = np.random.default_rng(2)
    shape = (192, 256)
    x, y, flux = star_field(rng, shape, 400, faintest=200)
    image = 100 + render(shape, x, y, flux, 2.5) + rng.normal(0, 4, shape)
    mask = np.zeros(shape, bool)
    mask[:20] = True
    image[:20] = 0
    image[50, 60] = np.nan
    sky = measure_background(image, mask, order=order)
    assert sky.level == pytest.approx(100, abs=0.5)
    assert sky.rms == pytest.approx(4, rel=0.1)
    assert sky.order == order


def test_measure_background__follows_a_gradient():
    rng = np.random.default_rng(3)
    y, x = np.indices((200, 200))
    truth = 500 + 0.1 * x - 0.05 * y + 0.0005 * (x - 100) ** 2
    sky = measure_background(truth + rng.normal(0, 3, truth.shape), order=2, mesh=32)
    assert np.abs(sky.surface() - truth).max() < 1.5
    assert sky.evaluate(10.0, 20.0) == pytest.approx(sky.surface()[20, 10])
    assert sky.level == pytest.approx(truth[100, 100], abs=0.5)


def test_measure_background__crowded_level_is_near_the_sky_not_the_mean():
    rng = np.random.default_rng(4)
    shape = (128, 128)
    x, y, flux = star_field(rng, shape, int(0.63 * 128 * 128), faintest=20.0, slope=0.8)
    stars = render(shape, x, y, flux, 1.1, radius=5)
    sky = measure_background(100 + stars + rng.normal(0, 5, shape))
    assert 100 < sky.level < 100 + 0.4 * stars.mean()


def test_measure_background__small_images_lower_the_order():
    sky = measure_background(np.random.default_rng(5).normal(10, 1, (40, 40)), order=2)
    assert sky.order == 0
    assert sky.n_meshes == 1


def test_measure_background__refuses_a_fully_masked_image():
    with pytest.raises(ValueError, match="all is masked"):
        measure_background(np.full((50, 50), np.nan))
    with pytest.raises(ValueError, match="order 3"):
        measure_background(np.zeros((50, 50)), order=3)


def test_noise_model__equals_the_formula():
    sky = measure_background(np.random.default_rng(6).normal(100, 3, (64, 64)))
    error = noise_model(np.array([[90.0, 100.0, 500.0]]), sky, gain=4.0)
    expected = np.sqrt(sky.rms**2 + np.maximum(np.array([90.0, 100.0, 500.0]) - sky.level, 0) / 4)
    np.testing.assert_allclose(error[0], expected)
    plain = noise_model(np.full((1, 1), 300.0), 100.0, gain=2.0, read_noise=6.0)
    assert plain[0, 0] == pytest.approx(np.sqrt(9 + 50 + 100))
    with pytest.raises(ValueError, match="not positive"):
        noise_model(np.zeros((2, 2)), sky, gain=0.0)
    with pytest.raises(ValueError, match="read_noise"):
        noise_model(np.zeros((2, 2)), 5.0, gain=1.0)
