"""What a FITS header says of a frame: time, band, detector, camera, sky coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from survey.config import InputSettings
from survey.io import times
from survey.io._fits import Layout, first_line
from survey.io._frame import (
    FrameError,
    FrameHeader,
    FrameSource,
    bare_name,
    cutout_window,
    fingerprint,
)
from survey.io.pixel_units import read_gain, read_zero_point

CARDS = (
    *("OBJECT", "TELESCOP", "INSTRUME", "OBSERVAT", "DATE-OBS", "LST-OBS", "AIRMASS", "SEEING"),
    *("RA", "DEC", "RA_OBJ", "DEC_OBJ", "RA_TARG", "DEC_TARG", "OBJCTRA", "OBJCTDEC"),
    *("IM_SCALE", "PIXSCALE", "SECPIX", "LATITUDE", "LONGITUD", "SITELAT", "SITELONG"),
    *("OBSGEO-X", "OBSGEO-Y", "OBSGEO-Z", "OBSGEO-B", "OBSGEO-L", "OBSGEO-H"),
    *("KEPLERID", "TICID", "CAMPAIGN", "SECTOR"),
)


_LOOKUP = ("CPDIS1", "CPDIS2", "D2IMDIS1", "D2IMDIS2")
# Names of the FITS standard and of older files: each within 2 ms of, or equal to, what it is taken for.
_OTHER_NAMES = {"iat": "tai", "et": "tt", "tdt": "tt", "gmt": "utc"}
_SECONDS = {"d": 86400.0, "day": 86400.0, "days": 86400.0, "h": 3600.0, "min": 60.0, "ms": 1e-3}
CLOCKS = ("TIME-OBS", "UT-OBS", "UTC-OBS", "UT", "UTC", "UTSTART")
"""Keywords of the time of day where DATE-OBS holds a date alone."""


class Cards:
    """Header cards of an extension, then of the primary header."""

    def __init__(self, *headers: fits.Header) -> None:
        self.headers = headers

    def get(self, name: str) -> Any:
        """Value of a card, None where it is missing, blank or undefined."""
        for header in self.headers:
            value = header.get(name)
            if isinstance(value, fits.card.Undefined) or value is None or str(value).strip() == "":
                continue
            return value
        return None

    def first(self, names: Sequence[str]) -> tuple[str, Any]:
        """First card of a list that has a value; ("", None) if none has."""
        for name in names:
            value = self.get(name)
            if value is not None:
                return name, value
        return "", None

    def number(self, path: str | Path, names: Sequence[str], key: str) -> float | None:
        """First card of a list, as a finite number."""
        name, value = self.first(names)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise FrameError(path, f"{name} = {value!r} is no number", _set_keyword(key)) from None
        return number if np.isfinite(number) else None

    def kept(self) -> dict[str, Any]:
        """The cards worth keeping, as plain values."""
        found = {name: self.get(name) for name in CARDS}
        return {name: value for name, value in found.items() if isinstance(value, str | int | float)}


def _set_keyword(key: str) -> str:
    return f"set [input.keywords] {key} = ['NAME'] to the right keyword, or [] for none"


def make_header(
    path: str | Path,
    hdul: fits.HDUList,
    layout: Layout,
    index: int,
    many: bool,
    settings: InputSettings,
    own: fits.Header | None = None,
) -> FrameHeader:
    """Header of one frame of an open file; ``own`` stands in for the extension's."""
    hdu = hdul[layout.science]
    own = hdu.header if own is None else own
    cards = Cards(own) if layout.science == 0 else Cards(own, hdul[0].header)
    y0, y1, x0, x1 = cutout_window(path, layout.shape, settings)
    keys = settings.keywords
    exposure = settings.exposure
    if exposure is None:
        exposure = read_exposure(path, cards, settings)
    time, scale, warnings = read_time(path, cards, settings, exposure)
    gain, said = read_gain(path, cards, settings, exposure)
    warnings += said
    zero_point, said = read_zero_point(path, cards, settings, exposure)
    warnings += said
    read_noise = settings.read_noise
    if read_noise is None:
        read_noise = cards.number(path, keys.read_noise, "read_noise")
    saturation = settings.saturation
    if saturation is None:
        saturation = cards.number(path, keys.saturation, "saturation")
    try:
        wcs = celestial_wcs(hdu.header, hdul)
    except ValueError as error:
        wcs = None
        warnings.append(f"the header's WCS cannot be used ({first_line(error)})")
    if wcs is not None and any(key in hdu.header for key in _LOOKUP):
        warnings.append("the WCS has lookup-table distortions, which are left out; polynomials are kept")
    if layout.error is None and gain is None:
        warnings.append("no error extension and no gain: errors hold the sky's noise only; set [input] gain")
    return FrameHeader(
        source=FrameSource(str(path), index),
        frame_id=bare_name(path) + (f"#{index}" if many else ""),
        shape=(y1 - y0, x1 - x0),
        time=time,
        time_scale=scale,
        band=_text(cards.first(keys.band)[1]),
        detector=_text(cards.first(keys.detector)[1]),
        exposure=float("nan") if exposure is None else exposure,
        gain=gain,
        read_noise=read_noise,
        saturation=saturation,
        zero_point=zero_point,
        units=_text(cards.first(keys.units)[1]),
        wcs_text=None if wcs is None else wcs_text(wcs[y0:y1, x0:x1]),
        origin=(y0, x0),
        fingerprint=f"{fingerprint(path)}#{index}",
        has_error=layout.error is not None,
        has_dq=layout.dq is not None,
        cards=cards.kept(),
        warnings=tuple(warnings),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def celestial_wcs(header: fits.Header, hdul: fits.HDUList | None = None) -> WCS | None:
    """The sky coordinates of a header, None where it has none.

    Raises
    ------
    ValueError
        If its cards make no WCS.
    """
    if not any(key in header for key in ("CTYPE1", "CTYPE2")):
        return None
    lookup = any(key in header for key in _LOOKUP)
    try:
        with times.quiet(AstropyWarning):
            wcs = WCS(header, fobj=hdul if lookup else None)
            return wcs.celestial if wcs.has_celestial else None
    except Exception as error:  # wcslib's errors have no common base but Exception
        raise ValueError(first_line(error)) from None


def wcs_text(wcs: WCS) -> str:
    """FITS header text of a WCS, distortion polynomials included."""
    with times.quiet(AstropyWarning):
        return str(wcs.to_header(relax=True).tostring(padding=False, endcard=False))


def read_time(
    path: str | Path, cards: Cards, settings: InputSettings, exposure: float | None
) -> tuple[float, str, list[str]]:
    """MJD at mid-exposure, its scale, and warnings.

    Raises
    ------
    FrameError
        If no keyword gives a time, it cannot be read, or the exposure is missing where it is needed.
    """
    name, value = cards.first(settings.keywords.time)
    tried = ", ".join(settings.keywords.time) or "none"
    if value is None:
        raise FrameError(
            path, f"no time in the header (tried {tried})", "set [input.keywords] time = ['KEYWORD']"
        )
    way_out = "set [input.keywords] time, [input] time_format or date_keyword"
    try:
        clock = cards.first(CLOCKS)[1] if times.is_date_only(value) and not settings.date_keyword else None
        if clock is not None:
            mjd = times.combine_date_and_clock(str(value), clock, settings.day_starts)
        elif settings.date_keyword:
            date = cards.get(settings.date_keyword)
            if date is None:
                reason = f"no {settings.date_keyword} in the header for the date of {name} = {value!r}"
                raise FrameError(path, reason, "set [input] date_keyword")
            mjd = times.combine_date_and_clock(str(date), value, settings.day_starts)
        else:
            mjd = times.value_to_mjd(value, settings.time_format)
    except ValueError as error:
        if isinstance(error, FrameError):
            raise
        reason = f"{name} = {value!r} is no time ({first_line(error)})"
        raise FrameError(path, reason, way_out) from None
    reference = settings.time_reference
    if reference != "middle" and (exposure is None or not exposure >= 0):
        tried = ", ".join(settings.keywords.exposure) or "none"
        raise FrameError(
            path,
            f"no exposure time for the middle of the exposure (tried {tried})",
            "set [input.keywords] exposure or [input] exposure, or time_reference = 'middle'",
        )
    warnings = [] if settings.date_keyword else _cross_check(cards, name, mjd)
    mjd = times.mid_exposure(mjd + settings.time_offset_days, exposure or 0.0, reference)
    scale, said = read_time_scale(cards, settings)
    return mjd, scale, [*warnings, *said]


def read_exposure(path: str | Path, cards: Cards, settings: InputSettings) -> float | None:
    """Seconds; a comment may say another unit, as [d] in full frames of Kepler and TESS."""
    name, value = cards.first(settings.keywords.exposure)
    seconds = cards.number(path, settings.keywords.exposure, "exposure")
    if value is None or seconds is None:
        return seconds
    comment = next(h.comments[name] for h in cards.headers if name in h)
    return seconds * _SECONDS.get(comment.partition("[")[2].partition("]")[0].strip().lower(), 1.0)


def read_time_scale(cards: Cards, settings: InputSettings) -> tuple[str, list[str]]:
    """Scale of the times, UTC where the header names none, and a warning where it names one unknown."""
    if settings.time_scale != "auto":
        return settings.time_scale, []
    text = _text(cards.get("TIMESYS")).lower().split(" ")[0].split("(")[0]
    scale = _OTHER_NAMES.get(text, text or "utc")
    if scale in times.SCALES:
        return scale, []
    return "utc", [f"TIMESYS = {cards.get('TIMESYS')} is not known and taken for UTC; set [input] time_scale"]


def _cross_check(cards: Cards, name: str, mjd: float) -> list[str]:
    """Warn where DATE-OBS, read with its offset from UT, tells another time than the keyword used."""
    date = cards.get("DATE-OBS")
    if name == "DATE-OBS" or not isinstance(date, str) or ":" not in date:
        return []
    try:
        other = times.iso_to_mjd(date)
    except ValueError:
        return []
    seconds = abs(other - mjd) * times.SECONDS_A_DAY
    if seconds <= 1.0:
        return []
    return [f"{name} and DATE-OBS = {date} differ; {name} is used: see [input.keywords] time"]
