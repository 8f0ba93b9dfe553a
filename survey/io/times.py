"""Times of exposures: header values to MJD at mid-exposure, and barycentric times, without network."""

from __future__ import annotations

import contextlib
import math
import re
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SCALES = ("utc", "tai", "tt", "tdb")
SECONDS_A_DAY = 86400.0
OFFSETS = {"mjd": 0.0, "jd": 2400000.5, "bkjd": -54832.5, "btjd": -56999.5}
"""Subtracted from a value to give MJD: MJD, JD, and BJD less Kepler's 2454833 or TESS's 2457000."""

_EPOCH = datetime(1858, 11, 17)
_CLOCK = re.compile(r"^\s*(\d{1,2})[:\s](\d{1,2})[:\s](\d{1,2}(?:\.\d*)?)\s*(?:[zZ]|[+-]00:?00)?\s*$")
_OLD_DATE = re.compile(r"^\s*(\d{2})/(\d{2})/(\d{2})\s*$")
_DATE_ONLY = re.compile(r"^\s*\d{4}-\d{2}-\d{2}\s*$")
_ISO = re.compile(r"^(\d{4}-\d{2}-\d{2})[T\s]+(\d{2}:\d{2}:\d{2}(?:\.\d*)?)\s*([zZ]|[+-]\d{2}:?\d{2})?$")
_WARNINGS = threading.RLock()


@contextlib.contextmanager
def quiet(*categories: type[Warning]) -> Iterator[None]:
    """Ignore these warnings in a block; one thread at a time, because filters belong to the process."""
    with _WARNINGS, warnings.catch_warnings():
        for category in categories:
            warnings.simplefilter("ignore", category)
        yield


def iso_to_mjd(text: str) -> float:
    """MJD of an ISO 8601 date, with or without time of day and offset from UT.

    Raises
    ------
    ValueError
        If the text is not a date.

    Examples
    --------
    >>> iso_to_mjd("2017-12-19T18:33:43.2-0700") == iso_to_mjd("2017-12-20T01:33:43.2Z")
    True
    >>> iso_to_mjd("20/12/99")
    51532.0
    """
    text = text.strip()
    if old := _OLD_DATE.match(text):
        day, month, year = (int(part) for part in old.groups())
        return float((datetime(1900 + year, month, day) - _EPOCH).days)
    if not (match := _ISO.match(text)):
        return _days(datetime.fromisoformat(text))
    date, clock, offset = match.groups()
    days = float((datetime.fromisoformat(date) - _EPOCH).days)
    seconds = round(clock_to_hours(clock) * 3600.0, 6)
    if offset and offset not in "zZ":
        minutes = 60 * int(offset[1:3]) + int(offset[-2:])
        seconds += 60.0 * minutes if offset[0] == "-" else -60.0 * minutes
    return days + seconds / SECONDS_A_DAY


def _days(moment: datetime) -> float:
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return (moment - _EPOCH) / timedelta(days=1)


def clock_to_hours(value: Any) -> float:
    """Hours of a time of day: ``"01:33:43.3"``, or a number of hours.

    Raises
    ------
    ValueError
        If it is neither, or not within a day.

    Examples
    --------
    >>> clock_to_hours("06:30:00")
    6.5
    """
    if isinstance(value, str) and (match := _CLOCK.match(value)):
        hours, minutes, seconds = (float(part) for part in match.groups())
        if hours >= 24 or minutes >= 60 or seconds >= 61:
            raise ValueError(f"{value!r} is not a time of day")
        return hours + minutes / 60.0 + seconds / 3600.0
    hours = float(value)
    if not 0 <= hours < 24:
        raise ValueError(f"{value!r} is not a time of day in hours")
    return hours


def combine_date_and_clock(date: str, clock: Any, day_starts: float = 0.0) -> float:
    """MJD from a date and a time of day given apart.

    Parameters
    ----------
    date : str
        ISO date; a time of day in it is dropped.
    clock : str or float
        ``"hh:mm:ss"`` or hours. A full date and time is taken as it is.
    day_starts : float
        Time of day, in hours, at which the date changes in this header. With the date of the evening
        kept through the night give 12 or so: times of day before it belong to the next calendar day.

    Examples
    --------
    >>> night = [combine_date_and_clock("2017-12-19", t, day_starts=12) for t in ("23:59:00", "00:01:00")]
    >>> round((night[1] - night[0]) * 1440)
    2
    """
    if isinstance(clock, str) and re.match(r"\s*\d{4}-", clock):
        return iso_to_mjd(clock)
    hours = clock_to_hours(clock)
    day = iso_to_mjd(re.split(r"[T\s]", date.strip())[0])
    return day + hours / 24.0 + (1.0 if hours < day_starts else 0.0)


