"""Matched filters: calibrated on noise at every scale, matched to events, the same on tiles."""

import numpy as np
import pytest
from scipy.special import erf

from survey.kernels._event_model import retained_variance
from survey.kernels._psf_pass import GaussianPSF
from survey.kernels.legendre import design_matrix
from survey.kernels.matched_filter import event_bank, event_centers, matched_filter, matched_filter_bank
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


def noise_difference(seed, *, n_time=96, shape=(64, 64), rotation=0.0, masked=0.05, stars=True):
    rng = np.random.default_rng(seed)
    py, px = phases(rng, n_time, shape, rotation)
    model = star_field(rng, shape, py, px) if stars else np.full((n_time, *shape), 100.0)
    error = np.sqrt(model)
    flux = model + error * rng.normal(size=model.shape)
    mask = rng.random(model.shape) < masked
    return difference_images(flux, error, mask, py, px, iterations=3), py, px, model


@pytest.mark.parametrize(
    ("rotation", "masked", "irregular"),
    [(0, 0, False), (0, 0.05, False), (0, 0.05, True), (0.3, 0.05, False)],
)
def test_noise_through_the_real_fit_has_unit_variance(rotation, masked, irregular):
    inner = np.s_[:, 4:-4, 4:-4]
    snr = {s: [] for s in SCALES}
    star_snr = {s: [] for s in SCALES}
    for seed in range(3):
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
        assert np.concatenate(star_snr[s]).std() == pytest.approx(1, abs=0.04), s


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


def direct_snr(flux, error, mask, phase_y, phase_x, time, sigma, t0, y, x):
    """The statistic written down: sums over a 5 x 5 stamp and all epochs."""
    stamps = PSF.evaluate(-phase_y, -phase_x, 5)
    here = np.s_[:, y - 2 : y + 3, x - 2 : x + 3]
    s = np.exp(-0.5 * ((time - t0) / sigma) ** 2)[:, None, None] * stamps
    w = np.where(mask[here], 0, 1 / error[here] ** 2)
    return (s * w * np.where(mask, 0, flux)[here]).sum() / np.sqrt((s**2 * w).sum())


@pytest.mark.parametrize("field", [False, True])
def test_filter_is_the_sum_written_down(field):
    rng = np.random.default_rng(3)
    shape = (30, 12, 14)
    # Phases on the table's nodes, so that those of fields are exact too.
    py, px = rng.integers(-8, 9, (2, shape[0])) / 16
    flux = 50 * rng.normal(size=shape)
    error = rng.uniform(20, 80, shape)
    mask = rng.random(shape) < 0.1
    flux[mask] = np.nan
    time = np.cumsum(rng.uniform(0.1, 2, shape[0]))
    given = [np.broadcast_to(p[:, None, None], shape).copy() for p in (py, px)] if field else (py, px)
    snr = matched_filter(
        flux, error, mask, temporal_sigma=3, spatial_sigma=SIGMA, phase_y=given[0], phase_x=given[1],
        time=time, n_basis=0, size=5,
    )  # fmt: skip
    for k, y, x in [(4, 5, 6), (20, 2, 2), (29, 9, 11)]:
        expected = direct_snr(flux, error, mask, py, px, time, 3.0, time[k], y, x)
        assert snr[k, y, x] == pytest.approx(expected, rel=2e-3)


def test_retained_variance_is_that_of_the_joint_fit():
    rng = np.random.default_rng(4)
    n = 60
    py, px = rng.uniform(-0.5, 0.5, (2, n))
    v = rng.uniform(0.5, 2, n)
    design = design_matrix(py, px, 5, 1.0)
    hat = design @ np.linalg.solve((design * v[:, None]).T @ design, (design * v[:, None]).T)
    profiles = np.exp(-0.5 * ((np.arange(n) - np.array([[20.0], [45.0]])) / 6) ** 2)
    stamps = PSF.evaluate(-py, -px, 5)
    joint, independent = np.zeros((2, 2))
    for j in range(5):
        for i in range(5):
            s = profiles * stamps[:, j, i]
            joint += np.einsum("ak,k,kl,al->a", s, v, np.eye(n) - hat, s)
            independent += s**2 @ (v * (1 - np.diag(hat)))
    ratio = retained_variance(PSF, py, px, profiles, v, extension=1.0, size=5)
    np.testing.assert_allclose(ratio, joint / independent, rtol=1e-6)


