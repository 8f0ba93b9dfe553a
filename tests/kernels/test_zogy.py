"""Proper subtraction: flux and errors of known sources, any shape, any mask, PSFs that vary."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.signal import fftconvolve

from survey.kernels._zogy_match import Match, solve_match
from survey.kernels._zogy_tile import source_filter
from survey.kernels.zogy import subtract_zogy
from survey.simulate.pairs import moffat, simulate_pair
from tests.kernels.pair_quality import measure

GRID = np.mgrid[-12:13, -12:13].astype(float)


def gaussian(sigma, dy=0.0, dx=0.0, grid=GRID):
    g = np.exp(-((grid[0] - dy) ** 2 + (grid[1] - dx) ** 2) / 2 / sigma**2)
    return g / g.sum()


def field(shape, seed=0, ratio=0.7, shift=(0.0, 0.0), n=60, noise=(2.0, 1.0), transient=None):
    """Gaussian stars in both images, an isolated new source in the first."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape, dtype=float)
    image, template = np.full(shape, 120.0), np.full(shape, 40.0)
    for _ in range(n):
        ys, xs, flux = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), 10 ** rng.uniform(2.5, 4.5)
        for target, sigma, f, (dy, dx) in ((image, 1.7, ratio * flux, shift), (template, 1.2, flux, (0, 0))):
            r2 = (y - ys - dy) ** 2 + (x - xs - dx) ** 2
            target += f / (2 * np.pi * sigma**2) * np.exp(-r2 / 2 / sigma**2)
    if transient is not None:
        ys, xs, flux = transient
        image += flux / (2 * np.pi * 1.7**2) * np.exp(-((y - ys) ** 2 + (x - xs) ** 2) / 2 / 1.7**2)
    for target, sigma in ((image, noise[0]), (template, noise[1])):
        target += rng.normal(0, sigma, shape)
    return image, template


PSFS = {"image_psf": gaussian(1.7), "template_psf": gaussian(1.2)}
NOISE = {"error": 2.0, "template_error": 1.0}


@pytest.mark.parametrize("shape", [(160, 160), (130, 211), (233, 97)])
def test_zogy__flux_is_right_whatever_the_shape(shape):
    image, template = field(shape, n=40, noise=(2.0, 1.0), transient=(64.0, 48.0, 2e5))
    s = subtract_zogy(image, template, **PSFS, **NOISE, flux_ratio=0.7, shift=(0, 0))
    assert_allclose(s.psf_flux[64, 48], 2e5, rtol=2e-3)


def test_zogy__noise_is_white_and_errors_are_right():
    image, template = field((256, 300), n=0)
    s = subtract_zogy(image, template, **PSFS, **NOISE, flux_ratio=0.7, shift=(0, 0))
    inner = (slice(20, -20), slice(20, -20))
    z = s.scaled[inner]
    assert abs(z.std() - 1) < 0.02
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 0.02
    assert abs(s.significance[inner].std() - 1) < 0.05
    # the best that can be done in white noise; the stamp of P_D lacks its farthest wings
    assert_allclose(s.psf_flux_error[128, 150], s.error[128, 150] / np.sqrt((s.psf**2).sum()), rtol=0.015)


def test_zogy__fits_flux_ratio_and_shift():
    image, template = field((220, 260), n=150, shift=(0.21, -0.13))
    s = subtract_zogy(image, template, **PSFS, **NOISE)
    assert_allclose(s.kernel.ratio, 0.7, rtol=3e-3)
    assert_allclose(s.kernel.shift, (0.21, -0.13), atol=0.01)
    assert np.mean(np.clip(s.scaled[20:-20, 20:-20], -10, 10) ** 2) < 1.15


def test_zogy__masks_are_honoured():
    image, template = field((160, 200), transient=(80.0, 100.0, 3e3))
    clean = subtract_zogy(image, template, **PSFS, **NOISE, flux_ratio=0.7, shift=(0, 0))
    mask = np.zeros(image.shape, bool)
    mask[40:43, 60:64] = True
    image[mask] = 1e6
    template[120, 150] = np.nan
    s = subtract_zogy(image, template, mask=mask, **PSFS, **NOISE, flux_ratio=0.7, shift=(0, 0))
    assert s.mask[40:43, 60:64].all()
    assert s.mask[120, 150]
    assert s.mask[20:-20, 20:-20].sum() < 80  # stars at the edge are not whole
    assert np.isnan(s.difference[s.mask]).all()
    far = ~s.mask
    far[25:58, 45:80] = far[105:136, 135:166] = False
    assert np.abs(s.scaled - clean.scaled)[far].max() < 0.2


