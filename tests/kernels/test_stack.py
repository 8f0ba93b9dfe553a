"""The stack of placed frames: its noise, its phases, what it leaves out and what it must not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from survey.kernels.stack import MIN_SAMPLES, stack_frames, stack_halo


def gaussian(shape, y, x, fwhm):
    """A star of flux 1 sampled at pixel centres; y, x may be arrays over the image."""
    sigma = fwhm / 2.3548
    yy, xx = np.indices(shape, float)
    return np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)


def stack(flux, error, phase_y=None, phase_x=None, mask=None, fwhm=2.5, **options):
    n = len(flux)
    zeros = np.zeros(n)
    return stack_frames(
        flux,
        np.broadcast_to(error, flux.shape),
        np.zeros(flux.shape, bool) if mask is None else mask,
        zeros if phase_y is None else phase_y,
        zeros if phase_x is None else phase_x,
        **{"weight": np.ones(n), "psf_fwhm": np.full(n, fwhm), **options},
    )


def test_noise_is_that_of_a_weighted_mean():
    rng = np.random.default_rng(1)
    sigma = rng.uniform(1, 3, 40)
    weight = sigma**-2
    phases = rng.uniform(-0.5, 0.5, (2, 40))
    phases -= np.average(phases, axis=1, weights=weight)[:, None]  # then the slopes cost nothing
    error = np.broadcast_to(sigma[:, None, None], (40, 60, 60))
    found = stack(rng.normal(0, error), error, *phases, weight=weight)
    assert np.std(found.flux / found.error) == pytest.approx(1, abs=0.03)
    assert found.error == pytest.approx(weight.sum() ** -0.5)


@given(st.integers(0, 2**31), st.floats(-50, 50), st.floats(-50, 50))
def test_a_plane_over_the_phases_is_read_at_its_middle(seed, slope_y, slope_x):
    rng = np.random.default_rng(seed)
    phase_y, phase_x = rng.uniform(-0.5, 0.5, (2, 30, 4, 4))
    flux = 100 + slope_y * phase_y + slope_x * phase_x
    found = stack(flux, 1.0, phase_y, phase_x, ridge=0.0, clip=np.inf)
    assert found.flux == pytest.approx(100, abs=1e-6)


def test_a_star_does_not_jitter_with_the_phases():
    rng = np.random.default_rng(2)
    phase_y, phase_x = rng.uniform(-0.5, 0.5, (2, 30, 15, 15))
    star = np.stack(
        [gaussian((15, 15), 7 - py, 7 - px, 3.0) for py, px in zip(phase_y, phase_x, strict=True)]
    )
    found = stack(1e4 * star, 1.0, phase_y, phase_x, fwhm=3.0)
    # the phases' variance broadens the PSF: what is compared with is that PSF
    wanted = 1e4 * gaussian((15, 15), 7, 7, np.hypot(3.0, 2.3548 / np.sqrt(12)))
    plain = (1e4 * star).mean(0)
    assert np.abs(found.flux - wanted).max() < 0.02 * wanted.max()
    assert np.abs(found.flux - wanted).max() < 0.3 * np.abs(plain - wanted).max()
    assert not found.spikes.any()


@pytest.mark.parametrize("fwhm", [1.5, 2.5, 4.0])
def test_a_variable_star_is_the_mean_of_its_states(fwhm):
    rng = np.random.default_rng(3)
    n = 20
    state = np.where(np.arange(n) < 4, 6.0, 1.0)  # an outburst by a factor of six in four of twenty frames
    star = 4000 * gaussian((21, 21), 10.3, 9.8, fwhm)
    flux = state[:, None, None] * star + rng.normal(0, 5, (n, 21, 21))
    found = stack(flux, 5.0, fwhm=fwhm)
    assert not found.spikes[:, 8:13, 8:13].any()
    in_star = star > 0.2 * star.max()
    ratio = found.flux[in_star].sum() / star[in_star].sum()
    assert ratio == pytest.approx(state.mean(), rel=0.01)


def test_a_fading_star_stays_too():
    n = 20
    state = np.where(np.arange(n) < 3, 0.2, 1.0)
    star = 4000 * gaussian((21, 21), 10, 10, 2.5)
    found = stack(state[:, None, None] * star, 5.0)
    assert found.flux == pytest.approx(state.mean() * star, abs=1e-6)


def test_cosmic_rays_go_points_and_tracks():
    rng = np.random.default_rng(4)
    flux = rng.normal(0, 5, (20, 30, 30)) + 3000 * gaussian((30, 30), 15, 15, 2.5)
    flux[3, 8, 9] += 900  # beside nothing
    flux[4, 15, 15] += 4000  # in the star's middle
    flux[7, 20:26, 22] += 500  # a track
    found = stack(flux, 5.0)
    assert found.spikes[3, 8, 9]
    assert found.spikes[4, 15, 15]
    assert found.spikes[7, 20:26, 22].all()
    assert found.spikes.sum() < 12
    clean = 3000 * gaussian((30, 30), 15, 15, 2.5)
    assert np.abs(found.flux - clean).max() < 6 * 5 / np.sqrt(20)


def test_a_spike_in_one_frame_of_few_spoils_no_other():
    flux = np.full((3, 9, 9), 10.0)
    flux[1, 4, 4] = 1000.0
    found = stack(flux, 1.0)
    assert found.spikes[:, 4, 4].tolist() == [False, True, False]
    assert found.mask[4, 4], f"two samples are fewer than {MIN_SAMPLES}"
    assert found.mask.sum() == 1


def test_bad_samples_do_not_count():
    flux = np.full((8, 5, 5), 7.0)
    mask = np.zeros(flux.shape, bool)
    mask[:6, 2, 2] = True
    flux[0, 1, 1] = np.nan
    found = stack(flux, 2.0, mask=mask)
    assert found.n_used[2, 2] == 2
    assert np.isnan(found.flux[2, 2])
    assert found.mask[2, 2]
    assert found.n_used[1, 1] == 7
    assert found.flux[1, 1] == pytest.approx(7.0)
    assert found.error[1, 1] == pytest.approx(2 / np.sqrt(7))


def test_phases_all_alike_do_not_extrapolate_noise():
    rng = np.random.default_rng(5)
    phase = 0.4 + rng.uniform(-0.01, 0.01, 20)
    found = stack(rng.normal(0, 1, (20, 40, 40)), 1.0, phase, phase)
    assert np.median(found.error) < 1.1 / np.sqrt(20)


def test_a_tile_with_its_halo_equals_the_whole():
    rng = np.random.default_rng(6)
    flux = rng.normal(0, 1, (12, 40, 40))
    flux[rng.random(flux.shape) < 0.01] += 50
    whole, halo = stack(flux, 1.0), stack_halo()
    part = stack(flux[:, 10 - halo : 30 + halo, 10 - halo : 30 + halo], 1.0)
    inner = (slice(halo, -halo), slice(halo, -halo))
    np.testing.assert_array_equal(part.spikes[(slice(None), *inner)], whole.spikes[:, 10:30, 10:30])
    np.testing.assert_array_equal(part.flux[inner], whole.flux[10:30, 10:30])


def test_no_frames_is_an_error():
    with pytest.raises(ValueError, match="no frames to stack"):
        stack(np.zeros((0, 5, 5)), np.zeros((0, 5, 5)))
