"""PSFs that others made: one image, a gridded library, a PSFEx model."""

import numpy as np
import pytest
from astropy.io import fits

from survey.config import Config, ConfigError
from survey.io.psf_files import read_psf_file
from survey.io.store import Field
from survey.kernels.psf import gaussian_epsf
from survey.stages import psf
from tests.io.test_psfex import fwhm_at, moffat, write

OVERSAMPLING, SIDE = 5, 15
GRID_Y, GRID_X = np.array([10.0, 90.0]), np.array([5.0, 50.0, 95.0])


def plane(y, x):
    return gaussian_epsf(1.2 + 0.004 * y + 0.002 * x, OVERSAMPLING, SIDE).samples[0, 0]


def library(path, shuffled=True, **changes):
    """A cube as STPSF writes them, the planes in no order."""
    places = [(y, x) for y in GRID_Y.tolist() for x in GRID_X.tolist()]
    order = [4, 0, 5, 2, 1, 3] if shuffled else range(6)
    hdu = fits.PrimaryHDU(np.array([plane(*places[k]) for k in order]))
    hdu.header["OVERSAMP"] = OVERSAMPLING
    for i, k in enumerate(order):
        hdu.header[f"DET_YX{i}"] = str(places[k])
    hdu.header.update(changes)
    hdu.writeto(path)


def expected(y, x):
    return gaussian_epsf(1.2 + 0.004 * y + 0.002 * x, OVERSAMPLING, SIDE).evaluate(0.2, -0.3, 9)[0]


def check(found):
    for y, x in ((10.0, 5.0), (90.0, 95.0), (10.0, 50.0)):
        np.testing.assert_allclose(found.evaluate(0.2, -0.3, 9, y, x)[0], expected(y, x), atol=1e-6)
    middle = (expected(10.0, 5.0) + expected(90.0, 5.0)) / 2
    np.testing.assert_allclose(found.evaluate(0.2, -0.3, 9, 50.0, 5.0)[0], middle, atol=1e-6)


def test_a_library_of_planes_is_put_on_its_grid(tmp_path):
    library(tmp_path / "library.fits")
    check(read_psf_file(tmp_path / "library.fits", 2, True))  # the file's own oversampling holds


def test_four_dimensions_with_their_grid(tmp_path):
    planes = np.array([[plane(y, x) for x in GRID_X] for y in GRID_Y])
    grids = [fits.ImageHDU(GRID_Y, name="GRID_Y"), fits.ImageHDU(GRID_X, name="GRID_X")]
    fits.HDUList([fits.PrimaryHDU(planes), *grids]).writeto(tmp_path / "grid.fits")
    check(read_psf_file(tmp_path / "grid.fits", OVERSAMPLING, True))


def test_one_image_serves_the_whole_field(tmp_path):
    fits.PrimaryHDU(plane(10.0, 5.0)).writeto(tmp_path / "psf.fits")
    found = read_psf_file(tmp_path / "psf.fits", OVERSAMPLING, True)
    np.testing.assert_allclose(found.evaluate(0.2, -0.3, 9, 77.0, 3.0)[0], expected(10.0, 5.0), atol=1e-6)


def test_a_model_of_psfex_varies_over_the_field(tmp_path):
    write(tmp_path / "field.psf")
    found = read_psf_file(tmp_path / "field.psf", 4, False)
    at = np.arange(-10, 11)
    for y, x in ((20.0, 110.0), (100.0, 15.0)):
        true = moffat(at[:, None] - 0.3, at[None, :] + 0.2, fwhm_at(y, x))
        stamp = found.evaluate(0.3, -0.2, 21, y, x)[0]
        np.testing.assert_allclose(stamp, true / true.sum(), atol=0.01 * stamp.max())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DET_YX2": "here"}, "plane 2 of 6 has no position"),
        ({"DET_YX0": "(10.0, 5.0)"}, "are no grid"),
    ],
)
def test_a_library_without_its_grid_is_refused(tmp_path, changes, message):
    library(tmp_path / "library.fits", **changes)
    with pytest.raises(ConfigError, match=rf"library.fits: .*{message}"):
        read_psf_file(tmp_path / "library.fits", 4, True)


def test_what_holds_no_psf_is_named(tmp_path):
    (tmp_path / "none.fits").write_text("nothing")
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    for name in ("none.fits", "empty.fits", "missing.fits"):
        with pytest.raises(ConfigError, match=name):
            read_psf_file(tmp_path / name, 4, True)


def test_settings_take_it_and_the_field_keeps_its_grid_and_its_identity(tmp_path):
    library(tmp_path / "library.fits")
    file = str(tmp_path / "library.fits")
    config = Config(psf={"file": file})
    built = psf.build(psf.read_stars(None, np.zeros((0, 2), int), config), config)
    field = Field.create(tmp_path / "field", (32, 32), {"tile_size": 32, "time_block": 8, "units": "count"})
    with pytest.raises(ConfigError, match=r"missing\.fits: no such file"):
        psf.file_identity(field, str(tmp_path / "missing.fits"))
    psf.save(field, built, file)
    check(psf.load(field))
    known = psf.file_identity(field, file)
    (tmp_path / "library.fits").unlink()
    assert psf.file_identity(field, file) == known, "what is complete needs its files no more"
    library(tmp_path / "library.fits", shuffled=False)
    assert psf.file_identity(field, file) != known
