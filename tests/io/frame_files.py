"""FITS frames as tests need them."""

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

SHAPE = (40, 50)


def sky_image(seed=1, level=100.0, sigma=3.0, shape=SHAPE):
    return np.random.default_rng(seed).normal(level, sigma, shape).astype(np.float32)


def tan_wcs():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [268.0, -29.0]
    wcs.wcs.crpix = [20.0, 15.0]
    wcs.wcs.cdelt = [-3e-5, 3e-5]
    return wcs


def write(path, data=None, *, extensions=(), **cards):
    header = fits.Header()
    header.update({"MJD-OBS": 60000.5, "EXPTIME": 120.0, "FILTER": "W146", "DETECTOR": "A1"})
    for key, value in cards.items():
        header[key.replace("_", "-")] = value
    header = fits.Header([card for card in header.cards if card.value != "drop"])
    data = sky_image() if data is None else data
    hdus = [fits.PrimaryHDU(data, header)]
    for name, values in extensions:
        hdus.append(fits.ImageHDU(values, name=name))
    fits.HDUList(hdus).writeto(path)
    return str(path)
