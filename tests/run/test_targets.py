"""Positions on the sky of a field whose stored WCS has a distortion polynomial."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import survey
from survey.io._fits_header import wcs_text
from survey.run.targets import TargetError, pixel_to_sky, sky_to_pixel


@pytest.fixture
def field():
    cards = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "CRVAL1": 150.0, "CRVAL2": 20.0}
    cards |= {"CRPIX1": 500.5, "CRPIX2": 400.5, "CD1_1": -1e-3, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 1e-3}
    cards |= {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 2e-5, "B_0_2": 2e-5}
    text = wcs_text(WCS(fits.Header(cards)))
    return SimpleNamespace(attrs={"wcs": text}, path="field", shape=(800, 1000))


def test_a_target_lies_where_the_distortion_puts_it(field):
    """399.5 pixels right of the centre x moves by 2e-5 u^2 = 3.2 pixels before the linear part."""
    ra, dec = pixel_to_sky(field, [899.0], [399.5])
    u = 399.5 + 2e-5 * 399.5**2  # pixels from the centre on the tangent plane
    assert np.degrees(np.arctan(np.radians(1e-3 * u))) / np.cos(np.radians(20)) == pytest.approx(
        150.0 - ra[0], rel=1e-4
    )
    assert sky_to_pixel(field, ra[0], dec[0]) == pytest.approx((899.0, 399.5), abs=1e-4)


@pytest.mark.parametrize("place", [(330.0, -20.0), (100.0, 20.0)])
def test_a_position_that_does_not_project_is_an_error(field, place):
    with pytest.raises(TargetError, match="cannot be projected"):
        sky_to_pixel(field, *place)


def test_nobody_else_leaves_the_distortion_out():
    root = Path(survey.__file__).parent
    linear = re.compile(r"\.wcs_(world2pix|pix2world)")
    found = {str(p.relative_to(root)) for p in root.rglob("*.py") if linear.search(p.read_text())}
    assert found == {"io/sky_positions.py", "simulate/nn2_images.py"}
