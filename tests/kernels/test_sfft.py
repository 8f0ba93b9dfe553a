"""Subtraction with a delta-basis kernel: known kernels, masks, pedestals, templates at the phases."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import erf

from survey.kernels._sfft_fit import KernelModel
from survey.kernels._sfft_pass import Scene
from survey.kernels._sfft_samples import ShiftedSamples, SplineSamples, StoredSamples, sample_function
from survey.kernels._sfft_solve import _part
from survey.kernels.legendre import phase_basis
from survey.kernels.pixelmap import PixelMap, nearest_pixels
from survey.kernels.reference import ReferenceFit
from survey.kernels.sfft import subtract_sfft

SHAPE = (160, 192)


def stars(seed=1, n=250, shape=SHAPE):
    rng = np.random.default_rng(seed)
    flux = 3e2 * 10 ** rng.uniform(0, 2.2, n)
    return rng.uniform(-5, shape[0] + 5, n), rng.uniform(-5, shape[1] + 5, n), flux


def scene(y, x, catalogue, sigma):
    """Pixel-integrated Gaussian stars at sample positions (y, x) of any shape."""
    image = np.zeros(np.broadcast(y, x).shape)
    for ys, xs, flux in zip(*catalogue, strict=True):
        near = (np.abs(y - ys) < 9) & (np.abs(x - xs) < 9)
        dy, dx = y[near] - ys, x[near] - xs
        gy, gx = (0.5 * (erf((d + 0.5) / sigma / 2**0.5) - erf((d - 0.5) / sigma / 2**0.5)) for d in (dy, dx))
        image[near] += flux * gy * gx
    return image


def known_kernel(v, u, width=5):
    """Kernel (5, 5, ...) that varies quadratically over the field while its sum stays 0.9."""
    a = np.arange(width) - width // 2
    base = np.exp(-(a[:, None] ** 2 + a**2) / 1.5)
    base /= base.sum()
    shift = np.zeros((width, width))
    shift[1, 2], shift[3, 2] = 0.1, -0.1
    narrow = np.zeros((width, width))
    narrow[2, 2], narrow[2, 1], narrow[2, 3] = 0.2, -0.1, -0.1
    return 0.9 * base[:, :, None, None] + shift[:, :, None, None] * u + narrow[:, :, None, None] * u * v


def convolved(template, width=5):
    y, x = np.indices(template.shape)
    kernel = known_kernel(2 * y / (template.shape[0] - 1) - 1, 2 * x / (template.shape[1] - 1) - 1)
    h = width // 2
    padded = np.pad(template, h)
    windows = np.lib.stride_tricks.sliding_window_view(padded, template.shape)
    return np.einsum("abyx,abyx->yx", kernel, windows[::-1, ::-1])


@pytest.fixture(scope="module")
def pair():
    y, x = np.indices(SHAPE, dtype=float)
    template = scene(y, x, stars(), 1.2)
    background = 30 + 0.05 * x - 2e-4 * y**2
    image = convolved(template) + background
    noise = np.sqrt(4 + image / 20)
    return template, image, noise


def test_sfft__recovers_a_varying_kernel(pair):
    template, image, noise = pair
    s = subtract_sfft(image, template, error=noise, kernel_shape=(5, 5), flux_poly_order=0, ridge=1e-9)
    for y, x in [(40, 40), (80, 96), (120, 160), (30, 170)]:
        truth = known_kernel(np.array([[2 * y / 159 - 1]]), np.array([[2 * x / 191 - 1]]))[:, :, 0, 0]
        assert_allclose(s.kernel.evaluate(x, y), truth, atol=3e-3)
        assert_allclose(s.kernel.background(x, y), 30 + 0.05 * x - 2e-4 * y**2, atol=0.02)
    assert np.nanstd(s.scaled) < 0.02  # what three passes leave of holding polynomials over blocks
    assert not s.fit_mask[~s.mask].any()


def test_sfft__constant_kernel_is_exact(pair):
    template = pair[0]
    image = 0.7 * np.roll(template, (1, -2), (0, 1)) + 11
    s = subtract_sfft(image, template, error=np.ones(SHAPE), kernel_shape=(5, 5), kernel_poly_order=0,
                      flux_poly_order=0, bg_poly_order=0, ridge=1e-12)  # fmt: skip
    kernel = np.zeros((5, 5))
    kernel[3, 0] = 0.7
    assert_allclose(s.kernel.evaluate(80, 80), kernel, atol=1e-7)
    inner = ~s.mask
    assert_allclose(s.convolved[inner], image[inner], atol=1e-5)
    assert_allclose(s.kernel.background(3, 5), 11, atol=1e-6)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_sfft__flux_scale_keeps_its_order(pair, order):
    template, image, noise = pair
    image = image + noise * np.random.default_rng(2).normal(size=SHAPE)
    kernel = subtract_sfft(image, template, error=noise, kernel_shape=(5, 5), flux_poly_order=order).kernel
    x = np.arange(0, 180, 10.0)
    scale = kernel.flux_scale(x, np.full_like(x, 70))
    assert np.abs(np.diff(scale, order + 1)).max() < 1e-12
    assert_allclose(scale, 0.9, atol=0.03)
    if order:
        assert np.abs(np.diff(scale, order)).max() > 1e-9


def test_sfft__noise_gives_unit_chi2_and_errors_of_the_template(pair):
    template, image, noise = pair
    rng = np.random.default_rng(3)
    image = image + noise * rng.normal(size=SHAPE)
    template_noise = np.full(SHAPE, 1.5)
    template = template + template_noise * rng.normal(size=SHAPE)
    s = subtract_sfft(image, template, error=noise, template_error=template_noise, kernel_shape=(5, 5))
    good = ~s.mask
    assert abs(s.scaled[good].std() - 1) < 0.02
    expected = noise**2 + 1.5**2 * (s.kernel.evaluate(96, 80) ** 2).sum()
    assert abs(s.error[80, 96] ** 2 / expected[80, 96] - 1) < 0.05
    in_stars = good & (pair[1] - 30 > 100)
    assert 0.85 < np.mean(s.scaled[in_stars] ** 2) < 1.1


def test_sfft__pedestals_do_not_matter(pair):
    template, image, noise = pair
    image = image + noise * np.random.default_rng(4).normal(size=SHAPE)
    plain = subtract_sfft(image, template, error=noise, kernel_shape=(5, 5))
    raised = subtract_sfft(image + 5e3, template + 2e4, error=noise, kernel_shape=(5, 5))
    good = ~plain.mask
    assert_allclose(raised.scaled[good], plain.scaled[good], atol=1e-6)
    x, y = 50.0, 60.0
    assert_allclose(
        raised.kernel.background(x, y) + 2e4 * raised.kernel.flux_scale(x, y) - 5e3,
        plain.kernel.background(x, y),
        atol=1e-6,
    )


def test_sfft__bad_pixels_mask_their_reach_and_nothing_else(pair):
    template, image, noise = pair
    image, template, mask = image.copy(), template.copy(), np.zeros(SHAPE, bool)
    clean = subtract_sfft(image, template, error=noise, kernel_shape=(5, 5))
    image[50, 60], template[90, 100], mask[70:72, 70:72] = np.nan, np.inf, True
    image[mask] = 1e7
    s = subtract_sfft(image, template, mask=mask, error=noise, kernel_shape=(5, 5))
    new = s.mask & ~clean.mask
    expected = mask.copy()
    expected[50, 60] = True
    expected[88:93, 98:103] = True
    np.testing.assert_array_equal(new, expected)
    assert np.isnan(s.difference[s.mask]).all()
    assert np.isfinite(s.difference[~s.mask]).all()
    assert np.abs(s.scaled - clean.scaled)[~s.mask].max() < 0.05


def test_sfft__transients_leave_the_fit_and_stars_do_not(pair):
    template, image, noise = pair
    image = image + noise * np.random.default_rng(5).normal(size=SHAPE)
    y, x = np.indices(SHAPE, dtype=float)
    new = scene(y, x, ([60.3, 100.0], [50.2, 140.0], [2e4, -1.5e4]), 1.4)
    s = subtract_sfft(image + new, template, error=noise, kernel_shape=(5, 5))
    for yc, xc, flux in [(60, 50, 2e4), (100, 140, -1.5e4)]:
        stamp = s.difference[yc - 6 : yc + 7, xc - 6 : xc + 7]
        assert abs(stamp.sum() / flux - 1) < 0.02
        assert s.fit_mask[yc, xc]
    away = (np.abs(new) < 1e-3) & ~s.mask
    assert s.fit_mask[away].mean() < 1e-3
    assert abs(s.scaled[away].std() - 1) < 0.02


def test_sfft__stars_only(pair):
    template, image, noise = pair
    ys, xs, flux = stars()
    bright = np.column_stack([ys, xs])[flux > 3e3]
    s = subtract_sfft(image, template, error=noise, stars=bright, kernel_shape=(5, 5), ridge=1e-8)
    assert s.fit_mask.mean() > 0.3
    near = np.hypot(*(np.indices(SHAPE) - bright[10][:, None, None])) < 4
    assert not s.fit_mask[near & ~s.mask].any()
    assert np.nanstd(s.scaled[40:120, 40:150]) < 0.05


def test_sfft__measures_the_noise_where_none_is_given(pair):
    template, image, _ = pair
    image = image - 30 + np.random.default_rng(6).normal(0, 2, SHAPE)
    s = subtract_sfft(image, template, image_gain=1e9, kernel_shape=(5, 5))
    assert 0.9 < np.nanmedian(s.error) / 2 < 1.4  # faint stars count as sky noise


# -- frames placed by nearest pixel ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def placed():
    """A frame rotated by 0.5 deg with a wider PSF, placed by nearest pixel, and a continuous template."""
    rng = np.random.default_rng(7)
    catalogue = stars(n=350)
    angle = np.radians(0.5)
    c, s = np.cos(angle), np.sin(angle)
    to_detector = PixelMap(np.array([[99.3, c, -s], [78.3, s, c]]), (96.0, 80.0))
    _, _, phase_y, phase_x = nearest_pixels(to_detector, (0, SHAPE[0]), (0, SHAPE[1]), SHAPE)
    y, x = np.indices(SHAPE, dtype=float)
    image = 0.8 * scene(y + phase_y, x + phase_x, catalogue, 1.45) + 12
    noise = np.sqrt(4 + image / 20)
    image = image + noise * rng.normal(size=SHAPE)
    template = scene(y, x, catalogue, 1.1)

    def continuous(py, px):
        return scene(y + py, x + px, catalogue, 1.1)

    return image, noise, template, continuous, phase_y, phase_x


def star_chi2(s, image):
    bright = ~s.mask & (image > 12 + 100)
    assert bright.sum() > 500
    return np.mean(s.scaled[bright] ** 2)


def test_sfft__template_evaluated_at_the_phases(placed):
    image, noise, template, continuous, phase_y, phase_x = placed
    assert np.abs(phase_y).max() > 0.45
    kwargs = {"error": noise, "kernel_shape": (7, 7)}
    blind = subtract_sfft(image, template, **kwargs)
    exact = subtract_sfft(
        image, template, phase_y=phase_y, phase_x=phase_x, template_samples=continuous, **kwargs
    )
    spline = subtract_sfft(image, template, phase_y=phase_y, phase_x=phase_x, **kwargs)
    assert star_chi2(blind, image) > 20
    assert 0.9 < star_chi2(exact, image) < 1.1
    assert 0.9 < star_chi2(spline, image) < 1.2
    assert_allclose(exact.kernel.flux_scale(80, 60), 0.8, atol=0.01)


def block(samples, y0, x0, side, count=15):
    out = np.empty((count, side * side))
    samples.fill(y0, x0, out)
    return out


def test_samples__three_ways_agree():
    y, x = np.indices((40, 50), dtype=float)
    catalogue = stars(n=12, shape=(40, 50))
    image = scene(y, x, catalogue, 2.0)
    shifted = ShiftedSamples(image, (5, 3))
    zero = np.zeros(image.shape)
    stored = StoredSamples(
        sample_function(lambda py, px: scene(y + py, x + px, catalogue, 2.0), (5, 3), zero, zero)
    )
    spline = SplineSamples(image, (5, 3), 0.0, 0.0)
    inner = np.zeros((32, 32), bool)
    inner[4:, 4:] = True
    for other in (stored, spline):
        assert_allclose(
            block(other, 0, 0, 32)[:, inner.ravel()], block(shifted, 0, 0, 32)[:, inner.ravel()], atol=1e-8
        )
    central = block(shifted, 0, 0, 32)[7].reshape(32, 32)
    np.testing.assert_array_equal(central, image[:32, :32])
    right = block(shifted, 0, 0, 32)[8].reshape(32, 32)  # a = (0, +1): R(p - a)
    np.testing.assert_array_equal(right[:, 1:], image[:32, :31])
    phase = 0.3 * np.sin(np.arange(50) / 5) * np.ones((40, 1))
    moved = block(SplineSamples(image, (5, 3), phase, -phase), 0, 32, 32).reshape(15, 32, 32)
    truth = scene(y + phase + 1, x - phase, catalogue, 2.0)  # a = (-1, 0)
    assert_allclose(moved[4, 5:30, :14], truth[5:30, 32:46], atol=2e-3 * image.max())


def test_sfft__given_samples_equal_the_function(placed):
    image, noise, template, continuous, phase_y, phase_x = placed
    kwargs = {"error": noise, "kernel_shape": (3, 3), "kernel_poly_order": 1}
    samples = sample_function(continuous, (3, 3), phase_y, phase_x)
    a = subtract_sfft(
        image, template, phase_y=phase_y, phase_x=phase_x, template_samples=continuous, **kwargs
    )
    b = subtract_sfft(image, template, phase_y=phase_y, phase_x=phase_x, template_samples=samples, **kwargs)
    np.testing.assert_array_equal(a.difference, b.difference)


def test_sfft__oversampled_reference_as_template(placed):
    """A reference's coefficients give the samples that its `evaluate` gives."""
    image, noise, _, continuous, phase_y, phase_x = placed
    nodes = np.linspace(-0.6, 0.6, 7)
    values = np.array([[continuous(v, u) for u in nodes] for v in nodes])
    inverse = np.linalg.pinv(phase_basis(nodes, 5, 1.2).T)
    coefficients = np.einsum("lv,mu,vuyx->yxlm", inverse, inverse, values)
    valid = np.ones(SHAPE, bool)
    valid[100, 120] = False
    zero = np.zeros(SHAPE)
    reference = ReferenceFit(coefficients, zero.astype(int), zero, valid)
    kwargs = {
        "error": noise,
        "kernel_shape": (5, 3),
        "kernel_poly_order": 1,
        "phase_y": phase_y,
        "phase_x": phase_x,
    }
    template = reference.evaluate(np.zeros(1), np.zeros(1))[0]
    a = subtract_sfft(image, template, template_samples=reference, **kwargs)
    b = subtract_sfft(
        image, template, template_samples=lambda py, px: reference.evaluate([py], [px])[0], **kwargs
    )
    np.testing.assert_array_equal(a.mask, b.mask)
    assert a.mask[102, 119]
    assert_allclose(a.difference[~a.mask], b.difference[~a.mask], atol=1e-6)


