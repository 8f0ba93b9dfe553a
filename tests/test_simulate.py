"""The simulator against analytic truth: light, noise, geometry, light curves."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.polynomial.legendre import legvander
from scipy.special import erf

from survey import simulate
from survey.simulate import (
    DEAD,
    DO_NOT_USE,
    HOT,
    JUMP_DET,
    SATURATED,
    ArrayPSF,
    GaussianPSF,
    LuminosityFunction,
    RomanLikePSF,
    SceneSettings,
    expose,
    magnification,
    make_scene,
    simulate_cube,
)
from survey.simulate.events import rr_lyrae


def scene_of(shape=(64, 64), n_frames=4, seed=1, **settings):
    return make_scene(shape, n_frames, seed=seed, settings=SceneSettings(**settings))


# Light


@pytest.mark.parametrize("psf", [GaussianPSF(1.1), GaussianPSF(2.5), RomanLikePSF(1.1)])
def test_stamp_holds_all_the_flux_at_any_phase(psf):
    table = psf.table()
    offsets = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2))
    sums = [table.stamp(dy, dx).sum() for dy, dx in offsets]
    np.testing.assert_allclose(sums, 1, atol=2e-7)


def test_gaussian_is_integrated_over_the_pixel():
    sigma, (dy, dx) = 1.1 / 2.3548200450309493, (0.31237, -0.2)
    stamp = GaussianPSF(1.1).table().stamp(dy, dx)
    pixels = np.arange(-3, 4)

    def profile(offset):
        edges = (np.append(pixels, 4) - 0.5 - offset) / (np.sqrt(2) * sigma)
        return np.diff(erf(edges)) / 2

    np.testing.assert_allclose(stamp, np.outer(profile(dy), profile(dx)), atol=4e-7)


def test_roman_like_psf_does_not_depend_on_its_sampling():
    coarse, fine = RomanLikePSF(1.1).table(), RomanLikePSF(1.1, oversampling=45).table()
    for dy, dx in [(0.0, 0.0), (0.5, -0.21), (-0.37, 0.11)]:
        np.testing.assert_allclose(coarse.stamp(dy, dx), fine.stamp(dy, dx), atol=1e-5)


def test_array_psf_reproduces_its_own_samples():
    psf = RomanLikePSF(1.1)
    values, o = psf.values(), psf.oversampling
    stamp = ArrayPSF(values, o).table().stamp(-2 / o, 5 / o)
    half, r = values.shape[0] // 2, (stamp.shape[0] - 1) // 2
    rows = half + np.arange(-r, r + 1) * o
    np.testing.assert_allclose(stamp, values[np.ix_(rows + 2, rows - 5)], atol=1e-6)


def test_frame_holds_the_flux_of_its_stars():
    scene = scene_of((64, 64), dither=0.0, background=0.0)
    y, x = scene.stars.positions()
    inside = (abs(y - 31.5) < 40) & (abs(x - 31.5) < 40)
    image = scene.noiseless(0, border=12)
    # Stars within a stamp of the border's edge lose light over it: they are counted on neither side.
    edge = (abs(y - 31.5) < 47) & (abs(x - 31.5) < 47)
    assert scene.stars.flux[inside].sum() <= image.sum() * (1 + 1e-6)
    assert image.sum() <= scene.stars.flux[edge].sum() * (1 + 1e-6)


@pytest.mark.parametrize(("rotation", "tolerance"), [(0.0, 1e-6), (0.3, 3e-3)])
def test_cube_samples_are_taken_at_their_phases(rotation, tolerance):
    cube = simulate_cube((40, 40), 3, seed=2, density=0.05, rotation=rotation, background=0.0)
    ys, xs = cube.scene.stars.positions()
    k, rows = 1, np.arange(40)
    phase_y = np.broadcast_to(cube.phase_y[k], (40, 40))
    phase_x = np.broadcast_to(cube.phase_x[k], (40, 40))
    expected = np.zeros((40, 40))
    sigma = 1.1 / 2.3548200450309493
    for y0, x0, flux in zip(ys, xs, cube.scene.stars.flux, strict=True):
        dy, dx = rows[:, None] + phase_y - y0, rows + phase_x - x0
        profile = [
            (erf((d + 0.5) / (2**0.5 * sigma)) - erf((d - 0.5) / (2**0.5 * sigma))) / 2 for d in (dy, dx)
        ]
        expected += flux * profile[0] * profile[1]
    peak = expected.max()
    np.testing.assert_allclose(cube.noiseless[k], expected, atol=tolerance * peak)
    assert abs(cube.phase_y).max() <= 0.5 + 0.01 * rotation


def test_samples_are_smooth_in_phase_far_below_the_noise():
    # What interpolation or cut stamps would leave is rough in phase: no polynomial follows it.
    cube = simulate_cube((12, 12), 192, seed=1)
    rows = legvander(cube.phase_y * 2 / 1.2, 8)[:, :, None] * legvander(cube.phase_x * 2 / 1.2, 8)[:, None]
    design = rows.reshape(192, -1)
    samples = cube.noiseless.reshape(192, -1)
    model = design @ np.linalg.lstsq(design, samples, rcond=None)[0]
    assert np.max(abs(samples - model) / cube.true_error.reshape(192, -1)) < 0.01


def test_psf_variation_changes_the_width_of_frames():
    scene = scene_of(psf_variation=0.1)
    widths = [scene.pointing(k).width for k in range(200)]
    assert np.std(widths) == pytest.approx(0.1, rel=0.2)
    with pytest.raises(ValueError, match="psf_variation=0"):
        scene_of(psf=ArrayPSF(np.eye(31), 5), psf_variation=0.1).noiseless(0)


# Stars


def test_luminosity_function_follows_its_slopes():
    m = LuminosityFunction().magnitudes(np.linspace(0, 1, 100001)[:-1])
    assert m.min() == pytest.approx(15)
    assert m.max() == pytest.approx(28.5, abs=1e-3)
    n, edges = np.histogram(m, [16, 17, 19, 20, 22, 24, 26, 28])
    per_magnitude = np.log10(n / np.diff(edges))
    assert per_magnitude[5] - per_magnitude[4] == pytest.approx(0.34, abs=0.01)
    assert per_magnitude[1] - per_magnitude[0] == pytest.approx(0.45, abs=0.06)


def test_stars_are_as_dense_as_asked():
    scene = scene_of((128, 128), density=0.63)
    y, x = scene.stars.positions()
    inside = np.sum((abs(y - 63.5) < 64) & (abs(x - 63.5) < 64))
    assert inside == pytest.approx(0.63 * 128**2, abs=4 * np.sqrt(0.63) * 128)


def test_larger_field_has_the_same_stars():
    small = make_scene((50, 70), 1, seed=9, settings=SceneSettings())
    large = make_scene((90, 130), 1, seed=9, settings=SceneSettings())
    np.testing.assert_array_equal(small.noiseless(0)[:40, :60], large.noiseless(0)[:40, :60])


# Noise


def test_noise_matches_the_true_error():
    cube = simulate_cube((48, 48), 24, seed=3)
    pull = (cube.flux - cube.noiseless) / cube.true_error
    assert pull.mean() == pytest.approx(0, abs=4 / np.sqrt(pull.size))
    assert pull.std() == pytest.approx(1, abs=4 / np.sqrt(2 * pull.size))
    assert np.mean(cube.error**2 / cube.true_error**2) == pytest.approx(1, abs=0.002)


def test_frame_is_the_same_whatever_the_number_of_frames():
    few, many = simulate_cube((40, 32), 3, seed=5), simulate_cube((40, 32), 6, seed=5)
    np.testing.assert_array_equal(few.flux, many.flux[:3])
    np.testing.assert_array_equal(few.phase_x, many.phase_x[:3])
    assert not np.array_equal(few.flux, simulate_cube((40, 32), 3, seed=6).flux)


def test_saturated_pixels_are_clipped_and_flagged():
    exposure = expose(scene_of(saturation=300.0), 1)
    full = exposure.dq & SATURATED > 0
    assert full.any()
    assert exposure.flux.max() == pytest.approx(300)
    np.testing.assert_array_equal(full, exposure.flux >= 300 * (1 - 1e-9))
    assert np.all(exposure.dq[full] & DO_NOT_USE)
    assert np.all(exposure.noiseless[~full] < 320)


def test_cosmic_rays_are_rare_sharp_and_partly_flagged():
    scene = scene_of((256, 256), 2, density=0.0, cosmic_rays=1e-3, cosmic_rays_flagged=0.5)
    exposure = expose(scene, 0)
    flagged = exposure.dq & JUMP_DET > 0
    assert 40 < exposure.cosmic_rays.sum() < 400
    assert 0.3 < flagged.sum() / exposure.cosmic_rays.sum() < 0.7
    assert not np.any(flagged & ~exposure.cosmic_rays)
    excess = (exposure.flux - exposure.noiseless) / simulate.true_error(scene, exposure.noiseless)
    assert np.median(excess[exposure.cosmic_rays]) > 10
    assert excess[~exposure.cosmic_rays].max() < 6
    assert not np.array_equal(exposure.cosmic_rays, expose(scene, 1).cosmic_rays)


def test_bad_pixels_stay_where_they_are():
    scene = scene_of((128, 128), 2, bad_pixels=0.01)
    first, second = expose(scene, 0), expose(scene, 1)
    np.testing.assert_array_equal(first.dq, second.dq)
    dead, hot = first.dq & DEAD > 0, first.dq & HOT > 0
    assert dead.sum() + hot.sum() == pytest.approx(0.01 * 128**2, rel=0.3)
    assert np.all(first.dq[dead | hot] & DO_NOT_USE)
    assert abs(first.flux[dead].mean()) < 0.1
    assert np.median(first.flux[hot] - first.noiseless[hot]) > 30


def test_flat_error_is_the_same_in_every_frame():
    scene = scene_of((64, 64), 40, flat_error=0.05, density=0.0, background=1000.0, dither=0.5)
    mean = np.mean([expose(scene, k).flux for k in range(10)], axis=0)
    assert mean.std() / mean.mean() == pytest.approx(0.05, rel=0.1)


# Events


def test_magnification_at_the_einstein_radius():
    assert magnification(1.0) == pytest.approx(3 / np.sqrt(5))
    assert magnification(0.01) == pytest.approx(100, rel=1e-3)


def test_frames_show_the_analytic_light_curve():
    cube = simulate_cube((48, 48), 40, seed=8, density=0.0, events=1, psf_fwhm=2.0)
    (event,) = cube.truth
    u = np.hypot(event["u0"], (cube.time - event["t0"]) / event["tE"])
    flux = event["flux"] * (u**2 + 2) / (u * np.sqrt(u**2 + 4))
    np.testing.assert_allclose((cube.noiseless - 3.4).sum(axis=(1, 2)), flux, rtol=1e-5)
    np.testing.assert_allclose(cube.light_curve(0), flux - event["flux"], rtol=1e-9)
    above_half = np.sum(cube.light_curve(0) > event["peak_difference_flux"] / 2)
    assert above_half == pytest.approx(event["duration"] / cube.scene.cadence, abs=1.01)


def test_events_span_the_asked_snr_and_an_optimal_estimate_reaches_it():
    cube = simulate_cube((128, 128), 40, seed=8, events=8, event_snr=(20.0, 100.0))
    assert np.all((cube.truth["snr"] > 19.9) & (cube.truth["snr"] < 100.1))
    psf = cube.scene.settings.psf_fwhm
    pulls = []
    for i, event in enumerate(cube.truth):
        y, x = event["y"] + 0 * cube.time, event["x"] + 0 * cube.time
        rows, columns = round(event["y"]) + np.arange(-4, 5), round(event["x"]) + np.arange(-4, 5)
        window = np.ix_(np.arange(40), rows, columns)
        profile = (
            psf_cube(psf, rows, y, cube.phase_y)[:, :, None]
            * psf_cube(psf, columns, x, cube.phase_x)[:, None]
        )
        weight = profile / cube.true_error[window] ** 2
        w = np.sum(weight * profile, axis=(1, 2))
        excess = cube.light_curve(i)[:, None, None] * profile
        flux = np.sum(weight * (cube.flux[window] - cube.noiseless[window] + excess), axis=(1, 2)) / w
        shape = cube.light_curve(i) - np.average(cube.light_curve(i), weights=w)
        amplitude, snr = np.sum(w * shape * flux) / np.sum(w * shape**2), np.sqrt(np.sum(w * shape**2))
        # The local level is that of frame 0's phase; other phases differ a little.
        assert snr == pytest.approx(event["snr"], rel=0.15)
        pulls.append((amplitude - 1) * snr)
    assert np.max(np.abs(pulls)) < 4


def psf_cube(fwhm, pixels, position, phase):
    sigma = fwhm / 2.3548200450309493
    d = pixels + phase[:, None] - position[:, None]
    return (erf((d + 0.5) / (2**0.5 * sigma)) - erf((d - 0.5) / (2**0.5 * sigma))) / 2


def test_variables_oscillate_about_their_mean():
    scene = scene_of((96, 96), 200, variables=2)
    sine, rr = scene.light_curve(0), scene.light_curve(1)
    assert list(scene.sources["kind"]) == ["sinusoid", "rrlyrae"]
    for curve, row in zip((sine, rr), scene.sources, strict=True):
        assert np.ptp(curve) <= 2.001 * row["amplitude"] * row["flux"]
        assert np.ptp(curve) > 0.7 * row["amplitude"] * row["flux"]


def test_rr_lyrae_rises_faster_than_it_fades():
    curve = rr_lyrae(np.linspace(0, 1, 401))
    assert curve[:-1].mean() == pytest.approx(0, abs=1e-6)
    assert np.ptp(curve) == pytest.approx(1, abs=0.01)
    assert np.mean(np.diff(curve) > 0) < 0.4


def test_moving_body_is_where_its_velocity_takes_it():
    scene = scene_of((64, 64), 30, density=0.0, background=0.0, moving=1, psf_fwhm=2.0)
    (row,) = scene.sources
    k = int(np.argmin(abs(scene.time - row["t0"])))
    image, pixel_map = scene.noiseless(k), scene.pixel_map(k)
    y, x = np.indices(image.shape)
    elapsed = scene.time[k] - row["t0"]
    xd, yd = pixel_map.evaluate(row["x"] + row["vx"] * elapsed, row["y"] + row["vy"] * elapsed)
    assert np.sum(x * image) / image.sum() == pytest.approx(xd, abs=1e-3)
    assert np.sum(y * image) / image.sum() == pytest.approx(yd, abs=1e-3)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"psf": "airy"}, "unknown PSF 'airy'"), ({"density": -1.0}, "must not be negative")],
)
def test_senseless_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        simulate_cube((16, 16), 2, seed=1, **settings)
    with pytest.raises(ValueError, match="no room for 300 events"):
        simulate_cube((32, 32), 8, seed=1, events=300)
    with pytest.raises(TypeError, match="densty"):
        simulate_cube((16, 16), 2, seed=1, densty=1.0)


def test_settings_can_be_changed_frame_conditions_follow():
    scene = scene_of(n_frames=300, scale_variation=0.05, background_variation=0.1)
    pointings = [scene.pointing(k) for k in range(300)]
    assert np.std([p.scale for p in pointings]) == pytest.approx(0.05, rel=0.15)
    assert np.std([p.background for p in pointings]) == pytest.approx(0.34, rel=0.15)
    clear = replace(scene, settings=replace(scene.settings, scale_variation=0.0))
    assert clear.pointing(3).scale == 1
