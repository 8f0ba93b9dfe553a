"""Images out: FITS files with flux, error and mask, their WCS and where they come from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS
from numpy.typing import NDArray

from survey.io.times import quiet

# Extension of an array, with what its header calls it.
EXTENSIONS = {"flux": "SCI", "error": "ERR", "mask": "MASK"}


def write_fits(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    *,
    wcs: WCS | None = None,
    units: str = "",
    cards: Mapping[str, Any] | None = None,
    tables: Mapping[str, fits.BinTableHDU] | None = None,
) -> Path:
    """Write images as extensions of one FITS file, whole or not at all.

    Parameters
    ----------
    path : Path
    arrays : mapping
        Images (y, x) or cubes (time, y, x) by name; flux, error and mask become SCI, ERR and MASK, which
        `survey.io.frames` and other readers know. Masks are 8-bit, 1 = bad.
    wcs : WCS, optional
        Of the last two axes.
    units : str
        Of all floating-point arrays.
    cards : mapping
        Keyword -> value, or (value, comment), for the primary header; None is left out.
    tables : mapping
        Table extensions by name.
    """
    primary = fits.PrimaryHDU()
    for key, value in (cards or {}).items():
        if value is not None and not (isinstance(value, float) and not np.isfinite(value)):
            primary.header[key] = value
    hdus: list[Any] = [primary]
    sky = wcs_cards(wcs)
    for name, values in arrays.items():
        data = values.astype(np.uint8) if values.dtype == bool else values
        hdu = fits.ImageHDU(data, name=EXTENSIONS.get(name, name.upper()))
        hdu.header.update(sky)
        if data.dtype.kind == "f" and units:
            hdu.header["BUNIT"] = units
        hdus.append(hdu)
    for name, table in (tables or {}).items():
        table.name = name
        hdus.append(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with quiet(AstropyWarning):
            fits.HDUList(hdus).writeto(temporary, overwrite=True, checksum=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def wcs_cards(wcs: WCS | None) -> fits.Header:
    """Header cards of a WCS, distortions included; none without one."""
    if wcs is None:
        return fits.Header()
    with quiet(AstropyWarning):
        return wcs.to_header(relax=True)
