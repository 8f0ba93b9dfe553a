"""FITS cubes (time, y, x): one frame a plane, its time from a table beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from survey.config import InputSettings
from survey.io import _fits, _fits_header, times
from survey.io._frame import FrameError, FrameHeader, FrameSource, bare_name, resolve_bits

_WAY_OUT = "add a table with a column TIME (MJD at mid-exposure, or as [input] time_format says)"


def planes_of(path: str | Path, hdul: fits.HDUList, settings: InputSettings) -> int:
    """Number of planes of the file's image; 1 where it is no cube."""
    try:
        shape = hdul[_fits.science_extensions(path, hdul, settings)[0]].shape
    except FrameError:
        return 1
    return int(shape[0]) if len(shape) == 3 else 1


def layout(path: str | Path, hdul: fits.HDUList, settings: InputSettings) -> _fits.Layout:
    """Extensions of values, errors and quality, each with all planes or one for all."""
    science = _fits.science_extensions(path, hdul, settings)[0]
    return _fits.find_layout(path, hdul, science, settings, planes_of(path, hdul, settings))


def make_headers(
    path: str | Path, hdul: fits.HDUList, settings: InputSettings
) -> list[FrameHeader | FrameError]:
    """Headers of all planes, or why one is left out: no time, or bits of a column QUALITY."""
    found = layout(path, hdul, settings)
    time, quality = _table(path, hdul, planes_of(path, hdul, settings))
    bad = resolve_bits(path, settings, 0xFFFFFFFF, {})
    common = _common(path, hdul, found, settings)
    headers: list[FrameHeader | FrameError] = []
    for index, (value, bits) in enumerate(zip(time, quality, strict=True)):
        if bits & bad:
            headers.append(FrameError(path, f"plane {index}: QUALITY {bits}", kind="filtered"))
        elif not np.isfinite(value):
            headers.append(FrameError(path, f"plane {index} has no time", kind="filtered"))
        else:
            headers.append(_plane(path, index, float(value), common, settings))
    return headers


def _table(
    path: str | Path, hdul: fits.HDUList, planes: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Times and quality bits of the planes."""
    for hdu in hdul:
        names = [str(n).upper() for n in hdu.columns.names] if isinstance(hdu, fits.BinTableHDU) else []
        if "TIME" in names and len(hdu.data) == planes:
            quality = hdu.data["QUALITY"] if "QUALITY" in names else np.zeros(planes)
            return np.asarray(hdu.data["TIME"], np.float64), np.asarray(quality, np.int64)
    raise FrameError(path, f"a cube of {planes} planes without times", _WAY_OUT)


def _common(
    path: str | Path, hdul: fits.HDUList, found: _fits.Layout, settings: InputSettings
) -> FrameHeader:
    """What all planes share: a header whose time is still to be put in."""
    hdu = hdul[found.science]
    with_time = hdu.header.copy()
    # The cube's own times are in the table; a date in the header is that of the first plane at most.
    with_time["MJD-OBS"] = 0.0
    plain = settings.model_copy(
        update={
            "time_reference": "middle",
            "time_format": "mjd",
            "date_keyword": None,
            "keywords": settings.keywords.model_copy(update={"time": ["MJD-OBS"]}),
        }
    )
    return _fits_header.make_header(path, hdul, found, 0, True, plain, with_time)


def _plane(
    path: str | Path, index: int, value: float, common: FrameHeader, settings: InputSettings
) -> FrameHeader:
    mjd = times.value_to_mjd(value, settings.time_format) + settings.time_offset_days
    return replace(
        common,
        source=FrameSource(str(path), index),
        frame_id=f"{bare_name(path)}#{index}",
        time=mjd,
        fingerprint=f"{common.fingerprint.partition('#')[0]}#{index}",
        file_format="cube",
    )


def write_cube(
    path: str | Path,
    flux: NDArray[Any],
    error: NDArray[Any] | None,
    mask: NDArray[np.bool_] | None,
    time: NDArray[np.float64],
    header: fits.Header,
) -> None:
    """Write arrays (time, y, x) as `make_headers` reads them; time is MJD at mid-exposure."""
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.asarray(flux, np.float32), header, name="SCI")]
    if error is not None:
        hdus.append(fits.ImageHDU(np.asarray(error, np.float32), name="ERR"))
    if mask is not None:
        hdus.append(fits.ImageHDU(np.asarray(mask, np.uint8), name="DQ"))
    hdus.append(fits.BinTableHDU.from_columns([fits.Column("TIME", "D", array=time)], name="TIMES"))
    fits.HDUList(hdus).writeto(path)