def test_an_event_the_reference_absorbs_is_unknown():
    rng = np.random.default_rng(4)
    py, px = rng.uniform(-0.5, 0.5, (2, 40))
    bank = event_bank([500.0], py, px, spatial_sigma=SIGMA, step=None)
    assert np.isnan(bank.ratio[0]).all()
    few = event_bank([2.0], py[:20], px[:20], spatial_sigma=SIGMA)
    assert np.isnan(few.ratio[0]).all()


def test_fading_is_negative_and_masked_pixels_are_unknown():
    flux = np.zeros((30, 20, 20))
    flux[10:20, 5, 5] = -9
    mask = np.zeros(flux.shape, bool)
    mask[:, 10:, 10:] = True
    snr = matched_filter(flux, np.ones_like(flux), mask, temporal_sigma=3, spatial_sigma=SIGMA, n_basis=0)
    assert np.unravel_index(np.nanargmin(snr), snr.shape)[1:] == (5, 5)
    assert np.nanmin(snr) < -15
    assert np.isnan(snr[:, 13:, 13:]).all()
    assert np.isfinite(snr[:, :8, :8]).all()


def test_a_spike_is_left_out_and_an_event_is_not():
    flux = np.zeros((40, 20, 20))
    flux[10, 5, 5] = 100
    flux[20:30, 14, 14] = 20
    search = {"temporal_sigma": 3, "spatial_sigma": SIGMA, "n_basis": 0}
    cube = flux, np.ones_like(flux), flux > 1e9
    kept, cleaned = matched_filter(*cube, **search), matched_filter(*cube, spike=6.0, **search)
    assert kept[10, 5, 5] > 20
    # What is left are the neighbours' centres, where the ray's own S/N is below the limit.
    assert np.abs(cleaned[:, 2:9, 2:9]).max() < 3
    np.testing.assert_array_equal(kept[:, 12:, 12:], cleaned[:, 12:, 12:])


def test_centres_follow_the_samples_and_leave_gaps_out():
    time = np.r_[np.arange(0, 10, 0.5), np.arange(100, 110, 0.5)]
    bank = event_bank([1.0, 4.0], *np.zeros((2, 40)), spatial_sigma=SIGMA, time=time, n_basis=0)
    short, long = bank.t0
    assert np.allclose(np.diff(short)[:10], 0.5)
    assert np.allclose(np.diff(long)[:4], 2.0)
    assert not ((short > 12) & (short < 98)).any()


def test_wrong_shapes_are_refused():
    cube = np.zeros((4, 8, 8))
    with pytest.raises(ValueError, match="must be one"):
        matched_filter(cube, cube[:3], cube > 0, temporal_sigma=1, spatial_sigma=1)
    with pytest.raises(ValueError, match="spatial_sigma > 0"):
        matched_filter(cube, cube, cube > 0, temporal_sigma=1)
    with pytest.raises(ValueError, match="temporal_sigma must be positive"):
        event_bank([0.0], np.zeros(4), np.zeros(4), spatial_sigma=1)


def test_centres_are_near_samples_whatever_the_gaps():
    time = np.concatenate([np.arange(40) * 0.02, 300 + np.arange(40) * 0.02, [900.0]])
    centers = event_centers(time, 0.1, 0.5)
    near = np.abs(time[None] - centers[:, None]).min(axis=1)
    assert near.max() <= 0.1
    assert len(centers) == pytest.approx(2 * (0.78 + 0.2) / 0.05 + 2, abs=6)
