"""PSFEx models: a file in their format, read, evaluated, and used."""

import numpy as np
import pytest
from astropy.io import fits

from survey.io.psfex import PsfexError, read_psfex
from survey.kernels.zogy import subtract_zogy
from survey.simulate.pairs import moffat, simulate_pair

SIDE, SAMPLING, SIZE = 41, 0.5, 128


def fwhm_at(y, x):
    return 2.8 + 0.6 * x / SIZE + 0.3 * y / SIZE


def write(path, names=("X_IMAGE", "Y_IMAGE")):
    """A model of degree 2, fitted to Moffats whose width varies over the image."""
    grid = (np.arange(SIDE) - SIDE // 2) * SAMPLING
    places = [(y, x) for y in (0, 40, 64, 90, 127) for x in (0, 30, 64, 100, 127)]
    samples = np.array([moffat(grid[:, None], grid[None, :], fwhm_at(y, x)) for y, x in places])
    zero, scale = 64.5, 127.0
    u, v = (np.array([(p[i] + 1 - zero) / scale for p in places]) for i in (1, 0))
    design = np.array([u**i * v**j for j in range(3) for i in range(3 - j)])
    components = np.linalg.lstsq(design.T, samples.reshape(len(places), -1), rcond=None)[0]
    column = fits.Column(
        "PSF_MASK", f"{6 * SIDE**2}E", dim=f"({SIDE},{SIDE},6)", array=components.reshape(1, 6, SIDE, SIDE)
    )
    table = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
    cards = {
        "POLNAXIS": 2,
        "POLDEG1": 2,
        "PSF_SAMP": SAMPLING,
        "PSFAXIS1": SIDE,
        "PSFAXIS2": SIDE,
        "PSFAXIS3": 6,
    }
    for i, name in enumerate(names, 1):
        cards |= {f"POLNAME{i}": name, f"POLZERO{i}": zero, f"POLSCAL{i}": scale, f"POLGRP{i}": 1}
    table.header.update(cards)
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)


def test_psf_at_a_position(tmp_path):
    write(tmp_path / "field.psf")
    psf = read_psfex(tmp_path / "field.psf")
    stamp = psf(20.0, 110.0)
    half = len(stamp) // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    true = moffat(y, x, fwhm_at(20.0, 110.0))
    assert stamp.sum() == pytest.approx(1)
    np.testing.assert_allclose(stamp, true / true.sum(), atol=2e-3 * true.max())


def test_zogy_takes_it(tmp_path):
    pair = simulate_pair((SIZE, SIZE), n_stars=40, n_transients=0, image_fwhm=(3.0, 3.0))
    write(tmp_path / "field.psf")
    psf = read_psfex(tmp_path / "field.psf")
    s = subtract_zogy(
        pair.image, pair.template, image_psf=psf, template_psf=pair.template_psf(), mask=pair.mask,
        template_mask=pair.template_mask, image_gain=pair.gain, template_gain=pair.template_gain,
    )  # fmt: skip
    assert abs(s.kernel.ratio / 0.8 - 1) < 0.05


def test_other_files(tmp_path):
    fits.PrimaryHDU(np.ones((3, 3))).writeto(tmp_path / "image.fits")
    with pytest.raises(PsfexError, match="no PSFEx model"):
        read_psfex(tmp_path / "image.fits")
    write(tmp_path / "seeing.psf", names=("X_IMAGE", "SEEING"))
    with pytest.raises(PsfexError, match="varies with X_IMAGE, SEEING"):
        read_psfex(tmp_path / "seeing.psf")
