import numpy as np
import pytest
from scipy.spatial import cKDTree
from star_fields import render, star_field

from survey.kernels.pixelmap import PixelMap, fit_pixel_map
from survey.kernels.registration import (
    RegistrationError,
    find_stars,
    held_out_residuals,
    match_stars,
    photometric_scale,
    psf_width,
)
from survey.kernels.stars import StarFlag, StarList


def noisy(rng, image, sky=200.0, gain=2.0, sigma=5.0):
    return image + sky + rng.normal(size=image.shape) * np.sqrt(sigma**2 + image / gain)


def star_list(x, y, flux, position_error=0.02):
    n = len(x)
    one = np.ones(n)
    order = np.argsort(-flux)
    return StarList(
        x[order], y[order], position_error * one, flux[order], one, one, one, one, np.zeros(n, np.int32)
    )


def rotation_map(degrees, dx, dy, center=(150.0, 150.0)):
    a = np.radians(degrees)
    turn = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    constant = np.array([dx, dy]) + center - turn @ center
    return PixelMap(np.column_stack([constant, turn]))


def nearest(stars, x, y):
    return cKDTree(np.column_stack([x, y])).query(np.column_stack([stars.x, stars.y]))


@pytest.mark.parametrize("fwhm", [1.1, 1.8, 2.5, 4.0])
def test_find_stars__centroids_have_no_pixel_phase_error(fwhm):
    rng = np.random.default_rng(1)
    grid = np.arange(12, 250, 24)
    x, y = (a.ravel() + rng.uniform(-0.5, 0.5, len(grid) ** 2) for a in np.meshgrid(grid, grid))
    image = noisy(rng, render((256, 256), x, y, np.full(x.size, 3e4), fwhm))
    stars = find_stars(image)
    distance, which = nearest(stars, x, y)
    assert len(stars) == x.size
    assert distance.max() < 0.05
    assert np.sqrt(np.mean(distance**2)) < 0.015
    assert abs(np.mean(stars.flux / 3e4) - 1) < 0.01
    assert np.median(stars.fwhm) == pytest.approx(fwhm, rel=0.03)
    # Pixel-phase error: the centroid's error must not follow the position within the pixel.
    error_x = stars.x - x[which]
    for phase in (-0.375, -0.125, 0.125, 0.375):
        sample = np.abs((x[which] - np.rint(x[which])) - phase) < 0.125
        assert abs(error_x[sample].mean()) < 0.01


@pytest.mark.parametrize("with_error", [False, True])
def test_find_stars__hot_pixels_and_cosmic_rays_are_no_stars(with_error):
    rng = np.random.default_rng(2)
    x, y, flux = star_field(rng, (200, 200), 40, faintest=3000)
    image = noisy(rng, render((200, 200), x, y, flux, 1.1))
    hot_y, hot_x = rng.integers(5, 195, (2, 60))
    image[hot_y, hot_x] += 5000
    error = np.sqrt(25 + np.maximum(image - 200, 0) / 2) if with_error else None
    stars = find_stars(image, error)
    distance, _ = nearest(stars, x, y)
    false = distance > 1
    assert false.sum() <= 1
    found, _ = cKDTree(np.column_stack([stars.x, stars.y])).query(np.column_stack([x, y]))
    assert (found < 0.3).mean() > 0.8
    kept = find_stars(image, error, keep_sharp=True)
    assert ((kept.flags & StarFlag.SHARP) > 0).sum() > 40


def test_find_stars__works_in_a_crowded_field():
    rng = np.random.default_rng(3)
    shape = (128, 128)
    x, y, flux = star_field(rng, shape, int(0.63 * 128 * 128), faintest=100.0, slope=0.8)
    image = noisy(rng, render(shape, x, y, flux, 1.1, radius=5))
    stars = find_stars(image, max_stars=100)
    bright = flux > 1000
    distance, which = nearest(stars, x[bright], y[bright])
    assert len(stars) == 100
    assert (distance < 0.5).mean() > 0.95
    assert np.median(distance) < 0.05
    assert np.median(np.abs(stars.flux / flux[bright][which] - 1)) < 0.1
    assert psf_width(stars)[0] == pytest.approx(1.1, abs=0.15)