def test_sfft__one_phase_a_frame_equals_a_field_of_it(placed):
    image, noise, template, continuous, _, _ = placed
    kwargs = {"error": noise, "kernel_shape": (3, 3), "kernel_poly_order": 0, "template_samples": continuous}
    one = subtract_sfft(image, template, phase_y=0.2, phase_x=-0.4, **kwargs)
    field = subtract_sfft(
        image, template, phase_y=np.full(SHAPE, 0.2), phase_x=np.full(SHAPE, -0.4), **kwargs
    )
    good = ~one.mask & ~field.mask
    assert good.mean() > 0.9
    assert_allclose(one.difference[good], field.difference[good], atol=1e-6)


def test_sfft__negative_errors_are_bad_pixels(pair):
    template, image, noise = (plane[:80, :80] for plane in pair)
    error, template_error = noise.copy(), np.zeros_like(noise)
    error[40, 50], template_error[20, 30] = -99, -1
    s = subtract_sfft(
        image, template, error=error, template_error=template_error, kernel_shape=(3, 3), kernel_poly_order=0,
        direction="template",
    )  # fmt: skip
    assert s.mask[40, 50]
    assert s.mask[19:22, 29:32].all()
    assert s.mask[2:-2, 2:-2].sum() == 10


def test_sfft__errors_are_clear(pair):
    template, image, noise = pair
    with pytest.raises(ValueError, match="kernel_shape must be two odd numbers"):
        subtract_sfft(image, template, kernel_shape=(6, 7))
    with pytest.raises(ValueError, match=r"one \(y, x\) shape"):
        subtract_sfft(image, template[1:])
    with pytest.raises(ValueError, match="good pixels are too few for 300 parameters"):
        subtract_sfft(image[:24, :24], template[:24, :24], error=noise[:24, :24], flux_poly_order=2)
    with pytest.raises(ValueError, match="no good pixel"):
        subtract_sfft(image * np.nan, template)
    with pytest.raises(ValueError, match=r"mask of shape \(3, 3\)"):
        subtract_sfft(image, template, mask=np.zeros((3, 3)))