def draw(image, y, x, flux, sigma):
    rows, columns = np.indices(image.shape, dtype=float)
    image += flux / (2 * np.pi * sigma**2) * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 2 / sigma**2)


def test_zogy__what_lies_at_an_edge_does_not_leak_to_the_other():
    """A star and a new source at the lower edge: nothing there that is no source, nothing at the upper."""
    rng = np.random.default_rng(1)
    image, template = rng.normal(0, 2.0, (80, 120)), rng.normal(0, 1.0, (80, 120))
    draw(image, 1.0, 30.0, 2e4, 1.7)
    draw(template, 1.0, 30.0, 2e4, 1.2)
    draw(image, 1.0, 90.0, 2e4, 1.7)
    s = subtract_zogy(image, template, **PSFS, **NOISE, flux_ratio=1.0, shift=(0, 0), sky="given")
    assert np.nanmax(np.abs(s.significance[:, :60])) < 5
    assert np.nanmax(np.abs(s.significance[50:])) < 5
    assert np.nanmax(np.abs(s.scaled[50:])) < 5
    assert s.mask[0, 28:33].all()
    assert s.mask[:, :60].sum() < 200
    assert not s.mask[20:60, 20:100].any()


@pytest.mark.parametrize("both", [False, True])
def test_zogy__a_saturated_core_leaves_no_ring(both):
    """A constant star, a thousand times as bright as noise where it is masked: what is left is noise."""
    rng, shape = np.random.default_rng(1), (110, 110)
    image, template = np.zeros(shape), np.zeros(shape)
    draw(image, 55.0, 55.0, 1.5e6, 1.7)
    draw(template, 55.0, 55.0, 1.5e6, 1.2)
    error, template_error = np.sqrt(4 + image), np.sqrt(1 + template)
    core, template_core = image > 3e4, (template > 3e4) & both
    image += rng.normal(size=shape) * error
    template += rng.normal(size=shape) * template_error
    image[core], template[template_core] = 3e4, 3e4
    s = subtract_zogy(
        image, template, **PSFS, mask=core, template_mask=template_core, error=error,
        template_error=template_error, flux_ratio=1.0, shift=(0, 0), sky="given",
    )  # fmt: skip
    assert np.nanmax(np.abs(s.significance)) < 5
    assert np.nanmax(np.abs(s.scaled)) < 5
    assert s.mask.sum() < (900 if both else 70)