def test_find_stars__flags_saturated_stars_and_masks_bad_pixels():
    rng = np.random.default_rng(4)
    x, y = np.array([30.2, 70.4, 50.0]), np.array([30.3, 40.1, 80.3])
    image = noisy(rng, render((100, 100), x, y, np.array([1e5, 5e3, 8e3]), 2.5))
    image = np.minimum(image, 4095)
    mask = np.zeros(image.shape, bool)
    mask[80, 50] = True
    image[80, 50] = np.nan
    stars = find_stars(image, mask=mask, saturation=4095)
    distance, which = nearest(stars, x, y)
    saturated = (stars.flags & StarFlag.SATURATED) > 0
    assert list(which[saturated]) == [0]
    assert distance[which == 1][0] < 0.05
    assert not (stars.flags[which == 1] & StarFlag.SATURATED).any()


def test_find_stars__empty_image_has_none():
    image = np.random.default_rng(5).normal(100, 5, (64, 64))
    assert len(find_stars(image)) == 0


@pytest.mark.parametrize(("dx", "dy", "rotation"), [(0, 0, 0), (272.3, -63.2, 0.56), (-300.7, 120.1, -1.2)])
def test_match_stars__finds_drift_and_rotation_without_a_guess(dx, dy, rotation):
    rng = np.random.default_rng(6)
    x, y = rng.uniform(-600, 900, (2, 1500))
    flux = 10 ** rng.uniform(2, 5, 1500)
    truth = rotation_map(rotation, dx, dy)
    xd, yd = truth.evaluate(x, y)
    inside_ref = (np.abs(x - 150) < 300) & (np.abs(y - 150) < 250)
    inside = (np.abs(xd - 150) < 300) & (np.abs(yd - 150) < 250)
    reference = star_list(x[inside_ref], y[inside_ref], flux[inside_ref])
    n = inside.sum()
    frame = star_list(
        xd[inside] + rng.normal(0, 0.02, n),
        yd[inside] + rng.normal(0, 0.02, n),
        flux[inside] * 10 ** rng.normal(0, 0.05, n),
    )
    match = match_stars(frame, reference)
    common = (inside & inside_ref).sum()
    assert match.n_matched > 0.97 * common
    assert match.rotation == pytest.approx(rotation, abs=0.005)
    assert match.scale_ratio == pytest.approx(1, abs=1e-4)
    x0, y0 = reference.x[match.reference_index], reference.y[match.reference_index]
    wrong = np.hypot(*np.subtract(match.pixel_map.evaluate(x0, y0), truth.evaluate(x0, y0)))
    assert np.sqrt(np.mean(wrong**2)) < 1.6 * 0.02 * np.sqrt(6 / match.n_matched)
    assert match.held_out_rms == pytest.approx(0.02 * np.sqrt(2), rel=0.25)


def test_match_stars__few_stars_and_interlopers():
    rng = np.random.default_rng(7)
    x, y = rng.uniform(0, 400, (2, 9))
    flux = 10 ** rng.uniform(3, 5, 9)
    truth = rotation_map(0.9, 151.0, -40.0)
    xd, yd = truth.evaluate(x, y)
    junk_x, junk_y = rng.uniform(0, 400, (2, 8))
    frame = star_list(
        np.append(xd[:7], junk_x), np.append(yd[:7], junk_y), np.append(flux[:7], 10 ** rng.uniform(3, 4, 8))
    )
    match = match_stars(frame, star_list(x, y, flux))
    assert match.n_matched == 7
    assert match.rotation == pytest.approx(0.9, abs=0.02)


def test_match_stars__meridian_flip():
    rng = np.random.default_rng(8)
    x, y = rng.uniform(0, 500, (2, 80))
    flux = 10 ** rng.uniform(3, 5, 80)
    truth = rotation_map(179.3, 30.0, 12.0, center=(250.0, 250.0))
    xd, yd = truth.evaluate(x, y)
    match = match_stars(star_list(xd, yd, flux), star_list(x, y, flux), max_rotation=180)
    assert match.n_matched == 80
    assert match.rotation == pytest.approx(179.3, abs=0.01)