def value_to_mjd(value: Any, time_format: str = "auto") -> float:
    """MJD of a header value: MJD, JD, ISO date, Kepler or TESS day, or any format of astropy.

    With ``"auto"`` text is an ISO date and numbers above 2,400,000 are JD, others MJD.

    Raises
    ------
    ValueError
        If the value is not a time in this format.

    Examples
    --------
    >>> value_to_mjd(2458107.5), value_to_mjd(58107), value_to_mjd(2698.25, "bkjd")
    (58107.0, 58107.0, 57530.75)
    """
    number = _number(value)
    if time_format == "auto":
        if number is None:
            return _full_iso(str(value))
        if number > 2400000.5:
            return number - OFFSETS["jd"]
        if not 10000 <= number < 200000:
            raise ValueError(f"{value!r} is neither MJD nor JD")
        return number
    if time_format in OFFSETS:
        if number is None:
            raise ValueError(f"{value!r} is not a number")
        return number - OFFSETS[time_format]
    if time_format in ("iso", "isot", "fits"):
        return _full_iso(str(value))
    return _astropy_mjd(value if number is None else number, time_format)


def is_date_only(value: Any) -> bool:
    """Whether a header value is a date without time of day.

    Examples
    --------
    >>> is_date_only("2009-06-01"), is_date_only("2009-06-01T02:03:04")
    (True, False)
    """
    return isinstance(value, str) and bool(_DATE_ONLY.match(value) or _OLD_DATE.match(value))


def _full_iso(text: str) -> float:
    if is_date_only(text):
        raise ValueError("a date without time of day")
    return iso_to_mjd(text)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _astropy_mjd(value: Any, time_format: str) -> float:
    from astropy.time import Time
    from erfa import ErfaWarning

    if time_format not in Time.FORMATS:
        raise ValueError(
            f"no time format {time_format!r}; known: auto, {', '.join([*OFFSETS, *Time.FORMATS])}"
        )
    with quiet(ErfaWarning):
        return float(Time(value, format=time_format).mjd)


def mid_exposure(mjd: float, exposure: float, reference: str) -> float:
    """MJD of the middle of an exposure of `exposure` seconds from its start, middle or end."""
    shift = {"start": 0.5, "middle": 0.0, "end": -0.5}[reference]
    return mjd + shift * exposure / SECONDS_A_DAY


def to_bjd_tdb(
    mjd: ArrayLike,
    ra: float,
    dec: float,
    *,
    scale: str = "utc",
    site: tuple[float, float, float] | None = None,
) -> NDArray[np.float64]:
    """Barycentric Julian dates (TDB) of times at a site, with what astropy carries, without network.

    Parameters
    ----------
    mjd : array (time,)
        Times at the observer.
    ra, dec : float
        Target, ICRS degrees.
    scale : str
        Scale of `mjd`.
    site : (longitude, latitude, height), optional
        Degrees east, degrees, metres. Without it the centre of the Earth stands in: an error of up to
        21 ms.

    Returns
    -------
    bjd_tdb : array (time,)
        From astropy's built-in ephemeris: a few milliseconds.

    Examples
    --------
    >>> bjd = to_bjd_tdb([58107.2], 31.0427, 46.6878, site=(-110.88, 31.68, 1268.0))
    >>> round(float(bjd[0]) - 2458107.7, 4)
    0.0044
    """
    from astropy import units
    from astropy.coordinates import EarthLocation, SkyCoord
    from astropy.time import Time
    from astropy.utils import iers
    from astropy.utils.exceptions import AstropyWarning
    from erfa import ErfaWarning

    where = (
        EarthLocation.from_geocentric(0.0, 0.0, 0.0, unit=units.m)
        if site is None
        else EarthLocation.from_geodetic(site[0], site[1], site[2])
    )
    target = SkyCoord(ra, dec, unit="deg")
    with (
        quiet(ErfaWarning, AstropyWarning),
        iers.conf.set_temp("auto_download", False),
        iers.conf.set_temp("auto_max_age", None),
        iers.conf.set_temp("iers_degraded_accuracy", "ignore"),
    ):
        times = Time(np.asarray(mjd, float), format="mjd", scale=scale, location=where)
        delay = times.light_travel_time(target, kind="barycentric", ephemeris="builtin")
        return np.asarray((times.tdb + delay).jd, float)
