"""The oversampled reference: against the plain version, against truth, and at its edges."""

import numpy as np
import plain_reference as plain
import pytest
from crowded_cubes import crowded_cube, pixel_psf

from survey.kernels.reference import difference_images, fit_reference, halo, refine_offsets
from survey.simulate import simulate_cube

CORE = (slice(None), slice(3, -3), slice(3, -3))


def dirty_cube(n=14, n_time=60, **settings):
    """A cube with cosmic rays, NaN, zero and negative errors, a bad pixel and a saturated one."""
    cube = crowded_cube(n, n_time, brightest=3e3, **settings)
    rng = np.random.default_rng(8)
    hit = rng.random(cube.flux.shape) < 2e-3
    cube.flux[hit] += rng.exponential(3000.0, hit.sum())
    for value, where in ((np.nan, 1e-3), (np.inf, 1e-3)):
        cube.flux[rng.random(cube.flux.shape) < where] = value
    cube.error[rng.random(cube.flux.shape) < 1e-3] = 0.0
    cube.error[rng.random(cube.flux.shape) < 1e-3] = -1.0
    cube.mask[:, 5, 6] = True
    cube.mask[:40, 9, 9] = True
    return cube


@pytest.fixture(scope="module", params=[0.0, 0.3], ids=["one phase a frame", "rotated"])
def field(request):
    return crowded_cube(64, seed=1, rotation=request.param)


@pytest.fixture(scope="module")
def field_difference(field):
    return difference_images(*field.data)


@pytest.mark.parametrize("gain", [None, 1.0])
@pytest.mark.parametrize("rotation", [0.0, 0.3])
def test_equals_the_plain_version(rotation, gain):
    cube = dirty_cube(rotation=rotation)
    held = np.zeros(cube.flux.shape, bool)
    held[10:14, 3:5, 3:5] = True
    fast = difference_images(*cube.data, gain=gain, fit_mask=held)
    slope = None if gain is None else np.full(len(cube.flux), 1 / gain)
    flux, error, leverage, mask, fit_mask, theta = plain.difference(*cube.data, fit_mask=held, slope=slope)
    np.testing.assert_array_equal(fast.mask, mask)
    np.testing.assert_array_equal(fast.fit_mask, fit_mask)
    assert np.nanmax(np.abs(fast.flux - flux) / error) < 1e-8
    np.testing.assert_allclose(fast.error, error, rtol=1e-8)
    np.testing.assert_allclose(fast.leverage, leverage, atol=1e-8)
    valid = fast.reference.valid
    np.testing.assert_allclose(
        fast.reference.coefficients[valid].reshape(-1, 25), theta[valid], rtol=1e-6, atol=1e-6
    )


def test_scatter_and_mean_match_the_errors(field, field_difference):
    pull = (field_difference.flux / field_difference.error)[CORE]
    brightness = np.broadcast_to(field.truth.mean(0), field.flux.shape)[CORE]
    low, high = np.quantile(brightness, [0.3, 0.9])
    for name, chosen in (
        ("all", np.ones(pull.shape, bool)),
        ("stars", brightness > high),
        ("faint", brightness < low),
    ):
        assert pull[chosen].std() == pytest.approx(1.0, abs=0.02), name
        limit = 0.005 if chosen.mean() > 0.2 else 3 / np.sqrt(chosen.sum())
        assert abs(pull[chosen].mean()) < limit, name


def test_scatter_matches_the_errors_at_every_phase(field, field_difference):
    pull = (field_difference.flux / field_difference.error)[CORE]
    if field.phase_y.ndim == 1:
        phase = [
            np.broadcast_to(p[:, None, None], field.flux.shape)[CORE] for p in (field.phase_y, field.phase_x)
        ]
    else:
        phase = [p[CORE] for p in (field.phase_y, field.phase_x)]
    radius = np.maximum(*np.abs(phase))
    for low, high in ((0.0, 0.25), (0.25, 0.35), (0.35, 0.45), (0.45, 0.5)):
        inside = (radius >= low) & (radius < high)
        assert pull[inside].std() == pytest.approx(1.0, abs=0.02)
        assert abs(pull[inside].mean()) < 0.005 + 2 / np.sqrt(inside.sum())


