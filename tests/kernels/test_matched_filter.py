"""Matched filters: calibrated on noise at every scale, matched to events, the same on tiles."""

import numpy as np
import pytest

from survey.kernels._psf_pass import GaussianPSF
from survey.kernels.matched_filter import event_bank, matched_filter, matched_filter_bank
from survey.kernels.reference import difference_images

SIGMA = 1.1 / 2.3548
SCALES = (2.0, 4.0, 8.0, 16.0)
PSF = GaussianPSF(SIGMA)


def star_field(rng, shape, phase_y, phase_x, density=0.3, brightest=1e5):
    """Noiseless cube (time, y, x) of stars on a sky of 100, all at the phases given."""
    ny, nx = shape
    model = np.full((len(phase_y), ny, nx), 100.0)
    n = int(density * ny * nx)
    flux = np.minimum(100 * rng.pareto(1.2, n), brightest)
    for y, x, f in zip(rng.uniform(5, ny - 6, n), rng.uniform(5, nx - 6, n), flux, strict=True):
        iy, ix = round(y), round(x)
        here = np.s_[:, iy - 3 : iy + 4, ix - 3 : ix + 4]
        py, px = (p[here] if p.ndim == 3 else p[:, None, None] for p in (phase_y, phase_x))
        dy = np.arange(-3, 4)[:, None] + iy - y + py
        dx = np.arange(-3, 4)[None, :] + ix - x + px
        model[here] += f * pixel_profile(dy) * pixel_profile(dx)
    return model


def pixel_profile(d):
    from scipy.special import erf

    return 0.5 * (erf((d + 0.5) / SIGMA / 2**0.5) - erf((d - 0.5) / SIGMA / 2**0.5))


def phases(rng, n_time, shape, rotation=0.0):
    """Random dithers; with a rotation (deg) a field of phases with its sawtooth, 300 px from the axis."""
    py, px = rng.uniform(-0.5, 0.5, (2, n_time))
    if not rotation:
        return py, px
    angle = np.deg2rad(rng.uniform(-rotation, rotation, n_time))[:, None, None]
    y, x = np.mgrid[: shape[0], : shape[1]] - 300.0
    dy, dx = py[:, None, None] + angle * x, px[:, None, None] - angle * y
    return dy - np.rint(dy), dx - np.rint(dx)


def noise_difference(seed, *, n_time=96, shape=(40, 40), rotation=0.0, masked=0.05, stars=True):
    rng = np.random.default_rng(seed)
    py, px = phases(rng, n_time, shape, rotation)
    model = star_field(rng, shape, py, px) if stars else np.full((n_time, *shape), 100.0)
    error = np.sqrt(model)
    flux = model + error * rng.normal(size=model.shape)
    mask = rng.random(model.shape) < masked
    return difference_images(flux, error, mask, py, px, iterations=2), py, px, model


@pytest.mark.parametrize(
    ("rotation", "masked", "irregular"),
    [(0, 0, False), (0, 0.05, False), (0, 0.05, True), (0.3, 0.05, False)],
)
def test_noise_through_the_real_fit_has_unit_variance(rotation, masked, irregular):
    inner = np.s_[:, 4:-4, 4:-4]
    snr = {s: [] for s in SCALES}
    star_snr = {s: [] for s in SCALES}
    for seed in range(2):
        difference, py, px, model = noise_difference(seed, rotation=rotation, masked=masked)
        time = np.sort(np.random.default_rng(seed).uniform(0, 96, 96)) if irregular else None
        places = (py[:, 4::12, 4::12], px[:, 4::12, 4::12]) if rotation else (py, px)
        bank = event_bank(SCALES, *places, spatial_sigma=SIGMA, time=time)
        cube = difference.flux, difference.error, difference.mask
        star = (model.mean(axis=0) > 400)[4:-4, 4:-4]
        for result in matched_filter_bank(*cube, py, px, bank, spatial_sigma=SIGMA):
            snr[result.temporal_sigma].append(result.snr[inner].ravel())
            star_snr[result.temporal_sigma].append(result.snr[inner][:, star].ravel())
    for s in SCALES:
        assert np.concatenate(snr[s]).std() == pytest.approx(1, abs=0.03), s
        assert np.concatenate(star_snr[s]).std() == pytest.approx(1, abs=0.06), s


def test_two_tiles_with_halo_equal_the_whole_image_bit_for_bit():
    rng = np.random.default_rng(1)
    n_time, shape = 40, (40, 90)
    py, px = rng.uniform(-0.5, 0.5, (2, n_time))
    flux = rng.normal(size=(n_time, *shape))
    error = rng.uniform(0.5, 2, flux.shape)
    mask = rng.random(flux.shape) < 0.05
    bank = event_bank([2, 8], py, px, spatial_sigma=SIGMA)

    def search(columns):
        cube = (np.ascontiguousarray(a[:, :, columns]) for a in (flux, error, mask))
        return list(matched_filter_bank(*cube, py, px, bank, spatial_sigma=SIGMA))

    whole, left, right = search(np.s_[:]), search(np.s_[:43]), search(np.s_[39:])
    for w, a, b in zip(whole, left, right, strict=True):
        np.testing.assert_array_equal(w.snr[:, :, :41], a.snr[:, :, :-2])
        np.testing.assert_array_equal(w.snr[:, :, 41:], b.snr[:, :, 2:])


def test_wrong_shapes_are_refused():
    cube = np.zeros((4, 8, 8))
    with pytest.raises(ValueError, match="must be one"):
        matched_filter(cube, cube[:3], cube > 0, temporal_sigma=1, spatial_sigma=1)
    with pytest.raises(ValueError, match="spatial_sigma > 0"):
        matched_filter(cube, cube, cube > 0, temporal_sigma=1)
    with pytest.raises(ValueError, match="temporal_sigma must be positive"):
        event_bank([0.0], np.zeros(4), np.zeros(4), spatial_sigma=1)
