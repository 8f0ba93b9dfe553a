"""Between pixels and the sky with a distortion polynomial, from astropy's forward transform."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from survey.io._fits_header import wcs_text
from survey.io.frames import parse_wcs
from survey.io.sky_positions import pixels_to_sky, sky_to_pixels


@pytest.fixture
def wcs():
    """A camera whose corners SIP moves by up to 8 pixels; it brings no inverse polynomial."""
    cards = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CRVAL1": 150.0, "CRVAL2": 20.0}
    cards |= {"CRPIX1": 500.5, "CRPIX2": 400.5, "CD1_1": -1e-3, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 1e-3}
    cards |= {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 2e-5, "A_0_2": 1e-5, "B_1_1": -2e-5, "B_0_2": 2e-5}
    return parse_wcs(wcs_text(WCS(fits.Header(cards))))


def test_the_distortion_counts_both_ways(wcs):
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 1000, 50), rng.uniform(0, 800, 50)
    ra, dec = pixels_to_sky(wcs, x, y)
    np.testing.assert_allclose(np.transpose([ra, dec]), wcs.all_pix2world(np.transpose([x, y]), 0))
    back = sky_to_pixels(wcs, ra, dec)
    np.testing.assert_allclose(back, (x, y), atol=1e-5)
    linear = wcs.wcs_world2pix(np.transpose([ra, dec]), 0)
    assert np.abs(linear - np.transpose([x, y])).max() > 3


def test_what_does_not_project_is_nan_and_spoils_nothing(wcs):
    ra, dec = pixels_to_sky(wcs, [10.0, 700.0], [20.0, 600.0])
    far = [
        330.0,
        np.nan,
        100.0,
    ]  # the other side of the sky, nothing, and where the polynomial has no inverse
    x, y = sky_to_pixels(wcs, [*far, *ra], [-20.0, 0.0, 20.0, *dec])
    assert np.isnan(x[:3]).all()
    np.testing.assert_allclose((x[3:], y[3:]), ([10.0, 700.0], [20.0, 600.0]), atol=1e-5)


def test_nothing_and_single_positions(wcs):
    assert [len(v) for v in (*sky_to_pixels(wcs, [], []), *pixels_to_sky(wcs, [], []))] == [0] * 4
    assert [v.shape for v in sky_to_pixels(wcs, 150.0, 20.0)] == [(1,), (1,)]