@pytest.mark.parametrize("shape", [(20, 120), (13, 60)])
def test_zogy__images_smaller_than_the_psf(shape):
    image, template = field(shape, n=0, transient=(shape[0] // 2, 30.0, 2e3))
    s = subtract_zogy(image, template, **PSFS, **NOISE, flux_ratio=1.0, shift=(0, 0))
    assert_allclose(s.psf_flux[shape[0] // 2, 30], 2e3, rtol=0.1)


def test_zogy__negative_errors_are_bad_pixels():
    image, template = field((60, 70), n=0)
    error, template_error = np.full((60, 70), 2.0), np.full((60, 70), 1.0)
    error[20:23, 30:34] = -99.0
    template_error[40, 50] = -1.0
    s = subtract_zogy(
        image, template, **PSFS, error=error, template_error=template_error, flux_ratio=1.0, shift=(0, 0)
    )
    assert s.mask[20:23, 30:34].all()
    assert s.mask[40, 50]


def test_zogy__varying_psf_on_a_simulated_pair():
    pair = simulate_pair((320, 256), n_stars=250, n_transients=6, seed=2)
    s = subtract_zogy(
        pair.image, pair.template, image_psf=lambda y, x: moffat(*GRID, pair.image_fwhm(y, x)),
        template_psf=moffat(*GRID, 2.5), mask=pair.mask, template_mask=pair.template_mask,
        image_gain=pair.gain, template_gain=pair.template_gain,
    )  # fmt: skip
    q = measure(pair, s, significance=s.significance)
    assert q.found == q.bright > 3
    assert_allclose(s.kernel.ratio, 0.8, rtol=0.01)
    for y, x, flux, _ in pair.transients:
        at = (round(y), round(x))
        if np.isfinite(s.psf_flux[at]):
            # the nearest pixel is up to half a pixel from the source
            assert 0.8 - 4 * s.psf_flux_error[at] / abs(flux) < s.psf_flux[at] / flux
            assert s.psf_flux[at] / flux < 1.02 + 4 * s.psf_flux_error[at] / abs(flux)


def test_zogy__tiles_overlap_and_are_trimmed():
    """Fifteen tiles give what one gives, seams and all; without overlap they would not."""
    image, template = field((150, 250), n=120)
    given = {**PSFS, **NOISE, "flux_ratio": 0.7, "shift": (0, 0)}
    whole = subtract_zogy(image, template, **given)
    tiled = subtract_zogy(image, template, **given, tile=50)
    cut = subtract_zogy(image, template, **given, tile=50, overlap=0)
    inner = (slice(25, -25), slice(25, -25))
    for name in ("scaled", "significance"):
        off, without = (np.abs(getattr(s, name) - getattr(whole, name))[inner].max() for s in (tiled, cut))
        assert off < 0.1 < without


@pytest.mark.parametrize(("wide", "template_noise"), [(1.06, 1.0), (1.27, 1.0), (1.7, 0.2)])
def test_zogy__a_source_is_its_psf_through_the_filter(wide, template_noise):
    """Flux by a PSF fit to the difference: right to 1 %, 15 % off by the image's own PSF in sharp frames."""
    own, other = gaussian(wide), gaussian(1.49)
    rng = np.random.default_rng(4)
    image, template = rng.normal(0, 2, (121, 121)), rng.normal(0, template_noise, (121, 121))
    image[48:73, 48:73] += 1e6 * own
    s = subtract_zogy(
        image, template, image_psf=own, template_psf=other, error=2.0, template_error=template_noise,
        flux_ratio=1.0, shift=(0, 0), sky="given",
    )  # fmt: skip
    assert_allclose(s.kernel.noise, (2.0, template_noise))
    fluxes = {}
    for name, psf in (
        ("own", own),
        ("shown", fftconvolve(own, source_filter(own, other, s.kernel.noise, s.kernel.ratio), mode="same")),
    ):
        fluxes[name] = (psf * s.difference[48:73, 48:73]).sum() / (psf**2).sum()
    assert_allclose(fluxes["shown"], 1e6, rtol=0.01)
    if wide < 1.1:
        assert fluxes["own"] < 0.9e6


def test_zogy__registration_noise_is_no_detection():
    """Stars misplaced by 0.15 pixels: S/N of tens, unless the error of their places is told."""
    image, template = field((160, 200), n=60, shift=(0.15, 0.0), transient=(80.0, 100.0, 2e3))
    given = {**PSFS, **NOISE, "flux_ratio": 0.7, "shift": (0, 0)}
    blind = subtract_zogy(image, template, **given).significance
    counted = subtract_zogy(image, template, **given, shift_error=(0.15, 0.0))
    told = counted.significance
    away = np.hypot(*(np.indices(image.shape) - np.array([80, 100])[:, None, None])) > 12
    away[:15] = away[-15:] = away[:, :15] = away[:, -15:] = False
    assert np.nanmax(np.abs(blind[away])) > 20
    assert np.nanmax(np.abs(told[away])) < 6
    assert told[80, 100] > 20
    off = np.abs(subtract_zogy(image, template, **given).scaled)[away]
    assert np.nanmax(np.abs(counted.scaled[away])) < 5 < 10 < np.nanmax(off)


def test_zogy__float32_agrees():
    image, template = field((128, 144))
    a = subtract_zogy(image, template, **PSFS, **NOISE, flux_ratio=0.7, shift=(0, 0))
    b = subtract_zogy(
        image.astype(np.float32), template.astype(np.float32), **PSFS, **NOISE, flux_ratio=0.7, shift=(0, 0)
    )
    assert b.difference.dtype == np.float32
    assert np.nanmax(np.abs(a.scaled - b.scaled)) < 0.01
    assert (a.mask != b.mask).mean() < 1e-3


def test_zogy__errors_are_clear():
    image, template = field((64, 64), n=0)
    with pytest.raises(ValueError, match="star pixels are too few"):
        subtract_zogy(image, template, **PSFS)
    with pytest.raises(ValueError, match="do not show the same stars; check their WCS"):
        solve_match(Match(np.eye(4), -np.ones(4), 100))
    with pytest.raises(ValueError, match="odd sides"):
        subtract_zogy(image, template, image_psf=np.ones((4, 4)), template_psf=gaussian(1.2))
    with pytest.raises(ValueError, match="has the sum 0"):
        subtract_zogy(image, template, image_psf=np.zeros((5, 5)), template_psf=gaussian(1.2))
    with pytest.raises(ValueError, match=r"one \(y, x\) shape"):
        subtract_zogy(image, template[1:], **PSFS)
    with pytest.raises(ValueError, match="no good pixel in the template"):
        subtract_zogy(image, template * np.nan, **PSFS)