def test_kernel_model__counts_parameters():
    model = KernelModel((7, 7), 2, 1, 2, (64, 64))
    assert model.n_parameters == 48 * 6 + 3 + 6
    assert model.shrinks.sum() == 48 * 6
    rng = np.random.default_rng(0)
    parameters = rng.normal(size=model.n_parameters)
    coefficients = model.expand(parameters)
    # only the flux scale's three parameters reach the kernel's sum
    sums = coefficients[:-1].sum(0)
    assert_allclose(sums[3:], 0, atol=1e-12)
    gradient = rng.normal(size=(50, 6))
    assert_allclose(model.reduce(gradient.ravel()) @ parameters, (gradient * coefficients).sum())


def test_sfft__a_first_kernel_looks_at_some_256_blocks_of_a_large_image():
    """More where most of their pixels are bad, all where the image is small."""
    counts = {}
    for size in (90, 1024, 2048, 4096):
        model = KernelModel((7, 7), 2, 1, 2, (size, size))
        zeros = np.broadcast_to(np.float32(0), (size, size))
        part = _part(model, Scene(zeros, zeros, np.zeros((size, size), bool)))
        counts[size] = None if part is None else len(part)
    assert counts == {90: None, 1024: 256, 2048: 256, 4096: 256}
    excluded = np.ones((4096, 4096), bool)
    excluded[::32, ::32] = False
    excluded[1::32, ::32] = False
    assert len(_part(model, Scene(zeros, zeros, excluded))) == 4096