@pytest.mark.parametrize("errors", ["counts", "cut", "true"])
def test_faint_pixels_are_not_pulled_down_by_errors_from_counts(errors):
    cube = crowded_cube(64, seed=5, errors=errors, density=0.02, sky=10.0, read_noise=2.0)
    difference = difference_images(*cube.data)
    pull = difference.flux / difference.error
    assert abs(pull.mean()) < 0.005
    assert pull.std() == pytest.approx(1.0, abs=0.02)
    untreated = difference_images(*cube.data, gain=np.inf)
    if errors != "true":
        assert np.mean(untreated.flux / untreated.error) > 0.03


def test_errors_follow_the_true_noise(field, field_difference):
    own = field_difference.error * np.sqrt(1 - field_difference.leverage)
    ratio = (own / field.sigma)[CORE]
    assert ratio.mean() == pytest.approx(1.0, abs=0.002)
    assert ratio.std() < 0.02


def test_leave_one_out_is_a_fit_without_the_sample():
    cube = crowded_cube(5, 60, brightest=1e3)
    settings = {"gain": np.inf, "iterations": 0, "ridge": 1e-6}
    inside = difference_images(*cube.data, **settings)
    sample = (17, 2, 2)
    held = np.zeros(cube.flux.shape, bool)
    held[sample] = True
    outside = difference_images(*cube.data, **settings, fit_mask=held)
    assert inside.flux[sample] == pytest.approx(outside.flux[sample], rel=1e-6)
    assert inside.error[sample] == pytest.approx(outside.error[sample], rel=1e-6)
    assert inside.leverage[sample] == pytest.approx(outside.leverage[sample], rel=1e-6)
    residual = cube.flux - inside.reference.evaluate(cube.phase_y, cube.phase_x)
    np.testing.assert_allclose(inside.flux * (1 - inside.leverage), residual, atol=1e-8)
    plain_residual = difference_images(*cube.data, **settings, leave_one_out=False)
    np.testing.assert_allclose(plain_residual.flux, residual, atol=1e-8)


def test_an_images_own_neighbours_hardly_enter_its_difference():
    """The sample's own row leaves the fit, rows of the same image from neighbouring pixels stay."""
    quiet = crowded_cube(9, 96, density=0.0, errors="true")
    shares = []
    for k in range(96):
        flux = np.zeros(quiet.flux.shape)
        y, x = (np.arange(9) - 4 + p[k] for p in (quiet.phase_y, quiet.phase_x))
        star = pixel_psf(y, 1.1)[:, None] * pixel_psf(x, 1.1)
        flux[k] = star
        difference = difference_images(
            flux, np.ones(flux.shape), None, quiet.phase_y, quiet.phase_x, clip=1e9, gain=np.inf
        )
        window = np.s_[k, 3:6, 3:6]
        shares.append(np.sum(difference.flux[window] * star[3:6, 3:6]) / np.sum(star[3:6, 3:6] ** 2))
    assert np.mean(shares) == pytest.approx(1.0, abs=0.01)
    assert np.std(shares) < 0.05


@pytest.mark.parametrize("rotation", [0.0, 0.3])
@pytest.mark.parametrize("grow", [0, 2])
def test_a_tile_with_halo_equals_the_whole_image_bit_for_bit(rotation, grow):
    cube = dirty_cube(23, rotation=rotation)
    whole = difference_images(*cube.data, grow=grow, keep_normal=True)
    edge = halo(1.2, grow=grow)
    for y0, y1, x0, x1 in ((0, 11, 0, 9), (11, 23, 9, 23), (4, 6, 5, 20)):
        rows, columns = (slice(max(a - edge, 0), b + edge) for a, b in ((y0, y1), (x0, x1)))
        part = [a[:, rows, columns] if a.ndim == 3 else a for a in cube.data]
        tile = difference_images(*part, grow=grow, keep_normal=True)
        core = np.s_[:, y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start]
        for name in ("flux", "error", "leverage", "mask", "fit_mask"):
            np.testing.assert_array_equal(getattr(tile, name)[core], getattr(whole, name)[:, y0:y1, x0:x1])
        for name in ("coefficients", "n_used", "chi2", "valid", "normal", "moment"):
            np.testing.assert_array_equal(
                getattr(tile.reference, name)[core[1:]], getattr(whole.reference, name)[y0:y1, x0:x1]
            )


