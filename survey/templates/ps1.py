"""Pan-STARRS stacks: which sky cells cover a field, their files, and flux from their asinh scale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from survey.io.sky_images import SkyImage, kept_cards, open_image, sky_noise
from survey.templates.fetch import Archive, discarded_if_damaged
from survey.templates.footprint import Footprint
from survey.templates.project import TemplateError

BASE = "https://ps1images.stsci.edu"
BANDS = "grizy"
# Magnitudes of one count a second, in every stack.
ZERO_POINT = 25.0
# Bit 15 marks good pixels and is in no list of flags.
GOOD_MARK = 0x8000
_TYPES = ("stack", "stack.mask", "stack.wt")
_FITS = (b"SIMPLE",)
_PIXEL = 0.25  # arcsec
# Cutouts larger than this are no cutouts: the whole cell is 6240 pixels wide.
_LARGEST_CUTOUT = 2400
# Degrees between the positions that are asked for; a cell is 0.4 degrees wide.
_STEP = 0.2


def images(footprint: Footprint, band: str, archive: Archive, base: str = BASE) -> Iterator[SkyImage]:
    """Stacks that cover a field, nearest first.

    Raises
    ------
    TemplateError
        If the band is not Pan-STARRS', or its sky does not reach there.
    ArchiveError
        If the archive fails.
    """
    if band not in BANDS:
        raise TemplateError(f"Pan-STARRS has no band {band!r}, but {', '.join(BANDS)}; give --band")
    cells = find_cells(footprint, band, archive, base)
    if not cells:
        raise TemplateError(
            f"Pan-STARRS has no {band} image at RA {footprint.ra:.4f}, Dec {footprint.dec:.4f}: "
            "it covers the sky north of declination -30"
        )
    size = int(np.ceil(2 * footprint.radius * 3600 / _PIXEL)) + 40
    cut = len(cells) == 1 and size <= _LARGEST_CUTOUT
    for files in cells:
        paths = {
            kind: archive.fetch(_address(base, name, footprint, size if cut else None), starts=_FITS)
            for kind, name in files.items()
        }
        with discarded_if_damaged(*paths.values()):
            cell = read_cell(paths["stack"], paths.get("stack.mask"), paths.get("stack.wt"), files["stack"])
        yield cell


def _address(base: str, name: str, footprint: Footprint, size: int | None) -> str:
    if size is None:
        return f"{base}{name}"
    query = {"ra": f"{footprint.ra:.6f}", "dec": f"{footprint.dec:.6f}", "size": size, "format": "fits"}
    return f"{base}/cgi-bin/fitscut.cgi?{urlencode({**query, 'red': name})}"


def find_cells(footprint: Footprint, band: str, archive: Archive, base: str = BASE) -> list[dict[str, str]]:
    """Files of every sky cell that covers part of a field: type -> path on the server, nearest cell first."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for ra, dec in footprint.positions(_STEP):
        query = {"ra": f"{ra:.6f}", "dec": f"{dec:.6f}", "filters": band, "type": ",".join(_TYPES)}
        listing = archive.fetch(f"{base}/cgi-bin/ps1filenames.py?{urlencode(query)}", starts=(b"projcell",))
        for row in _rows(listing.read_text()):
            if row["filter"] == band and row["type"] in _TYPES and row.get("badflag", "0") == "0":
                cells.setdefault((row["projcell"], row["subcell"]), {})[row["type"]] = row["filename"]
    return [files for files in cells.values() if "stack" in files]


def _rows(text: str) -> list[dict[str, str]]:
    """Rows of the archive's list of files: names in the first line, columns apart by blanks."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]


def read_cell(stack: Path, mask: Path | None, variance: Path | None, name: str) -> SkyImage:
    """A sky cell, or a part of one, in counts a second.

    Values are stored as x = 2.5 log10 of a flux that asinh keeps finite about zero: with a = x ln(10) / 2.5,
    flux = BOFFSET + BSOFTEN (exp(a) - exp(-a)), over EXPTIME.
    """
    values, header = open_image(stack)
    exposure = header.get("EXPTIME")
    if not isinstance(exposure, int | float) or not exposure > 0:
        raise TemplateError(f"{name}: EXPTIME = {exposure!r}, so its flux is not known; delete {stack}")
    flux = (linear_flux(values, header) / exposure).astype(np.float32)
    bad = ~np.isfinite(flux)
    notes = kept_cards(header)
    if mask is not None:
        bits, _ = open_image(mask)
        known = np.isfinite(bits)
        bad |= ~known | ((np.where(known, bits, 0).astype(np.int64) & ~GOOD_MARK) != 0)
    saturation = header.get("CELL.SATURATION", header.get("HIERARCH CELL.SATURATION"))
    if isinstance(saturation, int | float) and saturation > 0:
        bad |= flux * exposure >= saturation
    if variance is not None:
        counts, its_header = open_image(variance)
        square = linear_flux(counts, its_header)
        error = (np.sqrt(np.where(square > 0, square, np.nan)) / exposure).astype(np.float32)
    else:
        gain = header.get("CELL.GAIN", header.get("HIERARCH CELL.GAIN"))
        error = sky_noise(flux, bad, exposure * gain if isinstance(gain, int | float) else None)
    bad |= ~np.isfinite(error)
    return SkyImage(flux, error, bad, cell_wcs(header), "count/s", ZERO_POINT, name, notes)


def linear_flux(values: ArrayLike, header: Header) -> NDArray[np.float64]:
    """Counts from a plane's asinh scale; values as they are where the header names no scale."""
    values = np.asarray(values, float)
    if "BSOFTEN" not in header or "BOFFSET" not in header:
        return values
    with np.errstate(over="ignore"):
        return float(header["BOFFSET"]) + 2 * float(header["BSOFTEN"]) * np.sinh(values * np.log(10) / 2.5)


def cell_wcs(header: Header) -> WCS:
    """WCS of a sky cell: its matrix is in cards of an old draft of the standard."""
    wanted = Header()
    for key in ("CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CDELT1", "CDELT2"):
        wanted[key] = header[key]
    for i in (1, 2):
        for j in (1, 2):
            for old in (f"PC00{i}00{j}", f"PC{i}_{j}"):
                if old in header:
                    wanted[f"PC{i}_{j}"] = header[old]
                    break
    wanted["RADESYS"] = header.get("RADESYS", "FK5")
    wanted["EQUINOX"] = 2000.0
    return WCS(wanted)