def test_match_stars__second_order_map_is_fitted_where_asked():
    rng = np.random.default_rng(9)
    x, y = rng.uniform(0, 600, (2, 200))
    flux = 10 ** rng.uniform(3, 5, 200)
    truth = fit_pixel_map(x, y, x + 10 + 2e-6 * (x - 300) ** 2, y - 4 + 1e-6 * (y - 300) * x, order=2)
    frame = star_list(*truth.evaluate(x, y), flux)
    straight = match_stars(frame, star_list(x, y, flux))
    bent = match_stars(frame, star_list(x, y, flux), order=2)
    assert bent.held_out_rms < 1e-6 < straight.held_out_rms


def test_match_stars__initial_guess_is_enough():
    rng = np.random.default_rng(10)
    x, y = rng.uniform(0, 300, (2, 30))
    flux = 10 ** rng.uniform(3, 5, 30)
    truth = rotation_map(25.0, 5.0, 3.0)
    match = match_stars(
        star_list(*truth.evaluate(x, y), flux), star_list(x, y, flux), initial=rotation_map(25.2, 6.0, 2.0)
    )
    assert match.n_matched == 30


def test_match_stars__unrelated_fields_are_refused():
    rng = np.random.default_rng(11)
    one, other = (star_list(*rng.uniform(0, 500, (2, 150)), 10 ** rng.uniform(3, 5, 150)) for _ in range(2))
    with pytest.raises(RegistrationError, match=r"matched stars.* \(found \d+ of 150 in the frame"):
        match_stars(one, other)


def test_match_stars__names_the_number_of_stars_found():
    rng = np.random.default_rng(12)
    three = star_list(*rng.uniform(0, 500, (2, 3)), np.ones(3))
    with pytest.raises(RegistrationError, match=r"fewer than 6 stars in the frame \(found 3\)"):
        match_stars(three, star_list(*rng.uniform(0, 500, (2, 50)), np.ones(50)))


def test_held_out_residuals__exceed_in_sample_by_the_leverage():
    rng = np.random.default_rng(13)
    ratio = []
    for _ in range(200):
        x, y = rng.uniform(0, 100, (2, 12))
        xd, yd = x + rng.normal(0, 0.1, 12), y + rng.normal(0, 0.1, 12)
        held = held_out_residuals(x, y, xd, yd)
        fitted = fit_pixel_map(x, y, xd, yd)
        own = np.subtract([xd, yd], fitted.evaluate(x, y))
        ratio.append([np.mean(held**2), np.mean(own**2)])
    held_mean, own_mean = np.mean(ratio, axis=0)
    assert own_mean == pytest.approx(0.01 * 9 / 12, rel=0.05)
    assert held_mean > 0.01 * 12 / 9 * 0.95


def test_photometric_scale__is_right_with_variables_and_honest_with_errors():
    rng = np.random.default_rng(14)
    scales, errors = [], []
    for _ in range(200):
        flux = 10 ** rng.uniform(2.5, 5, 60)
        error = np.sqrt(flux + 400)
        true = flux * (1 + (rng.random(60) < 0.08) * rng.uniform(0.2, 2, 60))
        measured = 0.73 * true + rng.normal(size=60) * error
        reference = flux + rng.normal(size=60) * error
        scale, scale_error = photometric_scale(measured, reference, error, error)
        scales.append(scale)
        errors.append(scale_error)
    assert np.mean(scales) == pytest.approx(0.73, abs=0.002)
    assert 0.75 < np.std(scales) / np.mean(errors) < 1.35


def test_photometric_scale__needs_stars():
    with pytest.raises(RegistrationError, match="found 1"):
        photometric_scale([1.0, np.nan], [1.0, 1.0], [0.1, 0.1], [0.1, 0.1])
