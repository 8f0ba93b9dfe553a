import numpy as np
import pytest
from test_registration import rotation_map, star_list

from survey.kernels.astrometry import field_from_positions, solve_field, tangent_plane
from survey.kernels.registration import RegistrationError


def sky_field(seed, angle, mirrored, n=150):
    rng = np.random.default_rng(seed)
    ra, dec = 31.3 + rng.uniform(-0.7, 0.7, n), 46.77 + rng.uniform(-0.4, 0.4, n)
    xi, eta = (a * 3600 / 5.21 for a in tangent_plane(ra, dec, 31.25, 46.80))
    turned = rotation_map(angle, 325.0, 250.0, center=(0.0, 0.0))
    x, y = turned.evaluate(xi if mirrored else -xi, eta)
    x, y = x + rng.normal(0, 0.1, n), y + rng.normal(0, 0.1, n)
    flux = 10 ** rng.uniform(3, 5, n)
    inside = (x > 0) & (x < 650) & (y > 0) & (y < 500)
    return ra[inside], dec[inside], flux[inside], x[inside], y[inside]


@pytest.mark.parametrize(("angle", "mirrored"), [(1.5, False), (178.0, False), (-63.0, True)])
def test_solve_field__a_dozen_bright_stars_give_the_sky(angle, mirrored):
    ra, dec, flux, x, y = sky_field(4, angle, mirrored)
    brightest = np.argsort(-flux)[:14]
    given = brightest[[0, 1, 3, 4, 6, 8, 9, 11, 13]]
    table_ra, table_dec = np.append(ra[given], 31.11), np.append(dec[given], 46.71)
    solution = solve_field(
        star_list(x, y, flux), table_ra, table_dec, center_ra=31.3, center_dec=46.77, scale=5.26
    )
    assert solution.n_matched == 9
    assert solution.scale == pytest.approx(5.21, rel=2e-3)
    px, py = solution.sky_to_pixel(ra, dec)
    assert np.hypot(px - x, py - y).max() < 1.5
    back_ra, back_dec = solution.pixel_to_sky(px, py)
    np.testing.assert_allclose(back_ra, ra, atol=1e-9)
    np.testing.assert_allclose(back_dec, dec, atol=1e-9)


def test_solve_field__header_agrees_with_astropy():
    from astropy.io import fits
    from astropy.wcs import WCS

    ra, dec, flux, x, y = sky_field(5, 10.0, False)
    chosen = np.argsort(-flux)[:8]
    solution = solve_field(
        star_list(x, y, flux),
        ra[chosen],
        dec[chosen],
        center_ra=31.3,
        center_dec=46.77,
        scale=5.21,
        parity=1,
        center_pixel=(324.5, 249.5),
    )
    wcs = WCS(fits.Header(solution.header()))
    np.testing.assert_allclose(wcs.all_world2pix(ra, dec, 0), solution.sky_to_pixel(ra, dec), atol=1e-6)


def test_solve_field__refuses_positions_of_another_field():
    _, _, flux, x, y = sky_field(6, 0.0, False)
    ra, dec, *_ = sky_field(7, 0.0, False)
    for n, match in ((8, "chance|no orientation"), (3, "at least 4")):
        with pytest.raises(RegistrationError, match=match):
            solve_field(star_list(x, y, flux), ra[:n], dec[:n], center_ra=31.3, center_dec=46.77, scale=5.21)


@pytest.mark.parametrize("mirrored", [False, True])
def test_field_from_positions__one_anchors_two_turn_three_fix(mirrored):
    ra, dec, _, x, y = sky_field(8, 20.0, mirrored)
    parity = -1 if mirrored else 1
    one = field_from_positions(ra[:1], dec[:1], x[:1], y[:1], scale=5.21, rotation=20.0, parity=parity)
    px, py = one.sky_to_pixel(ra, dec)
    assert np.hypot(px - x, py - y).max() < 3
    far = np.argsort(x)[[0, -1]]
    two = field_from_positions(ra[far], dec[far], x[far], y[far], scale=5.3, parity=parity)
    assert two.scale == pytest.approx(5.21, rel=2e-3)
    px, py = two.sky_to_pixel(ra, dec)
    assert np.hypot(px - x, py - y).max() < 2
    many = field_from_positions(ra[:20], dec[:20], x[:20], y[:20], scale=5.3)
    px, py = many.sky_to_pixel(ra, dec)
    assert np.hypot(px - x, py - y).max() < 1
    assert many.rms < 0.3


def test_field_from_positions__refuses_nothing_and_a_line():
    with pytest.raises(ValueError, match="at least one pair"):
        field_from_positions([], [], [], [], scale=5.0)
    line = np.arange(3.0)
    with pytest.raises(ValueError, match="on one line"):
        field_from_positions(10 + 0 * line, 20 + line, 0 * line, 100 * line, scale=5.0)
