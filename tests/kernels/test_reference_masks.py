"""The oversampled reference: samples that stay out of its fit, and pixels without one."""

import numpy as np
import pytest
from crowded_cubes import crowded_cube, pixel_psf

from survey.kernels.reference import difference_images, grow_mask

CORE = (slice(None), slice(3, -3), slice(3, -3))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_bad_samples_are_as_good_as_absent(value):
    cube = crowded_cube(8, 60, brightest=1e3)
    masked = cube.mask.copy()
    masked[7:12, 3, 4] = True
    clean = difference_images(cube.flux, cube.error, masked, cube.phase_y, cube.phase_x)
    flux, error = cube.flux.copy(), cube.error.copy()
    flux[masked] = value
    mask = masked if np.isfinite(value) else None
    poisoned = difference_images(flux, error, mask, cube.phase_y, cube.phase_x)
    np.testing.assert_array_equal(poisoned.flux, clean.flux)
    np.testing.assert_array_equal(poisoned.mask, masked)
    assert np.isnan(poisoned.flux[masked]).all()
    for bad in (0.0, -2.0, np.nan, np.inf):
        error[masked] = bad
        again = difference_images(cube.flux, error, None, cube.phase_y, cube.phase_x)
        np.testing.assert_array_equal(again.flux, clean.flux)


def test_too_few_images_give_a_masked_pixel_and_a_count():
    cube = crowded_cube(8, 60, brightest=1e3)
    cube.mask[:40, 2, 3] = True
    cube.mask[:, 6, 6] = True
    difference = difference_images(*cube.data)
    assert difference.mask[:, 2, 3].all()
    assert difference.reference.n_used[2, 3] == 20
    assert difference.reference.n_used[6, 6] == 0
    assert not difference.reference.valid[2, 3]
    assert np.isnan(difference.reference.evaluate(cube.phase_y, cube.phase_x)[:, 2, 3]).all()
    assert difference.reference.valid.sum() == 62
    lenient = difference_images(*cube.data, min_images=10)
    assert np.isfinite(lenient.flux[40:, 2, 3]).all()
    pull = (lenient.flux / lenient.error)[40:, 2, 3]
    assert np.abs(pull).max() < 6


def test_a_strong_variable_is_not_clipped_away():
    cube = crowded_cube(12, 96, brightest=1e3)
    y, x = np.arange(12) - 5.0, np.arange(12) - 6.0
    star = pixel_psf(y[None, :, None] - cube.phase_y[:, None, None], 1.1)
    star = star * pixel_psf(x[None, None, :] - cube.phase_x[:, None, None], 1.1)
    swing = 4e3 * (1 + np.sin(np.arange(96) * 0.9))
    varied = cube.flux + star * swing[:, None, None]
    data = varied, np.sqrt(cube.error**2 + star * swing[:, None, None]), None, cube.phase_y, cube.phase_x
    kept = difference_images(*data, min_images=80)
    clipped = difference_images(*data, min_images=10)
    assert (clipped.reference.n_used < 80).any()
    assert not kept.mask.any()
    expected = star[:, 5, 6] * (swing - swing.mean())
    slope = np.sum(kept.flux[:, 5, 6] * expected) / np.sum(expected**2)
    assert 0.8 < slope < 1.5
    same = clipped.reference.n_used >= 80
    np.testing.assert_array_equal(kept.flux[:, same], clipped.flux[:, same])


def test_one_image_is_no_reference():
    cube = crowded_cube(6, 1, brightest=1e3)
    difference = difference_images(*cube.data)
    assert difference.mask.all()
    assert (difference.reference.n_used == 1).all()


def test_outliers_leave_the_fit_and_stay_visible():
    cube = crowded_cube(24, 96, brightest=1e3)
    rng = np.random.default_rng(4)
    hit = rng.random(cube.flux.shape) < 3e-3
    struck = cube.flux + np.where(hit, rng.uniform(500, 5000, hit.shape), 0.0)
    difference = difference_images(struck, cube.error, None, cube.phase_y, cube.phase_x)
    assert difference.fit_mask[hit].all()
    assert difference.fit_mask[~hit].mean() < 1e-3
    assert np.median(difference.flux[hit] / (struck - cube.flux)[hit]) == pytest.approx(1.0, abs=0.05)
    pull = (difference.flux / difference.error)[~hit]
    assert pull.std() == pytest.approx(1.0, abs=0.02)
    dips = difference_images(
        2 * cube.truth - struck, cube.error, None, cube.phase_y, cube.phase_x, positive_only=True
    )
    assert not dips.fit_mask[hit].any()


def test_a_held_out_event_keeps_its_flux():
    cube = crowded_cube(11, 96, errors="true", brightest=1e3)
    y, x = (np.arange(11) - 5 + p[:, None] for p in (cube.phase_y, cube.phase_x))
    star = pixel_psf(y, 1.1)[:, :, None] * pixel_psf(x, 1.1)[:, None, :]
    event = np.zeros(96)
    event[30:50] = 4000.0
    held = np.zeros(cube.flux.shape, bool)
    held[30:50, 2:9, 2:9] = True
    flux = cube.flux + event[:, None, None] * star
    free = difference_images(flux, cube.error, None, cube.phase_y, cube.phase_x, fit_mask=held)
    assert free.fit_mask[held].all()

    def amplitude(d):
        return np.sum((d.flux * star / d.error**2)[held]) / np.sum((star**2 / d.error**2)[held])

    assert amplitude(free) == pytest.approx(4000.0, rel=0.02)


def test_growth_spreads_in_the_image_only():
    mask = np.zeros((3, 5, 5), bool)
    mask[1, 2, 2] = True
    grown = grow_mask(mask, 1)
    assert grown.sum() == 5
    assert not grown[[0, 2]].any()
    assert grow_mask(mask, 0) is mask