def test_oversampled_reference_is_the_scene():
    cube = crowded_cube(12, 192, errors="true", sky=1.0, read_noise=0.1, brightest=1e3)
    reference = fit_reference(*cube.data)
    model = reference.evaluate(cube.phase_y, cube.phase_x)
    assert np.std(((model - cube.truth) / cube.sigma)[CORE]) < 0.5
    centre = reference.oversample(3)[1::3, 1::3]
    np.testing.assert_allclose(centre, reference.evaluate([0.0], [0.0])[0])
    assert reference.oversample(4).shape == (48, 48)
    step = 1e-5
    for axis, slope in enumerate(reference.gradient(cube.phase_y, cube.phase_x)):
        shift = np.array([step, 0]) if axis == 0 else np.array([0, step])
        ahead = reference.evaluate(cube.phase_y + shift[0], cube.phase_x + shift[1])
        np.testing.assert_allclose(slope, (ahead - model) / step, rtol=1e-3, atol=0.1)


def test_normal_matrices_give_the_coefficients():
    cube = crowded_cube(6, 60, brightest=1e3)
    reference = fit_reference(*cube.data, keep_normal=True, ridge=0.0)
    theta = np.linalg.solve(reference.normal_matrix(), reference.moment.reshape(6, 6, 25, 1))
    np.testing.assert_allclose(theta[..., 0], reference.coefficients.reshape(6, 6, 25), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="keep_normal=True"):
        fit_reference(*cube.data).normal_matrix()


