"""A field of arrays in memory, without any file of the user's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

from survey.config import Config
from survey.io._cubes import write_cube
from survey.io.locations import locate
from survey.io.store import FieldError, holds_frames
from survey.run.api import create_field
from survey.run.engine import Progress
from survey.run.ingest import IngestSummary

# MJD 0 as numpy counts days.
_MJD_ZERO = np.datetime64("1858-11-17", "ns")


def create_field_from_cube(
    path: str | Path,
    flux: ArrayLike | xr.DataArray,
    error: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    *,
    time: ArrayLike | None = None,
    wcs: WCS | None = None,
    units: str = "",
    config: Config | None = None,
    client: Any = None,
    progress: Progress | None = None,
) -> IngestSummary:
    """Make a field of arrays (time, y, x).

    The arrays are kept as a FITS cube in the field, which is from then on like any other: more frames can be
    appended, every method finds the frames as they were taken.

    Parameters
    ----------
    path : path
        Directory of the new field; no bucket, since the arrays are kept there as a file.
    flux : array or DataArray (time, y, x)
        Calibrated counts; NaN where there is no value. A plane without any value is left out. A DataArray
        brings its coordinate ``time`` and its attribute ``units``.
    error : array, optional
        1-sigma errors of the same shape or one that broadcasts to it; by default measured in each frame.
    mask : bool array, optional
        True = bad.
    time : array (time,)
        MJD at mid-exposure, or datetime64.
    wcs : astropy.wcs.WCS, optional
        Sky coordinates of all planes.
    units : str
        Of the flux.
    config, client, progress
        As in `survey.create_field`. Without WCS frames are registered by their stars, unless
        ``[registration] mode = "none"`` says that they lie on one another.

    Raises
    ------
    ValueError
        If shapes do not match, or no time is given.
    FieldError
        If there is a field at the path already, or the path is a URL.

    Examples
    --------
    >>> create_field_from_cube("field", flux, time=mjd, config=config)  # doctest: +SKIP
    """
    place = locate(path)
    if not isinstance(place, Path):
        raise FieldError(
            f"{path}: arrays are kept as a file beside the field, so give a directory; for a field in a "
            "bucket write them to a FITS file and give that to create_field"
        )
    if holds_frames(place):
        raise FieldError(f"{path}: there is a field already; give another directory")
    data = flux.transpose("time", ...) if isinstance(flux, xr.DataArray) else np.asarray(flux)
    if data.ndim != 3:
        raise ValueError(f"flux must be (time, y, x), not {data.shape}")
    if isinstance(flux, xr.DataArray):
        time = flux["time"] if time is None and "time" in flux.coords else time
        units = units or str(flux.attrs.get("units", ""))
    moments = _mjd(time, len(data))
    header = fits.Header() if wcs is None else wcs.to_header(relax=True)
    header["BUNIT"] = units
    shape = tuple(data.shape)
    sigma = None if error is None else _as(error, shape, "error").astype(np.float32)
    bad = None if mask is None else _as(mask, shape, "mask").astype(bool)
    file = place / "input" / "cube.fits"
    file.parent.mkdir(parents=True, exist_ok=True)
    # what an attempt that was refused has left is replaced, never half of it
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        write_cube(partial, np.asarray(data), sigma, bad, moments, header)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return create_field(place, [file], config, client=client, progress=progress)


def _as(values: Any, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    values = values.transpose("time", ...) if isinstance(values, xr.DataArray) else np.asarray(values)
    try:
        return np.broadcast_to(np.asarray(values), shape)
    except ValueError:
        raise ValueError(f"{name} of shape {np.shape(values)} does not fit flux {shape}") from None


def _mjd(time: Any, planes: int) -> NDArray[np.float64]:
    if time is None:
        raise ValueError("no times: give time = MJD at mid-exposure of every plane")
    values = np.asarray(time)
    if values.shape != (planes,):
        raise ValueError(f"time has shape {values.shape}, flux {planes} planes")
    if values.dtype.kind == "M":
        return np.asarray((values.astype("M8[ns]") - _MJD_ZERO) / np.timedelta64(1, "D"), np.float64)
    return values.astype(np.float64)
