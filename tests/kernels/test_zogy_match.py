"""The noise of registration, from how the shifts of a field's parts scatter."""

import numpy as np
import pytest

from survey.kernels._zogy_match import Match, match_parts, match_sums, scatter
from survey.kernels.zogy import subtract_zogy

SIDE = 384
SIGMAS = (1.6, 1.3)
NOISE = (10.0, 3.0)


def gauss(sigma, half=10):
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return np.exp(-(y**2 + x**2) / 2 / sigma**2) / (2 * np.pi * sigma**2)


def sky_of(y, x, flux, sigma, noise):
    image = noise
    for at_y, at_x, f in zip(y, x, flux, strict=True):
        rows, columns = (slice(max(int(at) - 10, 0), int(at) + 11) for at in (at_y, at_x))
        dy, dx = np.mgrid[rows, columns][:, : SIDE - rows.start, : SIDE - columns.start]
        stamp = np.exp(-((dy - at_y) ** 2 + (dx - at_x) ** 2) / 2 / sigma**2)
        image[rows, columns] += f * stamp / (2 * np.pi * sigma**2)
    return image


@pytest.mark.parametrize(("moved", "least", "most"), [(0.0, 0.0, 0.003), (0.06, 0.03, 0.12)])
def test_registration_noise_of_one_tile(moved, least, most):
    """Stars of every 96 pixels are moved alike: found without tiles, and nothing where nothing moves."""
    rng = np.random.default_rng(3)
    y, x = rng.uniform(0, SIDE, (2, 1400))
    flux = np.minimum(300 * (1 + rng.pareto(1.2, len(y))), 3e4)
    place = (y // 96 * 4 + x // 96).astype(int)
    off = rng.normal(0, moved, (2, 16))[:, place]
    planes = [rng.normal(0, n, (SIDE, SIDE)) for n in NOISE]
    image = sky_of(y + off[0], x + off[1], flux, SIGMAS[0], planes[0])
    template = sky_of(y, x, flux, SIGMAS[1], planes[1])
    found = subtract_zogy(
        image, template, image_psf=gauss(SIGMAS[0]), template_psf=gauss(SIGMAS[1]), sky="given",
        error=np.full(image.shape, NOISE[0]), template_error=np.full(image.shape, NOISE[1]),
    )  # fmt: skip
    assert all(least <= error <= most for error in found.kernel.shift_error)


def test_parts_add_up_to_the_tile():
    rng = np.random.default_rng(0)
    planes = rng.normal(50, 9, (2, 200, 110))
    variances = np.full((2, 200, 110), 4.0)
    good = rng.random((200, 110)) > 0.1
    good[:, :7] = False
    guess = np.array([0.9, 0, 0, 1])
    parts = match_parts(*planes, *variances, good, guess, 3.0)
    assert len(parts) == 6
    total, whole = (
        sum(parts, Match(np.zeros((4, 4)), np.zeros(4), 0)),
        match_sums(*planes, *variances, good, guess),
    )
    assert total.pixels == whole.pixels > 0
    np.testing.assert_allclose(total.matrix, whole.matrix, rtol=1e-12)
    np.testing.assert_allclose(total.gradient, whole.gradient, rtol=1e-12)
    assert match_parts(*planes, *variances, np.zeros_like(good), guess) == []


@pytest.mark.parametrize("sky", [True, False])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_scatter_does_not_depend_on_the_flux_unit(unit, sky):
    """Variance of a shift 0.01, of the shifts found 0.022."""
    weights = np.array([100, 100, 100, 1e6 / unit**2])
    parts = [Match(np.diag(weights), weights * [1, moved, 0, 0], 500) for moved in (-0.2, -0.1, 0, 0.1, 0.2)]
    assert scatter(parts, sky=sky) == pytest.approx((np.sqrt(0.14826**2 - 0.01), 0))
    noisy = [Match(p.matrix, p.gradient, p.pixels, 3.0) for p in parts]
    assert scatter(noisy, sky=sky) == (0, 0)
    assert scatter(parts[1:], sky=sky) == (0, 0)