def test_a_later_night_adds_to_the_sums_of_the_first():
    cube = crowded_cube(9, 96, errors="true", brightest=1e4)
    cube.mask[:70, 4, 4] = True
    first, second = (
        (cube.flux[t], cube.error[t], cube.mask[t], cube.phase_y[t], cube.phase_x[t])
        for t in (slice(0, 60), slice(60, 96))
    )
    settings = {"gain": np.inf, "iterations": 0, "keep_normal": True, "ridge": 0.0}
    together = difference_images(*cube.data, **settings)
    earlier = fit_reference(*first, **{k: v for k, v in settings.items() if k != "iterations"})
    appended = difference_images(*second, **settings, prior=earlier)
    valid = together.reference.valid
    np.testing.assert_array_equal(appended.reference.valid, valid)
    np.testing.assert_array_equal(appended.reference.n_used[valid], together.reference.n_used[valid])
    np.testing.assert_allclose(
        appended.reference.coefficients[valid], together.reference.coefficients[valid], rtol=1e-7, atol=1e-6
    )
    np.testing.assert_allclose(appended.flux, together.flux[60:], rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(appended.error, together.error[60:], rtol=1e-7)
    with pytest.raises(ValueError, match="keep_normal=True"):
        difference_images(*second, prior=fit_reference(*first))
    with pytest.raises(ValueError, match="does not match"):
        difference_images(*second, prior=earlier, extension=1.1)


@pytest.mark.parametrize("rotation", [0.0, 0.3])
def test_steep_surfaces_get_more_polynomials(rotation):
    cube = simulate_cube((64, 64), 96, seed=1, rotation=rotation)
    data = (cube.flux, cube.error, cube.mask, cube.phase_y, cube.phase_x)
    five, more = difference_images(*data), difference_images(*data, steep=150.0)
    stars = cube.noiseless.mean(0) > np.quantile(cube.noiseless.mean(0), 0.9)
    stars[[0, -1]] = stars[:, [0, -1]] = False

    def scatter(difference, chosen):
        pull = np.where(difference.fit_mask, np.nan, difference.flux / difference.error)
        return np.nanstd(pull[:, chosen])

    assert scatter(five, stars) > 1.1
    assert scatter(more, stars) == pytest.approx(1.0, abs=0.02)
    assert scatter(more, ~stars) == pytest.approx(1.0, abs=0.02)
    assert more.reference.coefficients.shape == (64, 64, 7, 7)
    faint = (more.reference.coefficients[..., 5:, :] == 0).all((-1, -2))
    assert 0.5 < faint.mean() < 0.9
    np.testing.assert_array_equal(more.flux[:, faint], five.flux[:, faint])
    residual = cube.flux - more.reference.evaluate(cube.phase_y, cube.phase_x)
    good = ~more.fit_mask
    assert np.max(np.abs(more.flux * (1 - more.leverage) - residual)[good] / more.error[good]) < 1e-6
    tile = difference_images(
        *(a[:, 20:42, 9:31] if a.ndim == 3 else a for a in data),
        steep=150.0,
    )
    np.testing.assert_array_equal(tile.flux[:, 1:-1, 1:-1], more.flux[:, 21:41, 10:30])
    with pytest.raises(ValueError, match="not with keep_normal"):
        difference_images(*data, steep=150.0, keep_normal=True)


def test_ridge_leaves_well_determined_fits_alone():
    cube = crowded_cube(6, 96)
    with_ridge, without = (fit_reference(*cube.data, ridge=r) for r in (1e-6, 0.0))
    model = [r.evaluate(cube.phase_y, cube.phase_x) for r in (with_ridge, without)]
    assert np.max(np.abs(model[0] - model[1]) / cube.sigma) < 1e-3


@pytest.mark.parametrize("rotation", [0.0, 0.3])
def test_offset_errors_are_recovered(rotation):
    shift = np.zeros((2, 96, 1, 1))
    shift[:, [5, 40, 77], 0, 0] = [[0.02, -0.02, 0.0], [0.0, 0.02, -0.02]]
    cube = crowded_cube(32, 96, rotation=rotation, shift=shift, seed=3)
    phase_y, phase_x = cube.phase_y, cube.phase_x
    found = np.zeros((2, 96))
    for _ in range(2):
        difference = difference_images(cube.flux, cube.error, None, phase_y, phase_x, clip=10.0)
        a, b = refine_offsets(difference, phase_y, phase_x)
        found += np.linalg.solve(a, b[..., None])[..., 0].T
        grid = (2, 96, 1, 1) if rotation else (2, 96)
        phase_y, phase_x = np.array([cube.phase_y, cube.phase_x]) + found.reshape(grid)
    formal = np.sqrt(np.diagonal(np.linalg.inv(a), axis1=1, axis2=2)).T
    pull = (found - shift[..., 0, 0]) / formal
    assert formal.max() < 0.002
    assert np.abs(pull[:, [5, 40, 77]]).max() < 4
    assert pull.std() < 1.25


def test_float32_agrees_to_its_precision():
    cube = crowded_cube(24, 96, brightest=1e4)
    single = [a.astype(np.float32) for a in (cube.flux, cube.error)]
    exact = difference_images(*single, None, cube.phase_y, cube.phase_x)
    assert exact.flux.dtype == np.float32
    fast = difference_images(*single, None, cube.phase_y, cube.phase_x, dtype=np.float32)
    assert np.max(np.abs(fast.flux - exact.flux) / exact.error) < 0.05
    np.testing.assert_allclose(fast.error, exact.error, rtol=0.02)


def test_a_per_epoch_gain_is_used():
    cube = crowded_cube(48, 96, density=0.0)
    scale = np.linspace(0.5, 2.0, 96)[:, None, None]
    difference = difference_images(
        cube.flux * scale, cube.error * scale, None, cube.phase_y, cube.phase_x, gain=1 / scale.ravel()
    )
    assert abs(np.mean(difference.flux / difference.error)) < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": np.ones((4, 5))}, "must be \\(time, y, x\\)"),
        ({"mask": np.zeros((3, 4, 4), bool)}, "mask \\(3, 4, 4\\) does not match"),
        ({"phase_y": np.zeros(7)}, "phase_y \\(7,\\)"),
        ({"extension": 2.5}, "extension 2.5"),
        ({"iterations": -1}, "iterations -1"),
        ({"dtype": np.int64}, "float64 or float32"),
    ],
)
def test_wrong_input_is_named(change, message):
    arguments = {
        "flux": np.ones((4, 4, 4)),
        "error": np.ones((4, 4, 4)),
        "mask": None,
        "phase_y": np.zeros(4),
        "phase_x": np.zeros(4),
    }
    with pytest.raises(ValueError, match=message):
        difference_images(**(arguments | change))
