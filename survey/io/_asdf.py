"""Frames in Roman level-2 ASDF files (extra ``roman``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS
from erfa import ErfaWarning

from survey.config import InputSettings
from survey.io._fits import first_line
from survey.io._fits_header import wcs_text
from survey.io._frame import (
    FrameError,
    FrameHeader,
    FrameSource,
    Planes,
    bare_name,
    cutout_window,
    fingerprint,
    resolve_bits,
)
from survey.io.times import mid_exposure, quiet

DO_NOT_USE, SATURATED = 1, 2
ROMAN_BAD = DO_NOT_USE | SATURATED
_UNSET = -999999.0
WCS_ERROR = 0.01
"""Largest error, in pixels, of the FITS WCS that stands for the file's own."""


@contextlib.contextmanager
def open_roman(path: str | Path) -> Iterator[Any]:
    """Open a Roman file; pixels are read when asked for.

    Raises
    ------
    FrameError
        If the extra is not installed, there is no such file, or it holds no image.
    """
    try:
        with quiet(AstropyWarning):
            import asdf
            import roman_datamodels  # noqa: F401  (its schemas)
    except ImportError:
        raise FrameError(
            path, "Roman ASDF files need asdf and roman_datamodels", "pip install 'survey[roman]'"
        ) from None
    try:
        handle = asdf.open(path, lazy_load=True, memmap=False)
    except FileNotFoundError:
        raise FrameError(path, "no such file") from None
    except Exception as error:  # asdf and yaml raise many kinds for one broken file
        reason = f"not an ASDF file, or damaged ({first_line(error)})"
        raise FrameError(path, reason, "fetch the file again or leave it out") from None
    with handle:
        roman = handle.tree.get("roman")
        if roman is None or "data" not in roman or "meta" not in roman:
            raise FrameError(path, "no roman.data in the file", "give level-2 images (…_cal.asdf)")
        yield roman


def _shape(path: str | Path, roman: Any) -> tuple[int, int]:
    shape = tuple(roman["data"].shape)
    if len(shape) != 2:
        raise FrameError(path, f"roman.data has shape {shape}, not (y, x)", "give level-2 images")
    return int(shape[0]), int(shape[1])


def make_header(path: str | Path, settings: InputSettings) -> FrameHeader:
    """Header of a Roman level-2 image."""
    with open_roman(path) as roman:
        return _header(path, roman, settings)


def _header(path: str | Path, roman: Any, settings: InputSettings) -> FrameHeader:
    meta = roman["meta"]
    shape = _shape(path, roman)
    y0, y1, x0, x1 = cutout_window(path, shape, settings)
    exposure = settings.exposure
    if exposure is None:
        exposure = _number(meta, "exposure", "exposure_time")
    instrument = meta.get("instrument", {})
    wcs = fits_wcs(meta.get("wcs"), shape)
    zero_point = _number(meta, "photometry", "conversion_megajanskys")
    area = _number(meta, "photometry", "pixel_area")
    return FrameHeader(
        source=FrameSource(str(path), 0),
        frame_id=bare_name(path),
        shape=(y1 - y0, x1 - x0),
        time=_time(path, meta, settings, exposure),
        time_scale="utc" if settings.time_scale == "auto" else settings.time_scale,
        band=str(instrument.get("optical_element", "")),
        detector=str(instrument.get("detector", "")),
        exposure=float("nan") if exposure is None else exposure,
        gain=settings.gain,
        read_noise=settings.read_noise,
        saturation=settings.saturation,
        zero_point=_ab_zero_point(zero_point, area),
        units=str(getattr(roman["data"], "unit", "") or "DN/s"),
        wcs_text=None if wcs is None else wcs_text(wcs[y0:y1, x0:x1]),
        origin=(y0, x0),
        fingerprint=f"{fingerprint(path)}#0",
        file_format="asdf",
        has_error="err" in roman,
        cards={"TELESCOP": str(meta.get("telescope", "ROMAN")), "INSTRUME": str(instrument.get("name", ""))},
    )


def _number(meta: Any, group: str, name: str) -> float | None:
    value = meta.get(group, {}).get(name) if meta.get(group) else None
    if value is None:
        return None
    number = float(getattr(value, "value", value))
    return None if number == _UNSET or not np.isfinite(number) else number


def _ab_zero_point(megajanskys: float | None, area: float | None) -> float | None:
    """AB magnitude of one unit, from MJy/sr and the pixel's steradians."""
    if not megajanskys or not area or megajanskys <= 0 or area <= 0:
        return None
    return float(-2.5 * np.log10(megajanskys * 1e6 * area / 3631.0))


def _time(path: str | Path, meta: Any, settings: InputSettings, exposure: float | None) -> float:
    start = meta.get("exposure", {}).get("start_time")
    if start is None:
        raise FrameError(path, "no meta.exposure.start_time in the file", "leave the frame out")
    end = meta["exposure"].get("end_time")
    scale = settings.time_scale if settings.time_scale != "auto" else "utc"
    with quiet(ErfaWarning):
        begin = float(getattr(start, scale).mjd)
        finish = float(getattr(end, scale).mjd) if end is not None else begin
    if finish > begin:
        return 0.5 * (begin + finish) + settings.time_offset_days
    if exposure is None or exposure < 0:
        reason = "neither meta.exposure.end_time nor exposure_time give the middle of the exposure"
        raise FrameError(path, reason, "set [input] exposure in seconds")
    return mid_exposure(begin + settings.time_offset_days, exposure, "start")


def fits_wcs(wcs: Any, shape: tuple[int, int]) -> WCS | None:
    """FITS WCS (TAN-SIP) within 0.01 px of a generalised WCS; None where the file has none.

    The frame's true distortion is kept by polynomials of as high a degree as that takes.
    """
    if wcs is None:
        return None
    ny, nx = shape
    box = ((-0.5, nx - 0.5), (-0.5, ny - 0.5))
    with quiet(AstropyWarning, RuntimeWarning):
        header = wcs.to_fits_sip(bounding_box=box, max_pix_error=WCS_ERROR, max_inv_pix_error=WCS_ERROR)
        return WCS(fits.Header(header))


def read_planes(path: str | Path, settings: InputSettings, rows: tuple[int, int]) -> Planes:
    """Pixels of a band of rows."""
    with open_roman(path) as roman:
        return planes_of(path, roman, settings, rows)


def planes_of(path: str | Path, roman: Any, settings: InputSettings, rows: tuple[int, int]) -> Planes:
    """Pixels of a band of rows of an open file."""
    from roman_datamodels.dqflags import pixel

    y0, y1, x0, x1 = cutout_window(path, _shape(path, roman), settings, rows)
    names = {bit.name: int(bit.value) for bit in pixel if bit.value}
    planes = {}
    try:
        for name in ("data", "err", "dq"):
            if name in roman and roman[name].shape[:2] == roman["data"].shape:
                values = roman[name][y0:y1, x0:x1]
                planes[name] = np.array(getattr(values, "value", values))
    except Exception as error:  # whatever asdf raises for a damaged block
        reason = f"the pixels cannot be read: truncated or damaged ({first_line(error)})"
        raise FrameError(path, reason, "fetch the file again or leave it out") from None
    error_plane = planes.get("err")
    return Planes(
        flux=planes["data"].astype(np.float32),
        error=None if error_plane is None else error_plane.astype(np.float32),
        dq=planes["dq"].astype(np.uint32) if "dq" in planes else None,
        bad_bits=resolve_bits(path, settings, ROMAN_BAD, names),
        saturated_bits=SATURATED,
    )
