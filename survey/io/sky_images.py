"""Images of the sky without a time: what templates are made of, before they are projected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS
from numpy.typing import NDArray

from survey.config import InputSettings
from survey.io import _fits, _fits_header
from survey.io._frame import FrameError
from survey.io.pixel_units import read_gain, read_zero_point
from survey.kernels.background import measure_background, noise_model

Floats = NDArray[np.float32]


@dataclass
class SkyImage:
    """Pixels of the sky with what is needed to place them.

    Attributes
    ----------
    flux, error : float32 array (y, x)
        In ``units``; error is 1-sigma.
    mask : bool array (y, x)
        True = bad.
    wcs : WCS
    units : str
    zero_point : float or None
        Magnitudes of one unit.
    name : str
        For messages and the record of what a template was made of.
    notes : dict
        What else is worth keeping of it.
    """

    flux: Floats
    error: Floats
    mask: NDArray[np.bool_]
    wcs: WCS
    units: str = ""
    zero_point: float | None = None
    name: str = ""
    notes: dict[str, Any] = field(default_factory=dict)


def sky_noise(flux: Floats, mask: NDArray[np.bool_], gain: float | None) -> Floats:
    """1-sigma errors of an image that brings none: scatter of its sky and, with a gain, photon noise.

    Parameters
    ----------
    gain : float or None
        Electrons per unit.

    Raises
    ------
    ValueError
        If there are too few good pixels.
    """
    sky = measure_background(flux, mask)
    if gain is None or not gain > 0:
        return np.full(flux.shape, sky.rms, np.float32)
    return noise_model(np.where(np.isfinite(flux), flux, sky.level), sky, gain).astype(np.float32)


def read_sky_image(path: str | Path, settings: InputSettings | None = None) -> SkyImage:
    """Read any FITS image with a WCS; error and quality planes are used where the file has them.

    Raises
    ------
    FrameError
        If the file cannot be read, has no WCS, or no good pixel.
    """
    settings = settings or InputSettings()
    with _fits.open_fits(path) as hdul:
        layout = _fits.find_layout(path, hdul, _fits.science_extensions(path, hdul, settings)[0], settings)
        header = hdul[layout.science].header
        cards = _fits_header.Cards(header, hdul[0].header)
        try:
            wcs = _fits_header.celestial_wcs(header, hdul)
        except ValueError as problem:
            raise FrameError(path, f"its WCS cannot be used ({problem})") from None
        if wcs is None:
            raise FrameError(path, "no WCS, so where its pixels lie on the sky is not known", "give it one")
        planes = _fits.read_planes(path, hdul, layout, settings, (0, layout.shape[0]))
        keys = settings.keywords
        exposure = _fits_header.read_exposure(path, cards, settings)
        gain = read_gain(path, cards, settings, exposure)[0]
        saturation = cards.number(path, keys.saturation, "saturation")
        zero_point = read_zero_point(path, cards, settings, exposure)[0]
        units = str(cards.first(keys.units)[1] or "")
    mask = ~np.isfinite(planes.flux)
    if saturation is not None:
        mask |= planes.flux >= saturation
    if planes.dq is not None:
        mask |= (planes.dq & np.uint32(planes.bad_bits)) != 0
    error = sky_noise(planes.flux, mask, gain) if planes.error is None else planes.error
    mask |= ~np.isfinite(error)
    if mask.all():
        raise FrameError(path, "every pixel is bad", "take another file")
    return SkyImage(planes.flux, error, mask, wcs, units, zero_point, str(path), kept_cards(header))


def open_image(path: str | Path) -> tuple[Floats, Header]:
    """Values and header of the only image of a FITS file, compressed or not; BLANK as NaN.

    Raises
    ------
    FrameError
        If there is no image, or it cannot be read.
    """
    with _fits.open_fits(path) as hdul:
        index = _fits.science_extensions(path, hdul, InputSettings())[0]
        ny, nx = _fits.image_shape(path, hdul, index)
        return _fits.read_image(path, hdul, index, (0, ny, 0, nx)), hdul[index].header.copy()


def image_wcs(header: Header) -> WCS | None:
    """WCS of an image's header; None where it has none that can be used."""
    try:
        return _fits_header.celestial_wcs(header)
    except ValueError:
        return None


def kept_cards(header: Mapping[str, Any]) -> dict[str, Any]:
    """Cards that tell where an image comes from."""
    names = ("TELESCOP", "INSTRUME", "FILTER", "BAND", "DATE-OBS", "MJD-OBS", "EXPTIME", "OBJECT")
    return {name: header[name] for name in names if isinstance(header.get(name), str | int | float)}
