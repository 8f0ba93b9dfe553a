"""A PSF named in the settings asks for no stars."""

import numpy as np
import pytest

from survey.config import Config, ConfigError, make_config
from survey.kernels.psf import gaussian_epsf
from survey.stages import psf


def test_a_gaussian_of_the_width_asked_for():
    config = Config(psf={"fwhm": 1.6})
    assert psf.partial(None, config).y.size == 0
    none = psf.read_stars(None, np.zeros((0, 2), int), config)
    built = psf.build(none, config)
    stamp = built.evaluate(0.2, -0.3, 9)
    np.testing.assert_array_equal(stamp, gaussian_epsf(1.6).evaluate(0.2, -0.3, 9))
    assert built.fwhm == pytest.approx(1.6, rel=0.2)  # the pixel widens it


def test_without_it_too_few_stars_name_the_way_out():
    none = psf.read_stars(None, np.zeros((0, 2), int), Config())
    with pytest.raises(psf.PsfError, match=r"only 0 unspoilt stars .* or fwhm = 1.6"):
        psf.build(none, Config())


def test_file_and_fwhm_are_not_both_taken():
    with pytest.raises(ConfigError, match="give file or fwhm, not both"):
        make_config({"psf": {"file": "psf.fits", "fwhm": 1.6}})
