"""Projection: flux conserved at any scale and rotation, noise and masks followed, mosaics."""

import numpy as np
import pytest
from astropy.wcs import WCS

from survey.io.sky_images import SkyImage
from survey.templates.project import TemplateError, project

FWHM = 2.4  # arcsec
RA, DEC = 150.0, 20.0


def make_wcs(scale, shape, rotation=0.0, ra=RA, dec=DEC, frame="ICRS"):
    """A tangent plane of `scale` arcsec a pixel around a middle."""
    wcs = WCS(naxis=2)
    angle = np.radians(rotation)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    matrix = np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.cd = matrix * scale / 3600
    wcs.wcs.radesys = frame
    return wcs


def make_image(wcs, shape, stars, sky=0.0, noise=0.0, fwhm=FWHM, seed=0):
    """Gaussian stars (ra, dec, flux) as an image sees them."""
    sigma = fwhm / 2.3548 / (abs(np.linalg.det(wcs.pixel_scale_matrix)) ** 0.5 * 3600)
    y, x = np.indices(shape)
    flux = np.full(shape, sky)
    for ra, dec, total in stars:
        cx, cy = wcs.world_to_pixel_values(ra, dec)
        flux += total * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    flux += np.random.default_rng(seed).normal(0, noise, shape) if noise else 0.0
    error = np.full(shape, noise or 1.0, np.float32)
    return SkyImage(flux.astype(np.float32), error, np.zeros(shape, bool), wcs, name="made")


STARS = [(RA, DEC, 1000.0), (RA + 0.003, DEC - 0.004, 500.0), (RA - 0.0041, DEC + 0.0023, 2000.0)]


@pytest.mark.parametrize("rotation", [0.0, 33.0])
@pytest.mark.parametrize("scale", [0.25, 0.6, 1.0, 1.3])
def test_a_star_keeps_its_flux_and_place(scale, rotation):
    shape, grid = (int(120 / scale), int(130 / scale)), make_wcs(1.0, (80, 90))
    image = make_image(make_wcs(scale, shape, rotation), shape, STARS)
    found = project([image], grid, (80, 90))
    assert found.coverage > 0.95
    flux = np.where(found.mask, 0.0, found.flux)
    y, x = np.indices(flux.shape)
    for ra, dec, total in STARS:
        cx, cy = grid.world_to_pixel_values(ra, dec)
        near = np.hypot(x - cx, y - cy) < 6
        assert flux[near].sum() == pytest.approx(total, rel=0.01)
        assert (flux * x)[near].sum() / flux[near].sum() == pytest.approx(cx, abs=0.03)
        assert (flux * y)[near].sum() / flux[near].sum() == pytest.approx(cy, abs=0.03)


@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_errors_are_those_of_averaged_noise(scale):
    shape, grid = (int(100 / scale), int(100 / scale)), make_wcs(1.0, (60, 60))
    found = project([make_image(make_wcs(scale, shape, 20), shape, [], noise=2.0)], grid, (60, 60))
    assert np.median(found.error) == pytest.approx(2.0 / scale, rel=0.02)
    # neighbours share light, so that the scatter of single pixels is somewhat smaller
    assert 0.6 < np.std(found.flux / found.error) < 1.05


def test_bad_pixels_spread_to_what_they_touch_and_no_further():
    shape, grid = (400, 400), make_wcs(1.0, (80, 80))
    image = make_image(make_wcs(0.25, shape), shape, STARS)
    image.mask[200, 200] = True
    image.flux[100:103, 100] = np.nan
    found = project([image], grid, (80, 80))
    cx, cy = grid.world_to_pixel_values(*make_wcs(0.25, shape).pixel_to_world_values(200, 200))
    y = np.nonzero(found.mask)[0]
    assert found.mask[round(float(cy)), round(float(cx))]
    assert 2 <= len(y) < 25
    assert np.isfinite(found.flux[~found.mask]).all()


def test_two_halves_make_a_whole_and_the_good_one_wins():
    shape, grid = (120, 120), make_wcs(1.0, (80, 80))
    whole = make_image(make_wcs(1.0, shape), shape, STARS)
    left, right = (make_image(make_wcs(1.0, shape), shape, STARS) for _ in range(2))
    left.mask[:, 70:] = True
    right.mask[:, :50] = True
    alone = project([left], grid, (80, 80))
    both, one = project([left, right], grid, (80, 80)), project([whole], grid, (80, 80))
    assert alone.coverage < 0.8
    assert both.coverage == one.coverage
    good = ~both.mask
    assert both.flux[good] == pytest.approx(one.flux[good], abs=1e-3)
    assert set(np.unique(both.origin[good])) == {0, 1}


def test_other_frames_of_the_sky_are_understood():
    shape, grid = (120, 120), make_wcs(1.0, (80, 80))
    galactic = WCS(naxis=2)
    galactic.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
    from astropy.coordinates import SkyCoord

    middle = SkyCoord(RA, DEC, unit="deg").galactic
    galactic.wcs.crval = [middle.l.deg, middle.b.deg]
    galactic.wcs.crpix = [60.5, 60.5]
    galactic.wcs.cdelt = [-1 / 3600, 1 / 3600]
    image = make_image(galactic, shape, [(middle.l.deg, middle.b.deg, 1000.0)])
    found = project([image], grid, (80, 80))
    y, x = np.indices((80, 80))
    flux = np.where(found.mask, 0, found.flux)
    assert (flux * x).sum() / flux.sum() == pytest.approx(39.5, abs=0.02)
    assert (flux * y).sum() / flux.sum() == pytest.approx(39.5, abs=0.02)


def test_nothing_on_the_field_is_an_error():
    image = make_image(make_wcs(1.0, (50, 50), ra=10.0), (50, 50), [])
    with pytest.raises(TemplateError, match="nothing of made lies on the field"):
        project([image], make_wcs(1.0, (80, 80)), (80, 80))


def test_a_seam_of_two_skies_shows_no_step():
    """Two halves that overlap by a few columns, one sky a hundred counts above the other."""
    wcs, rng = make_wcs(1.0, (60, 80)), np.random.default_rng(1)
    halves = []
    for columns, sky in ((slice(0, 44), 0.0), (slice(36, 80), 100.0)):
        cut = wcs[:, columns]
        flux = (sky + rng.normal(0, 1, (60, 44))).astype("f4")
        flux[20, 6] += 5000  # a star that only one of them has
        halves.append(SkyImage(flux, np.ones_like(flux), np.zeros(flux.shape, bool), cut))
    found = project(halves, wcs, (60, 80))
    left, right = np.median(found.flux[:, :36]), np.median(found.flux[:, 44:])
    assert abs(left - right) < 0.2
