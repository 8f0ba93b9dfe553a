"""Legacy Survey coadds: which bricks cover a field, their files, and which of their mask's bits mean bad."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table

from survey.io.sky_images import SkyImage, image_wcs, kept_cards, open_image
from survey.templates.fetch import Archive, ArchiveError, NotInArchiveError, discarded_if_damaged
from survey.templates.footprint import Footprint
from survey.templates.project import TemplateError

BASE = "https://portal.nersc.gov/cfs/cosmo/data/legacysurvey"
# The latest release of either part of the survey.
PARTS = ("dr10/south", "dr9/north")
BRICKS = "dr10/survey-bricks.fits.gz"
BANDS = "griz"
ZERO_POINT = 22.5  # of a nanomaggy
# Bits of maskbits, band by band: saturated, and bad in every exposure.
BAD_BITS = {"g": (2, 5), "r": (3, 6), "z": (4, 7), "i": (14, 15)}
# Degrees from a brick's middle to its corner.
_REACH = 0.19
_FITS = (b"SIMPLE",)


def images(footprint: Footprint, band: str, archive: Archive, base: str = BASE) -> Iterator[SkyImage]:
    """Coadds that cover a field, nearest brick first; south where both parts have one.

    Raises
    ------
    TemplateError
        If the band is not the survey's, or no brick covers the field.
    ArchiveError
        If the archive fails.
    """
    if band not in BANDS:
        raise TemplateError(f"the Legacy Survey has no band {band!r}, but {', '.join(BANDS)}; give --band")
    found = False
    for brick in find_bricks(footprint, archive, base):
        try:
            yield _read_brick(brick, band, archive, base)
            found = True
        except NotInArchiveError:
            continue
    if not found:
        raise TemplateError(
            f"the Legacy Survey has no {band} image at RA {footprint.ra:.4f}, Dec {footprint.dec:.4f}"
        )


def find_bricks(footprint: Footprint, archive: Archive, base: str = BASE) -> list[str]:
    """Names of the bricks that reach into a field, nearest first."""
    path = archive.fetch(f"{base}/{BRICKS}", starts=(b"\x1f\x8b", *_FITS))
    with discarded_if_damaged(path):
        table = Table.read(path, format="fits")
    names = {name.lower(): name for name in table.colnames}
    sky = SkyCoord(table[names["ra"]], table[names["dec"]], unit="deg")
    distance = sky.separation(footprint.middle).deg
    near = np.flatnonzero(distance < footprint.radius + _REACH)
    order = near[np.argsort(distance[near], kind="stable")]
    return [str(table[names["brickname"]][i]).strip() for i in order]


def _read_brick(brick: str, band: str, archive: Archive, base: str) -> SkyImage:
    for part in PARTS:
        stem = f"{base}/{part}/coadd/{brick[:3]}/{brick}/legacysurvey-{brick}"
        try:
            image = archive.fetch(f"{stem}-image-{band}.fits.fz", starts=_FITS)
        except NotInArchiveError as missing:
            problem = missing
            continue
        try:
            inverse = archive.fetch(f"{stem}-invvar-{band}.fits.fz", starts=_FITS)
            bits = archive.fetch(f"{stem}-maskbits.fits.fz", starts=_FITS)
        except NotInArchiveError as missing:
            raise ArchiveError(
                f"{part} {brick}: has an image, but not all that belongs to it: {missing}"
            ) from None
        with discarded_if_damaged(image, inverse, bits):
            return read_brick(image, inverse, bits, band, f"{part} {brick} {band}")
    raise problem


def read_brick(image: Path, inverse_variance: Path, maskbits: Path, band: str, name: str) -> SkyImage:
    """A brick's coadd in nanomaggies."""
    flux, header = open_image(image)
    weight, _ = open_image(inverse_variance)
    bits, _ = open_image(maskbits)
    bad_bits = sum(1 << bit for bit in BAD_BITS[band])
    bad = ~(weight > 0) | ~np.isfinite(flux)
    bad |= (np.where(np.isfinite(bits), bits, 0).astype(np.int64) & bad_bits) != 0
    error = np.sqrt(1 / np.where(weight > 0, weight, np.nan)).astype(np.float32)
    wcs = image_wcs(header)
    if wcs is None:
        raise TemplateError(f"{name}: no WCS in {image}; delete that file to fetch it again")
    return SkyImage(flux, error, bad, wcs, "nanomaggy", ZERO_POINT, name, kept_cards(header))
